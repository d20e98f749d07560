"""The fields of `config.json` that OpenVLA's own code needs and ours does not.

Its `PrismaticConfig` (prismatic/extern/hf/configuration_prismatic.py) accepts only ids that its tables know, and looks
up `timm_model_ids`, `image_sizes` and `timm_override_act_layers` by them; the same fields of the file then replace what
it found. A model of other sizes therefore names the published model that it resembles.
"""

from __future__ import annotations

from typing import Any

from vla_agent.openvla.config import OpenVLAConfig

_LLM_ID = "llama2-7b-pure"
_CONTEXT = 2048


def published_fields(config: OpenVLAConfig) -> dict[str, Any]:
    """Values, by field, with which OpenVLA's own code builds this model."""
    fused = config.use_fused_vision_backbone
    return {
        "vision_backbone_id": _vision_backbone_id(config),
        "llm_backbone_id": _LLM_ID,
        "arch_specifier": "no-align+fused-gelu-mlp" if fused else "no-align+gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "timm_override_act_layers": [None] * len(config.timm_model_ids),
        "llm_max_length": config.text_config.get("max_position_embeddings", _CONTEXT),
        "output_projector_states": False,
    }


def _vision_backbone_id(config: OpenVLAConfig) -> str:
    large = any("384" in timm_id for timm_id in config.timm_model_ids)
    if config.use_fused_vision_backbone:
        return "dinosiglip-vit-so-384px" if large else "dinosiglip-vit-so-224px"
    if config.towers[0].is_dinov2:
        return "dinov2-vit-l"
    return "siglip-vit-so400m-384px" if large else "siglip-vit-so400m"

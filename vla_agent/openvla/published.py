"""The fields of `config.json` that OpenVLA's own code asks for and ours does not.

Its `PrismaticConfig` (prismatic/extern/hf/configuration_prismatic.py) takes only ids of its tables, by default those of
a model with one tower; what it looks up by them (`timm_model_ids`, `image_sizes`, `timm_override_act_layers`) gives way
to the same fields of the file. So a model of other sizes names the published one of its kind.
"""

from __future__ import annotations

from typing import Any

from vla_agent.openvla.config import OpenVLAConfig

_LLM_ID = "llama2-7b-pure"
_CONTEXT = 2048


def published_fields(config: OpenVLAConfig) -> dict[str, Any]:
    """Values that make OpenVLA's own code build this model; for each field of the file that is left out."""
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

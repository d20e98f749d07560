"""Small random policies of the real LeRobot, saved with their processors as its training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch as th

from libero_gym.tasks import get_tasks

CAMERAS = {"image": "agentview", "image2": "wrist"}
SIZE = 64


def save_policy(folder: Path, kind: str = "act", cameras: tuple[str, ...] = ("image", "image2"), **config: Any) -> Path:
    """Save a policy of a kind ("act", "vqbet", "smolvla"), with seed 0, and return its folder.

    Args:
        folder: Where to.
        kind: LeRobot's name of the kind. For "smolvla", the folder also gets a vision-language model, "vlm".
        cameras: What it calls its frames, without "observation.images.".
        **config: Further settings of the policy.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    inputs = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)) for name in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    small: dict[str, dict[str, Any]] = {
        "act": {
            "chunk_size": 8,
            "n_action_steps": 4,
            "dim_model": 32,
            "n_heads": 2,
            "dim_feedforward": 64,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "pretrained_backbone_weights": None,
        },
        "vqbet": {
            "crop_shape": None,
            "pretrained_backbone_weights": None,
            "n_obs_steps": 2,
            "action_chunk_size": 3,
            "n_action_pred_token": 2,
            "gpt_n_layer": 1,
            "gpt_n_head": 2,
            "gpt_hidden_dim": 32,
            "gpt_input_dim": 32,
            "gpt_output_dim": 32,
        },
        "smolvla": {
            "chunk_size": 8,
            "n_action_steps": 4,
            "vlm_model_name": str(folder / "vlm"),
            "num_vlm_layers": 2,
            "num_steps": 2,
            "resize_imgs_with_padding": (SIZE, SIZE),
        },
    }
    th.manual_seed(0)
    if kind == "smolvla":
        save_vlm(folder / "vlm")
    settings = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    made = make_policy_config(kind, **settings | small[kind] | config)
    policy = get_policy_class(kind)(made)
    before, after = make_pre_post_processors(made, dataset_stats=statistics([*inputs]))
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return folder


def save_vlm(folder: Path) -> None:
    """Save what SmolVLA is built from: a tiny SmolVLM's configuration, and a processor that knows LIBERO's words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    special = ["<pad>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n"]
    words = sorted({word for task in get_tasks("libero_spatial") for word in task.instruction.split()})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = dict(zip(("image_token", "fake_image_token", "global_image_token"), special[2:5], strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=named
    )
    sides = {"size": {"longest_edge": SIZE}, "max_image_size": {"longest_edge": SIZE}}
    processor = SmolVLMProcessor(SmolVLMImageProcessor(**sides), fast, SmolVLMVideoProcessor(**sides))
    processor.save_pretrained(folder)
    text = {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "vocab_size": len(vocabulary),
        "pad_token_id": 0,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision |= {"image_size": SIZE, "patch_size": 16}
    SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=2, pad_token_id=0).save_pretrained(folder)


def statistics(keys: list[str]) -> dict[str, dict[str, th.Tensor]]:
    """Statistics of a data set that no policy can ignore."""
    found = {}
    for key in [*keys, "action"]:
        shape = {"observation.state": (8,), "action": (7,)}.get(key, (3, 1, 1))
        center = th.linspace(-0.2, 0.3, shape[0]).reshape(shape)
        found[key] = {"mean": center, "std": center.abs() + 0.3, "min": center - 1.0, "max": center + 1.0}
    return found

"""Small OpenVLA models whose weights are all away from their initial values, and batches for them."""

from pathlib import Path

import numpy as np
import torch as th

from vla_agent.openvla import OpenVLA, tiny_config
from vla_agent.openvla.tiny import write_tiny

INSTRUCTIONS = [
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "open the drawer",
    "Öffne die Schublade №7 …",
]


def perturbed_tiny() -> OpenVLA:
    """The tiny model with every bias, scale and head weight away from its special initial value."""
    model = OpenVLA.from_pretrained("tiny")
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for name, parameter in model.named_parameters():
            strength = 0.1 if name.endswith("lm_head.weight") else 0.05
            parameter.add_(th.randn(parameter.shape, generator=generator), alpha=strength)
    return model


def make_batch(model: OpenVLA) -> dict[str, th.Tensor]:
    """Three prompts of different length with noise images and arbitrary actions."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    input_ids, attention_mask = model.tokenize(INSTRUCTIONS)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": model.preprocess(images),
        "bins": th.from_numpy(rng.integers(0, 256, (3, 7))),
    }


def make_parallel(folder: Path) -> tuple[OpenVLA, dict[str, th.Tensor]]:
    """A model of 8-step chunks from two cameras and the robot's state, and a batch for it."""
    config = tiny_config()
    config.action_chunk_size, config.decoding, config.num_images, config.use_state = 8, "parallel", 2, True
    config.norm_stats["libero"]["proprio"] = {"q01": [0.0] * 8, "q99": [2.0] * 8}
    write_tiny(folder, config=config)
    model = OpenVLA.from_pretrained(folder)
    generator = th.Generator().manual_seed(2)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(th.randn(parameter.shape, generator=generator), alpha=0.05)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 112, 112, 3), dtype=np.uint8)
    input_ids, attention_mask = model.tokenize(INSTRUCTIONS)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": model.preprocess(*images),
        "state": th.from_numpy(rng.uniform(-1, 1, (3, 8)).astype(np.float32)),
    }
    return model, inputs


def prompts(batch: dict[str, th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    return batch["input_ids"], batch["attention_mask"], batch["pixel_values"]


def as_ids(model: OpenVLA, batch: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """A batch whose actions are token ids, as the model's stand-alone calls take them."""
    rest = {name: tensor for name, tensor in batch.items() if name != "bins"}
    return rest | {"action_ids": model.action_token_ids[batch["bins"]]}


def single_prompt(batch: dict[str, th.Tensor], row: int) -> list[int]:
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()

"""Whether model, data and statistics fit each other; asked before a fine-tuning begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_agent.augmentation import Augmentation
from vla_agent.openvla import OpenVLA
from vla_agent.sft.data import ActionChunks


def check_arguments(model: Any, data: Any, unnorm_key: Any, statistics: Any, lora: Any, augmentation: Any) -> None:
    """Refuse arguments of the trainer that have another type, in one sentence.

    Raises:
        ValueError: If one has; the message names it and what was expected.
    """
    kinds: dict[str, tuple[Any, type, str]] = {
        "model": (model, OpenVLA, "an `OpenVLA`, of OpenVLA.from_pretrained"),
        "data": (
            data,
            ActionChunks,
            "`ActionChunks`, such as ActionChunks(LeRobotReader('mine'), image_size=224)",
        ),
        "unnorm_key": (unnorm_key, str, "a name, such as 'libero'"),
        "statistics": (statistics, dict, "None, or a dictionary with 'action' and 'proprio'"),
        "lora": (lora, dict, "None, or a dictionary such as {'r': 32}"),
        "augmentation": (augmentation, Augmentation, "None, or an `Augmentation`"),
    }
    for name, (value, kind, expected) in kinds.items():
        left_out = value is None and name in ("statistics", "lora", "augmentation")
        if not (left_out or isinstance(value, kind)) or value == "":
            raise ValueError(f"{name} is {value!r:.80}; expected {expected}.")


def check_fit(model: OpenVLA, data: ActionChunks, statistics: dict[str, Any] | None, max_clipped: float = 0.25) -> None:
    """Refuse data that the model cannot learn from.

    Args:
        model: The model to train.
        data: The demonstrations.
        statistics: Statistics that the user gives; None for the data's own, which fit however few the frames are.
        max_clipped: Share of the data that may lie outside of q01 to q99 of given statistics. States may lie outside of
            the checkpoint's own.

    Raises:
        ValueError: If cameras, image size, chunk length or statistics do not fit, or the tokenizer uses ids of actions.
    """
    config = model.config
    if len(data.cameras) != config.num_images:
        raise ValueError(f"The data has frames of {data.cameras}, but the model reads {config.num_images} camera(s).")
    if data.image_size != config.image_size or data.chunk_size != config.action_chunk_size:
        raise ValueError(
            f"The data was read with image_size={data.image_size}, chunk_size={data.chunk_size}; the model takes "
            f"{config.image_size} and {config.action_chunk_size}."
        )
    if config.action_head is not None:
        raise ValueError("The model regresses actions with a continuous head; fine-tune one that speaks action tokens.")
    input_ids, attention_mask = model.tokenize(data.instructions)
    largest = int((input_ids * attention_mask).max())
    if largest >= config.vocab_size - config.n_action_bins:
        raise ValueError(
            f"The tokenizer gives token id {largest}, which the model's vocabulary of {config.vocab_size} "
            "uses for actions or does not have: checkpoint and tokenizer belong to different vocabularies."
        )
    if statistics is None:
        return
    for name, values in (("action", data.actions), ("proprio", data.state)):
        low, high = (_quantiles(statistics.get(name), key, values.shape[1], name) for key in ("q01", "q99"))
        if name == "proprio" and _is_own(model, statistics):
            continue  # a policy that fails comes to where no demonstration was, and saw its states clipped there, too
        slack = 0.01 * (high - low) + 1e-6
        outside = ((values < low - slack) | (values > high + slack)).mean(0)
        if outside.max() > max_clipped:
            raise ValueError(
                f"{outside.max():.0%} of the data lies outside q01..q99 of the statistics given for '{name}', in "
                f"dimension {int(outside.argmax())}: they belong to other data. Leave them out to take the data's own."
            )


def _is_own(model: OpenVLA, statistics: dict[str, Any]) -> bool:
    """Whether statistics have the quantiles of states that the checkpoint has for some data set."""
    own = [stats.get("proprio", {}) for stats in model.config.norm_stats.values()]
    return any(all(stats.get(key) == statistics["proprio"][key] for key in ("q01", "q99")) for stats in own)


def _quantiles(stats: Any, key: str, n_dims: int, name: str) -> np.ndarray:
    """A quantile of given statistics, float64 (n_dims,)."""
    try:
        values = np.asarray(stats[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (n_dims,) or not np.isfinite(values).all():
        raise ValueError(
            f"The statistics of '{name}' do not describe {n_dims} dimensions: expected as many finite numbers in "
            f"{key!r}. Leave the statistics out to take the data's own."
        )
    return values

"""Whether a model and spaces, or observations, fit each other; a check raises one sentence that says what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from libero_gym.dimensions import CAMERA_KEYS
from vla_agent.action_tokens import N_BINS
from vla_agent.backbone import VLABackbone


def observation_keys(backbone: VLABackbone) -> list[str]:
    """Observations of the world that a model reads: frames, and the robot's state."""
    config = backbone.config
    return [*CAMERA_KEYS[: config.num_images], *(["state"] if config.use_state else [])]


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Complains about spaces that no model could serve.

    Raises:
        ValueError: See the messages.
    """
    if not isinstance(action_space, spaces.MultiDiscrete):
        raise ValueError(
            f"VLAPolicy's actions are bins, MultiDiscrete([{N_BINS}] * N), but the environment has {action_space}. "
            "Make it with vla_agent.make_vec_env, which decodes bins."
        )
    if action_space.nvec.ndim != 1 or (action_space.nvec != N_BINS).any():
        raise ValueError(f"Every action dimension must have {N_BINS} bins, but the action space is {action_space}.")
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"VLAPolicy needs a Dict of observations, got {observation_space}. Use make_vec_env.")
    for key, space in observation_space.spaces.items():
        if isinstance(space, spaces.Text):
            raise ValueError(f"Observation '{key}' is text; VLAVecEnv replaces it by tokens. Use make_vec_env.")
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            raise ValueError(f"Observation '{key}' is nested, which SB3 does not support; flatten it.")
    missing = [key for key in ("image", "input_ids", "attention_mask") if key not in observation_space.spaces]
    if missing:
        raise ValueError(
            f"The observations lack {', '.join(missing)}; they have {', '.join(observation_space.spaces)}. "
            "Use make_vec_env, with a camera."
        )


def check_fit(backbone: VLABackbone, observation_space: spaces.Dict, action_space: spaces.MultiDiscrete) -> None:
    """Complains about spaces that this model cannot serve.

    Raises:
        ValueError: See the messages.
    """
    n_tokens = len(action_space.nvec)
    if n_tokens != backbone.n_action_tokens:
        raise ValueError(
            f"The model gives {backbone.n_action_tokens} action tokens, but the environment takes {n_tokens}; "
            "make it with the same model and chunk_size."
        )
    missing = [key for key in observation_keys(backbone) if key not in observation_space.spaces]
    if missing:
        raise ValueError(f"The model reads {', '.join(missing)}, which the observations lack; add the camera or state.")
    size = backbone.processor.image_size
    for key in CAMERA_KEYS[: backbone.config.num_images]:
        space = observation_space[key]
        if space.shape not in ((size, size, 3), (3, size, size)) or space.dtype != np.uint8:
            raise ValueError(
                f"Observation '{key}' is {space.dtype} {space.shape}, but the model takes uint8 ({size}, {size}, 3); "
                "give make_vec_env the model, an image_size or an image_transform."
            )


def check_observation(observation: Any, space: spaces.Dict, read: Sequence[str]) -> None:
    """Complains about observations of another kind than the policy's.

    Args:
        observation: What `VLAPolicy.predict` was given.
        space: The policy's.
        read: Keys that the model needs; others may be left out, such as what only a critic knows.

    Raises:
        ValueError: It names the key, what was expected and what came.
    """
    if not isinstance(observation, dict):
        hint = " gymnasium's reset() gives a pair; take its first." if isinstance(observation, tuple) else ""
        raise ValueError(
            f"The observation is of type {type(observation).__name__}; expected a dict with {', '.join(read)}.{hint}"
        )
    missing = [key for key in read if key not in observation]
    if missing:
        raise ValueError(
            f"The observation lacks {', '.join(missing)}; it has {', '.join(map(str, observation)) or 'nothing'}. Give "
            "what VLAVecEnv's reset and step return."
        )
    sizes: dict[str, int | None] = {}
    for key, value in observation.items():
        if key not in space.spaces:
            raise ValueError(f"The policy knows no observation {key!r}; it knows {', '.join(space.spaces)}.")
        sizes[key] = _batch_size(key, np.asarray(value), cast(spaces.Box, space.spaces[key]))
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{key}: {'no batch' if size is None else size}" for key, size in sizes.items())
        raise ValueError(f"The observations differ in their batch ({shown}); give all of them the same.")


def _batch_size(key: str, values: np.ndarray, space: spaces.Box) -> int | None:
    """Length of the batch, None for a single observation."""
    shapes = [space.shape]
    if key in CAMERA_KEYS and space.shape[-1] != 3:  # SB3 turns them where the policy's have channels first
        shapes.append((*space.shape[1:], space.shape[0]))
    if not np.can_cast(values.dtype, space.dtype, "same_kind") or (
        values.shape not in shapes and values.shape[1:] not in shapes
    ):
        raise ValueError(
            f"The observation {key!r} is {values.dtype} {values.shape}; expected {space.dtype} {space.shape}, or a "
            f"batch (n, {', '.join(map(str, space.shape))})."
        )
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError(f"The observation {key!r} holds numbers that are not finite.")
    if values.shape in shapes:
        return None
    if not len(values):
        raise ValueError(f"The observation {key!r} is an empty batch; expected at least one.")
    return len(values)

"""What an evaluation asks of a policy that is none of our models: motions for what environments show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from libero_gym.common.checks import whole_number
from libero_gym.dimensions import ACTION_DIM, IMAGE_KEYS

# OpenVLA's and openpi's scripts render frames of this size.
RENDER_SIZE = 256


class PolicyError(RuntimeError):
    """A policy that cannot be had, or whose answer is none."""


class Actor(Protocol):
    """A policy for several environments at once. All but `act` may be left out; the values here are the defaults.

    Attributes:
        cameras: Cameras whose frames it reads: "agentview", "wrist".
        image_size: Side of the rendered frames in pixels.
        chunk_size: Actions that it decides at a time. They are executed one after the other without another look.
        settings: What a report has to state of it, as JSON can hold it.
        description: What tells it from others of its name, likewise.
        folder: Folder that it was read from, whose files a report names by hashes.
    """

    cameras: Sequence[str] = ("agentview",)
    image_size: int = RENDER_SIZE
    chunk_size: int = 1
    settings: Mapping[str, Any] = {}
    description: Mapping[str, Any] = {}
    folder: Any = None

    def reset(self, env_ids: Sequence[int]) -> None:
        """Forget what was seen in these environments: each begins an episode."""

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        """Actions as LIBERO takes them, (n, chunk_size, 7), or (n, 7) for a chunk of one.

        Args:
            observations: Of n environments that need a decision: `image` and `wrist_image`, uint8 (n, H, W, 3), upright
                (LIBERO's frames rotated by 180 degrees), as ``cameras`` ask for them; `state`, float32 (n, 8):
                position in m, axis-angle in rad, finger joints in m; `instruction`, a list of n texts.
            env_ids: Number of each of these environments. An environment keeps its number; not all are asked about
                each time.
        """

    def close(self) -> None:
        """Give back what it holds, such as connections."""


def is_actor(model: object) -> bool:
    """Whether an object acts as `Actor` says. One with SB3's ``predict`` counts as that."""
    return callable(getattr(model, "act", None)) and not callable(getattr(model, "predict", None))


def stated_of(actor: Any, name: str) -> dict[str, Any]:
    """What a policy states in its ``settings`` or ``description``.

    Raises:
        ValueError: If it is no mapping, or a report's JSON cannot hold it.
    """
    value = getattr(actor, name, {})
    fault = None if isinstance(value, Mapping) else "it is no mapping"
    try:
        json.dumps(dict(value) if fault is None else {}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        fault = str(error)
    if fault is not None:
        raise ValueError(
            f"{type(actor).__name__}.{name}={value!r:.80} cannot stand in a report ({fault}); expected texts, finite "
            "numbers and lists of these by name."
        )
    return dict(value)


def cameras_of(actor: Any) -> tuple[str, ...]:
    """The cameras that a policy reads.

    Raises:
        ValueError: If it names another camera than ours.
    """
    cameras = getattr(actor, "cameras", Actor.cameras)
    if isinstance(cameras, str) or not set(cameras) <= set(IMAGE_KEYS):
        raise ValueError(f"{type(actor).__name__}.cameras={cameras!r}; expected some of {', '.join(IMAGE_KEYS)}.")
    return tuple(cameras)


def chunk_size_of(actor: Any) -> int:
    """How many actions a policy decides at a time.

    Raises:
        ValueError: If it is no whole number of at least 1.
    """
    return whole_number(f"{type(actor).__name__}.chunk_size", getattr(actor, "chunk_size", Actor.chunk_size), 1)


def image_size_of(actor: Any) -> int:
    """Side of the frames that a policy is shown, in pixels.

    Raises:
        ValueError: If it is no whole number of at least 1.
    """
    return whole_number(f"{type(actor).__name__}.image_size", getattr(actor, "image_size", Actor.image_size), 1)


def checked_actions(actions: Any, who: str, n: int, chunk_size: int) -> np.ndarray:
    """Actions that environments can take, float64 (n, chunk_size, 7).

    Args:
        actions: What a policy answered.
        who: The policy, for messages.
        n: Number of environments that it was asked about.
        chunk_size: Actions that it decides at a time.

    Raises:
        PolicyError: If the actions have another shape, are no numbers, or are not finite.
    """
    expected = (n, chunk_size, ACTION_DIM)
    try:
        values = np.asarray(actions, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{who} answered {actions!r:.80}; expected numbers of shape {expected}.") from error
    if values.shape == (n, ACTION_DIM) and chunk_size == 1:
        values = values[:, None]
    if values.shape != expected:
        raise PolicyError(f"{who} answered actions of shape {values.shape}; expected {expected}.")
    if not np.isfinite(values).all():
        row, step, dim = (int(index) for index in np.argwhere(~np.isfinite(values))[0])
        raise PolicyError(
            f"{who} answered {values[row, step, dim]} in dimension {dim} of action {step} of its chunk; expected "
            "finite numbers, so look at the policy's weights and statistics."
        )
    return values

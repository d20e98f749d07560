"""Checks of what a process reward model is asked and what it answers.

A `RewardModel` is the one that `libero_gym` asks, an object with `score`. It may also have ``image_size`` (the side in
pixels that it takes), ``camera`` (the observation key that it looks at, "image" by default) and ``fingerprint()`` (a
text that differs between models that score differently); they are used if they exist. `TinyScorer` has them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from libero_gym.reward_model import RewardModel as RewardModel

# Observation key of the frames that a model looks at, unless it names another as its `camera`.
CAMERA = "image"


class RewardModelError(ValueError):
    """A reward model cannot be found or read, does not fit the environment, or gives something else than scores."""


def checked_scores(model: RewardModel, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """The model's scores, float64 (n,).

    Raises:
        RewardModelError: If they are not n finite numbers in [0, 1].
    """
    scores = np.asarray(model.score(images, instructions), dtype=np.float64)
    name = type(model).__name__
    if scores.shape != (len(images),):
        raise RewardModelError(f"{name}.score gave shape {scores.shape} for {len(images)} images; expected one each.")
    wrong = ~(np.isfinite(scores) & (scores >= 0) & (scores <= 1))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise RewardModelError(
            f"{name}.score gave {scores[first]} for '{instructions[first]}'; expected scores in [0, 1]. "
            "A sigmoid of its output would be."
        )
    return scores


def check_frames(images: np.ndarray, instructions: Sequence[str], size: int | None = None) -> None:
    """Refuse frames and instructions that a scorer would answer for without meaning, such as one text for many frames.

    Args:
        images: Frames, uint8 (n, H, W, 3).
        instructions: One instruction per frame.
        size: Side of the frames in pixels; None allows any.

    Raises:
        RewardModelError: If the frames have another type, shape or size, or the instructions are no n strings.
    """
    came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
    side = "H, W" if size is None else f"{size}, {size}"
    is_batch = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    if not is_batch or (size is not None and images.shape[1:3] != (size, size)):
        raise RewardModelError(f"The frames to score are {came}; expected uint8 (n, {side}, 3).")
    texts = None if isinstance(instructions, str) else list(instructions)
    if texts is None or len(texts) != len(images) or not all(isinstance(text, str) for text in texts):
        raise RewardModelError(
            f"instructions={instructions!r:.80}; expected a list of {len(images)} strings, one a frame."
        )


def warn_of_unseen(instructions: Sequence[str], known: Sequence[str], warned: set[str]) -> None:
    """Warn once of each instruction that a scorer was not trained on.

    Args:
        instructions: Instructions that the scorer is asked about.
        known: Instructions that it was trained on.
        warned: Instructions that a warning has named already; this call adds its own.
    """
    for instruction in instructions:
        if instruction not in known and instruction not in warned:
            warned.add(instruction)
            warnings.warn(
                f"The scorer never saw '{instruction}' in training; its scores may mean little.", stacklevel=4
            )


def check_camera(model: RewardModel, observations: dict[str, tuple[int, ...]]) -> str:
    """The observation key that the model looks at.

    Args:
        model: The reward model.
        observations: Shapes of the environment's observations by key.

    Raises:
        RewardModelError: If the environment lacks that camera, or its frames have another size.
    """
    name, camera, size = type(model).__name__, getattr(model, "camera", CAMERA), getattr(model, "image_size", None)
    if camera not in observations:
        raise RewardModelError(
            f"The {name} looks at '{camera}', which the environment does not show; it has {', '.join(observations)}."
        )
    if size is not None and observations[camera] != (size, size, 3):
        raise RewardModelError(
            f"The {name} was trained for frames of {size} x {size} pixels, but '{camera}' has shape "
            f"{observations[camera]}; make the environment with image_size={size}, or train a scorer for its frames."
        )
    return str(camera)

"""Reward models: what an environment asks of one, how it finds one by name, and how it has one frame scored."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

# Entry points under which a package offers its loader: a function from a folder or a name to a reward model.
ENTRY_POINTS = "libero_gym.reward_models"


@runtime_checkable
class RewardModel(Protocol):
    """Says from a camera's frame how much of an instruction is done.

    A *score* is that share, in [0, 1]; it has nothing to do with the log-probabilities that a policy scores actions by.
    """

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], float (n,), of images uint8 (n, H, W, 3) under n instructions."""


def find_reward_model(model: RewardModel | str | Path | None) -> RewardModel:
    """A reward model given as an object, a folder or a name.

    Args:
        model: An object with `score`, which is returned; or a folder or name for the loader of an installed package.
            If several packages offer a loader, the first is asked.

    Raises:
        ValueError: If the object has no `score`, no package offers a loader, or the loader refuses the name.
    """
    if model is None:
        raise ValueError("reward='process' needs reward_model: a scorer's folder or name, or an object with score().")
    if not isinstance(model, (str, Path)):
        if not callable(getattr(model, "score", None)):
            raise ValueError(f"reward_model is a {type(model).__name__}; expected score(images, instructions).")
        return model
    loaders = entry_points(group=ENTRY_POINTS)
    if not loaders:
        raise ValueError(f"No installed package loads reward models by name, such as {model!r}; give an object.")
    found: RewardModel = next(iter(loaders)).load()(model)
    return found


def score_frame(model: RewardModel, frame: np.ndarray, instruction: str) -> float:
    """A reward model's score of one frame, uint8 (H, W, 3).

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    scores = np.asarray(model.score(frame[None], [instruction]))
    if scores.shape != (1,):
        raise ValueError(f"{type(model).__name__}.score gave shape {scores.shape} for one frame; expected (1,).")
    (score,) = scores
    if not 0 <= score <= 1:
        raise ValueError(f"{type(model).__name__}.score gave {score} for '{instruction}'; expected a score in [0, 1].")
    return float(score)

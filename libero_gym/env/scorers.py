"""Reward models that score frames, for ``reward="process"``: where they come from, and what they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# Entry points by which an installed package offers to load reward models: a function from a folder's name to a scorer.
SCORER_ENTRY_POINTS = "libero_gym.reward_models"


class Scorer(Protocol):
    """Says from a frame how much of an instruction is done."""

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], (n,), of images uint8 (n, H, W, 3) under n instructions."""


def find_scorer(model: Scorer | str | Path | None) -> Scorer:
    """The scorer itself, or the one that an installed package loads from a folder.

    Args:
        model: A scorer; or what a package loads it from, such as a folder. If several packages load scorers, the name
            of the entry point comes first: ``"vla_agent:runs/scorer"``.

    Raises:
        ValueError: If there is no scorer, no package that loads it, or more than one.
    """
    if model is None:
        raise ValueError("reward='process' needs reward_model: a scorer's folder or name, or an object with score().")
    if not isinstance(model, (str, Path)):
        if not callable(getattr(model, "score", None)):
            raise ValueError(f"reward_model is a {type(model).__name__}; expected score(images, instructions).")
        return model
    loaders = {entry.name: entry for entry in entry_points(group=SCORER_ENTRY_POINTS)}
    if not loaders:
        raise ValueError(f"No installed package loads reward models by name, such as {model!r}; give an object.")
    package, colon, rest = str(model).partition(":")
    place: Any = model
    if colon and package in loaders:
        place = rest
    elif len(loaders) == 1:
        (package,) = loaders
    else:
        choices = ", ".join(f"'{name}:{model}'" for name in loaders)
        raise ValueError(f"Several packages load reward models; say which is to load {model!r}: {choices}.")
    scorer: Scorer = loaders[package].load()(place)
    return scorer


def score_frame(scorer: Scorer, frame: np.ndarray, instruction: str) -> float:
    """A scorer's score of one frame, uint8 (H, W, 3).

    Raises:
        ValueError: If the scorer gives no number in [0, 1].
    """
    scores = np.asarray(scorer.score(frame[None], [instruction]))
    if scores.shape != (1,):
        raise ValueError(f"{type(scorer).__name__}.score gave shape {scores.shape} for one frame; expected (1,).")
    (score,) = scores
    if not 0 <= score <= 1:
        raise ValueError(f"{type(scorer).__name__}.score gave {score} for '{instruction}'; expected a score in [0, 1].")
    return float(score)

"""Reward models of ``reward="process"`` are objects, or what an installed package loads; the package can be named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libero_gym.env import LiberoEnv, scorers
from libero_gym.env.scorers import find_scorer


class Mean:
    """Scores the mean brightness, and remembers from where it was loaded."""

    def __init__(self, place: Any) -> None:
        self.place = place

    def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
        return np.asarray(images.mean(axis=(1, 2, 3)) / 255)


def install(monkeypatch: pytest.MonkeyPatch, **loaders: Callable[[Any], Any]) -> None:
    """Have these packages offer to load reward models."""
    entries = [SimpleNamespace(name=name, load=lambda load=load: load) for name, load in loaders.items()]
    monkeypatch.setattr(scorers, "entry_points", lambda group: entries)


def test_the_only_package_need_not_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, one=Mean)
    for given, place in (("a/folder", "a/folder"), (Path("b"), Path("b")), ("one:c", "c"), ("other:d", "other:d")):
        assert find_scorer(given).place == place  # type: ignore[attr-defined]


def test_one_of_several_packages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, one=Mean, two=lambda place: Mean(("two", place)))
    assert find_scorer("two:folder").place == ("two", "folder")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"Several packages .* to load 'folder': 'one:folder', 'two:folder'\."):
        find_scorer("folder")


def test_without_a_package_an_object_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(ValueError, match="No installed package loads reward models by name, such as 'x'"):
        find_scorer("x")


def test_the_reward_is_the_discounted_difference_of_scores() -> None:
    """0.99 s' - s of the first camera's frames, scored by hand."""
    env = LiberoEnv("libero_spatial", task_id=0, image_size=16, reward="process", reward_model=Mean(None))
    obs, _ = env.reset(seed=0)
    before = obs["image"].mean() / 255
    obs, reward, _, _, info = env.step(np.full(7, 0.5))
    after = obs["image"].mean() / 255
    assert info["reward_terms"] == pytest.approx({"success": 0.0, "process": 0.99 * after - before, "score": after})
    assert reward == pytest.approx(0.99 * after - before)
    env.close()


@pytest.mark.parametrize(("score", "message"), [(1.5, "gave 1.5 for"), (np.nan, "gave nan for")])
def test_a_score_beyond_its_range_is_named(score: float, message: str) -> None:
    model = SimpleNamespace(score=lambda images, instructions: np.array([score]))
    env = LiberoEnv("libero_spatial", task_id=0, image_size=16, reward="process", reward_model=model)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0)

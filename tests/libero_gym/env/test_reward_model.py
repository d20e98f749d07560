"""Reward models of ``reward="process"`` are objects, or what an installed package loads from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libero_gym import reward_model
from libero_gym.env import LiberoEnv
from libero_gym.reward_model import find_reward_model


class Mean:
    """Scores the mean brightness, and remembers from where it was loaded."""

    def __init__(self, place: Any) -> None:
        self.place = place

    def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
        return np.asarray(images.mean(axis=(1, 2, 3)) / 255)


def install(monkeypatch: pytest.MonkeyPatch, **loaders: Callable[[Any], Any]) -> None:
    """Have these packages offer to load reward models."""
    entries = [SimpleNamespace(name=name, load=lambda load=load: load) for name, load in loaders.items()]
    monkeypatch.setattr(reward_model, "entry_points", lambda group: entries)


def test_the_first_package_loads_what_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, one=Mean, two=lambda place: None)
    for place in ("a/folder", Path("b")):
        assert find_reward_model(place).place == place  # type: ignore[attr-defined]
    model = Mean(None)
    assert find_reward_model(model) is model


def test_without_a_package_an_object_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(ValueError, match="No installed package loads reward models by name, such as 'x'"):
        find_reward_model("x")


def test_the_reward_is_the_discounted_difference_of_scores() -> None:
    """0.99 s' - s of the first camera's frames, scored by hand."""
    env = LiberoEnv(
        "libero_spatial", task_id=0, image_size=16, renderer="fast", reward="process", reward_model=Mean(None)
    )
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
    env = LiberoEnv("libero_spatial", task_id=0, image_size=16, renderer="fast", reward="process", reward_model=model)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0)

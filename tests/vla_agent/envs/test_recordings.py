"""A policy's own episodes: whole ones, as many of every environment, on disk and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_env

from vla_agent.envs.recordings import policy_episodes
from vla_agent.process_reward.episodes import load_episodes, save_episodes


class RandomPolicy:
    """Draws actions."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def predict(self, obs: dict[str, np.ndarray], deterministic: bool = False) -> tuple[np.ndarray, None]:
        return self.rng.integers(0, 256, (len(obs["image"]), 7)), None


def test_a_policys_episodes_are_whole_and_of_every_environment(tmp_path: Path) -> None:
    env = fake_env(3, max_episode_steps=5)
    episodes = policy_episodes(env, RandomPolicy(), 7, progress_bar=False)
    assert len(episodes) == 9  # three of each environment
    assert {episode.success for episode in episodes} == {True, False}
    for episode in episodes:
        n_decisions = len(episode.state) - 1  # the first frame comes before any
        assert n_decisions == 5 if not episode.success else 1 <= n_decisions <= 5
        assert len(episode.images["image"]) == len(episode.state)
        assert episode.fps == 20  # one action a decision

    save_episodes(tmp_path / "episodes.npz", episodes, {"seed": 5})
    assert load_episodes(tmp_path / "episodes.npz", {"seed": 6}) is None
    assert load_episodes(tmp_path / "none.npz", {"seed": 5}) is None
    again = load_episodes(tmp_path / "episodes.npz", {"seed": 5})
    assert again is not None
    assert len(again) == 9
    for episode, read in zip(episodes, again, strict=True):
        assert (read.instruction, *read[3:]) == (episode.instruction, *episode[3:])
        np.testing.assert_array_equal(read.state, episode.state)
        np.testing.assert_array_equal(read.images["image"], episode.images["image"])


def test_the_hand_is_opened_now_and_then() -> None:
    env = fake_env(4, max_episode_steps=5)
    taken: list[np.ndarray] = []
    send = env.step_async
    env.step_async = lambda actions: (taken.append(actions.copy()), send(actions))  # type: ignore[method-assign]
    policy_episodes(env, RandomPolicy(), 40, drop_prob=0.4, seed=1, progress_bar=False)
    actions = np.concatenate(taken)
    shares = (actions == 255).mean(axis=0)
    assert shares[:6].max() < 0.05  # as the policy draws them
    assert shares[6] == pytest.approx(0.4, abs=0.1)

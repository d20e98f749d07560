"""What other processes draw with is another in each rollout, and the same whenever a run is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch as th

from vla_agent.engines.rollouts import Ask, Rollouts


class Asked:
    """Notes what processes are asked to play with."""

    def __init__(self) -> None:
        self.seeds: list[Any] = []
        self.play = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._play))

    def _play(self, weights: Any, generators: Any, *_: Any, num_timesteps: int) -> None:
        self.seeds.append(generators)
        self.timesteps = num_timesteps


def seeds(timesteps: list[int], stale: bool, n_parts: int = 2) -> list[Any]:
    """What the parts draw with in rollouts that begin at some timesteps, while no generator of the learner moves."""
    asked = Asked()
    roster: Any = SimpleNamespace(actor=lambda number: asked, stream=lambda number, items: iter([]))
    rollouts = Rollouts(roster, sends_weights=False, stale=stale)
    env = SimpleNamespace(
        parts=[SimpleNamespace(number=number) for number in range(n_parts)],
        where=[slice(number, number + 1) for number in range(n_parts)],
    )
    learner = SimpleNamespace(
        device=th.device("cpu"), _last_episode_starts=np.zeros(n_parts, dtype=bool), env=SimpleNamespace(unwrapped=env)
    )
    rollouts._ask = Ask(4, False, {"num_timesteps": 0})
    for number, learner.num_timesteps in enumerate(timesteps):
        if stale and number:
            rollouts.begin_ahead(learner)
        else:
            rollouts._begin(learner, cast(Any, env), rollouts._ask)
        assert asked.timesteps == learner.num_timesteps
    return asked.seeds


@pytest.mark.parametrize("stale", [False, True])
def test_each_rollout_and_each_part_draws_on_its_own(stale: bool) -> None:
    found = [seed for seed in seeds([0, 8, 16, 24, 32], stale) if isinstance(seed, int)]
    assert len(found) == (10 if stale else 5)  # the first part draws as a run in one process does, unless it is ahead
    assert len(set(found)) == len(found)
    assert found == [seed for seed in seeds([0, 8, 16, 24, 32], stale) if isinstance(seed, int)]
    if not stale:  # a run that goes on
        assert found[2:] == [seed for seed in seeds([16, 24, 32], stale) if isinstance(seed, int)]


def test_a_rollout_that_is_begun_again_after_one_ahead_draws_on_its_own() -> None:
    ahead, anew = seeds([0, 8], stale=True, n_parts=1)[1], seeds([8], stale=True, n_parts=1)[0]
    assert ahead != anew

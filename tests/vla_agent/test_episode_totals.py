"""Totals of episodes under way: counted by environment, and SB3's VecMonitor's where that can count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import fake_env
from stable_baselines3.common.vec_env import VecMonitor

from vla_agent.episode_totals import EpisodeTotals


def test_environments_are_counted_by_themselves() -> None:
    totals = EpisodeTotals(3)
    totals.add(np.array([1.0, 2.0, 3.0]))
    totals.begin(np.array([False, True, False]))
    totals.add(np.array([0.25, 0.5, 1e-9]))
    assert totals.summary(0) | {"t": 0} == {"r": 1.25, "l": 2, "t": 0}
    assert totals.summary(1) | {"t": 0} == {"r": 0.5, "l": 1, "t": 0}
    assert totals.summary(2)["r"] == 3.0  # six digits
    saved = totals.returns.tolist(), totals.lengths.tolist()
    totals.begin(slice(None))
    assert totals.summary(2)["l"] == 0
    totals.restore(*saved)
    assert totals.summary(0)["r"] == 1.25


def test_vec_monitor_counts_the_same() -> None:
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        env = VecMonitor(fake_env(3, max_episode_steps=4))
    own: list[Any] = []
    wait = env.venv.step_wait
    env.venv.step_wait = lambda: (own.append(wait()), own[-1])[1]  # type: ignore[method-assign, func-returns-value]
    env.reset()
    n_ended = 0
    for step in range(12):
        theirs = env.step(np.full((3, 7), 255 * (step % 2)))[3]
        for mine, other in zip(own[-1][3], theirs, strict=True):
            assert ("episode" in mine) == ("episode" in other)
            if "episode" in mine:
                n_ended += 1
                assert [mine["episode"][key] for key in "rl"] == [other["episode"][key] for key in "rl"]
    assert n_ended >= 9

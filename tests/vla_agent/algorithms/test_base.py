"""Whatever learns on the base is set up, checked, saved and resumed without further code: here REINFORCE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fakes import FakeBackbone, fake_env
from own_learner import Reinforce
from resuming import StopAt, assert_equal_runs, callbacks

from vla_agent import VLAPPO, RunCheckpoints, RunError, SuccessCallback, latest_run, safe_learn
from vla_agent.envs import VLAVecEnv


def make(n_envs: int = 2, **kwargs: Any) -> Reinforce:
    kwargs = {"seed": 0} | kwargs
    return Reinforce("VLAPolicy", fake_env(n_envs), policy_kwargs={"model": FakeBackbone()}, **kwargs)


def load(path: Path, **kwargs: Any) -> Reinforce:
    return Reinforce.load(path, fake_env(2), device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)}, **kwargs)


def test_it_learns() -> None:
    """The image says which sign the first action must have; chance is one half."""
    model = make(32, n_steps=8)
    env = model.env
    assert env is not None
    obs, rewards = env.reset(), []
    for trained in (False, True):
        if trained:
            model.learn(32 * 8 * 30)
        hits = []
        for _ in range(30):
            obs, reward, _, _ = env.step(model.predict(obs)[0])  # type: ignore[arg-type]
            hits.append(reward.mean())
        rewards.append(sum(hits) / len(hits))
    assert rewards[0] < 0.7
    assert rewards[1] > 0.85
    assert model.taken == (8, 32, 7)


def test_train_finds_advantages_and_returns() -> None:
    """With a discount and a lambda of one, an advantage is the sum of the rewards to the episode's end less the value.

    The value head gives zero before it has learned, so what follows the rollout is worth nothing.
    """
    model = make()
    model.learn(16)
    buffer = model.rollout_buffer  # its returns were flattened by `train`, environment after environment
    expected = np.zeros((9, 2))
    for step in reversed(range(8)):
        goes_on = 1 - buffer.episode_starts[step + 1] if step < 7 else 0
        expected[step] = buffer.rewards[step] + expected[step + 1] * goes_on
    assert buffer.rewards.any()
    assert buffer.episode_starts[1:].any()
    np.testing.assert_allclose(buffer.returns.flatten(), expected[:8].T.flatten(), rtol=1e-6)


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole, expected = make(scale=0.5), callbacks()
    whole.learn(96, expected)
    cut = make(scale=0.5)  # only now: its seed sets the generators
    cut.learn(96, [*callbacks(), StopAt(20)])
    cut.save(tmp_path / "a")
    resumed, result = load(tmp_path / "a"), callbacks()
    assert (resumed.num_timesteps, resumed.scale, resumed.learning_rate) == (32, 0.5, 1e-2)
    resumed.learn(64, result, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)  # type: ignore[arg-type]
    assert [one.history for one in expected] == [other.history for other in result]  # type: ignore[attr-defined]
    assert any(isinstance(one, SuccessCallback) and len(one.history) > 5 for one in result)


def test_learning_goes_on_with_new_episodes_where_a_step_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    venv: Any = cast(VLAVecEnv, model.env).venv
    step = venv.step

    def interrupted(actions: np.ndarray) -> None:
        step(actions)
        raise KeyboardInterrupt

    monkeypatch.setattr(venv, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(16)
    monkeypatch.setattr(venv, "step", step)
    resets = len(venv.options)
    model.learn(16, reset_num_timesteps=False)
    assert len(venv.options) == resets + 1


def test_keeping_serves_it(tmp_path: Path) -> None:
    assert safe_learn(make(), 64, tmp_path, RunCheckpoints(tmp_path, every=1))
    assert load(latest_run(tmp_path)).num_timesteps == 48
    with pytest.raises(RunError, match=r"made by Reinforce: it has the argument 'scale'.*Load it with Reinforce\.load"):
        VLAPPO.load(latest_run(tmp_path))


def test_its_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"Reinforce takes no argument 'n_epochs'\. Did you mean 'n_steps'\?"):
        make(n_epochs=3)
    with pytest.raises(ValueError, match="n_steps=0 is out of range"):
        make(n_steps=0)
    model = make()
    model.env = None
    with pytest.raises(ValueError, match=r"give Reinforce\.load\(path, env\), or call set_env"):
        model.learn(8)

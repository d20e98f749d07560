"""A number that is none is named where it appears; in a loss or gradient it costs a step, not the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from learners import make_model
from poison import poison_losses
from saved_runs import fake_model

from vla_agent import VLAPPO, NonFiniteError, VLAVecEnv, safe_learn
from vla_agent.algorithms.finite import check_observations


def weights(model: VLAPPO) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def test_a_step_is_skipped_and_counted_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two minibatches per update, the second of the first update and the first of the second."""
    model = fake_model()
    steps: list[int] = []
    take_step = model.policy.optimizer.step
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: (steps.append(1), take_step())[1])
    poison_losses(model, {1, 2})
    with pytest.warns(UserWarning, match="A minibatch gave loss nan and gradient norm nan; its step is skipped"):
        model.learn(96, log_interval=None)  # type: ignore[arg-type]
    assert len(steps) == 4
    assert model.n_skipped_steps == 2
    assert model.logger.name_to_value["train/skipped_steps"] == 2
    assert math.isfinite(model.logger.name_to_value["train/loss"])
    assert all(bool(th.isfinite(weight).all()) for weight in weights(model))


def test_an_infinite_gradient_is_noticed_though_the_loss_is_finite() -> None:
    model = fake_model()
    model.policy.value_head.register_full_backward_hook(  # type: ignore[union-attr]
        lambda module, inputs, outputs: tuple(None if g is None else g * math.inf for g in inputs)
    )
    before = weights(model)
    with pytest.warns(UserWarning, match="gradient norm (nan|inf)"):
        model.learn(32)
    assert all(th.equal(one, other) for one, other in zip(before, weights(model), strict=True))


@pytest.mark.filterwarnings("ignore:A minibatch gave")
def test_three_in_a_row_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    model = fake_model()
    model.learn(32)
    before = weights(model)
    poison_losses(model, range(100))
    with pytest.raises(NonFiniteError, match="3 minibatches in a row gave a loss or a gradient that is not finite"):
        safe_learn(model, 320, tmp_path, reset_num_timesteps=False)
    kept = VLAPPO.load(tmp_path / "interrupted", device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)})
    assert all(th.equal(one, other) for one, other in zip(before, weights(kept), strict=True))
    assert kept.num_timesteps == 64  # before the rollout whose update broke


# ------------------------------------------------------------------------------------- from environments


def poisoned_env(number: int, change: Any) -> VLAVecEnv:
    """Two environments whose step of this number, from 1, is changed in place; its episode's end comes later."""
    env = fake_env(2, max_episode_steps=40)
    original, calls = env.venv.step, iter(range(1, 10_000))

    def step(actions: np.ndarray) -> Any:
        result = original(actions)
        if next(calls) == number:
            change(result)
        return result

    env.venv.step = step
    return env


def nan_reward(result: Any) -> None:
    result[1][1] = math.nan
    result[4]["reward_terms"] |= {"process": np.array([0.25, math.nan]), "_process": np.array([True, True])}


def test_one_nan_reward_names_environment_step_and_term(tmp_path: Path) -> None:
    model = make_model(poisoned_env(21, nan_reward))  # in the second rollout of 16 steps
    with pytest.raises(
        NonFiniteError,
        match=r"reward of environment 1 \(after 42 timesteps, task \d, step 21 of its episode\) is nan, "
        r"because of its term 'process' \(terms: success=[01], process=nan\)\. Mend the environment or",
    ):
        safe_learn(model, 320, tmp_path)
    assert model.n_skipped_steps == 0
    kept = VLAPPO.load(tmp_path / "interrupted", device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)})
    assert kept.num_timesteps == 32  # before the rollout that it came in
    assert all(th.equal(one, other) for one, other in zip(weights(model), weights(kept), strict=True))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_reward_beyond_float32_is_noticed_without_terms() -> None:
    def huge(result: Any) -> None:
        result[1][0] = 1e39
        del result[4]["reward_terms"]

    with pytest.raises(NonFiniteError, match=r"environment 0 \(after 4 timesteps, .*\) is inf \(terms: none given\)"):
        make_model(poisoned_env(2, huge)).learn(32)


def test_a_nan_in_an_observation_names_environment_and_key() -> None:
    def nan_state(result: Any) -> None:
        result[0]["state"][1, 3] = math.nan

    place = r"environment 1 \(after 10 timesteps, task \d, step 5 of its episode\)"
    with pytest.raises(NonFiniteError, match=rf"observation 'state' of {place} is not"):
        make_model(poisoned_env(5, nan_state)).learn(32)


def test_first_and_last_observations_are_looked_at() -> None:
    env = fake_env(2, privileged=True)
    observe = env.venv._observe
    env.venv._observe = lambda: (lambda obs: obs | {"privileged": obs["privileged"] + np.inf})(observe())
    with pytest.raises(NonFiniteError, match=r"observation 'privileged' of environment 0 \(after 0 timesteps\)"):
        make_model(env).learn(32)
    fine = {"state": np.zeros((2, 8)), "image": np.zeros((2, 4, 4, 3), np.uint8)}
    last = {"terminal_observation": {"state": np.array([0, math.inf])}, "episode": {"l": 7}, "task_id": 3}
    with pytest.raises(
        NonFiniteError, match=r"'state' of environment 1 \(after 8 timesteps, task 3, step 7 of its episode"
    ):
        check_observations(fine, [{}, last], 8)
    check_observations(fine, [{}, {}], 8)


def test_a_value_that_is_no_number_names_its_environment() -> None:
    model = make_model()
    head = model.policy.value_head
    head.register_forward_hook(lambda module, inputs, values: values * th.tensor([[1.0], [math.nan]])[: len(values)])
    with pytest.raises(NonFiniteError, match=r"The critic gives environment 1 \(after 0 timesteps\) the value nan"):
        model.learn(32)


def test_a_value_after_a_time_limit_is_looked_at() -> None:
    model = make_model(fake_env(2, max_episode_steps=3))
    predict_values = model.policy.predict_values
    model.policy.predict_values = lambda obs: predict_values(obs) + math.nan  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"The critic gives environment \d \(after \d+ timesteps\) the value nan"):
        model.learn(32)


def test_weights_that_are_no_numbers_are_told_from_the_scores() -> None:
    model = make_model()
    with th.no_grad():
        model.policy.backbone.lm_head.weight.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match="The model's scores of actions are not finite"):
        model.learn(32)

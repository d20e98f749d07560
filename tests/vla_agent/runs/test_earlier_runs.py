"""Runs that earlier versions saved still load, and go on as those versions went on.

`adapters` and `tiny.zip` in `tests/data/runs` were saved by commit 15f2cf8, when all of the code lay in one folder:
`adapters` is a run of the fake model with a curriculum after 96 steps, `adapters_after.json` has the sums of its
weights after 64 more, and `tiny.zip` is the tiny model after 16.
"""

import json
from typing import Any

import pytest
from fakes import FakeBackbone, fake_env
from paths import TESTS
from saved_runs import tiny_env
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import VLAPPO, Curriculum
from vla_agent.runs.run_files import damage

RUNS = TESTS / "data" / "runs"


class FakeOfThatTime(FakeBackbone):
    """Then, adapters were put beside the layer for the robot's state also if it is not read."""

    def unused_parameter_names(self) -> list[str]:
        return ["spare.weight", "spare.bias"]


def load_adapters(**kwargs: Any) -> VLAPPO:
    return VLAPPO.load(
        RUNS / "adapters", fake_env(2), device="cpu", policy_kwargs={"model": FakeOfThatTime()}, **kwargs
    )


def test_arguments_and_counters_come_back() -> None:
    assert damage(RUNS / "adapters") is None
    model = load_adapters()
    assert (model.n_steps, model.batch_size, model.n_epochs, model._stats_window_size) == (16, 8, 2, 7)
    assert (model.ratio_level, model.value_loss, model.kl_ref_coef) == ("token", "huber", 0.1)
    assert (model.n_value_epochs, model.value_gae_lambda, model.policy_warmup_iterations) == (3, 1.0, 2)
    assert isinstance(model.learning_rate, LinearSchedule)
    assert model.learning_rate(0.5) == pytest.approx(5.5e-3)
    assert (model.num_timesteps, model.n_iterations) == (96, 3)
    assert len(model.ep_info_buffer or ()) == 7


def test_training_goes_on_as_it_did() -> None:
    """The environments are in the middle of their episodes, optimizer and generators where they were."""
    model, curriculum = load_adapters(), Curriculum("frontier", tau=0.1, window=5)
    assert model._last_obs is not None
    model.learn(64, curriculum, reset_num_timesteps=False)
    assert {episode.num_timesteps <= 96 for episode in curriculum.history} == {True, False}
    expected = json.loads((RUNS / "adapters_after.json").read_text())
    weights = {name: p.detach().double() for name, p in model.policy.named_parameters() if p.requires_grad}
    assert weights.keys() == expected.keys()
    for name, (total, size) in expected.items():
        assert weights[name].abs().sum().item() == pytest.approx(size, rel=1e-4), name
        assert weights[name].sum().item() == pytest.approx(total, rel=1e-4, abs=1e-4 * size), name


def test_a_zip_of_the_tiny_model_acts_as_it_did() -> None:
    model = VLAPPO.load(RUNS / "tiny", device="cpu")
    actions, _ = model.predict(tiny_env().reset(), deterministic=True)
    assert actions.tolist() == [[245] * 7, [72, 190, 207, 72, 190, 207, 72]]

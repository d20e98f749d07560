"""What a constructor takes is saved and given back; what it does not keep is an error at once."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import VLAPPO, RunError, VLAPolicy
from vla_agent.algorithms.buffers import MixedRolloutBuffer
from vla_agent.runs.signature import argument_forms, constructor_parameters, saved_arguments

SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "seed": 0, "device": "cpu"}


class WithMore(VLAPPO):
    """Two arguments more, and not a line about saving."""

    def __init__(self, *args: Any, temperature_of_the_day: float = 0.5, words: list[str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.temperature_of_the_day, self.words = temperature_of_the_day, words


class Forgetful(VLAPPO):
    def __init__(self, *args: Any, forgotten: int = 3, **kwargs: Any):
        super().__init__(*args, **kwargs)


def make(algorithm: type[VLAPPO], **kwargs: Any) -> VLAPPO:
    kwargs = {"policy_kwargs": {"model": FakeBackbone()}} | SETTINGS | kwargs
    return algorithm("VLAPolicy", fake_env(2), **kwargs)


def load(algorithm: type[VLAPPO], path: Path, **kwargs: Any) -> Any:
    return algorithm.load(path, fake_env(2), device="cpu", policy_kwargs={"model": FakeBackbone()}, **kwargs)


def test_an_argument_of_a_subclass_is_saved_without_further_code(tmp_path: Path) -> None:
    make(WithMore, temperature_of_the_day=2.25, words=["a", "b"], gamma=0.5, n_epochs=3).save(tmp_path / "a")
    loaded = load(WithMore, tmp_path / "a")
    assert (loaded.temperature_of_the_day, loaded.words) == (2.25, ["a", "b"])
    assert (loaded.gamma, loaded.n_epochs) == (0.5, 3)
    with pytest.raises(RunError, match=r"temperature_of_the_day: 2\.25, not 1"):
        load(WithMore, tmp_path / "a", temperature_of_the_day=1)
    with pytest.raises(RunError, match=r"made by WithMore: it has the argument 'temperature.*WithMore\.load"):
        load(VLAPPO, tmp_path / "a")


def test_help_and_editors_see_the_constructors_arguments() -> None:
    own = inspect.signature(VLAPPO).parameters
    assert list(own.values()) == list(inspect.signature(VLAPPO.__init__).parameters.values())[1:]
    assert set(inspect.signature(WithMore).parameters) == {*own, "temperature_of_the_day", "words"}

    class Odd(VLAPPO):
        """An argument without a default stands behind its parent's, which no signature can say."""

        def __init__(self, scale: float, **kwargs: Any) -> None: ...

    assert str(inspect.signature(Odd)) == "(*args: 'Any', **kwargs: 'Any') -> 'Any'"


@pytest.mark.parametrize("policy", ["VLAPolicy", "MlpPolicy"])
def test_a_constructor_that_does_not_keep_an_argument_fails_at_once(policy: str) -> None:
    env, policy_kwargs = (fake_env(2), {"model": FakeBackbone()}) if policy == "VLAPolicy" else ("CartPole-v1", None)
    with pytest.raises(TypeError, match=r"Forgetful.__init__ takes 'forgotten' and does not keep it.*self\.forgotten"):
        Forgetful(policy, env, policy_kwargs=policy_kwargs, **SETTINGS)


def test_arguments_of_parents_count_where_they_are_passed_on() -> None:
    assert set(constructor_parameters(WithMore)) == {"temperature_of_the_day", "words", *constructor_parameters(VLAPPO)}
    with pytest.raises(TypeError, match=r"WithMore takes no argument 'temperature_of_day'\. Did you mean 'temp"):
        make(WithMore, temperature_of_day=1)
    with pytest.raises(TypeError, match=r"WithMore takes no argument 'gama'\. Did you mean 'gamma'\?"):
        make(WithMore, gama=1)


def test_every_argument_of_vlappo_comes_back(tmp_path: Path) -> None:
    """Each with a value that is not its default, so that one that is lost shows."""
    given: dict[str, Any] = {
        "learning_rate": LinearSchedule(1e-3, 1e-4, 0.5),
        "n_steps": 16,
        "batch_size": 4,
        "n_epochs": 2,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "clip_range": 0.1,
        "clip_range_vf": 0.3,
        "normalize_advantage": True,
        "ent_coef": 0.01,
        "vf_coef": 0.6,
        "max_grad_norm": 0.7,
        "sde_sample_freq": 4,
        "target_kl": 5.0,
        "stats_window_size": 7,
        "tensorboard_log": "logs",
        "verbose": 0,
        "seed": 5,
        "gradient_accumulation_steps": 2,
        "critic_warmup_iterations": 3,
        "value_loss": "huber",
        "huber_delta": 3.0,
        "ratio_level": "token",
        "value_learning_rate": LinearSchedule(1.0, 0.5, 0.3),
        "kl_ref_coef": 0.25,
        "ratio_tolerance": 0.5,
        "bootstrap_time_limits": False,
        "value_gae_lambda": 0.7,
        "n_value_epochs": 2,
        "policy_warmup_iterations": 4,
    }
    # A VLAPolicy refuses the first; the others are tested below.
    untested = {"use_sde", "rollout_buffer_class", "rollout_buffer_kwargs"}
    assert set(saved_arguments(VLAPPO)) == given.keys() | untested
    policy_kwargs = {"model": FakeBackbone(), "lora": {"r": 2}}
    model = VLAPPO("VLAPolicy", fake_env(2), device="cpu", policy_kwargs=policy_kwargs, **given)
    model.save(tmp_path / "a")
    loaded = VLAPPO.load(tmp_path / "a", device="cpu", policy_kwargs={"model": FakeBackbone()})
    before, after = model.constructor_arguments(), loaded.constructor_arguments()
    for name, value in given.items():
        one, other = before[name], after[name]
        if callable(one):
            assert [one(p) for p in (1.0, 0.5, 0.1)] == [other(p) for p in (1.0, 0.5, 0.1)], name
            assert callable(value) or one(0.5) == value
        else:
            assert one == other == value, name


class OwnPolicy(VLAPolicy):
    """Somebody's own."""


class WithOwnPolicy(VLAPPO):
    policy_aliases: ClassVar = {**VLAPPO.policy_aliases, "OwnPolicy": OwnPolicy}


def test_a_policy_of_a_subclass_goes_by_its_name(tmp_path: Path) -> None:
    model = WithOwnPolicy("OwnPolicy", fake_env(2), policy_kwargs={"model": FakeBackbone()}, **SETTINGS)
    model.save(tmp_path / "a")
    assert type(load(WithOwnPolicy, tmp_path / "a").policy) is OwnPolicy
    with pytest.raises(RunError, match=r"policy class OwnPolicy, which VLAPPO does not know"):
        load(VLAPPO, tmp_path / "a")


class OwnBuffer(DictRolloutBuffer):
    """Somebody's own."""


def test_a_class_must_be_given_again(tmp_path: Path) -> None:
    model = make(VLAPPO, rollout_buffer_class=OwnBuffer)
    model.save(tmp_path / "a")
    with pytest.raises(RunError, match=r"made with rollout_buffer_class=.*OwnBuffer, a class that no file can hold"):
        load(VLAPPO, tmp_path / "a")
    loaded = load(VLAPPO, tmp_path / "a", rollout_buffer_class=OwnBuffer)
    assert type(loaded.rollout_buffer) is OwnBuffer
    with pytest.raises(RunError, match=r"rollout_buffer_class: .*\.OwnBuffer, not .*\.DictRolloutBuffer"):
        load(VLAPPO, tmp_path / "a", rollout_buffer_class=DictRolloutBuffer)
    make(VLAPPO).save(tmp_path / "b")
    assert type(load(VLAPPO, tmp_path / "b").rollout_buffer) is MixedRolloutBuffer


class OwnOptimizer(th.optim.SGD):
    """Somebody's own."""


class Adam(th.optim.SGD):
    """Somebody's own, which is called as another one."""


@pytest.mark.parametrize("own", [OwnOptimizer, Adam], ids=["own", "of another's name"])
def test_a_class_of_the_policy_must_be_given_again_too(tmp_path: Path, own: type[th.optim.SGD]) -> None:
    model = make(VLAPPO, policy_kwargs={"model": FakeBackbone(), "optimizer_class": own})
    model.save(tmp_path / "a")
    with pytest.raises(
        RunError, match=rf"optimizer_class=.*{own.__name__}.*policy_kwargs=dict\(optimizer_class=\.\.\.\)"
    ):
        load(VLAPPO, tmp_path / "a")
    again = {"model": FakeBackbone(), "optimizer_class": own}
    loaded = VLAPPO.load(tmp_path / "a", fake_env(2), device="cpu", policy_kwargs=again)
    assert type(loaded.policy.optimizer) is own


def test_what_json_lacks_is_saved_too(tmp_path: Path) -> None:
    make(VLAPPO, max_grad_norm=float("inf"), tensorboard_log=tmp_path / "logs").save(tmp_path / "a")
    loaded = load(VLAPPO, tmp_path / "a", max_grad_norm=float("inf"))
    assert (loaded.max_grad_norm, loaded.tensorboard_log) == (float("inf"), str(tmp_path / "logs"))
    hyperparameters = tmp_path / "a" / "hyperparameters.json"
    (tmp_path / "a" / "checksums.json").unlink()
    hyperparameters.write_text(hyperparameters.read_text().replace('"float": "inf"', '"float": "nan"'))
    with pytest.raises(RunError, match=r"damaged.*max_grad_norm=nan; expected a number"):
        load(VLAPPO, tmp_path / "a")


def test_forms_follow_annotations() -> None:
    class Made:
        def __init__(
            self, *, rate: float | None, many: int, name: str, anything: dict[str, int], bare: Any
        ) -> None: ...

    forms = argument_forms(Made)
    assert forms["rate"] == (float, type(None), {"float": str})
    assert forms["name"] is str
    assert forms["anything"] is forms["bare"] is object

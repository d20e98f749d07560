"""With its additions off, VLAPPO gives the parameters that SB3's PPO gives, bit for bit."""

import inspect
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import VLAPPO

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "value clipping and target KL": {"clip_range_vf": 0.2, "target_kl": 5e-5, "ent_coef": 0.01},
    "raw advantages and schedules": {
        "normalize_advantage": False,
        "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
        "clip_range": LinearSchedule(0.3, 0.1, 1.0),
    },
    "truncated minibatch": {"batch_size": 48},
}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_parameters_equal_sb3s_bit_for_bit(env_id: str, settings: dict[str, Any]) -> None:
    kwargs = {"n_steps": 256, "n_epochs": 4, "seed": 3, "device": "cpu"} | settings
    theirs = PPO("MlpPolicy", env_id, **kwargs).learn(600)
    ours = VLAPPO("MlpPolicy", env_id, **kwargs).learn(600)
    start = PPO("MlpPolicy", env_id, **kwargs)
    assert ours.num_timesteps == theirs.num_timesteps
    assert ours._n_updates == theirs._n_updates
    for (name, first), second, initial in zip(
        theirs.policy.named_parameters(), ours.policy.parameters(), start.policy.parameters(), strict=True
    ):
        assert th.equal(first, second), f"{name} differs by {(first - second).abs().max():.3g}"
        assert not th.equal(first, initial), f"{name} was not trained"


def test_target_kl_of_the_parity_test_stops_epochs_early() -> None:
    """Else the comparison above would say nothing about it."""
    kwargs: dict[str, Any] = {"n_steps": 256, "n_epochs": 4, "seed": 3, "device": "cpu"}
    stopped = VLAPPO("MlpPolicy", "CartPole-v1", **kwargs | SETTINGS["value clipping and target KL"]).learn(600)
    assert stopped._n_updates < 12


def test_metrics_equal_sb3s() -> None:
    """The numbers that SB3 logs mean here what they mean there."""
    logged = []
    for algorithm in (PPO, VLAPPO):
        model = algorithm("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        model.learn(128, log_interval=None)  # type: ignore[arg-type]
        logged.append({k: v for k, v in model.logger.name_to_value.items() if k.startswith("train/")})
    theirs, ours = logged
    # SB3 logs the last minibatch's loss, we the mean over all.
    assert {name: ours[name] for name in theirs if name != "train/loss"} == pytest.approx(
        {name: value for name, value in theirs.items() if name != "train/loss"}, rel=1e-4, abs=1e-6
    )
    assert set(ours) - set(theirs) == {
        f"train/{name}"
        for name in ("first_ratio_error", "ratio_deviation", "log_prob_gap", "value_std", "grad_norm", "skipped_steps")
    }


def test_signature_is_a_superset_of_sb3s_and_none_means_its_default() -> None:
    theirs, ours = inspect.signature(PPO.__init__).parameters, inspect.signature(VLAPPO.__init__).parameters
    names = list(theirs)
    assert list(ours)[: len(names)] == names
    model = VLAPPO("MlpPolicy", "CartPole-v1", device="cpu")
    for name in names:
        if ours[name].default != theirs[name].default:
            assert ours[name].default is None
            assert getattr(model, name) == theirs[name].default
    assert model.critic_warmup_iterations == 0


def test_sb3s_policies_are_saved_as_sb3_saves_them(tmp_path: Any) -> None:
    model = VLAPPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64)
    model.save(tmp_path / "run")
    loaded = VLAPPO.load(tmp_path / "run", device="cpu", unsafe_sb3_zip=True)
    assert (tmp_path / "run.zip").is_file()
    for first, second in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(first, second)

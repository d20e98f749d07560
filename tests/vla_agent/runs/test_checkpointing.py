"""Saved runs: what is in them, that they come back the same, and what happens to broken ones."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, fake_env
from paths import TESTS
from safetensors.torch import load_file, save_file
from saved_runs import fake, fake_model, tiny_env, tiny_model
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import VLAPPO
from vla_agent.common import atomic as folders
from vla_agent.openvla import load_processor
from vla_agent.openvla.files import resolve_folder
from vla_agent.runs.run_files import CHECKSUMS, FILES, RunError
from vla_agent.runs.saved_run import frozen_fingerprint
from vla_agent.runs.serialization import restore_generators


@pytest.mark.parametrize(
    "policy_kwargs", [{}, {"lora": {"r": 2}}, {"autocast": th.bfloat16}], ids=["weights", "adapters", "autocast"]
)
def test_loaded_run_acts_the_same(tmp_path: Path, policy_kwargs: dict[str, Any]) -> None:
    model = tiny_model(temperature=1.5, optimizer_class=th.optim.AdamW, **policy_kwargs).learn(16)
    model.save(tmp_path / "a")
    loaded = VLAPPO.load(tmp_path / "a", device="cpu")
    assert loaded.policy.compute_dtype == model.policy.compute_dtype
    assert loaded._monitor.tolerance == model._monitor.tolerance
    obs = tiny_env().reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    th.manual_seed(4)
    drawn = model.predict(obs)[0]
    th.manual_seed(4)
    np.testing.assert_array_equal(drawn, loaded.predict(obs)[0])
    tensors = {key: th.as_tensor(value) for key, value in obs.items()}
    assert th.equal(model.policy.predict_values(tensors), loaded.policy.predict_values(tensors))
    assert loaded.num_timesteps == 16
    assert isinstance(loaded.policy.optimizer, th.optim.AdamW)
    assert loaded.policy.temperature == 1.5  # type: ignore[union-attr]


def test_a_run_with_adapters_holds_adapters_and_critic_alone(tmp_path: Path) -> None:
    tiny_model(lora={"r": 2}).save(tmp_path / "a")
    names = set(load_file(tmp_path / "a" / "policy.safetensors"))
    assert all("lora_" in name or name.startswith("value_head.") for name in names)
    assert (tmp_path / "a" / "policy.safetensors").stat().st_size < 600_000
    base = json.loads((tmp_path / "a" / "hyperparameters.json").read_text())["base_model"]
    assert base["id"] == "tiny"
    assert base["fingerprint"] == load_processor("tiny").fingerprint()
    assert base["norm_stats"] == load_processor("tiny").config.norm_stats


def test_adapters_are_not_put_on_other_weights(tmp_path: Path) -> None:
    base = Path(shutil.copytree(resolve_folder("tiny", weights=True), tmp_path / "base"))
    tiny_model(lora={"r": 2}, model=str(base)).save(tmp_path / "a")
    VLAPPO.load(tmp_path / "a", device="cpu")
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    save_file(tensors | {name: tensors[name] * 1.1}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"adapters of the run .* were trained on other weights than '.*base' has now"):
        VLAPPO.load(tmp_path / "a", device="cpu")
    VLAPPO.load(tmp_path / "a", device="cpu", allow_changes=True)
    document = json.loads((tmp_path / "a" / "hyperparameters.json").read_text())
    assert len(document["base_model"]["frozen"]) == 16
    assert frozen_fingerprint(tiny_model().policy) is None  # all weights are the run's own


def test_nothing_in_a_run_is_pickled_or_machine_dependent(tmp_path: Path) -> None:
    fake_model().learn(32).save(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted((*FILES, CHECKSUMS))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in (tmp_path / "a").iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.loads(path.read_bytes())
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=refuse)
            assert str(tmp_path) not in path.read_text()


@pytest.mark.filterwarnings("error")
def test_training_continues_as_it_would_have(tmp_path: Path) -> None:
    """Same weights, optimizer moments and random numbers: one more update gives the same parameters."""
    model = fake_model(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), n_epochs=2).learn(64)
    model.save(tmp_path / "a")
    loaded = VLAPPO.load(tmp_path / "a", fake_env(2), device="cpu", **fake())
    buffer = model.rollout_buffer
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns", "full", "generator_ready"):
        setattr(loaded.rollout_buffer, name, getattr(buffer, name))
    loaded.set_logger(model.logger)
    loaded.ratio_tolerance = loaded._monitor.tolerance = model._monitor.tolerance = 10.0  # an old rollout
    loaded.train()
    restore_generators(json.loads((tmp_path / "a" / "state.json").read_text())["generators"], model.device)
    model.train()
    assert loaded._n_updates == model._n_updates
    assert loaded.n_iterations == model.n_iterations == 3
    for (name, first), second in zip(model.policy.named_parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(first, second), name
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96


def test_arguments_come_back(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "clip_range_vf": 0.3,
        "target_kl": 5.0,
        "gradient_accumulation_steps": 2,
        "critic_warmup_iterations": 3,
        "value_loss": "huber",
        "ratio_level": "token",
        "kl_ref_coef": 0.25,
        "stats_window_size": 7,
        "normalize_advantage": True,
        "max_grad_norm": 0.7,
        "ent_coef": 0.01,
        "vf_coef": 0.6,
        "huber_delta": 3.0,
        "ratio_tolerance": 0.5,
    }
    model = fake_model(
        policy_kwargs={"lora": {"r": 2}, "value_hidden": (8, 8), "temperature": 1.2},
        value_learning_rate=LinearSchedule(1.0, 0.5, 0.3),
        clip_range=0.1,
        **given,
    )
    model.save(tmp_path / "a")
    with pytest.raises(RunError, match="trained on other weights than"):
        VLAPPO.load(tmp_path / "a", device="cpu", **fake())
    loaded = VLAPPO.load(tmp_path / "a", device="cpu", gamma=0.95, policy_kwargs={"model": FakeBackbone()})
    for name in given.keys() - {"gamma", "stats_window_size", "clip_range_vf"}:
        assert getattr(loaded, name) == given[name], name
    assert loaded.gamma == 0.95
    assert loaded._stats_window_size == 7
    assert loaded.clip_range_vf(0.5) == 0.3  # type: ignore[operator, misc]
    assert loaded.clip_range(0.5) == 0.1  # type: ignore[operator]
    assert loaded._value_lr_schedule(0.85) == pytest.approx(0.75)  # type: ignore[misc]
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    assert sum(p.numel() for p in loaded.policy.parameters()) == sum(p.numel() for p in model.policy.parameters())


def test_own_schedules_are_kept_as_their_value_with_a_warning(tmp_path: Path) -> None:
    model = fake_model(learning_rate=lambda progress: 1e-3 * progress)
    with pytest.warns(UserWarning, match=r"schedule learning_rate=.* cannot be written"):
        model.save(tmp_path / "a")
    assert VLAPPO.load(tmp_path / "a", device="cpu", **fake()).learning_rate == pytest.approx(1e-3)


def test_more_environments_and_another_seed(tmp_path: Path) -> None:
    fake_model().learn(32).save(tmp_path / "a")
    env = fake_env(4)
    loaded = VLAPPO.load(tmp_path / "a", env, device="cpu", allow_changes=True, **fake())
    assert loaded.n_envs == 4
    loaded.learn(64)
    assert env.venv.seeds[0] == [32, 33, 34, 35]  # seed 0 after 32 steps: not the first episodes again
    with pytest.raises(ValueError, match="does not divide"):
        VLAPPO.load(tmp_path / "a", fake_env(3), device="cpu", batch_size=32, allow_changes=True, **fake())


# -------------------------------------------------------------------------------------------- atomicity


def test_an_existing_run_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    model = fake_model()
    model.save(tmp_path / "runs" / "a")
    model.learn(32)
    model.save(str(tmp_path / "runs" / "a"))
    assert VLAPPO.load(tmp_path / "runs" / "a", device="cpu", **fake()).num_timesteps == 32
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_replacing_works_without_an_exchange_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    test_an_existing_run_is_replaced_and_nothing_is_left_beside_it(tmp_path)


def test_a_failing_save_leaves_the_old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake_model()
    model.save(tmp_path / "a")
    model.learn(32)
    monkeypatch.setattr(model, "state_dict", lambda: {"counters": object()})
    with pytest.raises(TypeError):
        model.save(tmp_path / "a")
    assert VLAPPO.load(tmp_path / "a", device="cpu", **fake()).num_timesteps == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from saved_runs import fake_model
model = fake_model()
while True:
    model.num_timesteps += 1
    model.save(Path({path!r}))
    if model.num_timesteps == 1:
        print("saved once", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged by a Linux call")
def test_kill_at_any_moment_leaves_a_loadable_run(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(TESTS / "support"), path=str(tmp_path / "a"))
    fake_model().save(tmp_path / "a")
    for delay in (0.05, 0.13):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "saved once\n"
        end = time.monotonic() + delay
        while time.monotonic() < end:
            assert (tmp_path / "a" / "state.json").exists()  # at no moment is there none
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        VLAPPO.load(tmp_path / "a", device="cpu", **fake())
    assert VLAPPO.load(tmp_path / "a", device="cpu", **fake()).num_timesteps > 0


def test_sb3s_checkpoint_callback_keeps_runs(tmp_path: Path) -> None:
    """In the middle of the second rollout: the run as it was before that."""
    fake_model().learn(64, CheckpointCallback(24, str(tmp_path), "run"))
    assert VLAPPO.load(tmp_path / "run_48_steps.zip", device="cpu", **fake()).num_timesteps == 32


# -------------------------------------------------------------------------------------------- bad input


def test_missing_and_half_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no saved run at"):
        VLAPPO.load(tmp_path / "nothing")
    fake_model().save(tmp_path / "a")
    (tmp_path / "a" / "optimizer.json").unlink()
    (tmp_path / "a" / "policy.safetensors").unlink()
    with pytest.raises(RunError, match=r"it lacks policy\.safetensors, optimizer\.json"):
        VLAPPO.load(tmp_path / "a", **fake())


@pytest.mark.parametrize("name", ["hyperparameters.json", "policy.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    fake_model().learn(32).save(tmp_path / "a")
    content = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=f"{name}' is damaged"):
        VLAPPO.load(tmp_path / "a", device="cpu", **fake())


def test_runs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fake_model().save(tmp_path / "a")
    with pytest.raises(RunError, match=r"model object \(FakeBackbone\)"):
        VLAPPO.load(tmp_path / "a")
    with pytest.raises(RunError, match="trained on other spaces"):
        VLAPPO.load(tmp_path / "a", fake_env(2, chunk_size=2), **fake())
    with pytest.raises(RunError, match="are not those of this policy"):
        VLAPPO.load(tmp_path / "a", policy_kwargs={"model": FakeBackbone(width=16)})
    other = FakeBackbone()
    other.processor = FakeProcessor("other")
    with pytest.raises(RunError, match="trained on another base model"):
        VLAPPO.load(tmp_path / "a", policy_kwargs={"model": other})
    hyperparameters = tmp_path / "a" / "hyperparameters.json"
    hyperparameters.write_text(hyperparameters.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(RunError, match="has format 3"):
        VLAPPO.load(tmp_path / "a", **fake())


def test_arguments_without_a_json_form_are_named(tmp_path: Path) -> None:
    model = fake_model(policy_kwargs={"optimizer_kwargs": {"eps": th.ones(1)}})
    with pytest.raises(ValueError, match=r"optimizer_kwargs=.* cannot be written"):
        model.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="saved to a folder or zip"):
        model.save(open(os.devnull, "wb"))  # noqa: SIM115

"""One-file runs, as SB3's callbacks and other tools want them; and files that must not be unpickled."""

import base64
import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from fakes import fake_env
from saved_runs import fake, fake_model, tiny_model
from stable_baselines3.common.callbacks import CheckpointCallback

from vla_agent import VLAPPO
from vla_agent.evaluation.policies import load_subject
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.run_files import CHECKSUMS, FILES, RunError, damage


def load(path: Any, **kwargs: Any) -> VLAPPO:
    return VLAPPO.load(path, device="cpu", **fake(), **kwargs)


def test_sb3s_checkpoints_load_by_the_name_that_sb3s_models_do(tmp_path: Path) -> None:
    fake_model().learn(16, CheckpointCallback(8, str(tmp_path / "ck"), name_prefix="m"))
    assert zipfile.is_zipfile(tmp_path / "ck" / "m_16_steps.zip")
    for name in ("m_16_steps", "m_16_steps.zip"):
        assert load(tmp_path / "ck" / name).n_steps == 16
        assert load(str(tmp_path / "ck" / name)).n_steps == 16


def test_a_zip_holds_the_files_of_the_folder_uncompressed(tmp_path: Path) -> None:
    model = fake_model(policy_kwargs={"lora": {"r": 2}}).learn(32)
    th.manual_seed(0)
    model.save(tmp_path / "a")
    model.save(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert sorted(archive.namelist()) == sorted((*FILES, CHECKSUMS))
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        for name in FILES:
            assert archive.read(name) == (tmp_path / "a" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.zip"]
    assert (tmp_path / "b.zip").stat().st_mode & 0o777 == 0o644
    assert damage(tmp_path / "b") is None


def test_a_run_in_a_zip_goes_on_as_one_in_a_folder(tmp_path: Path) -> None:
    model = fake_model().learn(32)
    model.save(tmp_path / "a")
    model.save(tmp_path / "b.zip")
    wanted: dict[str, th.Tensor] = {}
    for name in ("a", "b"):
        resumed = load(tmp_path / name, env=fake_env(2)).learn(32, reset_num_timesteps=False)
        for key, tensor in resumed.policy.state_dict().items():
            assert th.equal(tensor, wanted.setdefault(key, tensor)), key


def test_a_zip_is_replaced_and_the_exact_name_comes_first(tmp_path: Path) -> None:
    model = fake_model()
    for steps in (1, 2):
        model.num_timesteps = steps
        model.save(tmp_path / "m.zip")
    assert load(tmp_path / "m").num_timesteps == 2
    (tmp_path / "m").mkdir()  # of something else
    assert load(tmp_path / "m").num_timesteps == 2
    model.num_timesteps = 3
    model.save(tmp_path / "m")
    assert [load(tmp_path / name).num_timesteps for name in ("m", "m.zip")] == [3, 2]
    (tmp_path / "m.zip").rename(tmp_path / "without_suffix")
    assert load(tmp_path / "without_suffix").num_timesteps == 2
    assert load(tmp_path / "m.zip").num_timesteps == 3


def test_a_zip_can_be_evaluated(tmp_path: Path) -> None:
    tiny_model(lora={"r": 2}).save(tmp_path / "a.zip")
    for name in ("a", "a.zip"):
        assert isinstance(load_subject(str(tmp_path / name), "cpu").model, VLAPPO)


# ------------------------------------------------------------------------------------------------ hostile zips


def changed(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], **kwargs: Any) -> Path:
    """A copy of a run's zip with other files."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    other = path.with_name("changed.zip")
    with zipfile.ZipFile(other, "w", **kwargs) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, body in change(content).items():
            archive.writestr(name.removesuffix("*"), body)
    return other


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "absolute": (lambda files: {**files, "/tmp/evil": b""}, "'/tmp/evil', which no run has"),
    "outside": (lambda files: {**files, "../evil": b""}, r"'\.\./evil', which no run has"),
    "nested": (lambda files: {**files, "sub/state.json": b""}, "which no run has"),
    "pickled": (lambda files: {**files, "policy.pth": b""}, r"'policy\.pth', which no run has"),
    "twice": (lambda files: {**files, "state.json*": b"{}"}, "a file twice"),
    "half": (lambda files: {name: files[name] for name in FILES[:2]}, "zip .* is no complete run: it lacks"),
    "flipped": (
        lambda files: {**files, "policy.safetensors": files["policy.safetensors"][:-1] + b"\x17"},
        r"policy\.safetensors' is damaged: its checksum",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_zips_are_refused_and_nothing_is_extracted(tmp_path: Path, case: str) -> None:
    fake_model().save(tmp_path / "run.zip")
    change, match = HOSTILE[case]
    path = changed(tmp_path / "run.zip", change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=match):
        load(path)
    assert damage(path) is not None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_compressed_zip_is_refused_unread(tmp_path: Path) -> None:
    """Ten megabytes of zeros take ten kilobytes."""
    fake_model().save(tmp_path / "run.zip")
    bomb = changed(
        tmp_path / "run.zip",
        lambda files: {**files, "state.json": b" " * 10**7},
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(RunError, match="compressed, encrypted, or larger than the zip"):
        load(bomb)


@pytest.mark.parametrize("size", [0, 10, 1000, -30])
def test_cut_zips_are_told(tmp_path: Path, size: int) -> None:
    fake_model().save(tmp_path / "run.zip")
    whole = (tmp_path / "run.zip").read_bytes()
    (tmp_path / "run.zip").write_bytes(whole[:size])
    with pytest.raises(RunError, match="cannot be read as a zip"):
        load(tmp_path / "run")


# -------------------------------------------------------------------------------------------------------- pickles


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def evil_zip(path: Path, mark: Path) -> None:
    blob = base64.b64encode(pickle.dumps(Evil(mark))).decode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": blob}}))


@pytest.mark.parametrize("saved", ["model.zip", "model", "model.bin"])
@pytest.mark.parametrize("as_stream", [False, True])
def test_a_zip_that_was_sent_runs_no_code(tmp_path: Path, saved: str, as_stream: bool) -> None:
    mark = tmp_path / "PWNED"
    evil_zip(tmp_path / saved, mark)
    names = [saved] if as_stream or saved != "model.zip" else ["model.zip", "model"]
    for name in names:
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(open(tmp_path / name, "rb")) if as_stream else tmp_path / name
            with pytest.raises(RunError, match=r"whoever wrote it could run any code here.*unsafe_sb3_zip=True"):
                VLAPPO.load(path)
        with pytest.raises((ValueError, NotImplementedError)):
            load_subject(str(tmp_path / name))
    assert not mark.exists()
    with pytest.raises(KeyError):  # the file would run, if asked to: the test can fail
        VLAPPO.load(tmp_path / saved, unsafe_sb3_zip=True)
    assert mark.exists()


@pytest.mark.parametrize("asked", ["no", 1, None])
def test_what_is_no_bool_asks_for_no_unpickling(tmp_path: Path, asked: Any) -> None:
    mark = tmp_path / "mark"
    evil_zip(tmp_path / "model.zip", mark)
    with pytest.raises(ValueError, match=r"^unsafe_sb3_zip=.*; expected True or False\.$"):
        VLAPPO.load(tmp_path / "model", unsafe_sb3_zip=asked)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allow_changes": "no"}, "allow_changes='no'; expected True or False"),
        ({"print_system_info": 1}, "print_system_info=1; expected True or False"),
        ({"force_reset": None}, "force_reset=None; expected True or False"),
        ({"custom_objects": 5}, "custom_objects=5; expected a dict of values by name, or None"),
        ({"path": None}, "path=None; expected the folder or zip of a saved run"),
        ({"path": 5}, "path=5; expected the folder or zip of a saved run"),
    ],
)
def test_wrong_arguments_of_load_are_told(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        VLAPPO.load(**({"path": tmp_path / "run"} | given))


def test_a_pickled_policy_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "PWNED"
    th.save({"data": Evil(mark)}, tmp_path / "policy.pt")
    with pytest.raises(NotImplementedError, match="loaded with its algorithm"):
        VLAPolicy.load(str(tmp_path / "policy.pt"))
    assert not mark.exists()


def test_sb3s_own_zip_loads_when_asked(tmp_path: Path) -> None:
    model = VLAPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, gamma=0.9)
    model.save(tmp_path / "a")
    with pytest.raises(RunError, match="unpickle"):
        VLAPPO.load(tmp_path / "a")
    assert VLAPPO.load(tmp_path / "a", unsafe_sb3_zip=True).gamma == 0.9
    assert VLAPPO.load(tmp_path / "a", unsafe_sb3_zip=True, custom_objects={"gamma": 0.8}).gamma == 0.8
    assert VLAPPO.load(tmp_path / "a", "CartPole-v1", unsafe_sb3_zip=True).learn(8).num_timesteps == 8


# ---------------------------------------------------------------------------------------------- SB3's other arguments


def test_custom_objects_stand_for_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As RL Zoo calls it: with an environment, and with names of SB3's zips that a run derives."""
    fake_model().learn(32).save(tmp_path / "a")
    custom = {"learning_rate": 0.5, "lr_schedule": lambda _: 0.0, "clip_range": 0.3, "policy_class": VLAPolicy}
    loaded = load(tmp_path / "a", env=fake_env(2), custom_objects=custom, print_system_info=True, force_reset=True)
    assert loaded.learning_rate == 0.5
    assert loaded.clip_range(1.0) == 0.3  # type: ignore[operator]
    assert loaded.num_timesteps == 32
    assert "Stable-Baselines3" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"'learning_rat', which no run holds\. Did you mean 'learning_rate'"):
        load(tmp_path / "a", custom_objects={"learning_rat": 1.0})
    with pytest.raises(TypeError, match=r"no argument 'gama'\. Did you mean 'gamma'"):
        load(tmp_path / "a", gama=0.5)

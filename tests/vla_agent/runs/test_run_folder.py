"""A run's folder is one run's: others are refused or put aside, never mixed in, and damage is never gone on from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from resuming import StopAt, load
from saved_runs import fake_model
from stable_baselines3 import PPO

from vla_agent import VLAPPO, RunCheckpoints, RunError, SaveOnSignal, claim_run, latest_run, safe_learn
from vla_agent.runs import run_folder


def train(run_dir: Path, timesteps: int = 96, *, model: VLAPPO | None = None, **kwargs: Any) -> VLAPPO:
    """A run with a checkpoint after each of its iterations of 32 timesteps but the last, and ``model/`` at its end."""
    model = fake_model() if model is None else model
    safe_learn(model, timesteps, run_dir, RunCheckpoints(run_dir, every=1), **kwargs)
    model.save(run_dir / "model")
    return model


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------------ identity


def test_a_new_run_in_the_folder_of_another_is_refused_with_what_to_type(tmp_path: Path) -> None:
    run_dir = tmp_path / "my runs"
    old = train(run_dir)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("[!.]*")}
    sentence = (
        rf"'{run_dir}' already holds a run \(checkpoints/, model/; begun 20.*\).* add --resume '{run_dir}' .*"
        rf"latest_run\('{run_dir}'\).* another folder \(--out\).* moved to '{run_dir}/earlier' by --existing aside"
    )
    for attempt in (
        lambda: claim_run(run_dir),
        lambda: safe_learn(fake_model(), 32, run_dir),
        lambda: fake_model().learn(32, RunCheckpoints(run_dir)),
        lambda: fake_model().learn(32, SaveOnSignal(run_dir)),
        lambda: safe_learn(old, 32, run_dir),  # from zero: another run
        lambda: safe_learn(load(old_copy(run_dir, tmp_path)), 32, run_dir),
    ):
        with pytest.raises(RunError, match=sentence):
            attempt()
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("[!.]*")} == before


def old_copy(run_dir: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return shutil.copytree(run_dir / "model", tmp_path / "copy")


def test_a_refused_run_keeps_its_environments(tmp_path: Path) -> None:
    train(tmp_path)
    model = fake_model()
    with pytest.raises(RunError):
        safe_learn(model, 32, tmp_path)
    assert model.env.venv.closed_times == 0  # type: ignore[union-attr]
    assert safe_learn(model, 32, tmp_path, existing="aside")


def test_an_older_run_is_put_aside_whole_and_the_new_one_is_found(tmp_path: Path) -> None:
    train(tmp_path, 160)
    (tmp_path / "progress.csv").write_text("old")
    (tmp_path / "mine.txt").write_text("untouched")
    first_id = json.loads((tmp_path / "run.json").read_text())["id"]
    train(tmp_path, 96, existing="aside")
    (aside,) = (tmp_path / "earlier").iterdir()
    assert {path.name for path in aside.iterdir()} == {"checkpoints", "model", "progress.csv", "run.json"}
    assert json.loads((aside / "run.json").read_text())["id"] == first_id
    assert checkpoints(aside) == [96, 128]
    assert latest_run(aside).name == "model"
    assert load(latest_run(aside)).num_timesteps == 160
    assert checkpoints(tmp_path) == [32, 64]
    assert load(latest_run(tmp_path)).num_timesteps == 96
    assert (tmp_path / "mine.txt").read_text() == "untouched"
    train(tmp_path, 64, existing="aside")
    assert len(list((tmp_path / "earlier").iterdir())) == 2


def test_logs_of_a_run_that_ended_before_its_first_save_are_put_aside(tmp_path: Path) -> None:
    claim_run(tmp_path).release()
    (tmp_path / "progress.csv").write_text("an hour")
    (tmp_path / "mine.txt").write_text("untouched")
    claim_run(tmp_path).release()
    (aside,) = (tmp_path / "earlier").iterdir()
    assert (aside / "progress.csv").read_text() == "an hour"
    assert not (tmp_path / "progress.csv").exists()
    assert (tmp_path / "mine.txt").read_text() == "untouched"


def test_the_same_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    train(tmp_path)
    claim = claim_run(tmp_path, resume=tmp_path)
    assert (claim.attempt, claim.resumed_from) == (2, tmp_path / "model")
    model = load(claim.resumed_from)
    train(tmp_path, 64, model=model, reset_num_timesteps=False)
    claim.release()
    assert checkpoints(tmp_path) == [96, 128]
    assert load(latest_run(tmp_path)).num_timesteps == 160
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["id"] == claim.id == model.run["id"]
    assert [attempt["command"] for attempt in document["attempts"]] == [sys.argv, sys.argv]
    again = load(latest_run(tmp_path))
    train(tmp_path, 32, model=again, reset_num_timesteps=False)  # without `claim_run`, too
    assert again.run == {"id": claim.id, "attempt": 3}


def test_going_back_to_an_older_checkpoint_counts_as_newer_than_what_was_left(tmp_path: Path) -> None:
    model = fake_model()
    safe_learn(model, 160, tmp_path, RunCheckpoints(tmp_path, every=1, keep=9))
    assert checkpoints(tmp_path) == [32, 64, 96, 128]
    back = load(tmp_path / "checkpoints" / "0000000032")
    safe_learn(
        back, 10_000, tmp_path, [RunCheckpoints(tmp_path, every=1, keep=2), StopAt(40)], reset_num_timesteps=False
    )
    assert checkpoints(tmp_path) == [64, 96]  # the last two that were written; 128 of the branch left behind went
    assert load(latest_run(tmp_path)).run["attempt"] == 2
    assert load(latest_run(tmp_path)).num_timesteps == 96


def test_an_old_checkpoint_that_holds_a_file_of_the_users_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path)
    notes = tmp_path / "checkpoints" / "0000000032" / "notes.txt"
    notes.write_text("the best one")
    train(tmp_path, 64, model=load(latest_run(tmp_path)), reset_num_timesteps=False)
    assert checkpoints(tmp_path) == [32, 96, 128]
    assert notes.read_text() == "the best one"
    assert "0000000032' was not removed" in caplog.text
    assert "holds 'notes.txt', which no saved run has" in caplog.text


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    train(tmp_path)
    folder = tmp_path / "checkpoints"
    for name in (".0000000032.ab_12cde", ".0000000064.old.ab_12cde/run", ".0000000064.with_not"):
        shutil.copytree(tmp_path / "model", folder / name)
    assert (folder / ".0000000032.ab_12cde" / "checksums.json").is_file()
    (folder / ".0000000064.with_not" / "notes.txt").write_text("not ours")
    train(tmp_path, 32, model=load(latest_run(tmp_path)), reset_num_timesteps=False)
    assert [path.name for path in folder.glob(".*")] == [".0000000064.with_not"]


def test_what_a_killed_process_left_of_another_save_goes_if_there_is_one(tmp_path: Path) -> None:
    """It may be the only one where a system cannot exchange two folders in one step."""
    train(tmp_path)
    left = (".model.ab_12cde", ".best.old.ab_12cde/run", ".other.ab_12cde")
    for name in left:
        shutil.copytree(tmp_path / "model", tmp_path / name)
    train(tmp_path, 32, model=load(latest_run(tmp_path)), reset_num_timesteps=False)
    assert not (tmp_path / "best").exists()
    assert [(tmp_path / name).exists() for name in left] == [False, True, True]


def test_from_another_folder_another_run_begins(tmp_path: Path) -> None:
    first = train(tmp_path / "a")
    claim = claim_run(tmp_path / "b", resume=tmp_path / "a")
    model = load(claim.resumed_from)
    train(tmp_path / "b", 64, model=model, reset_num_timesteps=False)
    claim.release()
    assert model.run["id"] == claim.id != first.run["id"]
    with pytest.raises(RunError, match="already holds a run"):
        claim_run(tmp_path / "a", resume=tmp_path / "b")
    with pytest.raises(RunError, match="There is no saved run in"):
        claim_run(tmp_path / "c", resume=tmp_path / "nowhere")
    assert not (tmp_path / "c").exists()


def test_a_zip_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    train(tmp_path / "a").save(path)
    with claim_run(tmp_path / "b", resume=path) as claim:
        assert claim.resumed_from == latest_run(path) == path
        assert load(path).num_timesteps == 96
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"The saved run '.*model\.zip' is damaged: .* cannot be read as a zip"):
        latest_run(path)


def test_a_run_that_was_put_aside_is_another_one(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, existing="aside")
    (aside,) = (tmp_path / "earlier").iterdir()
    with pytest.raises(RunError, match="already holds a run"):
        claim_run(tmp_path, resume=aside)


def test_a_run_whose_checkpoints_are_a_link_goes_on(tmp_path: Path) -> None:
    """As where they lie on a larger disk."""
    (tmp_path / "big").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to("../big")
    model = fake_model()
    safe_learn(model, 96, tmp_path / "run", RunCheckpoints(tmp_path / "run", every=1))
    assert sorted(path.name for path in (tmp_path / "big").iterdir()) == ["0000000032", "0000000064"]
    for run_dir in (tmp_path / "run", tmp_path / "big" / ".." / "run"):
        with claim_run(run_dir, run_dir) as claim:
            assert claim.id == model.run["id"]
            assert claim.resumed_from == run_dir / "checkpoints" / "0000000064"
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="already holds a run"):
        claim_run(tmp_path / "run", tmp_path / "other" / ".." / "big" / "0000000064")  # a place of its own
    assert safe_learn(fake_model(), 32, tmp_path / "run", existing="aside")
    (aside,) = (tmp_path / "run" / "earlier").iterdir()
    assert latest_run(aside).resolve() == tmp_path / "big" / "0000000064"
    train(tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        claim_run(tmp_path / "run", aside)  # what was put aside is another one


def test_a_checkpoint_that_is_a_link_is_gone_on_from(tmp_path: Path) -> None:
    model = train(tmp_path / "run", 64)
    shutil.move(tmp_path / "run" / "model", tmp_path / "big")
    (tmp_path / "run" / "model").symlink_to(tmp_path / "big")
    with claim_run(tmp_path / "run", tmp_path / "run") as claim:
        assert (claim.id, claim.resumed_from) == (model.run["id"], tmp_path / "run" / "model")


def test_a_mistake_that_is_found_before_the_first_step_leaves_the_folder_free(tmp_path: Path) -> None:
    """The corrected command finds no run there. What was to go on keeps what it goes on from."""

    class Mistaken(StopAt):
        def _on_training_start(self) -> None:
            raise ValueError("init_state_ids is empty")

    model = fake_model()
    with pytest.raises(ValueError, match="init_state_ids is empty"):
        safe_learn(model, 64, tmp_path, [RunCheckpoints(tmp_path), Mistaken(9)])
    assert not (tmp_path / "interrupted").exists()
    assert not safe_learn(fake_model(), 640, tmp_path, Watch(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    kept = (tmp_path / "interrupted" / "state.json").read_bytes()
    with pytest.raises(ValueError, match="init_state_ids is empty"):
        safe_learn(load(tmp_path / "interrupted"), 64, tmp_path, Mistaken(9), reset_num_timesteps=False)
    assert (tmp_path / "interrupted" / "state.json").read_bytes() == kept


def test_what_another_run_saved_in_the_folder_is_neither_found_nor_removed(tmp_path: Path) -> None:
    other = train(tmp_path / "other", 320)
    claim = claim_run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name in (256, 288):
        shutil.copytree(tmp_path / "other" / "checkpoints" / f"{name:010d}", folder / f"{name:010d}")
    (folder / ".git").mkdir()
    (folder / ".0000000007.thesis").mkdir()
    (folder / ".0000000007.thesis" / "chapter1.tex").write_text("...")
    (folder / ".0000000032.ab3_d9xz").mkdir()  # a killed writer's
    (folder / ".0000000032.ab3_d9xz" / "policy.safetensors").write_text("half")
    (folder / "notes").mkdir()
    model = fake_model()
    safe_learn(model, 160, tmp_path / "run", RunCheckpoints(tmp_path / "run", every=1))
    claim.release()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        ".0000000007.thesis", ".git", "0000000096", "0000000128", "0000000256", "0000000288", "notes"
    ]  # fmt: skip
    assert latest_run(tmp_path / "run").name == "0000000128"
    assert other.run["id"] != model.run["id"]


def test_runs_from_before_there_were_identities_go_on(tmp_path: Path) -> None:
    model = train(tmp_path)
    (tmp_path / "run.json").unlink()
    for path in (tmp_path / "model", *(tmp_path / "checkpoints").iterdir()):
        state = json.loads((path / "state.json").read_text())
        del state["run"]
        (path / "state.json").write_text(json.dumps(state))
        (path / "checksums.json").unlink()
    with pytest.raises(RunError, match=r"already holds a run \(checkpoints/, model/\)"):
        safe_learn(fake_model(), 32, tmp_path)
    model = load(latest_run(tmp_path))
    assert model.run is None
    train(tmp_path, 96, model=model, reset_num_timesteps=False)
    assert load(latest_run(tmp_path)).num_timesteps == 192
    assert checkpoints(tmp_path) == [32, 64, 128, 160]  # what it did not write, it does not remove


def test_without_its_run_json_a_run_still_knows_its_own(tmp_path: Path) -> None:
    first = train(tmp_path)
    for content in (None, "[", '{"id": 3, "attempts": [{}]}'):
        (tmp_path / "run.json").unlink() if content is None else (tmp_path / "run.json").write_text(content)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model = load(latest_run(tmp_path))
        assert bool(seen) == (content is not None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(tmp_path, 32, model=model, reset_num_timesteps=False)
        assert model.run["id"] == first.run["id"]
        assert load(latest_run(tmp_path)).num_timesteps == model.num_timesteps


def test_two_folders_of_one_training_are_one_run(tmp_path: Path) -> None:
    model = fake_model()
    safe_learn(model, 96, tmp_path / "a", RunCheckpoints(tmp_path / "b", every=1))
    assert json.loads((tmp_path / "b" / "run.json").read_text())["id"] == model.run["id"]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["id"] == model.run["id"]
    assert latest_run(tmp_path / "b").name == "0000000064"


# ------------------------------------------------------------------------------------------------ lock

HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, f"process {os.getpid()} on here".encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        sentence = f"Another training writes into '{tmp_path}': process {other.pid} on here"
        for attempt in (
            lambda: claim_run(tmp_path),
            lambda: safe_learn(fake_model(), 32, tmp_path),
            lambda: fake_model().learn(32, RunCheckpoints(tmp_path)),
        ):
            with pytest.raises(RunError, match=re.escape(sentence)):
                attempt()
        other.kill()  # the kernel lets go
    with claim_run(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("callback", [RunCheckpoints, SaveOnSignal])
def test_the_lock_is_held_while_training_and_not_after(tmp_path: Path, callback: Any) -> None:
    model = fake_model()
    seen: list[bool] = []
    model.learn(64, [callback(tmp_path), Watch(lambda: seen.append(is_locked(tmp_path)))])
    assert seen == [True, True]
    assert not is_locked(tmp_path)
    safe_learn(model, 64, tmp_path, Watch(lambda: seen.append(is_locked(tmp_path))), reset_num_timesteps=False)
    assert seen == [True] * 4
    assert not is_locked(tmp_path)


class Watch(StopAt):
    """Does something at the start of each rollout."""

    def __init__(self, action: Any) -> None:
        super().__init__(10_000)
        self.action = action

    def _on_rollout_start(self) -> None:
        self.action()


def is_locked(run_dir: Path) -> bool:
    with (run_dir / ".lock").open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_file_system_without_locks_gets_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\); take care that no other training"):
        assert safe_learn(fake_model(), 32, tmp_path)


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    claim = claim_run(tmp_path)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, b"1" if claim._lock is None and not run_folder._claims else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    assert is_locked(tmp_path)
    claim.release()


# ------------------------------------------------------------------------------------------------ the way back


def cut_off(name: str) -> Any:
    def damage(path: Path) -> None:
        with (path / name).open("r+b") as stream:
            stream.truncate((path / name).stat().st_size // 2)

    return damage


DAMAGES = [
    *(cut_off(name) for name in run_folder.FILES),
    lambda path: (path / "state.json").unlink(),
    lambda path: (path / "policy.safetensors").unlink(),
    lambda path: (path / "optimizer.safetensors").write_bytes(b""),
    lambda path: (path / "state.json").write_text("{}"),
    lambda path: (path / "state.json").write_text("[]"),
]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    safe_learn(fake_model(), 96, run_dir, RunCheckpoints(run_dir, every=1))
    return run_dir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_skipped(tmp_path: Path, two_checkpoints: Path, damage: Any) -> None:
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "0000000064")
    match = r"The saved run '.*0000000064' is damaged: .* Going on from the next older one, '.*0000000032'\."
    with pytest.warns(UserWarning, match=match):
        assert latest_run(tmp_path).name == "0000000032"
    assert load(tmp_path / "checkpoints" / "0000000032").num_timesteps == 32
    damage(tmp_path / "checkpoints" / "0000000032")
    with pytest.raises(RunError, match=r"No saved run in .* is whole\. .*0000000064.*0000000032"):
        latest_run(tmp_path)
    with pytest.raises(RunError, match=r"is damaged: .*Give an older one"):
        latest_run(tmp_path / "checkpoints" / "0000000064")


# ------------------------------------------------------------------------------------- what cannot be written


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    model = fake_model()
    with pytest.raises(RunError, match="already holds a run"):
        model.learn(32, RunCheckpoints(tmp_path))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(OSError, match="a run needs a folder that it can write to, so give another one") as caught:
            safe_learn(model, 32, path)
        assert caught.value.filename == str(path)
    assert model.num_timesteps == 0


def test_checkpoints_that_cannot_be_written_are_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("vla_agent.runs.keeping.tempfile.TemporaryFile", refuse)
    model = fake_model()
    with pytest.raises(PermissionError, match="no checkpoint could be written there, so give another folder"):
        model.learn(32, RunCheckpoints(tmp_path))
    assert model.num_timesteps == 0


def test_who_cannot_save_the_last_state_says_so_and_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for calls, way_out in [(10, "Nothing of this run is saved"), (40, "0000000064': go on from there")]:
        model, folder = fake_model(), tmp_path / str(calls)
        save = model.save

        def full(path: Any, *args: Any, save: Any = save) -> None:
            if "interrupted" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            save(path, *args)

        monkeypatch.setattr(model, "save", full)
        monkeypatch.setattr(model.policy, "act", count_down(model.policy.act, calls))
        with pytest.raises(RuntimeError, match="the first error") as caught:
            safe_learn(model, 160, folder, RunCheckpoints(folder, every=1))
        (note,) = caught.value.__notes__
        assert f"The run could not be saved as '{folder / 'interrupted'}' (OSError: " in note
        assert "No space left on device" in note
        assert way_out in note
        assert note in caplog.text


def count_down(act: Any, calls: int) -> Any:
    left = iter(range(calls, -1, -1))

    def wrapped(*args: Any) -> Any:
        if next(left) == 0:
            raise RuntimeError("the first error")
        return act(*args)

    return wrapped


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: RunCheckpoints(path, every=0), "every=0 is out of range"),
        (lambda path: RunCheckpoints(path, every=2.0), r"every=2\.0; expected a whole number of at least 1"),
        (lambda path: RunCheckpoints(path, every=True), "every=True; expected a whole number"),
        (lambda path: RunCheckpoints(path, keep=0), "keep=0 is out of range"),
        (lambda path: RunCheckpoints(path, keep="2"), "keep='2'; expected a whole number"),
        (lambda path: RunCheckpoints(path, keep_every=-1), "keep_every=-1 is out of range"),
        (lambda path: RunCheckpoints(None), "run_dir=None; expected the path of a folder"),
        (lambda path: RunCheckpoints(""), "run_dir=''; expected the path of a folder"),
        (lambda path: SaveOnSignal(3), "run_dir=3; expected the path of a folder"),
        (lambda path: SaveOnSignal(path, "a/b"), "name='a/b'; expected the name of a folder in"),
        (lambda path: SaveOnSignal(path, ".."), r"name='\.\.'; expected the name of a folder in"),
        (lambda path: SaveOnSignal(path, ""), "name=''; expected the name of a folder in"),
        (lambda path: SaveOnSignal(path, None), "name=None; expected the name of a folder in"),
        (lambda path: claim_run(path, existing="delete"), "Unknown existing 'delete'"),
        (lambda path: claim_run(" "), "run_dir=' '; expected the path of a folder"),
        (lambda path: latest_run(None), "run_dir=None; expected the path of a folder"),
        (lambda path: safe_learn(fake_model(), 32, None), "run_dir=None; expected the path of a folder"),
        (lambda path: safe_learn(fake_model(), 32, path, existing=True), "Unknown existing True"),
    ],
)
def test_wrong_arguments_get_one_sentence(tmp_path: Path, make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithm", [PPO, VLAPPO])
def test_another_algorithm_is_sent_to_its_own_callback(tmp_path: Path, algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    for who, attempt in (
        ("RunCheckpoints", lambda: model.learn(8, RunCheckpoints(tmp_path))),
        ("SaveOnSignal", lambda: model.learn(8, SaveOnSignal(tmp_path))),
        ("safe_learn", lambda: safe_learn(model, 8, tmp_path)),
    ):
        sentence = rf"{who} saves a VLAPPO .* this is a {algorithm.__name__} with ActorCriticPolicy; use SB3's Check"
        with pytest.raises(TypeError, match=sentence):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_runs_folder_in_the_place_of_a_save_is_told_with_its_newest(tmp_path: Path) -> None:
    train(tmp_path / "ppo", 64)
    fake_model().save(tmp_path / "other")
    newest = tmp_path / "ppo" / "model"
    with pytest.raises(RunError, match=rf"ppo' is the folder of a run, .* VLAPPO\.load\('{newest}', env\)\.$") as error:
        load(tmp_path / "ppo")
    assert "other" not in str(error.value)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match=r"run\.json' is damaged"),
        pytest.raises(RunError, match="There is no saved run in"),
    ):
        load(tmp_path / "empty")

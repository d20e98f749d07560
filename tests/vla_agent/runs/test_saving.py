"""Saving destroys nothing of the user's, and what it cannot write it tells as an error of the disk."""

import errno
import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from saved_runs import fake, fake_model

from vla_agent import VLAPPO
from vla_agent.common import atomic as folders
from vla_agent.common.atomic import Kind, destination, writing, writing_zip
from vla_agent.openvla import OpenVLA
from vla_agent.process_reward.pages import REPORT
from vla_agent.process_reward.storage import SCORER
from vla_agent.process_reward.tiny_scorer import ScorerConfig, TinyScorer
from vla_agent.runs.run_files import CHECKSUMS, FILES, RUN
from vla_agent.sft.checkpoint import TRAINER

NOTES = Kind("note", ("a.txt",), ("b.txt",))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_note(target: Path | str, text: str = "new") -> None:
    with writing(target, NOTES) as folder:
        (folder / "a.txt").write_text(text)


def thesis(folder: Path) -> None:
    (folder / "target").mkdir()
    (folder / "target" / "chapter1.tex").write_text("...")


def run_with_a_note(folder: Path) -> None:
    (folder / "target").mkdir()
    for name in (*FILES, CHECKSUMS, "README.md"):
        (folder / "target" / name).write_text("{}")


def run_with_a_subfolder(folder: Path) -> None:
    (folder / "target" / ".git").mkdir(parents=True)
    for name in FILES:
        (folder / "target" / name).write_text("{}")


def some_of_a_run(folder: Path) -> None:
    (folder / "target").mkdir()
    (folder / "target" / "state.json").write_text('{"of": "another program"}')


def a_file(folder: Path) -> None:
    (folder / "target").write_text("precious")


def a_link_to_a_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("precious")
    (folder / "target").symlink_to("mine.txt")


def a_link_to_work(folder: Path) -> None:
    (folder / "work").mkdir()
    (folder / "work" / "main.c").write_text("int main;")
    (folder / "target").symlink_to("work")


def a_link_to_itself(folder: Path) -> None:
    (folder / "target").symlink_to("target")


OBSTACLES = [
    (thesis, "chapter1.tex"),
    (run_with_a_note, "README.md"),
    (run_with_a_subfolder, "subfolder '.git'"),
    (some_of_a_run, "no whole saved run"),
    (a_file, "is a file"),
    (a_link_to_a_file, "is a file"),
    (a_link_to_work, "main.c"),
    (a_link_to_itself, "link to itself"),
]


@pytest.mark.parametrize(("obstacle", "named"), OBSTACLES, ids=[o.__name__ for o, _ in OBSTACLES])
def test_what_is_no_run_is_never_replaced(tmp_path: Path, obstacle: Callable[[Path], None], named: str) -> None:
    obstacle(tmp_path)
    before, entries = tree(tmp_path), sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=named) as error:
        fake_model().save(tmp_path / "target")
    assert str(tmp_path / "target") in str(error.value)
    assert "Give the saved run a name that is free" in str(error.value)
    assert tree(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == entries


@pytest.mark.parametrize("path", [".", "", "/", "../work", "./"])
def test_the_current_folder_and_the_root_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(FileExistsError, match=r"is the current folder|is the root of the file system"):
        fake_model().save(path)  # even where it is empty: this process would stand in a folder that is gone
    assert Path.cwd().is_dir()
    assert not list(tmp_path.rglob("*.json"))


def test_a_refused_save_gathers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thesis(tmp_path)
    model = fake_model()
    monkeypatch.setattr(model.policy, "state_dict", lambda: pytest.fail("the weights were gathered"))
    for name in ("target", "target.zip"):
        (tmp_path / "target.zip").write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            model.save(tmp_path / name)


def test_an_empty_folder_is_used_and_a_link_to_a_run_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = fake_model()
    model.save(tmp_path / "empty")
    (tmp_path / "latest").symlink_to("empty")
    model.num_timesteps = 5
    model.save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert VLAPPO.load(tmp_path / "empty", device="cpu", **fake()).num_timesteps == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "latest"]


def test_a_run_that_was_evaluated_is_still_a_run(tmp_path: Path) -> None:
    """The examples note beside the weights which initial states were trained on."""
    from vla_agent.evaluation.provenance import TRAINING_FILE, write_training_states

    model = fake_model()
    model.save(tmp_path / "a")
    write_training_states(tmp_path / "a", {"libero_spatial": [1]})
    assert TRAINING_FILE in RUN.optional
    model.save(tmp_path / "a")


@pytest.mark.parametrize("exchange", [True, False])
def test_what_comes_while_a_folder_is_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_note(tmp_path / "a", "old")
    context = writing(tmp_path / "a", NOTES)
    (context.__enter__() / "a.txt").write_text("new")
    (tmp_path / "a" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        context.__exit__(None, None, None)
    assert tree(tmp_path) == {"a/a.txt": b"old", "a/mine.txt": b"precious"}
    (tmp_path / "a" / "mine.txt").unlink()

    def late(folder: Path, path: Path, *rest: Any) -> Any:  # between the last look and the exchange
        (path / "mine.txt").write_text("precious")
        return publish(folder, path, *rest)

    publish = folders._publish
    monkeypatch.setattr(folders, "_publish", late)
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    write_note(tmp_path / "a")
    assert b"precious" in tree(tmp_path).values()
    assert (tmp_path / "a" / "a.txt").read_text() == "new"
    assert "was not removed" in caplog.text


def test_an_error_while_publishing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_note(tmp_path / "a", "old")
    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    replace, calls = os.replace, []

    def fail(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 3:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="was not written"):
        write_note(tmp_path / "a")
    assert tree(tmp_path) == {"a/a.txt": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# ------------------------------------------------------------------------------------------------ others that save

KINDS = [RUN, SCORER, REPORT, TRAINER]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_each_kind_of_folder_is_told_from_the_others(tmp_path: Path, kind: Kind) -> None:
    for other in KINDS:
        folder = tmp_path / other.what
        folder.mkdir()
        for name in other.files:
            (folder / name).write_text("{}")
        if other is kind:
            assert destination(folder, kind) == folder
        else:
            with pytest.raises(FileExistsError, match=f"which no {kind.what} has"):
                destination(folder, kind)


def test_a_scorer_replaces_scorers_alone(tmp_path: Path) -> None:
    scorer = TinyScorer(ScorerConfig(instructions=("go left",), image_size=32))
    scorer.save(tmp_path / "scorer")
    scorer.save(tmp_path / "scorer")
    thesis(tmp_path)
    with pytest.raises(FileExistsError, match=r"chapter1\.tex"):
        scorer.save(tmp_path / "target")
    assert (tmp_path / "target" / "chapter1.tex").exists()


def test_an_openvla_checkpoint_replaces_its_own_files_alone(tmp_path: Path) -> None:
    model = OpenVLA.from_pretrained("tiny")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "file").write_text("precious")
    before = tree(tmp_path)
    for name, match in (("project", "holds config.json, but no config.json of an OpenVLA"), ("file", "is no folder")):
        with pytest.raises(FileExistsError, match=match):
            model.save_pretrained(tmp_path / name)
    assert tree(tmp_path) == before
    model.save_pretrained(tmp_path / "run", max_shard_size=10**6)
    mine = {"model_best.safetensors", "model-00001-of-00099.safetensors", "notes.txt"}
    for name in mine:
        (tmp_path / "run" / name).write_bytes(b"mine")
    model.save_pretrained(tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()} - set(model.processor.files)
    assert left == {"config.json", "model.safetensors", *mine}


def test_sb3s_zip_replaces_sb3s_zips_alone(tmp_path: Path) -> None:
    model = VLAPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    model.save(tmp_path / "a")
    model.save(tmp_path / "a.zip")
    (tmp_path / "thesis.tex").write_text("precious")
    for path in ("thesis.tex", "."):
        with pytest.raises(FileExistsError, match=r"thesis\.tex|is a folder"):
            model.save(tmp_path / path if path != "." else path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


# ----------------------------------------------------------------------------------------------------------- disks


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        Path(path).with_name(".tmp1234").write_bytes(b"of a library that writes beside")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folders, "save_file", save_file)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_a_full_disk_is_an_os_error_that_names_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="No space left on device") as error:
        fake_model().save(tmp_path / name)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / name)
    assert "was not written, and what was there stays. Free space" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_the_system_says_of_a_write_reaches_the_caller(tmp_path: Path) -> None:
    """The library's real message, of a limit on files' sizes: so that its wording is known when it changes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = fake_model()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, hard))
    try:
        with pytest.raises(OSError, match="was not written") as error:
            model.save(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_by_scorers_and_checkpoints_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"'.*scorer' was not written"):
        TinyScorer(ScorerConfig(instructions=("go left",), image_size=32)).save(tmp_path / "scorer")
    with pytest.raises(OSError, match=r"'.*openvla' was not written"):
        OpenVLA.from_pretrained("tiny").save_pretrained(tmp_path / "openvla")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", kwargs["dir"])

    monkeypatch.setattr(folders.tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"stays\. Choose a folder that can be written") as error:
        fake_model().save(tmp_path / "a")
    assert error.value.filename == str(tmp_path / "a")


def test_errors_of_a_zip_leave_the_old_one(tmp_path: Path) -> None:
    with writing_zip(tmp_path / "a.zip", NOTES) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(KeyError), writing_zip(tmp_path / "a.zip", NOTES) as folder:
        raise KeyError("on the way")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("a.txt") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("content", [b"precious", b"", None])
def test_a_zip_replaces_zips_of_runs_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.zip"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("holiday.jpg", json.dumps({}))
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"holiday\.jpg|no zip of a saved run"):
        fake_model().save(path)
    assert path.read_bytes() == before
    (tmp_path / "b.zip").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        fake_model().save(tmp_path / "b.zip")

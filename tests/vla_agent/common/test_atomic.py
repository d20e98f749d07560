"""Folders that appear as a whole: whose errors are told, who may read them, and what is written of shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch as th
from safetensors.torch import load_file

from vla_agent.common.atomic import Kind, save_tensors, writing

KIND = Kind("thing", ("a.txt",))


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o022], indirect=True)
def test_the_umask_says_who_may_read_and_write(umask: int, tmp_path: Path) -> None:
    with writing(tmp_path / "thing", KIND) as folder:
        (folder / "a.txt").touch(0o600)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "thing", tmp_path / "thing" / "a.txt")]
    assert modes == [0o777 & ~umask, 0o666 & ~umask]
    assert os.umask(umask) == umask  # left as it was


def test_an_error_of_another_file_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, writing(tmp_path / "thing", KIND):
        (tmp_path / "base" / "tokenizer.json").open()
    assert raised.value.filename == str(tmp_path / "base" / "tokenizer.json")
    assert "was not written" not in str(raised.value)


def test_an_error_of_what_is_written_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(OSError, match="thing' was not written, and what was there stays"),
        writing("thing", KIND) as made,
    ):
        raise OSError(28, "No space left on device", str(made / "a.txt"))
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match="thing' was not written, and what was there stays"),
        writing(tmp_path / "file" / "deeper" / "thing", KIND),
    ):
        pass


def test_tensors_that_share_memory_are_written_twice(tmp_path: Path) -> None:
    weight = th.arange(6.0).reshape(2, 3)
    save_tensors({"embed": weight, "head": weight, "row": weight[1], "none": th.zeros(0)}, tmp_path / "w.safetensors")
    read = load_file(tmp_path / "w.safetensors")
    assert th.equal(read["embed"], weight)
    assert th.equal(read["head"], weight)
    assert th.equal(read["row"], weight[1])
    assert read["none"].shape == (0,)

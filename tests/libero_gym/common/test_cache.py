"""The compile cache: damaged entries are rebuilt, failures cost nothing but time, its size is bounded."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from libero_gym.common import cache
from libero_gym.compilation.compile import compile_task
from libero_gym.tasks import Task


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LIBERO_GYM_CACHE": "/chosen", "XDG_CACHE_HOME": "/xdg", "HOME": "/me"}, "/chosen"),
        ({"LIBERO_GYM_CACHE": "~/chosen", "HOME": "/me"}, "/me/chosen"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/me"}, "/xdg/libero_gym"),
        ({"XDG_CACHE_HOME": "", "HOME": "/me"}, "/me/.cache/libero_gym"),
        ({"HOME": "/me"}, "/me/.cache/libero_gym"),
    ],
)
def test_the_folder_is_the_chosen_one_or_the_users(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIBERO_GYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_dir() == Path(expected)


def test_round_trip(folder: Path) -> None:
    cache.write("a", b"content")
    assert cache.read("a") == b"content"
    assert cache.read("b") is None


def test_damaged_entry_is_removed(folder: Path) -> None:
    cache.write("a", b"content")
    path = folder / "a.bin"
    path.write_bytes(b"c0ntent" + path.read_bytes()[7:])
    assert cache.read("a") is None
    assert not path.exists()


def test_a_mapped_entry_cannot_be_written_and_outlives_its_file(folder: Path) -> None:
    cache.write("a", b"content")
    mapped = cache.map_entry("a")
    assert mapped is not None
    (folder / "a.bin").unlink()
    assert mapped.tobytes() == b"content"
    assert not mapped.flags.writeable
    assert cache.map_entry("a") is None


def test_a_damaged_entry_is_not_mapped_but_removed(folder: Path) -> None:
    cache.write("a", b"content")
    path = folder / "a.bin"
    for damaged in (b"c0ntent" + path.read_bytes()[7:], b"abc"):
        path.write_bytes(damaged)
        assert cache.map_entry("a") is None
        assert not path.exists()
    path.write_bytes(b"")
    assert cache.map_entry("a") is None


def test_oldest_entries_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "250e-9")
    for age, name in enumerate(("a", "b")):
        cache.write(name, bytes(100))
        os.utime(folder / f"{name}.bin", (age, age))
    cache.read("a")  # now b is the one unused for longest
    cache.write("c", bytes(100))
    assert cache.read("b") is None
    assert cache.read("a") == cache.read("c") == bytes(100)


def test_small_entries_go_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of 3 MB costs as many seconds as a scene of 200."""
    monkeypatch.setattr(cache, "_SMALL_BYTES", 100)
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "450e-9")
    for age, (name, size) in enumerate({"task": 50, "older": 150, "newer": 150}.items()):
        cache.write(name, bytes(size))
        os.utime(folder / f"{name}.bin", (age, age))
    cache.write("last", bytes(150))
    assert [name for name in ("task", "older", "newer", "last") if cache.contains(name)] == ["task", "newer", "last"]


def test_a_cache_that_is_off_is_not_read_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", b"content")
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "0")
    cache.write("b", b"content")
    assert (cache.read("a"), cache.contains("a")) == (None, False)
    monkeypatch.delenv("LIBERO_GYM_CACHE_GB")
    assert (cache.read("a"), cache.read("b")) == (b"content", None)


def test_unwritable_folder_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="Set LIBERO_GYM_CACHE to a folder that can be written"):
        cache.write("a", b"content")
    assert cache.read("a") is None


def test_compiled_task_from_disk_equals_the_fresh_one(folder: Path, spatial_task: Task) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = compile_task.__wrapped__(spatial_task)
        assert len(list(folder.glob("task-*.bin"))) == 1
        cached = compile_task.__wrapped__(spatial_task)
    assert cached.goal == fresh.goal
    assert cached.burners == fresh.burners
    np.testing.assert_array_equal(cached.physics.body_pos, fresh.physics.body_pos)
    for name, value in fresh.robot.stale.items():
        np.testing.assert_array_equal(cached.robot.stale[name], value)

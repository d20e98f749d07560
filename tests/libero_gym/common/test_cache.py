"""The compile cache: damaged entries are rebuilt, failures cost nothing but time, its size is bounded."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from libero_gym.common import cache
from libero_gym.compilation import draws, placements, records
from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import models
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


def test_the_umask_says_who_may_read_an_entry(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        cache.write("a", b"content")
    finally:
        os.umask(before)
    assert (folder / "a.bin").stat().st_mode & 0o777 == 0o640


def test_an_entry_that_this_user_cannot_read_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", b"content")
    assert cache.contains("a")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # root, which runs tests, reads everything
    assert not cache.contains("a")


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


def key_of(name: str) -> str:
    """A key of the form that tasks' and scenes' have."""
    digests = [f"{word:0>16}" for word in (name.encode().hex()[-16:], "0")]
    return "-".join(["task", *digests])


def test_oldest_entries_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "250e-9")
    first, second, third = map(key_of, "abc")
    for age, key in enumerate((first, second)):
        cache.write(key, bytes(100))
        os.utime(folder / f"{key}.bin", (age, age))
    cache.read(first)  # now the second is the one unused for longest
    cache.write(third, bytes(100))
    assert cache.read(second) is None
    assert cache.read(first) == cache.read(third) == bytes(100)


def test_every_key_has_the_form_of_what_may_be_evicted(spatial_task: Task) -> None:
    task = records.task_key(spatial_task)
    scene = records.scene_key("<mujoco/>")
    keys = [task, records.visual_key(scene), models._packed_key(scene), draws._key(spatial_task, 3, resets_before=2)]
    keys += [placements._key(spatial_task, 17), f"{task}-geom-groups"]
    assert all(cache._ENTRY.fullmatch(f"{key}.bin") for key in keys)
    assert not cache._ENTRY.fullmatch("pytorch_model-00001-of-00002.bin")


def test_what_others_keep_in_the_folder_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may name a folder that also has a model's weights."""
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "250e-9")
    folder.mkdir()
    names = ("pytorch_model.bin", "optimizer.bin", ".write-up", ".write-abcd1234")
    for name in names:
        (folder / name).write_bytes(bytes(400))
        os.utime(folder / name, (1, 1))
    os.utime(folder / names[-1])  # another process writes it
    for name in "abc":
        cache.write(key_of(name), bytes(100))
    assert all((folder / name).stat().st_size == 400 for name in names)
    assert [cache.contains(key_of(name)) for name in "abc"] == [False, True, True]


def test_a_folder_that_is_gone_has_nothing_to_evict(folder: Path) -> None:
    cache._evict(folder, 0)


def test_what_a_killed_process_was_writing_goes(folder: Path) -> None:
    folder.mkdir()
    (folder / ".write-abcd1234").write_bytes(bytes(400))
    os.utime(folder / ".write-abcd1234", (1, 1))
    cache.write(key_of("a"), b"content")
    assert [path.name for path in folder.iterdir()] == [f"{key_of('a')}.bin"]


def test_small_entries_go_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of 3 MB costs as many seconds as a scene of 200."""
    monkeypatch.setattr(cache, "_SMALL_BYTES", 100)
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "450e-9")
    for age, (name, size) in enumerate({"task": 50, "older": 150, "newer": 150}.items()):
        cache.write(key_of(name), bytes(size))
        os.utime(folder / f"{key_of(name)}.bin", (age, age))
    cache.write(key_of("last"), bytes(150))
    names = ("task", "older", "newer", "last")
    assert [name for name in names if cache.contains(key_of(name))] == ["task", "newer", "last"]


def test_a_cache_that_is_off_is_not_read_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", b"content")
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "0")
    cache.write("b", b"content")
    assert (cache.read("a"), cache.map_entry("a"), cache.contains("a")) == (None, None, False)
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

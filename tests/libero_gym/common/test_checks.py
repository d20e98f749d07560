"""Checks of what a caller gives, bounded JSON, and files that appear whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.common import atomic, checks
from libero_gym.common.json_files import parse_json, read_json


@pytest.mark.parametrize("value", [True, np.True_, 1.0, 2.5, "1", None, [1], float("nan")])
def test_whole_numbers_are_ints_alone(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n=.*expected a whole number of at least 1"):
        checks.whole_number("n", value, minimum=1)


def test_whole_numbers_keep_their_range() -> None:
    assert checks.whole_number("n", np.int64(3), 1, 3) == 3
    assert type(checks.whole_number("n", np.int64(3))) is int
    for value in (0, 4):
        with pytest.raises(ValueError, match=rf"n={value} is out of range; expected a whole number from 1 to 3\."):
            checks.whole_number("n", value, 1, 3)


@pytest.mark.parametrize("value", [True, "0.5", None, float("nan"), float("inf"), -0.1, 1.5])
def test_real_numbers_are_finite_and_in_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma=.*expected a number from 0 to 1"):
        checks.real_number("gamma", value, 0, 1)


def test_a_number_that_no_float_can_hold_is_told_by_its_length() -> None:
    with pytest.raises(ValueError, match=r"gamma is a number of 401 digits; expected a number from 0 to 1\."):
        checks.real_number("gamma", 10**400, 0, 1)


def test_an_open_range_leaves_its_end_out() -> None:
    assert checks.real_number("lr", 1e-9, above=0) == 1e-9
    with pytest.raises(ValueError, match=r"lr=0 is out of range; expected a number above 0\."):
        checks.real_number("lr", 0, above=0)


@pytest.mark.parametrize("value", [1, 0, "no", None, "True"])
def test_flags_are_bools_alone(value: Any) -> None:
    with pytest.raises(ValueError, match="expected True or False"):
        checks.flag("restart", value)


def test_choices_are_listed_and_the_nearest_offered() -> None:
    with pytest.raises(ValueError, match=r"Unknown mode 'fats'\. Did you mean 'fast'\? Choices: 'fast', 'exact'\."):
        checks.choice("mode", "fats", ("fast", "exact"))
    with pytest.raises(ValueError, match="Unknown mode 3"):
        checks.choice("mode", 3, ("fast", "exact"))


@pytest.mark.parametrize("value", [5, "agentview", None, {"a": 1}, np.array(5)])
def test_sequences_are_no_single_values(value: Any) -> None:
    with pytest.raises(ValueError, match=r"cameras=.*expected a sequence, such as"):
        checks.sequence("cameras", value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ', "no JSON"),
        (b"\xff\xfe", "no UTF-8|no JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "no JSON"),
        (b"[]", "expected an object at its top, got list"),
        (b"null", "got NoneType"),
        (b'"' + b"a" * 2000 + b'"', "larger than"),
    ],
)
def test_bad_json_is_one_sentence_that_names_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    limit = 1000 if b"aaaa" in content else 2**20
    with pytest.raises(ValueError, match=rf"config\.json.*({message})"):
        read_json(path, max_bytes=limit)


def test_good_json_is_read() -> None:
    assert parse_json('{"a": [1]}', "it") == {"a": [1]}
    assert parse_json("[1]", "it", kind=list) == [1]


def test_a_file_that_cannot_be_written_keeps_the_old_one_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    atomic.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; '.*report.json' was not written") as caught:
        atomic.write_text(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_that_cannot_be_made_is_told_by_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "report.json"
    with pytest.raises(OSError, match=r"; '.*/file/report\.json' was not written"):
        atomic.write_text(path, "new")
    path = tmp_path / "report.json"
    with pytest.raises(PermissionError, match=r"denied; '.*report\.json' was not written"), atomic.replacing(path):
        raise PermissionError(errno.EACCES, "Permission denied", "/tmp/other")
    with pytest.raises(OSError, match=r"^no image; '.*report\.json' was not written$"), atomic.replacing(path):
        raise OSError("no image")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_bounds_are_told_with_all_their_digits() -> None:
    with pytest.raises(ValueError, match=r"^seed=-1 is out of range; expected a whole number from 0 to 4294967295\.$"):
        checks.whole_number("seed", -1, 0, 2**32 - 1)
    with pytest.raises(ValueError, match=r"^timeout=0 is out of range; .* a number above 0 and of at most 1000000\.$"):
        checks.real_number("timeout", 0, above=0, maximum=1_000_000)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_new_file_is_the_umasks_to_say(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "report.json", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == mode


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "report.json", tmp_path / "report.json"
    target.write_text("old")
    link.symlink_to(target)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"

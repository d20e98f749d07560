"""The hash of a function's code changes with what decides what it does, and with nothing else."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libero_gym.common.sources import source_hash
from libero_gym.demonstrations import expert_policy

CODE = """
def helper(): return {value}
def make(env): return helper()
class Policy:
    def __call__(self, env): return helper()
"""
SCRIPT = """
from libero_gym.common.sources import source_hash
def make(env): return {value}
print(source_hash(make), {other})
"""


def within(value: Any) -> Callable[[Any], Any]:
    return lambda env: value


def test_a_module_is_told_with_its_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for value in (1, 2, 1):
        (tmp_path / "told.py").write_text(CODE.format(value=value))
        importlib.invalidate_caches()
        assert "told" not in sys.modules
        by_name = source_hash("told:make")
        told = importlib.import_module("told")
        assert by_name == source_hash(told.make) == source_hash(told.Policy()) == source_hash("told:make")
        hashes.append(by_name)
        del sys.modules["told"]
    assert hashes[0] == hashes[2] != hashes[1]
    assert None not in hashes


def test_of_a_script_the_functions_own_lines_count(tmp_path: Path) -> None:
    def run(**parts: int) -> str:
        (tmp_path / "script.py").write_text(SCRIPT.format(**parts))
        command = [sys.executable, str(tmp_path / "script.py")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]

    first = run(value=1, other=1)
    assert first == run(value=1, other=2) != run(value=2, other=1)
    assert first != "None"


def test_values_that_are_taken_along_count() -> None:
    assert source_hash(within(0.1)) == source_hash(within(0.1)) != source_hash(within(0.9))
    assert source_hash(within(Path("a"))) == source_hash(within(Path("a"))) is not None
    assert source_hash(within(object())) is None
    one, other = lambda env: 1, lambda env: 2
    assert source_hash(one) != source_hash(other)
    partials = [functools.partial(within, value) for value in (1, 1, 2)]
    first, same, different = map(source_hash, partials)
    assert first == same != different


@pytest.mark.parametrize("given", [expert_policy, "libero_gym.demonstrations:expert_policy", "nothing:make", "", len])
def test_what_the_version_tells_or_nothing_has_no_hash(given: Any) -> None:
    assert source_hash(given) is None

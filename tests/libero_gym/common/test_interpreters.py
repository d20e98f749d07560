"""Other processes import what this one would, and nothing that merely lies around."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from libero_gym.common.interpreters import module_command, module_environment
from libero_gym.vector import LiberoVectorEnv


def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, around = tmp_path / "mine", tmp_path / "around"
    for folder in (mine, around):
        folder.mkdir()
    (mine / "only_of_mine.py").write_text("import colorsys, sys; print(colorsys.__file__, sys.argv[1])")
    (around / "colorsys.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.syspath_prepend(str(mine))
    monkeypatch.chdir(around)
    command = module_command("only_of_mine", "told")
    run = subprocess.run(command, env=module_environment(), capture_output=True, text=True)
    assert run.stdout.split()[1:] == ["told"], run.stderr
    assert Path(run.stdout.split()[0]).parent != around
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in an interpreter, which looks in its folder
    run = subprocess.run(
        module_command("only_of_mine", "told"), env=module_environment(), capture_output=True, text=True
    )
    assert run.stderr.strip() == "a stranger"


def test_workers_do_not_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llvmlite.py").write_text("raise RuntimeError('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    env = LiberoVectorEnv(1, suite="libero_spatial", cameras=())
    env.close()

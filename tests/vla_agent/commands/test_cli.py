"""The program: its commands, their help, and what it says of mistakes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vla_agent.commands import cli
from vla_agent.commands.engines import check_engine
from vla_agent.commands.options import ids_or_none, parse_ids, parse_options, run_command
from vla_agent.commands.train import parse_arguments


def options_of(command: str) -> Any:
    return importlib.import_module(cli.COMMANDS[command][0]).Options


WITH_OPTIONS = [name for name in cli.COMMANDS if name != "doctor"]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([])
    without = capsys.readouterr().out
    cli.main(["--help"])
    assert capsys.readouterr().out == without
    for name, (_, what) in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", without, re.MULTILINE)


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["trian"])
    assert caught.value.code == 2
    assert "Unknown command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_every_option_has_its_help_and_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the comment behind each field says."""
    options = options_of(name)
    with pytest.raises(SystemExit) as caught:
        parse_options(options, "What it does.", ["--help"])
    assert caught.value.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    lines = {
        match[1]: match[2]
        for match in re.finditer(r"^    (\w+): [^\n]*?  # (.+)$", inspect.getsource(options), re.MULTILINE)
    }
    for field in dataclasses.fields(options):
        is_positional = "Positional" in str(field.type)  # has no name there
        assert is_positional or f"--{field.name.replace('_', '-')}" in shown, field.name
        assert field.name in lines, f"{field.name} has no comment"
        assert " ".join(lines[field.name].split()) in shown, field.name
    assert "(default:" in shown


def test_errors_are_one_sentence_and_the_status_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        error = ValueError("n=0; expected a whole number of at least 1.")
        error.add_note("Another note.")
        raise error

    with pytest.raises(SystemExit) as caught:
        run_command(fail)
    assert caught.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: n=0; expected a whole number of at least 1.\nAnother note.\n")
    assert "Traceback" not in shown
    monkeypatch.setenv("LIBERO_VLA_DEBUG", "1")
    with pytest.raises(ValueError, match="n=0"):
        run_command(fail)


def test_faults_of_ours_keep_their_traceback() -> None:
    def fail() -> None:
        raise AssertionError("cannot be")

    with pytest.raises(AssertionError):
        run_command(fail)


def test_the_installed_program_starts_without_torch() -> None:
    code = "import sys; from vla_agent.commands.cli import main; main(['--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_train_checks_its_options_before_anything_slow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        ("--task-ids", "3-1"): "--task-ids '3-1': '3-1' runs backwards; did you mean '1-3'?",
        ("--init-states", "3-1"): "--init-states '3-1'",
        ("--task-ids", "x"): "--task-ids 'x': 'x' is no id",
        ("--n-placements", "-1"): "--n-placements=-1 is out of range",
        ("--total-timesteps", "-5"): "--total-timesteps=-5 is out of range",
        ("--max-episode-steps", "-4"): "--max-episode-steps=-4 is out of range",
        ("--n-envs", "0"): "--n-envs=0 is out of range",
        ("--eval-states", "15-25"): "--init-states and --eval-states share 20-25",
        ("--temperature", "-1"): "--temperature=-1.0 is out of range",
        ("--gamma", "2"): "--gamma=2.0 is out of range",
        ("--learning-rate", "-1"): "--learning-rate=-1.0 is out of range",
        ("--reward-mode", "gain"): "--reward-mode gain is for --reward process; add that, or leave it out.",
        ("--reward-model", "x"): "--reward-model x is for --reward process; add that, or leave it out.",
        ("--lora-target", "language"): "--lora-target language is for --lora-rank 32; add that, or leave it out.",
        ("--eval-states", ""): "There is nothing to evaluate on: give --eval-states or --n-eval-placements",
    }
    for given, message in rows.items():
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *given])
        assert caught.value.code == 1, given
        assert message in capsys.readouterr().err, given
    assert not list(tmp_path.iterdir())  # no folder is claimed


def test_ids_are_numbers_and_ranges() -> None:
    assert parse_ids("--task-ids", "0,3-5") == [0, 3, 4, 5]
    assert parse_ids("--task-ids", " 7 , 2-2") == [7, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3-1", r"'3-1' runs backwards; did you mean '1-3'\?"),
        ("x", r"'x' is no id; expected ids from 0, such as '0,3-5'"),
        ("", "'' is no id"),
        ("1,,2", "'' is no id"),
        ("-1", "'-1' is no id"),
        ("1.0", "'1.0' is no id"),
        ("0-", "'0-' is no id"),
        ("1-2-3", "'1-2-3' is no id"),
        ("\u0663", "is no id"),
        ("1" * 5000, "is no id"),
        ("0-999999999", "names more than 100,000 ids"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--task-ids .*{message}"):
        parse_ids("--task-ids", text)


def test_no_ids_leave_the_choice_open() -> None:
    assert ids_or_none("--task-ids", " ") is None
    assert ids_or_none("--task-ids", "0") == [0]


@pytest.mark.parametrize(
    "option", [["--learners", "2"], ["--policies", "2"], ["--placement", "split"], ["--stale"], ["--address", "auto"]]
)
def test_options_of_an_engine_that_was_not_asked_for_are_refused(option: list[str]) -> None:
    options = parse_arguments(option)
    with pytest.raises(ValueError, match=f"{option[0]} is for several processes: add --engine ray"):
        check_engine(options)
    check_engine(parse_arguments([*option, "--engine", "ray"]))

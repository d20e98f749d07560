"""A command that goes on with a run takes the options that the run was begun with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libero_gym import get_tasks
from vla_agent import RunError
from vla_agent.commands import distill, train
from vla_agent.commands.begun import FILE, keep_options, parse_resumable
from vla_agent.commands.train import parse_arguments


def begin(folder: Path, *given: str) -> train.Options:
    folder.mkdir(parents=True)
    options = parse_arguments([*given, "--out", str(folder)])
    keep_options(options)
    return options


def test_what_is_not_given_is_as_the_run_was_begun(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(run, "--task-ids", "3", "--learning-rate-end", "0", "--n-envs", "2", "--long", "--no-privileged-critic")
    options = parse_arguments(["--resume", str(run), "--learning-rate", "1e-6"])
    assert (options.task_ids, options.learning_rate_end, options.n_envs) == ("3", 0.0, 2)
    assert (options.total_timesteps, options.privileged_critic) == (12288, False)
    assert options.learning_rate == 1e-6
    assert options.out == run
    assert not options.allow_changes
    assert parse_arguments([f"--resume={run}/checkpoints/0000000064"]).task_ids == "3"
    assert parse_arguments(["--resume", str(run), "--out", str(tmp_path / "fork")]).out == tmp_path / "fork"
    assert parse_arguments([]).n_envs == 8


def test_files_of_ones_own_are_found_again(tmp_path: Path) -> None:
    begun = begin(tmp_path / "run", "--env-id", str(get_tasks("libero_spatial")[0].bddl_file))
    options = parse_arguments(["--resume", str(tmp_path / "run")])
    assert (options.env_id, options.init_states) == (begun.env_id, "")


def test_runs_of_earlier_versions_go_on_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    options = parse_arguments(["--resume", str(tmp_path)])
    assert (options.out, options.n_envs) == (tmp_path, 8)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "it holds no options by name"),
        (json.dumps({"n_envs": "2"}), "has n_envs='2', which this command does not take"),
        (json.dumps({"renderer": "slow"}), "has renderer='slow'"),
        (json.dumps({"teacher": "runs/ppo"}), "has an option 'teacher' of another command"),
        (" " * (1 << 20) + "{}", "is larger than 1 MiB"),
    ],
)
def test_options_that_cannot_be_taken_are_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(RunError, match=told) as caught:
        parse_arguments(["--resume", str(tmp_path)])
    assert "move that file away, and give all options" in str(caught.value)


def test_where_a_run_writes_is_never_read_from_it(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"out": "/elsewhere", "allow_changes": True, "teacher": "runs/a"}))
    options = parse_resumable(distill.Options, None, ["--resume", str(tmp_path)])
    assert (options.out, options.allow_changes, options.teacher) == (tmp_path, False, "runs/a")

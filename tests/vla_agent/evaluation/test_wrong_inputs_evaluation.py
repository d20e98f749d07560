"""Whatever is wrong in an evaluation's arguments or files is told in one sentence, before any worker starts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from evaluations import BLIND, Noise, report_of

from vla_agent import EvaluationReport, Evaluator, compare_reports, evaluate_policy
from vla_agent.commands import cli
from vla_agent.common.intervals import mcnemar_exact, wilson_interval
from vla_agent.evaluation import ReportError
from vla_agent.evaluation.journal import Journal
from vla_agent.evaluation.policies import load_subject
from vla_agent.evaluation.provenance import read_training_states

Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_ids": 3}, r"task_ids=3; expected a sequence, such as task_ids=\(3,\)"),
        ({"task_ids": "0-3"}, "task_ids='0-3'; expected a sequence"),
        ({"task_ids": [1.0]}, "an id of task_ids=1.0; expected a whole number"),
        ({"task_ids": [True]}, "an id of task_ids=True; expected a whole number"),
        ({"task_ids": ["1"]}, "an id of task_ids='1'; expected a whole number"),
        ({"task_ids": []}, "task_ids is empty"),
        ({"task_ids": [10]}, "task_ids has 10; libero_spatial has tasks 0 to 9"),
        ({"init_state_ids": 5}, "init_state_ids=5; expected a sequence"),
        ({"init_state_ids": None}, "init_state_ids=None; expected a sequence"),
        ({"init_state_ids": [2.0]}, "an id of init_state_ids=2.0; expected a whole number"),
        ({"init_state_ids": [-1]}, "init_state_ids has -1"),
        ({"init_state_ids": "0-9"}, "Unknown init_state_ids '0-9'"),
        ({"placement_seeds": 7}, "placement_seeds=7; expected a sequence"),
        ({"placement_seeds": [-1]}, "placement_seeds has -1"),
        ({"placement_seeds": [0.5]}, "an id of placement_seeds=0.5; expected a whole number"),
        ({"n_envs": 0}, "n_envs=0 is out of range; expected a whole number of at least 1"),
        ({"n_envs": -2}, "n_envs=-2 is out of range"),
        ({"n_envs": 1.5}, "n_envs=1.5; expected a whole number"),
        ({"n_envs": True}, "n_envs=True; expected a whole number"),
        ({"n_envs": "4"}, "n_envs='4'; expected a whole number"),
        ({"protocol": "opnvla"}, "Unknown protocol 'opnvla'. Did you mean 'openvla'"),
        ({"protocol": None}, "Unknown protocol None"),
        ({"center_crop": "yes"}, "center_crop='yes'; expected True or False"),
        ({"center_crop": 1}, "center_crop=1; expected True or False"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 is out of range; expected a whole number of at least 1"),
        ({"max_episode_steps": -3}, "max_episode_steps=-3 is out of range"),
        ({"max_episode_steps": 2.5}, "max_episode_steps=2.5; expected a whole number"),
        ({"renderer": "pretty"}, "Unknown renderer 'pretty'"),
        ({"physics": "coarse"}, 'physics="coarse" is for training'),
        ({"settle_steps": -1}, "settle_steps=-1"),
        ({"image_size": 64}, "protocol='fixed' renders 256 pixels, not image_size=64"),
        ({"image_transform": np.flip}, "image_transform is given, but protocol='fixed' makes its own frames; leave it"),
        ({"image_transform": None}, "image_transform is given, but protocol='fixed' makes its own frames"),
    ],
)
def test_wrong_arguments_of_an_evaluator(arguments: dict[str, Any], message: str) -> None:
    options = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    with pytest.raises(ValueError, match=message):
        Evaluator(Noise(), **{"task_ids": [0], "init_state_ids": [0], **options, **arguments})


@pytest.mark.parametrize("env_id", ["LIBERO-Spatail-v0", 5, None, "CartPole-v1"])
def test_an_id_that_is_none_of_ours(env_id: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"LIBERO|env_id"):
        evaluate_policy(Noise(), env_id, **BLIND)


def test_names_and_devices_that_others_have() -> None:
    with pytest.raises(TypeError, match=r"An evaluation takes no 'task_id'\. Did you mean 'task_ids'"):
        Evaluator("tiny", task_id=3)
    with pytest.raises(ValueError, match="device='cdua' is no device that torch can use here"):
        Evaluator("tiny", device="cdua", **BLIND)
    if not th.cuda.is_available():
        with pytest.warns(UserWarning, match="torch finds no GPU: going on with the CPU"):
            load_subject("tiny", "cuda")


@pytest.mark.parametrize("model", [None, {}, 3, object()])
def test_what_cannot_act_is_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match=f"A {type(model).__name__} cannot be evaluated; give a VLAPPO"):
        Evaluator(model)


def test_wrong_arguments_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"seed": -1}, ValueError, "seed=-1 is out of range"),
        ({"seed": 2**63}, ValueError, "seed=9223372036854775808 is out of range"),
        ({"seed": "0"}, ValueError, "seed='0'; expected a whole number"),
        ({"deterministic": "no"}, ValueError, "deterministic='no'; expected True or False"),
        ({"progress_bar": 1}, ValueError, "progress_bar=1; expected True or False"),
        ({"film_failures": -1}, ValueError, "film_failures=-1 is out of range; expected a whole number of at least 0"),
        ({"film_failures": 1.5}, ValueError, "film_failures=1.5; expected a whole number"),
        ({"out": 5}, TypeError, "out=5; expected a path"),
        ({"out": tmp_path / "file"}, ReportError, "file' is a file; expected a folder"),
        (
            {"film_failures": 1, "out": tmp_path},
            ValueError,
            "film_failures needs an out folder, and environments with the agentview camera.",
        ),
    ]
    with Evaluator(Noise(), task_ids=[0], init_state_ids=[0], **options) as evaluator:
        for arguments, error, message in cases:
            with pytest.raises(error, match=message.replace("(", r"\(")):
                evaluator.run(**arguments)
        assert not evaluator.policy.seen


def test_only_reports_are_compared() -> None:
    for pair in ((report_of("++"), "runs/evaluation"), ({}, report_of("++")), (None, None)):
        with pytest.raises(
            TypeError, match=r"The (first|second) is a (str|dict|NoneType); expected an EvaluationReport"
        ):
            compare_reports(*pair)  # type: ignore[arg-type]


def _without(*path: Any) -> Damage:
    def damage(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return damage


def _with(value: Any, *path: Any) -> Damage:
    def damage(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("schema"), "is no report of an evaluation: it has no 'schema'"),
        (_with(2, "schema"), "has schema 2; this version reads schema 1"),
        (_with([], "schema"), r"has schema \[\]; this version reads schema 1"),
        (_without("episodes"), "it has no 'episodes'"),
        (_with({}, "episodes"), "expected a list as 'episodes', got {}"),
        (_with("x", "conditions"), "expected an object as 'conditions', got 'x'"),
        (_with({}, "conditions"), "'conditions', is damaged: it has no 'suite'"),
        (_with(3, "conditions", "suite"), "expected a text as 'suite', got 3"),
        (_with(["0"], "conditions", "task_ids"), r"expected whole numbers in 'task_ids', got \['0'\]"),
        (_with(None, "conditions", "init_state_ids"), "expected a list as 'init_state_ids', got None"),
        (_with(None, "settings"), "expected an object as 'settings', got None"),
        (_with([], "tasks"), r"expected an object as 'tasks', got \[\]"),
        (_with({"x": {"name": "a"}}, "tasks"), "expected a number and a name of each of 'tasks', got 'x'"),
        (_with({"0": {}}, "tasks"), "expected a number and a name of each of 'tasks', got '0'"),
        (_with({"0": {"name": "a"}}, "tasks"), r"'tasks' does not name tasks \[1\]"),
        (_with({"wall_s": "long"}, "timing"), "expected numbers in 'timing'"),
        (_with(7, "manifest"), "expected an object as 'manifest', got 7"),
        (_with("tiny", "manifest", "model"), "expected an object as 'model' of its manifest"),
        (_with({"sha256": "ab"}, "manifest", "model"), "expected an object as 'sha256' of its manifest's model"),
        (_with("x86", "manifest", "machine"), "expected an object as 'machine' of its manifest"),
        (_with({"gpus": 1}, "manifest", "machine"), "expected a list as 'gpus' of its manifest's machine"),
        (
            _with([], "manifest", "learning_curve"),
            "expected points of timestep, .* of 'learning_curve'",
        ),
        (
            _with(
                {"evaluations": [[10**30, 0, 0, 1]], "training": [], "evaluated_at": 0}, "manifest", "learning_curve"
            ),
            "with timesteps of at most 1000000000000000 of 'learning_curve'",
        ),
        (_without("conditions", "fixture_seed"), "'conditions', is damaged: it has no 'fixture_seed'"),
        (_with(["a"], "conditions", "protocol"), r"expected a text as 'protocol', got \['a'\]"),
        (
            _with([1, "a"], "conditions", "max_steps"),
            r"a whole number for each of 2 tasks as 'max_steps', got \[1, 'a'\]",
        ),
        (_with([1], "conditions", "max_steps"), r"a whole number for each of 2 tasks as 'max_steps', got \[1\]"),
        (_with("1", "conditions", "max_steps"), "expected a whole number as 'max_steps', got '1'"),
        (
            _with("8", "settings", "best_of_n"),
            "'settings', is damaged: expected a whole number as 'best_of_n', got '8'",
        ),
        (_with("1", "settings", "temperature"), "expected a number as 'temperature', got '1'"),
        (_with({"mujoco": 3}, "manifest", "versions"), "expected a text as 'mujoco', got 3"),
        (_with(10**400, "timing", "wall_s"), "expected numbers in 'timing'"),
        (_with({"libero_goal": ["a"]}, "manifest", "training_states"), "expected whole numbers in 'training_states'"),
        (_with("yes", "complete"), "expected true or false as 'complete', got 'yes'"),
        (_with(5, "episodes", 1), "episode 1, is damaged: expected task_id, init_state_id, success, steps, got 5"),
        (_without("episodes", 1, "steps"), "episode 1, is damaged: expected task_id, init_state_id, success, steps"),
        (_with(1, "episodes", 0, "seed"), "episode 0, is damaged: expected task_id, init_state_id, success, steps"),
        (_with("yes", "episodes", 0, "success"), "episode 0, is damaged: success='yes'; expected True or False"),
        (_with(-1, "episodes", 0, "steps"), "episode 0, is damaged: steps=-1 is out of range"),
        (_with(1.5, "episodes", 0, "task_id"), "episode 0, is damaged: task_id=1.5; expected a whole number"),
        (_with(float("nan"), "episodes", 0, "steps"), "episode 0, is damaged: steps=nan; expected a whole number"),
    ],
)
def test_a_damaged_report(tmp_path: Path, damage: Damage, message: str) -> None:
    content = copy.deepcopy(report_of("+-").to_json())
    damage(content)
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ReportError, match=message):
        EvaluationReport.load(tmp_path)


NO_JSON = {
    "": "is damaged: it is no JSON",
    "[": "is damaged: it is no JSON",
    "\xff": "is damaged: it is no",
    "[]": "is damaged: expected an object at its top, got list",
    "[" * 100_000: "is damaged: its JSON is nested too deeply",
}


@pytest.mark.parametrize(("text", "message"), list(NO_JSON.items()), ids=range(len(NO_JSON)))
def test_a_file_that_is_no_json(tmp_path: Path, text: str, message: str) -> None:
    for name in ("report.json", "training.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ReportError, match=rf"report\.json' {message}"):
        EvaluationReport.load(tmp_path)
    with pytest.raises(ValueError, match=rf"training\.json' {message}"):
        read_training_states(tmp_path)
    if text:
        (tmp_path / "episodes.jsonl").write_bytes(text.encode("latin-1") + b"\n")
        with pytest.raises(ReportError, match=rf"episodes\.jsonl', line 1, {message}"):
            Journal(tmp_path, {})


@pytest.mark.parametrize("path", [5, None, ["runs"]])
def test_what_is_no_path_is_no_report(path: Any) -> None:
    with pytest.raises(TypeError, match="expected a path, as a str or Path"):
        EvaluationReport.load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task_id": 0}', "line 2, is damaged: expected task_id, init_state_id, success, steps, got {'task_id': 0}"),
        ("7", "line 2, is damaged: expected an object at its top, got int"),
        (
            '{"task_id": 0, "init_state_id": 0, "success": 1, "steps": 3}',
            "line 2, is damaged: success=1; expected True",
        ),
        (
            '{"task_id": 0, "init_state_id": 0, "success": true, "steps": 3, "x": 0}',
            "line 2, is damaged: expected task_id",
        ),
        ("", "line 2, is damaged: it is no JSON"),
    ],
)
def test_a_damaged_line_of_a_journal(tmp_path: Path, line: str, message: str) -> None:
    Journal(tmp_path, {"suite": "libero_goal"}).close()
    path = tmp_path / "episodes.jsonl"
    before = path.read_text() + line + "\n"
    path.write_text(before)
    with pytest.raises(ReportError, match=message):
        Journal(tmp_path, {"suite": "libero_goal"})
    assert path.read_text() == before  # for whoever wants to mend it


def test_two_evaluations_at_once_need_two_folders(tmp_path: Path) -> None:
    with Journal(tmp_path / "new", {}):
        with pytest.raises(BlockingIOError, match=r"Another evaluation writes into '.*new'; wait for it, end it"):
            Journal(tmp_path / "new", {})
        Journal(tmp_path / "other", {}).close()
    for suite in ("libero_goal", "libero_spatial"):  # and whoever is refused keeps no lock
        with pytest.raises(ReportError, match="of another evaluation"):
            Journal(tmp_path / "new", {"suite": suite})
    Journal(tmp_path / "new", {}).close()


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    for name in ("report.json", "episodes.jsonl"):
        (tmp_path / name).mkdir()
    with pytest.raises(ReportError, match=r"There is no report at|cannot be read"):
        EvaluationReport.load(tmp_path)
    with pytest.raises(ReportError, match=r"episodes\.jsonl' cannot be read"):
        Journal(tmp_path, {})


@pytest.mark.parametrize(
    "content",
    [{"trained": {}}, {"training": []}, {"training": {"libero_goal": 3}}, {"training": {"libero_goal": ["1"]}}]
    + [{"training": {"libero_goal": [value]}} for value in (1.5, True, -1)],
)
def test_damaged_training_states(tmp_path: Path, content: Any) -> None:
    (tmp_path / "training.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'training\.json\' is damaged; expected {"training": {"libero_spatial"'):
        read_training_states(tmp_path)


def test_numbers_that_are_no_trials() -> None:
    for successes, n in ((1.5, 2), (True, 2), (-1, 2), (3, 2), (0, -1)):
        with pytest.raises(ValueError, match="expected"):
            wilson_interval(successes, n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only_first=-1 is out of range"):
        mcnemar_exact(-1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-ids", "3-1"], "--task-ids '3-1': '3-1' runs backwards"),
        (["--task-ids", "x"], "--task-ids 'x': 'x' is no id"),
        (["--task-ids=-1"], "--task-ids '-1': '-1' is no id"),
        (["--task-ids", "10"], "task_ids has 10; libero_spatial has tasks 0 to 9"),
        (["--init-states", "3-1"], "--init-states '3-1': '3-1' runs backwards"),
        (["--init-states", ""], "--init-states '': '' is no id"),
        (["--init-states", "heldout"], "--init-states 'heldout': 'heldout' is no id"),
        (["--placement-seeds", "a"], "--placement-seeds 'a': 'a' is no id"),
        (["--n-envs", "0"], "--n-envs=0 is out of range; expected a whole number of at least 1"),
        (["--n-envs=-1"], "--n-envs=-1 is out of range; expected a whole number of at least 1"),
        (["--n-envs", "two"], "INT|{auto}"),
        (["--max-episode-steps", "-4"], "--max-episode-steps=-4 is out of range"),
        (["--film-failures", "-1"], "--film-failures=-1 is out of range"),
        (["--seed", "-1"], "seed=-1 is out of range"),
        (["--env-id", "LIBERO-Spatail-v0"], "Did you mean 'LIBERO-Spatial-v0'"),
        (["--model", "no-such-model"], "There is no checkpoint folder 'no-such-model'"),
        (["--compare", "nowhere", "nowhere"], "There is no report at 'nowhere'"),
        (["--protocol", "opnvla"], "Expected one of ('openvla', 'openpi', 'fixed', 'training')"),
        (["--center-crop", "maybe"], "Expected one of ('auto', 'yes', 'no')"),
        (["--renderer", "pretty"], "Expected one of ('exact', 'fast')"),
    ],
)
def test_wrong_options_of_the_command(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """One sentence, without a traceback."""
    options = ["--init-states", "0", "--task-ids", "0", "--max-episode-steps", "1", "--protocol", "fixed"]
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", *options, "--out", str(tmp_path), *arguments])
    assert stopped.value.code
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert message in " ".join(re.sub("[-│╭╮╰╯─|]", " ", told.err).split()) or message in told.err

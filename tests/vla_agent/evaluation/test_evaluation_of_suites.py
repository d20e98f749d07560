"""Tasks of several suites: which states they are evaluated on, and a row for each suite in every report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from evaluations import BLIND, Noise, report_of

import libero_gym
from libero_gym import get_tasks, register_suite
from vla_agent import EvaluationReport, compare_reports, evaluate_policy
from vla_agent.commands import finetune, train
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.before_after import describe_change
from vla_agent.evaluation.evaluator import Evaluator
from vla_agent.evaluation.familiarity import states_by_choice
from vla_agent.evaluation.pages import draw_chart, markdown
from vla_agent.evaluation.provenance import read_training_states
from vla_agent.evaluation.trials import plan_trials

FORTY = "LIBERO-40-v0"


@pytest.fixture
def joined() -> Iterator[str]:
    """A task of LIBERO-Spatial for two control steps, and one of LIBERO-Goal for four; gives the id."""
    spatial, goal = get_tasks("libero_spatial")[2], get_tasks("libero_goal")[0]
    suite = register_suite("joined", [replace(spatial, max_steps=2), replace(goal, max_steps=4)], env_id="Joined-v0")
    yield suite.env_id
    del gym.registry[suite.env_id]
    del libero_gym.tasks._registered[suite.name]
    get_tasks.cache_clear()


def of_two_suites(successes: str) -> EvaluationReport:
    return replace(report_of(successes, suite="joined"), task_suites={0: "libero_spatial", 1: "libero_goal"})


@pytest.mark.parametrize("choice", ["held-out", "unseen"])
def test_held_out_states_are_those_of_each_tasks_own_suite(choice: str) -> None:
    suite = describe_suite(FORTY)
    known = {"libero_spatial": range(20, 50), "libero_object": range(50), "libero_10": [0]}
    training = {name: list(ids) for name, ids in known.items()}
    held_out = states_by_choice(suite, training, choice, [0, 9, 20, 39])
    assert [held_out[task_id] for task_id in (0, 9)] == [list(range(20))] * 2
    assert held_out[20] == list(range(50))
    assert held_out[39] == list(range(1, 50))
    trials = plan_trials(FORTY, [0, 39], held_out)
    assert trials == [(0, state) for state in range(20)] + [(39, state) for state in range(1, 50)]
    with pytest.raises(ValueError, match=r"trained on every official initial state of libero_object; evaluate it on"):
        states_by_choice(suite, training, choice, [0, 10])
    with pytest.raises(ValueError, match=r"init_state_ids has no state for tasks \[10\] of libero_40"):
        plan_trials(FORTY, [0, 10], held_out)


def test_training_states_are_noted_by_the_suite_that_tasks_come_from(tmp_path: Path) -> None:
    for folder in ("tuned", "tuned_further", "out"):
        (tmp_path / folder).mkdir(parents=True)
    names = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    states = {name: list(range(20, 50)) for name in names}
    finetune.note_training_states(finetune.Options(suite="libero_40"), tmp_path / "tuned", states)
    assert read_training_states(tmp_path / "tuned") == states
    some = finetune.Options(suite="libero_40", task_ids="5,20-29", model="tiny-libero")
    finetune.note_training_states(some, tmp_path / "tuned_further", {"libero_spatial": [3], "libero_goal": [3]})
    noted = states | {name: [3, *range(20, 50)] for name in ("libero_spatial", "libero_goal")}  # tiny-libero's too
    assert read_training_states(tmp_path / "tuned_further") == noted
    options = train.Options(env_id=FORTY, task_ids="30", init_states="0-1", model="tiny", out=tmp_path / "out")
    train.note_training_states(options)
    assert read_training_states(tmp_path / "out") == {"libero_10": [0, 1]}


def test_an_evaluation_keeps_each_tasks_limit_and_has_a_row_per_suite(joined: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {name: value for name, value in BLIND.items() if name != "max_episode_steps"}
    report = evaluate_policy(Noise(), joined, init_state_ids=[0, 1], n_envs=2, out=tmp_path, **options)
    assert [(episode.task_id, episode.steps) for episode in report.episodes] == [(0, 2), (0, 2), (1, 4), (1, 4)]
    assert report.conditions["max_steps"] == [2, 4]
    assert {name: row.n for name, row in report.suites.items()} == {"libero_spatial": 2, "libero_goal": 2}
    loaded = EvaluationReport.load(tmp_path)
    assert loaded.suites == report.suites
    assert compare_reports(report, loaded).comparable
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["suites"]["libero_goal"]["n"] == 2
    assert content["tasks"]["1"]["suite"] == "libero_goal"


def test_the_page_and_the_comparison_tell_the_suites_apart(tmp_path: Path) -> None:
    before, after = of_two_suites("+++++---"), of_two_suites("++++++++")
    page = markdown(before)
    assert "| libero_spatial | 100.0 % | 4/4 | 51.0 to 100.0 % | 100.0 | 100.0 |" in page
    assert "| libero_goal | 25.0 % | 1/4 | 4.6 to 69.9 % | 250.0 | 100.0 |" in page
    assert "| all | 62.5 % | 5/8 |" in page
    assert "| suite | success |" not in markdown(report_of("++--"))
    assert "libero_goal 1/4 = 25.0 %" in str(before)
    comparison = compare_reports(before, after)
    assert comparison.suites["libero_spatial"].difference == 0
    goal = comparison.suites["libero_goal"]
    assert (goal.only_first, goal.only_second, goal.p_value) == (0, 3, 0.25)
    assert "libero_goal: 25.0 % against 100.0 % of 4 and 4 episodes, p = 0.25." in str(comparison)
    assert compare_reports(report_of("++--"), report_of("++--")).suites == {}
    change = describe_change(before.episodes, after.episodes, before.task_names, before.task_suites)
    assert "libero_goal: 1 of 4 (5 to 70 %) -> 4 of 4 (51 to 100 %), paired: 3 gained, 0 lost, p = 0.25" in change
    draw_chart(before, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5_000


def test_the_page_says_which_states_of_each_suite_were_trained_on() -> None:
    report = of_two_suites("++--")
    report.manifest["training_states"] = {"libero_spatial": [0, 7]}
    page = markdown(report)
    assert "was trained on initial states 0, 7 of libero_spatial; 1 of the 2 evaluated are among them." in page
    assert "The model was trained on no official initial state of libero_goal." in page


def test_evaluating_on_a_suite_that_the_model_does_not_know_warns(joined: str, tmp_path: Path) -> None:
    with Evaluator(Noise(), joined, init_state_ids=[0], n_envs=1, **without_bar()) as evaluator:
        evaluator.training_states = {"libero_spatial": [0]}
        with pytest.warns(UserWarning, match="new to it, scenes and instructions alike: libero_goal"):
            evaluator.run(progress_bar=False)


def without_bar() -> dict[str, Any]:
    return {name: value for name, value in BLIND.items() if name != "progress_bar"}

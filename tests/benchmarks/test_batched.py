"""Tables of worlds beside exact physics: which episodes are paired, what the test says, what is played again."""

from __future__ import annotations

import argparse
from typing import Any

import batch_fidelity
import batched_experts
import pytest

from vla_agent.common.intervals import mcnemar_exact


def episode(success: bool, steps: int = 100, cause: str = "") -> dict[str, Any]:
    return {"success": success, "steps": steps, "cause": cause}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_episodes_are_paired_by_suite_task_and_state() -> None:
    exact = {"libero_spatial[0]": {str(state): episode(True, 90) for state in range(4)}}
    exact["libero_goal[1]"] = {"0": episode(False)}
    batched = {"libero_spatial[0]": {str(state): episode(state > 2, 95) for state in range(6)}}
    batched["libero_goal[1]"] = {"0": episode(True)}
    spatial, goal, everything = cells(batched_experts.table(batched, exact))
    assert spatial[:2] == ["libero_spatial", "3/6"]
    assert spatial[3:] == ["4/4", "3", "0", f"{mcnemar_exact(3, 0):.2g}", "90", "95"]
    assert goal[3:] == ["0/1", "0", "1", "1", "-", "-"]
    assert everything[:2] == ["all", "4/7"]
    assert everything[3:7] == ["4/5", "3", "1", f"{mcnemar_exact(3, 1):.2g}"]


def test_what_has_no_exact_episode_is_named_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    batched = {"libero_goal[1]": {"0": episode(True), "23": episode(False, cause="grasp the bowl")}}
    content = {"mujoco": "batched (MuJoCo Warp 4.0.0)", "seconds": {}, "episodes": batched}
    batched_experts.report(content, {"libero_goal[1]": {"0": episode(True)}})
    told = capsys.readouterr().out
    assert "libero_goal[1] fails from 23 (grasp the bowl)" in told
    assert "1 episodes have no exact one to be paired with: python benchmarks/experts.py --states 24" in told


def test_a_second_run_plays_what_the_results_lack() -> None:
    args = argparse.Namespace(suites=["libero_goal", "libero_10"], tasks=[0, 3], states=3, n_envs=4)
    known = {"libero_goal[0]": {"0": episode(True), "2": episode(False)}}
    assert list(batched_experts.waves(known, args)) == [
        ("libero_goal", [(0, 1), (3, 0), (3, 1), (3, 2)]),
        ("libero_10", [(0, 0), (0, 1), (0, 2), (3, 0)]),
        ("libero_10", [(3, 1), (3, 2)]),
    ]


def test_drifts_are_of_worlds_that_still_move() -> None:
    one = {"rest": 0.0004, "drift": {"1": 2e-6, "100": 1e-2}, "exact": [1, 120], "batched": [1, 120]}
    two = {"rest": 0.02, "drift": {"1": 4e-6}, "exact": [1, 90], "batched": [0, 90]}
    first, second, everything = cells(batch_fidelity.table({"libero_goal[3]": {"0": one}, "libero_10[2]": {"5": two}}))
    assert first == [
        "libero_goal[3]",
        "1",
        "0.4, 0.4",
        "0",
        "2e-06/2e-06",
        "-",
        "-",
        "-",
        "1e-02/1e-02",
        "1/1 (1)",
        "1",
    ]
    assert second[2:5] == ["20, 20", "1", "4e-06/4e-06"]
    assert everything[1:] == ["2", "10, 20", "1", "3e-06/4e-06", "-", "-", "-", "1e-02/1e-02", "1/2 (2)", "1"]


def test_tasks_are_named_or_all() -> None:
    assert [task.task_id for task in batch_fidelity.chosen_tasks(batch_fidelity.TASKS)] == [0, 5, 0, 3, 2]
    assert len(batch_fidelity.chosen_tasks(["all"])) == 40
    with pytest.raises(SystemExit, match=r"Unknown task 'libero_goal\[10\]'; expected 'all', or names such as"):
        batch_fidelity.chosen_tasks(["libero_goal[10]"])

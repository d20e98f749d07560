"""The cells of `best_of_n.py`: what is planned, and what finished ones say together."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from best_of_n import Cell, Plan, costs, describe, report
from forty import store
from forty.session import CellError, Stopped


def plan(work: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {"numbers": (2, 8), "cells": [], "work": work, "critic": work / "critic", "horizon": 4}
    given |= {"model": "tiny", "env_id": "LIBERO-Spatial-v0", "task_ids": "", "states": "0-19", "temperature": 0.5}
    given |= {"n_envs": 8, "seed": 0, "max_episode_steps": 0, "kept": work / "kept.jsonl"}
    return Plan(argparse.Namespace(**given | changes))


def finish(plan: Plan, cell: Cell, successes: str, scores: list[float | None], ms: float = 10.0) -> None:
    """Keep a cell of episodes of task 0: "+" is a success."""
    episodes = [[0, i, int(s == "+"), 9, score] for i, (s, score) in enumerate(zip(successes, scores, strict=True))]
    content = {"episodes": episodes, "timing": {"ms_per_decision": ms}, "commit": "abc", "settings": {}}
    plan.file(cell).parent.mkdir(parents=True, exist_ok=True)
    plan.file(cell).write_text(
        json.dumps(content | {"seconds": {"evaluate": 40.0}, "memory_mb": {"evaluate": 900.0}, "provenance": {}})
    )


def test_finished_cells_are_kept_for_other_machines_if_they_have_the_usual_settings(tmp_path: Path) -> None:
    usual, other = plan(tmp_path, model="tiny-libero-few"), plan(tmp_path, seed=1)
    for made in (usual, other):
        finish(made, Cell("drawn", 1), "+-", [None] * 2)
    (usual.root / "costs.json").write_text('{"ms": {}}')
    other.keep()
    assert not (tmp_path / "kept.jsonl").exists()
    usual.keep()
    assert store.unpack(tmp_path / "kept.jsonl", tmp_path / "there") == ["cells/drawn/1.json", "costs.json"]


def test_small_numbers_of_candidates_come_first(tmp_path: Path) -> None:
    names = [cell.name for cell in plan(tmp_path).cells]
    assert names[:4] == ["policy/1", "drawn/1", "agreement/2", "critic/2"]
    assert names[-2:] == ["judged/agreement", "judged/critic"]
    assert [cell.name for cell in plan(tmp_path, cells=["*-oracle/8"]).chosen()] == [
        "process-oracle/8",
        "success-oracle/8",
    ]
    with pytest.raises(ValueError, match="No cell is called 'nothing'; there are policy/1, drawn/1, agreement/2"):
        plan(tmp_path, cells=["nothing"]).chosen()


def test_hours_left_follow_the_finished_cell_of_the_scorer(tmp_path: Path) -> None:
    made = plan(tmp_path, cells=["process-oracle/*"])
    finish(made, Cell("process-oracle", 2), "++--", [1.0] * 4)
    # Forty seconds for four episodes of two candidates; a + b n says that eight take 2.5 times as long.
    assert f"{200 * 10 * 2.5 / 3600:.1f} hours left." in describe(made)
    assert "done in 0.01 hours" in describe(made)


def test_a_cell_without_its_critic_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(CellError, match=r"there is no critic at .*; libero-vla train-critic trains one"):
        plan(tmp_path).settings(Cell("critic", 2))
    assert plan(tmp_path).settings(Cell("success-oracle", 2))["scorer"] == "success-oracle:4"


def test_the_report_pairs_each_cell_with_greedy_decoding(tmp_path: Path) -> None:
    made = plan(tmp_path)
    with pytest.raises(ValueError, match="holds no finished cell policy/1, which all others are held against"):
        report(made, tmp_path / "out.json")
    finish(made, Cell("policy", 1), "+---", [None] * 4)
    finish(made, Cell("drawn", 1), "++--", [None] * 4)
    finish(made, Cell("agreement", 8), "++-+", [3.0, 2.0, 1.0, 4.0], ms=25.0)
    judged = {"decisions": 7, "scorer_rank_correlation": 0.25, "standard_error": 0.1, "seconds": {}}
    made.file(Cell("agreement", 0)).parent.mkdir(parents=True)
    made.file(Cell("agreement", 0)).write_text(json.dumps(judged))
    table = report(made, tmp_path / "out.json")
    assert "| agreement | 8 | 75.0 % | 30.1 to 95.4 | +50.0 (p = 0.5) | 1.00 | 25 |" in table
    assert "rank correlation of 0.25 ± 0.10 (7 decisions)" in table
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["scorer"] for row in content["rows"]] == ["policy", "drawn", "agreement"]
    assert content["rows"][2]["gained"] == 2
    assert content["rows"][2]["memory_mb"] == 900.0
    low, high = content["rows"][2]["bootstrap_95"]
    assert low <= 50 <= high
    assert content["episodes"]["agreement/8"][1] == [0, 1, 1, 9]
    assert (tmp_path / "out.png").stat().st_size > 1000
    made.root.joinpath("costs.json").write_text(json.dumps({"ms": {"agreement/8": {"median": 12.0}}}))
    assert "+50.0 (p = 0.5) | 1.00 | 12 |" in report(made, tmp_path / "out.json"), "measured apart, with nothing beside"


def test_one_drawn_candidate_is_evaluated_without_a_choice(tmp_path: Path) -> None:
    class NoTime:
        def run(self, command: list[str], *arguments: Any) -> None:
            self.command = command
            raise Stopped

    session: Any = NoTime()
    for cell, given in (
        (Cell("drawn", 1), ["--sample"]),
        (Cell("policy", 1), []),
        (Cell("agreement", 2), ["--best-of-n"]),
    ):
        with pytest.raises(Stopped):
            plan(tmp_path).do(cell, session)
        assert [word for word in session.command if word in ("--sample", "--best-of-n")] == given


def test_costs_are_those_of_the_named_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["policy/1", "agreement/2", "critic/2", "judged/agreement"]
    found = costs(plan(tmp_path, cells=names, n_envs=2))
    assert list(found["ms"]) == ["policy/1", "agreement/2"]
    assert 0 < found["ms"]["policy/1"]["median"] < found["ms"]["agreement/2"]["median"]
    assert "critic/2: left out, since there is no critic at" in capsys.readouterr().out

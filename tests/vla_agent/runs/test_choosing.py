"""A run's folder as a model: its best save if it was evaluated, else the newest; going on always takes the newest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from resuming import StopAt
from saved_runs import fake_model

from vla_agent import EvaluationCallback, EvaluationReport, RunCheckpoints, RunError, latest_run, safe_learn
from vla_agent.evaluation import callback as callback_module
from vla_agent.evaluation.provenance import read_training_states, write_training_states
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.runs.choosing import choose_save, is_run_folder


class Scripted:
    """In the place of an `Evaluator`: the second evaluation is the best."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.left = [1, 3, 2, 2]

    def run(self, **kwargs: Any) -> EvaluationReport:
        n = self.left.pop(0)
        episodes = [EpisodeResult(0, state, state < n, 9) for state in range(4)]
        conditions = {"suite": "libero_goal", "task_ids": [0], "init_state_ids": list(range(4))}
        conditions |= {"protocol": "training", "fixture_seed": 0, "fixture_draw": "first"}
        return EvaluationReport(conditions, {"deterministic": True}, episodes, {0: "open_the_drawer"})

    def close(self) -> None:
        pass


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> EvaluationCallback:
    monkeypatch.setattr(callback_module, "Evaluator", Scripted)
    return EvaluationCallback("LIBERO-Goal-v0", eval_freq=32, at_start=True)


def test_an_evaluated_run_is_its_best_and_goes_on_from_its_newest(
    tmp_path: Path, evaluation: EvaluationCallback
) -> None:
    """The callback is given no folder: it takes the run's."""
    model = fake_model()
    safe_learn(model, 128, tmp_path, [evaluation, RunCheckpoints(tmp_path, every=1)])
    model.save(tmp_path / "model")
    assert evaluation.folder == tmp_path
    assert is_run_folder(tmp_path)
    chosen = choose_save(tmp_path)
    assert chosen.path == tmp_path / "best"
    assert chosen.reason == (
        f"'{tmp_path}' stands for '{tmp_path / 'best'}', the best of the run's own evaluations (timestep 32)."
    )
    assert EvaluationReport.load(tmp_path / "best_report").total.successes == 3
    assert latest_run(tmp_path) == tmp_path / "model"
    for save in (tmp_path / "best", tmp_path / "model", *(tmp_path / "checkpoints").iterdir()):
        assert not is_run_folder(save)  # what is named is taken


def test_a_run_that_was_never_evaluated_is_its_newest(tmp_path: Path) -> None:
    safe_learn(fake_model(), 96, tmp_path, [RunCheckpoints(tmp_path, every=1), StopAt(70)])
    chosen = choose_save(tmp_path)
    assert chosen.path == latest_run(tmp_path)
    assert "its newest save (timestep 64): no evaluation" in chosen.reason


def test_the_best_of_another_run_does_not_count(tmp_path: Path, evaluation: EvaluationCallback) -> None:
    safe_learn(fake_model(), 64, tmp_path / "a", [evaluation])
    model = fake_model()
    safe_learn(model, 64, tmp_path / "b", RunCheckpoints(tmp_path / "b", every=1))
    shutil.copytree(tmp_path / "a" / "best", tmp_path / "b" / "best")
    assert choose_save(tmp_path / "b").path == latest_run(tmp_path / "b")


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    assert not is_run_folder(tmp_path)
    assert not is_run_folder(tmp_path / "missing")
    assert not is_run_folder("tiny")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    assert not is_run_folder(tmp_path)  # a checkpoint
    (tmp_path / "config.json").unlink()
    assert is_run_folder(tmp_path)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RunError, match=r"There is no saved run in .* expected checkpoints/, interrupted/ or model/"),
    ):
        choose_save(tmp_path)


def test_the_best_is_kept_where_a_run_has_a_folder_and_it_is_wished_for(
    tmp_path: Path, evaluation: EvaluationCallback
) -> None:
    fake_model().learn(64, evaluation)
    assert evaluation.folder is None  # no folder, no best
    for keep_best, run_dir in ((False, tmp_path / "without"), (True, tmp_path / "with")):
        callback = EvaluationCallback("LIBERO-Goal-v0", eval_freq=32, keep_best=keep_best)
        fake_model().learn(96, [callback, RunCheckpoints(run_dir)])  # it claims the folder after the callback began
        assert (run_dir / "best").is_dir() is keep_best
    with pytest.raises(ValueError, match="keep_best='yes'; expected True or False"):
        EvaluationCallback("LIBERO-Goal-v0", keep_best="yes")  # type: ignore[arg-type]


def test_each_save_knows_the_states_that_its_run_trained_on(tmp_path: Path, evaluation: EvaluationCallback) -> None:
    run_dir = tmp_path / "run"
    safe_learn(fake_model(), 64, run_dir, [evaluation, RunCheckpoints(run_dir, every=1)])
    write_training_states(run_dir, {"libero_goal": [7]})
    for save in (run_dir / "best", *(run_dir / "checkpoints").iterdir()):
        assert read_training_states(save) == {"libero_goal": [7]}, save
    write_training_states(run_dir / "best", {"libero_goal": [8]})  # its own wins
    assert read_training_states(run_dir / "best") == {"libero_goal": [8]}
    (tmp_path / "training.json").write_text(json.dumps({"training": {"libero_goal": [9]}}))
    checkpoint = tmp_path / "checkpoint"  # of no run
    checkpoint.mkdir()
    assert read_training_states(checkpoint) is None

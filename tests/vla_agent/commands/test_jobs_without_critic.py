"""Training without a critic as users run it: `examples/train_grpo.py` and `libero-vla distill`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from paths import example
from safetensors.numpy import load_file

from vla_agent import RunError
from vla_agent.commands import distill, evaluate
from vla_agent.commands.options import parse_options
from vla_agent.commands.train import learn_and_keep, note_training_states
from vla_agent.common.shipped import SHIPPED_FOLDER
from vla_agent.evaluation.provenance import read_training_placements, read_training_states

train_grpo = example("train_grpo.py")
SMALL: dict[str, Any] = {
    "task_ids": "0", "model": "tiny-libero-few", "n_envs": 2, "device": "cpu", "learning_rate": 1e-3,
    "init_states": "20", "n_placements": 0, "eval_states": "", "n_eval_placements": 1, "eval_freq": 1000,
}  # fmt: skip


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return dict(load_file(folder / "policy.safetensors"))


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for confidence on one state: no episode needs to succeed."""
    out = tmp_path_factory.mktemp("grpo") / "run"
    few = {"n_episodes": 4, "group_size": 2, "batch_size": 32, "n_epochs": 1, "total_timesteps": 40}
    train_grpo.main(train_grpo.Options(**SMALL, **few, reward="confidence", out=out))
    return out


def test_what_stands_where_the_model_goes_is_told_before_anything_is_learned(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt.*nothing was written, and what is there stays"):
        learn_and_keep(cast(Any, None), train_grpo.Options(**SMALL, out=tmp_path), [])


def test_models_of_a_run_know_their_states_when_they_are_taken_elsewhere(grpo_run: Path, tmp_path: Path) -> None:
    assert (grpo_run / "curve.png").stat().st_size > 10_000
    for name in ("model", "best"):
        taken = Path(shutil.copytree(grpo_run / name, tmp_path / name))
        known = read_training_states(taken)
        assert known is not None
        assert 20 in known["libero_spatial"]
    options = parse_options(evaluate.Options, None, ["--model", str(tmp_path / "model"), "--init-states", "20"])
    with pytest.raises(ValueError, match="trained"):
        evaluate.main(options)


def test_evaluations_on_states_of_the_training_are_refused_where_success_is_told(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"init_states": "0-3", "eval_states": "3-5", "out": tmp_path / "run"}
    told = "--init-states and --eval-states share 3: an evaluation on states that were trained on says little"
    with pytest.raises(ValueError, match=f"{told}. Keep them apart, or --reward gain or confidence, which read no s"):
        train_grpo.main(train_grpo.Options(**shared))
    with pytest.raises(ValueError, match=f"{told}. Keep them apart, or --eval-states '' --n-eval-placements 20."):
        distill.main(distill.Options(**shared, teacher="tiny-libero-few"))
    cloned: dict[str, Any] = {"init_states": "0-1", "eval_states": "20", "out": tmp_path / "run"}
    with pytest.raises(ValueError, match="--eval-states 20 are not all new: --model tiny-libero was trained"):
        train_grpo.main(train_grpo.Options(**cloned))
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_evaluations_on_no_state_or_at_no_time_are_refused_before_anything_begins(tmp_path: Path) -> None:
    for given, message in (
        ({"eval_states": ""}, r"There is nothing to evaluate on: give --eval-states or --n-eval-placements\.$"),
        ({"eval_freq": 0}, r"--eval-freq=0 is out of range; expected a whole number of at least 1\."),
    ):
        jobs: list[tuple[Any, Any]] = [(train_grpo, {"reward": reward}) for reward in ("success", "gain", "confidence")]
        jobs.append((distill, {"teacher": "tiny-libero-few"}))
        for job, how in jobs:
            with pytest.raises(ValueError, match=message):
                job.main(job.Options(**given, **how, out=tmp_path / "run"))
    with pytest.raises(ValueError, match="--n-envs=0 is out of range"):
        distill.main(distill.Options(n_envs=0, teacher="tiny-libero-few", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_drawn_states_of_an_earlier_training_are_not_evaluated(tmp_path: Path) -> None:
    options: Any = train_grpo.Options(model="tiny", n_placements=300, out=tmp_path)
    note_training_states(options, taught={"libero_goal": [1]})
    assert read_training_placements(tmp_path) == {"libero_spatial": 300}
    assert read_training_states(tmp_path) == {"libero_spatial": list(range(20, 50)), "libero_goal": [1]}
    shutil.copytree(SHIPPED_FOLDER / "tiny", tmp_path / "model")
    shutil.copy(tmp_path / "training.json", tmp_path / "model")
    further: dict[str, Any] = {"model": str(tmp_path / "model"), "eval_states": "", "n_eval_placements": 20}
    with pytest.raises(ValueError, match=r"those of libero_spatial below 300: success there says little\. Give --n-pl"):
        train_grpo.check(train_grpo.Options(**further, n_placements=100))
    train_grpo.check(train_grpo.Options(**further, n_placements=300))
    options = train_grpo.Options(model=further["model"], n_placements=100, out=tmp_path / "second")
    options.out.mkdir()
    note_training_states(options)
    assert read_training_placements(tmp_path / "second") == {"libero_spatial": 300}, "it was trained on more before"


def test_a_student_is_not_evaluated_on_its_teachers_states(grpo_run: Path, tmp_path: Path) -> None:
    options = distill.Options(teacher=str(grpo_run), init_states="30", eval_states="20", out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"--eval-states 20 are not all new: --(teacher .*|model tiny-libero-few) was"):
        distill.main(options)
    assert distill.states_of_teacher(str(grpo_run)) == read_training_states(grpo_run)
    assert distill.states_of_teacher(str(grpo_run / "best")) == read_training_states(grpo_run)
    assert distill.states_of_teacher("tiny-libero-few") is not None
    student: Any = distill.Options(init_states="30", model="tiny", out=tmp_path)
    note_training_states(student, None, {"libero_spatial": [20], "libero_goal": [1]})
    assert read_training_states(tmp_path) == {"libero_spatial": [20, 30], "libero_goal": [1]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"reward": "gain", "failure_scorer": "tiny-scorer"},
            "--failure-scorer reads success, and --reward gain is",
        ),
        (
            {"reward": "confidence", "curriculum": "hardest"},
            "--curriculum hardest reads success, and --reward con",
        ),
        ({"n_placements": -1}, "--n-placements=-1 is out of range"),
        ({"n_envs": 0}, "--n-envs=0 is out of range"),
        ({"reward_model": "runs/scorer"}, "--reward-model runs/scorer scores for --reward gain; add that, or leave"),
    ],
)
def test_what_would_tell_of_success_or_is_not_read_is_refused(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_grpo.main(train_grpo.Options(**given, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_a_student_without_a_teacher_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--teacher is missing: give a run's folder such as runs/ppo, a saved run"):
        distill.main(distill.Options(out=tmp_path / "run"))
    with pytest.raises(ValueError, match="nowhere"):
        distill.main(distill.Options(teacher=str(tmp_path / "nowhere"), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_a_student_that_was_stopped_goes_on_as_if_it_had_not_been(
    grpo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        **SMALL,
        "n_steps": 4,
        "batch_size": 8,
        "checkpoint_every": 1,
        "estimator": "exact",
        "teacher": str(grpo_run),
    }
    distill.main(distill.Options(**job, total_timesteps=16, out=tmp_path / "whole"))
    assert "initial states that it never played" in capsys.readouterr().out
    parts = tmp_path / "parts"
    distill.main(distill.Options(**job, total_timesteps=8, out=parts))
    moved = shutil.copytree(grpo_run, tmp_path / "moved")  # the same teacher under another name
    other: dict[str, Any] = job | {"total_timesteps": 16, "out": parts, "resume": parts}
    with pytest.raises(RunError, match=r"teacher's weights: '\w{16}', not '\w{16}'"):
        distill.main(distill.Options(**other | {"teacher": str(grpo_run / "model")}))
    distill.main(distill.Options(**other | {"teacher": str(moved)}))
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(parts / "model")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)

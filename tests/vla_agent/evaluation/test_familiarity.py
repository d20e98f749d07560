"""What a model was trained on against what it is evaluated on: refused where it means nothing, told where it is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluations import BLIND, SMALL

from vla_agent import EvaluationReport, Evaluator, evaluate_policy
from vla_agent.commands import cli, evaluate, finetune, train
from vla_agent.envs.suites import base_suite, describe_suite, suites_of_statistics
from vla_agent.evaluation.familiarity import (
    choose_statistics,
    describe_trained,
    refuse_trained,
    states_by_choice,
    unfamiliar_suites,
)
from vla_agent.openvla.files import TINY_FOLDER

FAST: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "progress_bar"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The tiny model, as if it had been trained on LIBERO-Spatial's states 1 to 49."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY_FOLDER, folder)
    (folder / "training.json").write_text(json.dumps({"training": {"libero_spatial": list(range(1, 50))}}))
    return folder


def test_states_of_the_training_are_refused_unless_they_are_meant(checkpoint: Path) -> None:
    sentence = (
        r"^By its training\.json, the model was trained on initial states 3-4 of libero_spatial, so success there says "
        r"little\. Leave them out \(init_state_ids='held-out', --init-states held-out\), or say that they are meant "
        r"\(trained_states=True, --trained-states\)\.$"
    )
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 3, 4], **FAST}
    with pytest.raises(ValueError, match=sentence):
        Evaluator(str(checkpoint), **options)
    with Evaluator(str(checkpoint), trained_states=True, **options) as evaluator:
        assert [trial.init_state_id for trial in evaluator.trials] == [0, 3, 4]
    with pytest.raises(ValueError, match="trained_states=1; expected True or False"):
        Evaluator(str(checkpoint), trained_states=1, **options)


def test_by_default_states_are_unseen_ones_as_far_as_is_known(checkpoint: Path) -> None:
    with Evaluator(str(checkpoint), task_ids=[0], **FAST) as evaluator:
        assert [trial.init_state_id for trial in evaluator.trials] == [0]
    spatial = describe_suite("LIBERO-Spatial-v0")
    everything = {0: list(range(50)), 3: list(range(50))}
    assert states_by_choice(spatial, None, "unseen", [0, 3]) == everything  # a published checkpoint
    trained = {"libero_spatial": list(range(20, 50))}
    assert states_by_choice(spatial, trained, "unseen", [0])[0] == list(range(20))
    assert states_by_choice(spatial, trained, "unseen", [0, 3], trained_states=True) == everything
    assert states_by_choice(spatial, trained, "held-out", [0], trained_states=True)[0] == list(range(20))
    whole = {"libero_spatial": list(range(50))}
    with pytest.raises(ValueError, match=r"trained on every official initial state of libero_spatial; .*--trained-st"):
        states_by_choice(spatial, whole, "unseen", [0])


def test_only_states_of_the_same_suite_count_as_trained_on() -> None:
    training = {"libero_spatial": [0, 3], "libero_goal": [4]}
    assert describe_trained(training, {"libero_goal": {0, 3}, "libero_spatial": {4, -1}}) is None
    assert describe_trained(None, {"libero_spatial": {0}}) is None
    refuse_trained(training, {"libero_10": range(50)})
    with pytest.raises(ValueError, match="initial states 0, 3 of libero_spatial, 4 of libero_goal, so success"):
        refuse_trained(training, {"libero_spatial": range(5), "libero_goal": range(5)})


def test_the_command_says_so_in_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.Options().init_states == "unseen"
    arguments = ["evaluate", "--model", str(checkpoint), "--task-ids", "0", "--init-states", "0-4"]
    arguments += ["--max-episode-steps", "1", "--renderer", "fast", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    told = capsys.readouterr().err
    assert "the model was trained on initial states 1-4 of libero_spatial" in told
    assert "--trained-states" in told
    assert "Traceback" not in told
    cli.main([*arguments, "--trained-states"])
    report = EvaluationReport.load(tmp_path / "out")
    assert report.total.n == 5
    assert (
        "**The model was trained on initial states 1-49 of this suite; 4 of the 5 evaluated are among them.**"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_trainings_that_evaluate_on_such_states_are_refused_at_once(checkpoint: Path) -> None:
    given = {"env_id": "LIBERO-Spatial-v0", "model": str(checkpoint), "task_ids": "0", "init_states": "20-49"}
    sentence = r"--eval-states 0-1 are not all new: --model .*checkpoint was trained on initial states 1 of"
    with pytest.raises(ValueError, match=sentence):
        train.check(train.Options(**given, eval_states="0-1"))  # type: ignore[arg-type]
    for fine in ({"eval_states": "0"}, {"eval_states": "", "n_eval_placements": 2}, {"eval_freq": 0}):
        train.check(train.Options(**given | fine))  # type: ignore[arg-type]
    train.check(train.Options())
    train.check(train.Options(model="no-such-model"))  # told when it is loaded
    with pytest.raises(ValueError, match=r"--evaluate-states 0-1 are not all new: --model .*checkpoint"):
        finetune.check_options(finetune.Options(model=str(checkpoint), init_states="20-21", evaluate_states="0-1"))
    with pytest.raises(ValueError, match="not all new: a model of these demonstrations was trained on"):
        finetune.check_options(finetune.Options(init_states="20-21", evaluate_states="0-20"))
    finetune.check_options(finetune.Options(init_states="20-21", evaluate_states=""))
    finetune.check_options(finetune.Options())


def test_a_checkpoint_without_statistics_of_the_suite_is_refused(checkpoint: Path) -> None:
    (checkpoint / "training.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    config["norm_stats"] = {"libero_spatial_no_noops": config["norm_stats"]["libero"]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "n_envs": 1, **SMALL}
    sentence = (
        "The model has action statistics of libero_spatial_no_noops alone, and none of libero_goal, so its actions "
        r"would come out in a wrong range\. .* unnorm_key='libero_spatial_no_noops' \(--unnorm-key\)"
    )
    with pytest.raises(ValueError, match=sentence):
        evaluate_policy(str(checkpoint), "LIBERO-Goal-v0", **options)
    with pytest.warns(UserWarning, match=r"statistics are of libero_spatial; they may be wrong for libero_goal\.$"):
        evaluate_policy(str(checkpoint), "LIBERO-Goal-v0", unnorm_key="libero_spatial_no_noops", **options)
    (checkpoint / "training.json").write_text(json.dumps({"training": {"libero_goal": [7]}}))  # it learned there
    Evaluator(str(checkpoint), "LIBERO-Goal-v0", **{k: v for k, v in options.items() if k != "progress_bar"}).close()


def test_statistics_serve_their_suite_and_what_is_made_from_it() -> None:
    spatial, goal = "libero_spatial_no_noops", "libero_goal_no_noops"
    assert choose_statistics([spatial], None, ["libero_spatial"]) is None  # the only one
    assert choose_statistics([spatial], None, ["libero_spatial_task"]) is None  # LIBERO-PRO
    assert choose_statistics([spatial, goal], None, ["libero_goal"]) == goal
    assert choose_statistics([spatial, "bridge_orig"], None, ["libero_goal"]) is None  # the processor asks for one
    assert choose_statistics(["libero"], None, ["libero_goal"]) is None
    assert choose_statistics([], None, ["libero_goal"]) is None
    assert choose_statistics([spatial], spatial, ["libero_goal"]) == spatial
    assert choose_statistics([spatial], None, ["kitchen"]) is None  # a suite of one's own
    assert choose_statistics(["libero_40"], None, ["libero_goal", "libero_10"]) is None
    assert choose_statistics([spatial, goal], None, ["libero_spatial", "libero_goal"]) is None
    with pytest.raises(ValueError, match="and none of libero_10, so"):
        choose_statistics([spatial, goal], None, ["libero_goal", "libero_10"])


def test_suites_that_a_model_does_not_know_are_named() -> None:
    spatial = {"libero_spatial": [20]}
    assert unfamiliar_suites(spatial, None, ["libero_spatial"]) is None
    assert unfamiliar_suites(None, None, ["libero_goal"]) is None
    assert unfamiliar_suites(spatial, None, ["libero_spatial", "libero_goal"]) == (
        "The model was trained on libero_spatial alone, by its training.json; new to it, scenes and instructions "
        "alike: libero_goal."
    )
    assert "trained on no suite" in str(unfamiliar_suites({}, None, ["libero_goal"]))
    assert suites_of_statistics("libero_spatial_no_noops") == {"libero_spatial"}
    assert suites_of_statistics("libero_40") == {
        "libero_40", "libero_spatial", "libero_object", "libero_goal", "libero_10"
    }  # fmt: skip
    assert suites_of_statistics("libero") is None
    assert base_suite("libero_10_swap") == "libero_10"
    assert base_suite("kitchen") is None
    assert unfamiliar_suites(None, {"libero_spatial"}, ["libero_goal"]) == (
        "The model's action statistics are of libero_spatial; they may be wrong for libero_goal."
    )
    assert unfamiliar_suites(None, {"libero_goal"}, ["libero_goal", "libero_goal_lan"]) is None


def test_wrong_tasks_are_told_before_the_weights_are_read() -> None:
    blind = {name: value for name, value in BLIND.items() if name != "progress_bar"}
    with pytest.raises(ValueError, match="task_ids has 10; libero_spatial has tasks 0 to 9"):
        Evaluator("no-such-model", task_ids=[10], **blind)

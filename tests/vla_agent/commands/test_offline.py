"""The command that learns offline: from successes and failures, resumable to the bit, with its health in numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from cloning import interrupt_at, small_model
from interrupting import interruptible as interruptible
from outcomes import LEFT, RIGHT, attempt, attempts, recorded

from libero_gym.demonstrations import LeRobotWriter
from vla_agent.commands.finetune import Options, cut_waiting, keyframe_coef, main
from vla_agent.commands.offline import Method
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.processor import load_processor

pytestmark = pytest.mark.usefixtures("interruptible")

METRICS = {
    "filtered": {"success_share"},
    "awr": {"effective_sample_size", "clipped_weights", "value_loss", "explained_variance", "advantage_std"},
    "tagged": {"tagged", "value_loss", "explained_variance", "advantage_std"},
}


def write_episodes(root: Path, *outcomes: bool) -> Path:
    """Episodes of a task from states 20 on, some of which succeed."""
    writer = LeRobotWriter(root, cameras=("image",))
    for index, success in enumerate(outcomes):
        made = attempt("push the plate", RIGHT if success else LEFT, success)
        writer.add(dataclasses.replace(made, suite="libero_spatial", task_id=0, init_state_id=20 + index))
    writer.finish()
    return root


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a short training on two successes and two failures, by a model that knows other statistics."""
    root = tmp_path_factory.mktemp("given")
    model = small_model(root / "initial")
    statistics = recorded(attempts(1)).statistics()
    statistics["action"]["q99"][1] = 0.25
    model.config.norm_stats = {"libero": statistics}
    model.save_pretrained(root / "model")
    demonstrations = write_episodes(root / "episodes", True, False, False, True)
    options = {"model": str(root / "model"), "demonstrations": str(demonstrations), "n_steps": 3, "batch_size": 4}
    return options | {"evaluate_states": "", "device": "cpu"}


@pytest.mark.parametrize("method", METRICS)
def test_a_stopped_training_goes_on_to_the_bit_and_logs_its_health(
    method: Any, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(**given, method=method, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(SystemExit):
            main(options)
    main(options)
    main(Options(**given, method=method, out=tmp_path / "whole"))
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert weights[0] == weights[1]
    (row,) = map(json.loads, (tmp_path / "stopped/metrics.jsonl").read_text().splitlines())
    logged = {name.removeprefix("offline/") for name in row if name.startswith("offline/")}
    assert logged == METRICS[method]
    assert json.loads((tmp_path / "whole/model/training.json").read_text()) == {
        "training": {"libero_spatial": [20, 21, 22, 23]}
    }
    processor = load_processor(tmp_path / "whole/model")
    assert processor.config.prompt_word == ("well" if method == "tagged" else "")
    assert processor.action_stats()["q99"][1] == 0.25  # the checkpoint's own: its bins mean what they meant


@pytest.mark.parametrize("method", ["filtered", "awr"])
def test_of_several_statistics_those_that_the_episodes_were_played_by_are_kept(
    method: Any, given: dict[str, Any], tmp_path: Path
) -> None:
    model = OpenVLA.from_pretrained(given["model"])
    own = model.config.norm_stats["libero"]
    other = {**own, "action": own["action"] | {"q99": [9.0] * 7}}
    model.config.norm_stats = {"bridge": other, "libero": own}
    model.save_pretrained(tmp_path / "both")
    options = given | {"model": str(tmp_path / "both"), "method": method}
    with pytest.raises(ValueError, match=r"several data sets; give unnorm_key, one of \['bridge', 'libero'\]"):
        main(Options(**options, out=tmp_path / "none"))
    main(Options(**options, unnorm_key="libero", out=tmp_path / "out"))
    assert load_processor(tmp_path / "out/model").action_stats()["q99"][1] == 0.25


def test_a_policys_episodes_are_not_taken_for_an_experts_demonstrations(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No episode is left out for its grasp, no frame for waiting, and no gripper's change is an aim."""
    main(Options(**given, method="filtered", out=tmp_path / "own"))
    assert "Learning from 4 of 4 episodes, 48 frames" in capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "own/metrics.jsonl").read_text().splitlines())
    assert row["train/keyframe_error"] == 0
    main(Options(**given, out=tmp_path / "cloned"))
    (row,) = map(json.loads, (tmp_path / "cloned/metrics.jsonl").read_text().splitlines())
    assert row["train/keyframe_error"] > 0
    for method in get_args(Method):
        options, asked = Options(method=method), Options(method=method, cut_waiting=True, keyframe_coef=0.25)
        assert (cut_waiting(options), keyframe_coef(options)) == ((True, 0.5) if method == "clone" else (False, 0.0))
        assert (cut_waiting(asked), keyframe_coef(asked)) == (True, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best"}, "--method"),
        ({"method": "awr", "demonstrations": ""}, "--method awr learns from episodes with failures; give --demonstr"),
        ({"method": "tagged", "model": ""}, "--method tagged tells values from a model's hidden states; give --model"),
        ({"method": "filtered", "beta": 0.1}, "--beta is for --method awr, not filtered; leave it out"),
        ({"gamma": 0.9}, "--gamma is for --method awr or tagged, not clone"),
        ({"unnorm_key": "libero"}, "--unnorm-key is for --method filtered or awr or tagged, not clone"),
        ({"method": "awr", "beta": 0.0}, "beta"),
        ({"method": "awr", "gamma": 2.0}, "gamma"),
        ({"method": "tagged", "tag_share": 0.0}, "share"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_read(
    changes: dict[str, Any], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        main(Options(**given | changes, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "outcomes", "message"),
    [
        ("awr", (True, True), "All 2 episodes succeed, so there is nothing to tell apart"),
        ("tagged", (False, False), "None of the 2 episodes succeeds"),
        ("filtered", (False,), "None of the 1 episodes succeeds"),
    ],
)
def test_data_that_tell_nothing_are_refused(
    method: Any, outcomes: tuple[bool, ...], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    episodes = write_episodes(tmp_path / "episodes", *outcomes)
    with pytest.raises(ValueError, match=message):
        main(Options(**given | {"demonstrations": str(episodes)}, method=method, out=tmp_path / "out"))

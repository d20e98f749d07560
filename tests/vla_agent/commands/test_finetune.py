"""The command that clones: it learns from what was chosen, notes the states, and can be stopped at any moment."""

from __future__ import annotations

import inspect
import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloning import episode, interrupt_at, small_model
from interrupting import interruptible as interruptible

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter, lerobot_reader, recording
from libero_gym.demonstrations.recording import RecordingSummary
from vla_agent.commands import finetune, progress
from vla_agent.commands.finetune import Options, main
from vla_agent.common.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("interruptible")


def write_dataset(root: Path, **changes: Any) -> Path:
    """Two tasks of three initial states, the last state first; the third of task 1 grasps elsewhere."""
    writer = LeRobotWriter(root, cameras=("image",))
    for state in (22, 21, 20):
        for task_id in (0, 1):
            made = episode(f"push {task_id}", 0.1 * task_id, 12)
            made.state[:, :3] = 0.001 * np.arange(12)[:, None] + (1.0 if (task_id, state) == (1, 20) else 0.0)
            origin = {"suite": "libero_spatial", "task_id": task_id, "init_state_id": state} | changes
            writer.add(replace(made, **origin))
    writer.finish()
    return root


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a short fine-tuning on a dataset of six episodes."""
    root = tmp_path_factory.mktemp("given")
    small_model(root / "model")
    return {
        "model": str(root / "model"),
        "demonstrations": str(write_dataset(root / "demonstrations")),
        "n_steps": 6,
        "batch_size": 4,
        "cut_waiting": False,
        "evaluate_states": "",
        "device": "cpu",
    }


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("a video was decoded")

    monkeypatch.setattr(lerobot_reader, "from_video", fail)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


# --------------------------------------------------------------------------------------------- what is learned from


def test_the_states_of_a_given_dataset_are_noted(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Options(**given, out=tmp_path))
    assert json.loads((tmp_path / "model/training.json").read_text()) == {"training": {"libero_spatial": [20, 21, 22]}}
    output = capsys.readouterr().out
    assert "Learning from 5 of 6 episodes, 60 frames, read in " in output
    assert "grasp farther than 0.05 m from their task's median" in output
    assert not (tmp_path / "frames").exists()
    numbers = json.loads((tmp_path / "model/config.json").read_text())["norm_stats"]["libero"]
    assert (numbers["num_trajectories"], numbers["num_transitions"]) == (5, 60)


def test_few_demonstrations_are_the_first_by_state_and_chosen_before_the_grasps_are_looked_at(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Options(**given, demonstrations_per_task=1, out=tmp_path))
    output = capsys.readouterr().out
    assert "Chose 2 of 6 episodes: the first 1 of each task, by initial state" in output
    assert "Learning from 2 of 2 episodes, 24 frames" in output  # task 1's one grasp is its median
    assert json.loads((tmp_path / "model/training.json").read_text()) == {"training": {"libero_spatial": [20]}}


def test_named_tasks_alone_are_learned(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Options(**given, task_ids="1", out=tmp_path / "one"))
    assert "Learning from 2 of 3 episodes, 24 frames" in capsys.readouterr().out  # one grasps elsewhere
    of_others = r"No episode of .* is of libero_spatial's tasks 2, 3; it has libero_spatial\[0\], libero_spatial\[1\]"
    with pytest.raises(ValueError, match=of_others):
        main(Options(**given, task_ids="2-3", out=tmp_path / "none"))
    with pytest.raises(ValueError, match=r"is of libero_goal's tasks 0; it has libero_spatial\[0\]"):
        main(Options(**given, suite="libero_goal", task_ids="0", out=tmp_path / "none"))


def test_states_that_a_model_was_trained_on_before_stay(given: dict[str, Any], tmp_path: Path) -> None:
    main(Options(**given, out=tmp_path / "first"))
    later = given | {"model": str(tmp_path / "first" / "model")}
    later["demonstrations"] = str(write_dataset(tmp_path / "goal", suite="libero_goal", init_state_id=4))
    main(Options(**later, out=tmp_path / "second"))
    noted = json.loads((tmp_path / "second/model/training.json").read_text())
    assert noted == {"training": {"libero_spatial": [20, 21, 22], "libero_goal": [4]}}


def test_unknown_states_are_told_and_leave_no_file(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out/model/training.json").write_text('{"training": {"libero_spatial": [1]}}')  # of other data
    root = write_dataset(tmp_path / "demonstrations", init_state_id=-1)
    main(Options(**given | {"demonstrations": str(root)}, out=tmp_path / "out"))
    assert "6 of 6 episodes do not tell which initial state of which suite they began from" in capsys.readouterr().out
    assert (tmp_path / "out/model/config.json").is_file()
    assert not (tmp_path / "out/model/training.json").exists()


def test_a_negative_number_of_demonstrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--demonstrations-per-task"):
        main(Options(demonstrations_per_task=-1, out=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cdua"}, "--device='cdua' is no device that torch can use here; expected 'auto', 'cpu'"),
        ({"model": "nonexistent/x/y"}, "--model nonexistent/x/y: There is no checkpoint folder"),
        ({"model": "RUN"}, "RUN' has no config.json. A run's saves are no checkpoints: load one, and write its"),
        ({"evaluate_states": "60"}, "--evaluate-states 60: there is no state 60. Task 0 of libero_spatial has"),
        ({"task_ids": "10"}, "--task-ids=10 is out of range"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_before_the_recording(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it was recorded")

    monkeypatch.setattr(finetune, "record", fail)
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    Path("RUN", "run.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(message)):
        main(Options(**{"device": "cpu", "out": tmp_path / "out"} | change))
    assert not (tmp_path / "out").exists()


def test_the_device_may_be_left_to_torch_and_one_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finetune.check_options(Options(device="auto"))
    assert finetune.load_model(Options(device="auto", out=tmp_path)).device.type == "cpu"
    with pytest.warns(UserWarning, match="--device='cuda', but torch finds no GPU: going on with the CPU"):
        finetune.check_options(Options(device="cuda"))
    assert finetune.load_model(Options(device="cuda", out=tmp_path)).device.type == "cpu"


def test_a_complete_recording_is_not_recorded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_missing = [0, 1, 0]  # a worker that dies loses an episode
    states: list[list[int]] = []

    def record(root: Path, **plan: Any) -> RecordingSummary:
        inspect.signature(recording.record).bind(root, **plan)
        states.append(plan["init_state_ids"])
        if not root.exists():
            write_dataset(root)
        return RecordingSummary(6, 4 - n_missing.pop(0), 2, 5, 5)

    monkeypatch.setattr(finetune, "record", record)
    for wanted in ("20-22", "20-22", "20", "20", "20"):
        assert finetune.record_demonstrations(Options(init_states=wanted, out=tmp_path)) == tmp_path / "demonstrations"
    assert states == [[20, 21, 22], [20], [20]]


# ------------------------------------------------------------------------------------------------ stopping and going on


@pytest.mark.parametrize("step", [3, 6])
def test_ctrl_c_saves_the_step_and_the_same_command_gives_the_same_weights(
    step: int,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = Options(**given, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(SystemExit) as stopped:
            main(options)
    assert stopped.value.code == 130
    assert f"Stopped. Step {step} of 6 is saved; the same command goes on from there." in capsys.readouterr().out
    assert not (options.out / "model").exists()
    with monkeypatch.context() as patch:
        no_decoding(patch)
        main(options)
    assert f"Going on from step {step} of 6" in capsys.readouterr().out
    main(Options(**given, out=tmp_path / "whole"))
    assert weights(options.out) == weights(tmp_path / "whole")


def test_a_second_ctrl_c_ends_at_once_and_the_message_stays_true(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(**given, out=tmp_path)
    for step, message in ((2, "No step is saved yet"), (4, "Step 3 of 6 is saved")):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, times=2)
            if step == 4:
                with patch.context() as other:
                    interrupt_at(other, 3)
                    with pytest.raises(SystemExit):
                        main(options)
            with pytest.raises(SystemExit):
                main(options)
        assert f"Stopped. {message}" in capsys.readouterr().out.splitlines()[-1]
    main(options)


def test_ctrl_c_while_demonstrations_are_read_leaves_no_half_cache(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from_video = lerobot_reader.from_video
    calls: list[Path] = []

    def third_time(path: Path, *arguments: Any) -> np.ndarray:
        calls.append(path)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return from_video(path, *arguments)

    monkeypatch.setattr(lerobot_reader, "from_video", third_time)
    with pytest.raises(SystemExit) as stopped:
        main(Options(**given, out=tmp_path))
    assert stopped.value.code == 130
    output = capsys.readouterr().out
    assert "Stopped. The demonstrations were not read to the end. No step is saved yet" in output
    assert [path.name for path in tmp_path.iterdir()] == []
    main(Options(**given, out=tmp_path))


def test_ctrl_c_while_recording_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune, "record", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit):
        main(Options(out=tmp_path))
    assert "Stopped. Recorded episodes are kept; the same command records the others." in capsys.readouterr().out


def test_ctrl_c_while_evaluating_leaves_a_whole_model_and_the_frames_until_the_end(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(**given | {"evaluate_states": "0"}, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "evaluate_policy", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit):
            main(options)
    assert f"Stopped. {tmp_path / 'model'} is whole, and episodes so far are kept" in capsys.readouterr().out
    before = weights(tmp_path)
    assert (tmp_path / "frames").is_dir()
    no_decoding(monkeypatch)
    given_device: list[Any] = []

    def evaluated(*_: Any, device: Any, **__: Any) -> str:
        given_device.append(device)
        return "evaluated"

    monkeypatch.setattr(finetune, "evaluate_policy", evaluated)
    main(options)
    assert capsys.readouterr().out.splitlines()[-1] == "evaluated"
    assert given_device == ["cpu"], "where it was trained"
    assert weights(tmp_path) == before
    assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize(
    "change", [{"demonstrations_per_task": 2}, {"grasp_radius": 0.0}, {"cut_waiting": True}, {"task_ids": "0"}]
)
def test_frames_of_other_choices_are_read_anew(
    change: dict[str, Any], given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finetune.load_model(Options(**given))

    def load(**changes: Any) -> int:
        options = Options(**given | changes, out=tmp_path)
        reader = LeRobotReader(options.demonstrations)
        return len(finetune.load_data(options, reader, finetune.choose_episodes(options, reader)[0], model))

    assert load() == 60
    with monkeypatch.context() as patch:
        no_decoding(patch)
        assert load() == 60
        with pytest.raises(AssertionError, match="was decoded"):
            load(**change)
    assert load(**change) != 60


# --------------------------------------------------------------------------------------------------------- progress


def test_a_training_without_a_bar_says_where_it_is(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    main(Options(**given, out=tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == [f"step {step} of 6" for step in range(1, 7)]
    assert all("steps/s" in line and "min left: train/loss " in line for line in lines)
    assert "train/token_accuracy" in lines[-1]


def test_pace_counts_from_where_the_training_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace(1000, 4000)
    now[0] += 60
    assert pace.tell(1300) == "step 1300 of 4000, 5 steps/s, 9 min left"


def test_a_stop_is_noted_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before

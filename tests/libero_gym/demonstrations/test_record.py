"""Recording: kills, full disks and dying workers cost what they hit, and the same plan gives the same dataset."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings
from paths import TESTS
from recorded_policies import GivesUp, Soup, broken, push, two_steps
from recordings import record_pushes, same_episodes, synthetic, write_dataset

from libero_gym.common.array_files import pack
from libero_gym.common.atomic import write_bytes
from libero_gym.common.mujoco_import import mujoco
from libero_gym.demonstrations import LeRobotReader, LeRobotWriter, recorder, workers
from libero_gym.demonstrations import recording as demonstrations
from libero_gym.demonstrations.episodes import Episode
from libero_gym.demonstrations.plan import EpisodeKey
from libero_gym.demonstrations.recorder import RecordingJob
from libero_gym.demonstrations.recording import RECORDING_FOLDER, RecordingSummary, record
from libero_gym.env import LiberoEnv
from libero_gym.equivalence.versions import fidelity
from libero_gym.tasks import get_tasks

pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recorded episodes, undisturbed."""
    root = tmp_path_factory.mktemp("recording")
    assert record_pushes(root) == RecordingSummary(3, 3, 0, 0, 3)
    return root


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_recorded_episodes_replay_to_the_recorded_states(recording: Path) -> None:
    episode = LeRobotReader(recording)[1]
    assert (episode.suite, episode.task_id, episode.init_state_id, episode.success) == ("libero_spatial", 0, 1, False)
    assert episode.versions["mujoco"] == mujoco.__version__
    assert episode.versions["simulation"] == fidelity(mujoco.__version__)
    env = LiberoEnv("libero_spatial", cameras=(), settle_steps=1)
    obs, _ = env.reset(options={"task_id": 0, "init_state_id": 1})
    for state, action in zip(episode.state, episode.actions, strict=True):
        np.testing.assert_array_equal(obs["state"], state)
        obs, *_ = env.step(action)
    env.close()


def test_workers_record_what_one_process_records_and_a_second_run_does_nothing(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    start = workers._Workers._start

    def noted(self: Any) -> None:
        start(self)
        started.extend(self._processes.values())

    monkeypatch.setattr(workers._Workers, "_start", noted)
    assert record_pushes(tmp_path, n_workers=2).n_recorded == 3
    assert {process.exitcode for process in started} == {0}, "they end by themselves, and free what they hold"
    assert same_episodes(recording, tmp_path)
    assert record_pushes(tmp_path, n_workers=2) == RecordingSummary(3, 0, 3, 0, 3)


def test_a_killed_recording_continues_to_the_dataset_of_an_undisturbed_one(recording: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from recordings import record_pushes\n"
        f"if __name__ == '__main__': record_pushes(Path({str(tmp_path)!r}), 'recorded_policies:slow_push')"
    )
    path = os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    staging = tmp_path / RECORDING_FOLDER
    deadline = time.monotonic() + 40
    while not list(staging.glob("task*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = len(list(staging.glob("task*.npz")))
    assert 1 <= done < 3
    left, other = staging / ".task000_init002_repeat000.abcd_123.npz", staging / "notes.npz"
    for path in (left, other):
        path.write_bytes(b"half an episode")
    with pytest.raises(FileNotFoundError, match="half-written"):
        LeRobotReader(tmp_path)
    summary = record_pushes(tmp_path, "recorded_policies:slow_push")
    assert (summary.n_resumed, summary.n_recorded, summary.n_written) == (done, 3 - done, 3)
    assert same_episodes(recording, tmp_path)
    assert not left.exists()
    assert other.exists()


def test_a_worker_that_dies_is_replaced(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIES_ONCE", str(tmp_path / "died"))
    with pytest.warns(UserWarning, match=r"exit code -9\) while it recorded EpisodeKey\(task_id=0.*tried again"):
        summary = record_pushes(tmp_path, "recorded_policies:dies_once", n_workers=1)
    assert summary.n_written == 3
    assert same_episodes(recording, tmp_path)


def test_workers_that_keep_dying_end_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MAX_DEATHS", 1)
    with (
        pytest.warns(UserWarning, match=r"exit code -9.*tried again"),
        pytest.raises(RuntimeError, match=r"2 workers in a row ended \(exit code -9\).*n_workers=0"),
    ):
        record_pushes(tmp_path, "recorded_policies:dies_always", n_workers=1)


def test_ctrl_c_keeps_complete_episodes(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recorder.rollout

    def interrupted(env: LiberoEnv, key: EpisodeKey, *args: Any) -> Episode:
        if key.init_state_id == 2:
            raise KeyboardInterrupt
        return real(env, key, *args)

    monkeypatch.setattr(recorder, "rollout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_pushes(tmp_path)
    monkeypatch.undo()
    assert record_pushes(tmp_path) == RecordingSummary(3, 1, 2, 0, 3)
    assert same_episodes(recording, tmp_path)


def test_a_full_disk_in_a_worker_stops_the_recording_and_keeps_what_was_complete(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = "recorded_policies:full_disk"
    record_pushes(tmp_path, policy, init_state_ids=[0])
    monkeypatch.setenv("FULL_DISK", "1")
    with pytest.raises(OSError, match="No space left on device; complete episodes are kept"):
        record_pushes(tmp_path, policy, n_workers=1)
    monkeypatch.undo()
    assert record_pushes(tmp_path, policy) == RecordingSummary(3, 2, 1, 0, 3)
    assert same_episodes(recording, tmp_path)


def test_a_dataset_that_was_not_recorded_there_is_left_alone(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    with pytest.raises(FileExistsError, match="holds a dataset, but not what recorded it"):
        record_pushes(dataset)
    with pytest.raises(FileExistsError, match="choose another folder, or overwrite=True"):
        LeRobotWriter(dataset, cameras=("image",))
    assert len(list(LeRobotReader(dataset))) == 3


def test_placements_are_recorded_beside_official_states(tmp_path: Path) -> None:
    record_pushes(tmp_path, init_state_ids=[1], placement_seeds=[0, 2], cameras=())
    episodes = list(LeRobotReader(tmp_path))
    assert {(e.init_state_id, e.placement_seed) for e in episodes} == {(1, -1), (-1, 0), (-1, 2)}


def test_intended_actions_are_recorded_without_noise_or_prefix(tmp_path: Path) -> None:
    options = {"init_state_ids": [0], "cameras": (), "action_noise": 0.3, "random_prefix": 4, "max_steps": 12}
    record_pushes(tmp_path / "a", record_intended=True, **options)
    record_pushes(tmp_path / "b", record_intended=False, **options)
    intended, executed = LeRobotReader(tmp_path / "a")[0], LeRobotReader(tmp_path / "b")[0]
    np.testing.assert_allclose(intended.actions, [[0.3, 0, -0.2, 0, 0, 0, 1.0]] * len(intended), atol=1e-7)
    n_prefix = len(executed) - len(intended)
    assert n_prefix > 0
    np.testing.assert_array_equal(executed.state[n_prefix:], intended.state)  # the same noise moved both
    assert np.abs(executed.actions[n_prefix:] - intended.actions).max() > 0.1


def test_noise_holds_for_as_long_as_it_is_told(tmp_path: Path) -> None:
    record_pushes(tmp_path, init_state_ids=[0], cameras=(), action_noise=0.1, noise_steps=3, max_steps=9)
    actions = LeRobotReader(tmp_path)[0].actions
    assert (np.diff(actions[:, 0]) != 0).tolist() == [False, False, True, False, False, True, False, False]


def test_a_script_that_ends_ends_the_episode(tmp_path: Path) -> None:
    record_pushes(tmp_path, two_steps, init_state_ids=[0], cameras=())
    assert len(LeRobotReader(tmp_path)[0]) == 2


def test_a_policy_that_gives_up_ends_the_episode(tmp_path: Path) -> None:
    record_pushes(tmp_path, GivesUp, init_state_ids=[0], cameras=())
    assert len(LeRobotReader(tmp_path)[0]) == 3


@pytest.mark.parametrize("n_workers", [0, 1])
def test_episodes_without_an_action_have_failed_and_the_others_go_on(tmp_path: Path, n_workers: int) -> None:
    options: dict[str, Any] = {"cameras": (), "n_workers": n_workers}
    for summary in (RecordingSummary(3, 3, 0, 0, 1), RecordingSummary(3, 0, 3, 0, 1)):
        with pytest.warns(UserWarning, match="^Task 0, 'pick_up.*': 2 of its episodes failed.*no action") as seen:
            assert record_pushes(tmp_path, "recorded_policies:only_once", **options) == summary
        assert len(seen) == 1
        assert [len(episode) for episode in LeRobotReader(tmp_path)] == [5]


def test_an_expert_without_a_skill_for_the_goal_has_failed(tmp_path: Path) -> None:
    expert = "libero_gym.demonstrations:expert_policy"
    options: dict[str, Any] = {"task_ids": 35, "init_state_ids": [0], "cameras": (), "keep_failures": False}
    with pytest.warns(UserWarning, match=r"Task 35, '\w+_open_the_microwave': 1 of its episodes failed|None of 1"):
        summary = record_pushes(tmp_path, expert, suite="libero_90", **options)
    assert summary == RecordingSummary(1, 1, 0, 0, 0)


def test_a_random_prefix_that_takes_all_steps_leaves_a_failure(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cameras": (), "record_intended": True, "random_prefix": 30, "max_steps": 1}
    with pytest.warns(UserWarning, match="failed, because the policy gave no action"):
        assert record_pushes(tmp_path, **options).n_recorded == 3


def test_a_damaged_staged_episode_is_named_and_recorded_again(recording: Path, tmp_path: Path) -> None:
    record_pushes(tmp_path)
    path = tmp_path / RECORDING_FOLDER / EpisodeKey(0, 1, 0).file_name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(bytes(body))
    with pytest.warns(UserWarning, match=r"task000_init001_repeat000\.npz is damaged .* recorded again"):
        assert record_pushes(tmp_path).n_recorded == 1
    assert same_episodes(recording, tmp_path)


def test_a_plan_can_be_extended_but_options_stay(tmp_path: Path) -> None:
    record_pushes(tmp_path, init_state_ids=[1])
    assert record_pushes(tmp_path, init_state_ids=[0, 1]) == RecordingSummary(2, 1, 1, 0, 2)
    assert [episode.init_state_id for episode in LeRobotReader(tmp_path, cameras=())] == [0, 1]
    assert record_pushes(tmp_path, init_state_ids=[1]) == RecordingSummary(2, 0, 2, 0, 2)
    options: dict[str, Any] = {"init_state_ids": [2], "placement_seeds": [3]}
    assert record_pushes(tmp_path, **options) == RecordingSummary(4, 2, 2, 0, 4)
    started = [(episode.init_state_id, episode.placement_seed) for episode in LeRobotReader(tmp_path, cameras=())]
    assert started == [(-1, 3), (0, -1), (1, -1), (2, -1)]
    with pytest.raises(ValueError, match=r"begun with other options \(action_noise 0\.0 to 0\.5\)"):
        record_pushes(tmp_path, action_noise=0.5)


def test_a_first_attempt_that_recorded_nothing_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        record_pushes(tmp_path, policy="recorded_policies:posh")
    with pytest.raises(ValueError, match=r"cameras=\('agentview', 'agentview'\) names one of them twice"):
        record_pushes(tmp_path, cameras=("agentview", "agentview"))
    assert record_pushes(tmp_path, init_state_ids=[0], policy="recorded_policies:push").n_recorded == 1
    with pytest.raises(ValueError, match="begun with other options"):
        record_pushes(tmp_path, init_state_ids=[0], policy="recorded_policies:posh")


def pretend(job: RecordingJob, keys: list[EpisodeKey]) -> Iterator[bool]:
    """Files episodes that nobody played; the one from initial state 0 succeeds."""
    for key in keys:
        task = job.suite.tasks[key.task_id]
        episode = replace(synthetic(3), images={}, success=key.init_state_id == 0, task_name=task.name)
        arrays = {"state": episode.state, "actions": episode.actions}
        description = {"episode": episode.description, "shapes": {}, "stats": {}}
        write_bytes(job.staging / key.file_name, pack(description, arrays))
        yield episode.success


def test_a_plan_without_success_leaves_the_dataset_of_before(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cameras": (), "keep_failures": False, "recorder": pretend}
    record_pushes(tmp_path, init_state_ids=[0], **options)
    (tmp_path / RECORDING_FOLDER / EpisodeKey(0, 0, 0).file_name).unlink()  # to save space
    with pytest.warns(UserWarning, match="None of 1 episodes succeeded; .* keeps the dataset of before"):
        record_pushes(tmp_path, init_state_ids=[1], **options)
    assert len(LeRobotReader(tmp_path)) == 1


def test_tasks_that_have_changed_are_not_mixed(tmp_path: Path) -> None:
    first, second, third = (task.bddl_file.read_text() for task in get_tasks("libero_spatial")[:3])
    files = {name: tmp_path / "own_tasks" / f"{name}.bddl" for name in "abc"}
    files["b"].parent.mkdir()

    def again() -> RecordingSummary:
        options: dict[str, Any] = {"task_ids": None, "init_state_ids": (), "placement_seeds": [0], "cameras": ()}
        return record_pushes(tmp_path / "out", suite=str(files["b"].parent), recorder=pretend, **options)

    files["b"].write_text(first)
    files["c"].write_text(second)
    assert again().n_recorded == 2
    assert again().n_resumed == 2
    files["a"].write_text(third)
    with pytest.raises(ValueError, match=r"out was begun with other options \(its tasks: 'a' is new\); continue with"):
        again()
    files["a"].unlink()
    files["b"].write_text(third)
    with pytest.raises(ValueError, match=r"\(its tasks: 'b' is another one\)"):
        again()
    files["b"].write_text(first)
    options_file = tmp_path / "out" / RECORDING_FOLDER / "options.json"
    earlier = json.loads(options_file.read_text())
    assert [entry.split()[0] for entry in earlier.pop("tasks")] == ["b", "c"]
    options_file.write_text(json.dumps(earlier))  # as before tasks were noted
    assert again().n_resumed == 2
    files["b"].unlink()
    with pytest.raises(ValueError, match=r"\(its tasks: 'b' is gone\)"):
        again()


def test_policies_that_have_changed_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, options = tmp_path / "own_policies.py", {"cameras": (), "recorder": pretend, "policy": "own_policies:make"}
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text("make = 1")
    assert record_pushes(tmp_path / "out", init_state_ids=[1], **options).n_recorded == 1
    assert record_pushes(tmp_path / "out", init_state_ids=[1, 2], **options).n_recorded == 1
    file.write_text("make = 2")
    with pytest.raises(ValueError, match=r"with other options \(the source of its policy has changed\); continue with"):
        record_pushes(tmp_path / "out", init_state_ids=[1, 2, 3], **options)
    options_file = tmp_path / "out" / RECORDING_FOLDER / "options.json"
    earlier = json.loads(options_file.read_text())
    assert earlier.pop("source") is not None
    options_file.write_text(json.dumps(earlier))  # as before sources were noted
    assert record_pushes(tmp_path / "out", init_state_ids=[3], **options).n_recorded == 1
    file.write_text("make = 1")
    with pytest.raises(ValueError, match="source of its policy has changed"):
        record_pushes(tmp_path / "out", init_state_ids=[3], **options)


def test_lambdas_are_told_apart_by_what_they_have_taken_along(tmp_path: Path) -> None:
    def again(value: Any, name: str | None = None, root: str = "out") -> int:
        policy: Any = lambda env: lambda obs: np.full(7, value)  # noqa: E731
        if name is not None:
            policy.name = name
        return record_pushes(tmp_path / root, cameras=(), init_state_ids=[0], recorder=pretend, policy=policy).n_resumed

    assert [again(0.1), again(0.1)] == [0, 1]
    with pytest.raises(ValueError, match="the source of its policy has changed"):
        again(0.9)
    with pytest.warns(
        UserWarning, match=r"Nothing tells the policy .*<lambda> .* cannot be continued; .* a `name`"
    ) as w:
        again(np.ones(7), root="array")
    assert [warning.filename for warning in w] == [str(Path(recordings.__file__))]
    with pytest.raises(
        ValueError, match=r"Nothing tells the policy .*array is not continued; give the function a `nam"
    ):
        again(np.ones(7), root="array")
    assert [again(np.ones(7), "ones", "named"), again(np.ones(7), "ones", "named")] == [0, 1]
    with pytest.raises(ValueError, match="policy 'ones' to 'twos'"):
        again(np.ones(7), "twos", "named")


def test_failures_are_dropped_unless_kept_and_successes_end_the_episode(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task_ids": 0, "init_state_ids": [0], "cameras": (), "n_workers": 0}
    summary = record(tmp_path / "a", "libero_object", Soup, **options, progress_bar=False)
    assert summary == RecordingSummary(1, 1, 0, 1, 1)
    (episode,) = LeRobotReader(tmp_path / "a")
    assert episode.success
    assert episode.task_name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    with pytest.warns(UserWarning, match="None of 1 episodes succeeded"):
        summary = record(tmp_path / "b", "libero_object", push, **options, max_steps=3, progress_bar=False)
    assert summary == RecordingSummary(1, 1, 0, 0, 0)


def test_noise_and_random_actions_are_recorded_and_deterministic(tmp_path: Path) -> None:
    noisy: dict[str, Any] = {"action_noise": 0.1, "random_prefix": 3, "random_action_prob": 0.3, "cameras": ()}
    for name in ("a", "b"):
        record_pushes(tmp_path / name, **noisy)
    assert same_episodes(tmp_path / "a", tmp_path / "b")
    record_pushes(tmp_path / "c", **noisy, seed=1)
    assert not same_episodes(tmp_path / "a", tmp_path / "c")
    actions = np.concatenate([episode.actions for episode in LeRobotReader(tmp_path / "a")])
    assert np.abs(actions).max() <= 1
    assert len(np.unique(actions[:, 0])) == len(actions)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"action has shape \(6,\); expected \(7,\)"):
        record_pushes(tmp_path / "a", broken)
    with pytest.raises(ValueError, match="image_size=33 cannot become H"):
        record_pushes(tmp_path / "b", image_size=33)
    with pytest.raises(ValueError, match="init_state_id=50 is out of range; task 0 has 0 to 49"):
        record_pushes(tmp_path / "c", init_state_ids=[50])
    with pytest.raises(ValueError, match="expected 'module:function'"):
        record_pushes(tmp_path / "d", "no_such_module:make")
    with pytest.raises(ValueError, match="plan has no episodes"):
        record_pushes(tmp_path / "e", init_state_ids=[])


def test_two_processes_do_not_record_to_one_folder(tmp_path: Path) -> None:
    (tmp_path / RECORDING_FOLDER).mkdir()
    with demonstrations._lock(tmp_path / RECORDING_FOLDER), pytest.raises(BlockingIOError, match="Another process"):
        record_pushes(tmp_path)

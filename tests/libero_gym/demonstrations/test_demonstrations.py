"""Demonstrations: what is recorded can be read, by us and in others' formats; kills and damage cost what they hit."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TESTS
from recorded_policies import GivesUp, Soup, broken, push, two_steps
from recordings import record_pushes, same_episodes, synthetic

from libero_gym.atomic import write_bytes
from libero_gym.demonstrations import LeRobotReader, LeRobotWriter, recorder
from libero_gym.demonstrations import recording as demonstrations
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode
from libero_gym.demonstrations.lerobot_stats import pooled_stats, vector_stats
from libero_gym.demonstrations.libero_hdf5 import read_libero_hdf5
from libero_gym.demonstrations.plan import EpisodeKey
from libero_gym.demonstrations.recording import RECORDING_FOLDER, RecordingSummary, record
from libero_gym.env import LiberoEnv

pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes of 5, 6 and 7 frames."""
    root = tmp_path / "dataset"
    writer = LeRobotWriter(root, cameras=("image",))
    for index in range(3):
        writer.add(synthetic(5 + index, seed=index))
    writer.finish()
    return root


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recorded episodes, undisturbed."""
    root = tmp_path_factory.mktemp("recording")
    assert record_pushes(root) == RecordingSummary(3, 3, 0, 0, 3)
    return root


def test_what_is_written_is_read_back(dataset: Path) -> None:
    reader = LeRobotReader(dataset)
    assert len(reader) == 3
    for index, episode in enumerate(reader):
        original = synthetic(5 + index, seed=index)
        assert episode.description == original.description
        np.testing.assert_array_equal(episode.state, original.state)
        np.testing.assert_array_equal(episode.actions, original.actions)
        error = np.abs(episode.images["image"].astype(int) - original.images["image"])
        assert error.mean() < 3


def test_the_folder_has_the_layout_and_fields_of_lerobot_v3(dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 3, 18)
    assert info["total_tasks"] == 2
    assert info["features"]["action"]["shape"] == [7]
    assert info["features"]["observation.images.image"]["dtype"] == "video"
    rows = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 5), (5, 11), (11, 18)]
    assert [row["videos/observation.images.image/to_timestamp"] for row in rows] == [0.25, 0.3, 0.35]
    assert rows[2]["tasks"] == ["do thing 0"]
    table = pq.read_table(dataset / "data/chunk-000/file-001.parquet")
    assert table["index"].to_pylist() == list(range(5, 11))
    np.testing.assert_allclose(table["timestamp"].to_pylist(), np.arange(6) / 20, rtol=1e-6)
    assert table["next.done"].to_pylist() == [False] * 5 + [True]
    tasks = pq.read_table(dataset / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["do thing 0", "do thing 1"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([synthetic(5 + index, seed=index).actions for index in range(3)])
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions.astype(float), 0.99, axis=0), rtol=1e-6)
    assert np.shape(stats["observation.images.image"]["mean"]) == (3, 1, 1)


def test_pooled_moments_are_those_of_all_values() -> None:
    first, second = np.random.default_rng(0).normal(size=(40, 3)), np.random.default_rng(1).normal(2, 3, size=(10, 3))
    pooled, exact = pooled_stats([vector_stats(first), vector_stats(second)]), vector_stats(np.r_[first, second])
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(pooled[name], exact[name], rtol=1e-9)


def test_a_file_of_several_episodes_is_read_too(dataset: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from libero_gym import videos

    episodes = list(LeRobotReader(dataset))
    frames = np.concatenate([episode.images["image"] for episode in episodes])
    (dataset / "videos/observation.images.image/chunk-000/file-000.mp4").write_bytes(videos.encode(frames, 20, crf=1))
    files = sorted(dataset.glob("data/*/*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(table, files[0])
    path = dataset / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row |= {"data/file_index": 0, "videos/observation.images.image/file_index": 0}
        row["videos/observation.images.image/from_timestamp"] = row["dataset_from_index"] / 20
    pq.write_table(pa.Table.from_pylist(rows), path)
    for episode, again in zip(episodes, LeRobotReader(dataset), strict=True):
        np.testing.assert_array_equal(again.actions, episode.actions)
        assert np.abs(again.images["image"].astype(int) - episode.images["image"]).mean() < 0.6


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-001.parquet", "videos/observation.images.image/chunk-000/file-001.mp4"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_a_damaged_file_is_named_and_its_episode_skipped(dataset: Path, name: str, damage: str) -> None:
    body = (dataset / name).read_bytes()
    if damage == "missing":
        (dataset / name).unlink()
    else:
        (dataset / name).write_bytes(body[: len(body) // 2] if damage == "truncated" else b"\x00" * len(body))
    with pytest.warns(UserWarning, match=r"Episode 1 of .* is skipped: .*" + name.split("/")[-1]):
        lengths = [len(episode) for episode in LeRobotReader(dataset)]
    assert lengths == [5, 7]


def test_damaged_and_missing_meta_is_told(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="empty, half-written or no LeRobot dataset"):
        LeRobotReader(tmp_path / "nowhere")
    (dataset / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedEpisodeError, match=r"file-000\.parquet is damaged"):
        LeRobotReader(dataset)
    (dataset / "meta/info.json").write_text("{")
    with pytest.raises(DamagedEpisodeError, match=r"meta/info\.json' is damaged: it is no JSON"):
        LeRobotReader(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 10}, "has 10 frames per second; 20 were expected"),
        ({"codebase_version": "v2.1"}, r"format v2\.1; this reads v3\.0"),
        ({"features": {"action": {"dtype": "float32", "shape": [6]}}}, r"'action' of shape \[6\]; LIBERO's has \[7\]"),
    ],
)
def test_a_dataset_that_does_not_fit_is_told(dataset: Path, change: dict[str, Any], message: str) -> None:
    path = dataset / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        LeRobotReader(dataset)


def test_a_camera_that_is_not_there_is_told(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"no camera 'wrist_image'; it has \['image'\]"):
        LeRobotReader(dataset, cameras=("wrist_image",))
    assert LeRobotReader(dataset, cameras=())[0].images == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 10}, "10 frames per second; this dataset has 20"),
        ({"actions": np.zeros((5, 6), np.float32)}, r"actions of shape \(5, 6\); LIBERO's have 7"),
        ({"images": {}}, r"cameras \[\]; this dataset has \['image'\]"),
        ({"state": np.full((5, 8), np.nan, np.float32)}, "NaN"),
        ({"images": synthetic(5, size=48).images}, r"frames \(48, 48, 3\) of 'image'; this dataset has \(32, 32, 3\)"),
    ],
)
def test_an_episode_that_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    writer = LeRobotWriter(tmp_path, cameras=("image",))
    writer.add(synthetic(5))
    with pytest.raises(ValueError, match=message):
        writer.add(replace(synthetic(5), **change))


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
    assert episode.versions["mujoco"] == "3.3.2"
    env = LiberoEnv("libero_spatial", cameras=(), settle_steps=1)
    obs, _ = env.reset(options={"task_id": 0, "init_state_id": 1})
    for state, action in zip(episode.state, episode.actions, strict=True):
        np.testing.assert_array_equal(obs["state"], state)
        obs, *_ = env.step(action)
    env.close()


def test_workers_record_what_one_process_records_and_a_second_run_does_nothing(recording: Path, tmp_path: Path) -> None:
    assert record_pushes(tmp_path, n_workers=2).n_recorded == 3
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


def test_a_dataset_that_was_not_recorded_there_is_left_alone(dataset: Path) -> None:
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


def test_a_damaged_staged_episode_is_named_and_recorded_again(recording: Path, tmp_path: Path) -> None:
    record_pushes(tmp_path)
    path = tmp_path / RECORDING_FOLDER / EpisodeKey(0, 1, 0).file_name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(bytes(body))
    with pytest.warns(UserWarning, match=r"task000_init001_repeat000\.npz is damaged .* recorded again"):
        assert record_pushes(tmp_path).n_recorded == 1
    assert same_episodes(recording, tmp_path)


def test_a_plan_can_be_extended_and_shortened_but_options_stay(tmp_path: Path) -> None:
    record_pushes(tmp_path, init_state_ids=[1])
    assert record_pushes(tmp_path, init_state_ids=[0, 1]) == RecordingSummary(2, 1, 1, 0, 2)
    assert [episode.init_state_id for episode in LeRobotReader(tmp_path, cameras=())] == [0, 1]
    assert record_pushes(tmp_path, init_state_ids=[1]).n_written == 1
    assert len(list(tmp_path.glob("data/*/*"))) == len(list(tmp_path.glob("videos/*/*/*"))) == 1
    with pytest.raises(ValueError, match=r"begun with other options \(action_noise 0\.0 to 0\.5\)"):
        record_pushes(tmp_path, action_noise=0.5)


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


@pytest.fixture
def libero_file(tmp_path: Path) -> Path:
    """A file as LIBERO publishes them, with two episodes."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    name = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
    path = tmp_path / f"{name}_demo.hdf5"
    with h5py.File(path, "w") as archive:
        data = archive.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["p", "u", "s", "h"]})
        for index in (0, 1, 10):
            episode, demo = synthetic(4 + index, seed=index), data.create_group(f"demo_{index}")
            demo["actions"] = episode.actions.astype(np.float64)
            demo["dones"] = np.arange(4 + index) == 3 + index
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = episode.images["image"][:, ::-1, ::-1]
            obs["ee_pos"], obs["ee_ori"] = episode.state[:, :3], episode.state[:, 3:6]
            obs["gripper_states"] = episode.state[:, 6:]
    return path


def test_liberos_hdf5_is_read_turned_as_ours(libero_file: Path) -> None:
    episodes = list(read_libero_hdf5(libero_file, suite="libero_spatial", cameras=("image",)))
    assert [len(episode) for episode in episodes] == [4, 5, 14]
    original = synthetic(5, seed=1)
    np.testing.assert_array_equal(episodes[1].images["image"], original.images["image"])
    np.testing.assert_array_equal(episodes[1].state, original.state)
    np.testing.assert_array_equal(episodes[1].actions, original.actions)
    assert (episodes[1].task_id, episodes[1].success) == (0, True)
    assert episodes[1].instruction.startswith("pick up the black bowl")
    assert next(read_libero_hdf5(libero_file, cameras=())).instruction == "push"


def test_damaged_hdf5_demonstrations_are_named_and_skipped(libero_file: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(libero_file, "a") as archive:
        del archive["data/demo_1/obs/ee_pos"]
    with pytest.warns(UserWarning, match=r"demo_1 of .*_demo\.hdf5 is damaged"):
        assert len(list(read_libero_hdf5(libero_file, cameras=("image",)))) == 2
    libero_file.write_bytes(libero_file.read_bytes()[:500])
    with pytest.warns(UserWarning, match=r"_demo\.hdf5 is damaged .* and skipped"):
        assert list(read_libero_hdf5(libero_file.parent)) == []
    with pytest.raises(FileNotFoundError, match=r"no \.hdf5 demonstrations"):
        next(read_libero_hdf5(libero_file.parent / "nowhere.hdf5"))

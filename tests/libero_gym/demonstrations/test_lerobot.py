"""LeRobot's format: what is written is read back, damage costs one episode, and what does not fit is told."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import synthetic, write_dataset

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter, lerobot_writer
from libero_gym.demonstrations.episodes import DamagedEpisodeError
from libero_gym.demonstrations.lerobot_layout import INFO_PATH
from libero_gym.demonstrations.lerobot_stats import image_stats, pooled_stats, vector_stats

pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes of 5, 6 and 7 frames."""
    return write_dataset(tmp_path / "dataset")


def strip(root: Path, folder: str, *names: str) -> None:
    """Take columns out of a dataset's tables, as somebody else's has none."""
    for path in (root / folder).rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([name for name in names if name in table.column_names]), path)


def test_whether_an_episode_of_others_succeeded_is_told_by_what_they_record(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, cameras=())
    until_done = np.append(np.full(5, -1, np.float32), np.float32(0))  # a step costs 1 until the goal holds
    writer.add(replace(synthetic(6, 0), images={}, success=True, rewards=until_done))
    writer.add(replace(synthetic(6, 1), images={}, success=False, rewards=np.full(6, 0.5, np.float32)))  # progress
    writer.finish()

    def told() -> list[bool]:
        return [episode.success for episode in LeRobotReader(tmp_path)]

    assert told() == [True, False]
    strip(tmp_path, "meta/episodes", "libero/success")
    assert told() == [True, False], "by next.success"
    strip(tmp_path, "data", "next.success")
    assert told() == [False, True], "by the last reward"
    strip(tmp_path, "data", "next.reward", "next.done")
    assert told() == [True, True], "a demonstration is taken for a success"


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
    assert table["next.reward"].to_pylist() == [0.0] * 5 + [1.0]
    assert info["features"]["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    tasks = pq.read_table(dataset / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["do thing 0", "do thing 1"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([synthetic(5 + index, seed=index).actions for index in range(3)])
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions.astype(float), 0.99, axis=0), rtol=1e-6)
    assert np.shape(stats["observation.images.image"]["mean"]) == (3, 1, 1)


def test_rewards_and_ends_are_read_back_and_older_files_have_none(dataset: Path, tmp_path: Path) -> None:
    episode = LeRobotReader(dataset)[0]
    assert episode.rewards is not None
    assert episode.rewards.dtype == np.float32
    assert episode.dones is not None
    assert episode.dones.dtype == np.bool_
    assert (episode.rewards.tolist(), episode.dones.tolist()) == ([0, 0, 0, 0, 1], [False] * 4 + [True])
    shaped = np.linspace(-1, 1, 5, dtype=np.float32)
    writer = LeRobotWriter(tmp_path / "shaped", cameras=("image",))
    writer.add(replace(synthetic(5), rewards=shaped))
    writer.add(replace(synthetic(5), success=False))
    with pytest.raises(ValueError, match=r"rewards of shape \(4,\); expected 5 finite numbers"):
        writer.add(replace(synthetic(5), rewards=shaped[:4]))
    writer.finish()
    given, failure = LeRobotReader(tmp_path / "shaped")
    np.testing.assert_array_equal(given.rewards, shaped)
    assert failure.rewards is not None
    assert not failure.rewards.any()
    for path in dataset.glob("data/*/*.parquet"):  # as they were before
        pq.write_table(pq.read_table(path).drop_columns(["next.reward", "next.done"]), path)
    older = LeRobotReader(dataset)[0]
    assert older.rewards is None
    assert older.dones is None


def test_frames_are_summarised_per_channel_in_zero_to_one() -> None:
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[2:, ..., 0], frames[..., 2] = 255, 51
    stats = image_stats(frames)
    assert np.squeeze(stats["mean"]).tolist() == pytest.approx([0.5, 0.0, 0.2])
    assert np.squeeze(stats["std"]).tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert np.shape(stats["q99"]) == (3, 1, 1)
    assert stats["count"] == [4]


def test_pooled_moments_are_those_of_all_values() -> None:
    first, second = np.random.default_rng(0).normal(size=(40, 3)), np.random.default_rng(1).normal(2, 3, size=(10, 3))
    pooled, exact = pooled_stats([vector_stats(first), vector_stats(second)]), vector_stats(np.r_[first, second])
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(pooled[name], exact[name], rtol=1e-9)


def test_a_file_of_several_episodes_is_read_too(dataset: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from libero_gym.common import videos

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
        ({"codebase_version": "v1.6"}, r"format v1\.6; this reads v2\.0, v2\.1 and v3\.0"),
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


def test_where_an_episode_began_is_told_without_reading_it(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, cameras=("image",))
    writer.add(replace(synthetic(5), suite="libero_40", task_id=12, init_state_id=3))
    writer.add(replace(synthetic(5, seed=1), placement_seed=8))
    writer.finish()
    for folder in ("data", "videos"):
        shutil.rmtree(tmp_path / folder)
    reader = LeRobotReader(tmp_path)
    assert reader.origin(0) == ("do thing 0", "libero_40", 12, 3, -1)
    assert reader.origin(-1) == ("do thing 1", "", -1, -1, 8)
    with pytest.raises(IndexError, match="no episode 2"):
        reader.origin(2)


def test_an_episode_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("image", "wrist_image")
    white, black = (
        replace(synthetic(5, seed=seed), images={key: np.full((5, 32, 32, 3), level, np.uint8) for key in keys})
        for seed, level in ((0, 255), (1, 0))
    )
    writer = LeRobotWriter(tmp_path, cameras=keys)
    write = lerobot_writer.write_bytes

    def full(path: Path, content: bytes) -> None:
        if "wrist_image" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(lerobot_writer, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        writer.add(white)
    monkeypatch.undo()
    writer.add(black)
    writer.finish()
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    for key in keys:
        assert np.max(stats[f"observation.images.{key}"]["max"]) < 0.05
        assert stats[f"observation.images.{key}"]["count"] == [5]
    assert [episode.instruction for episode in LeRobotReader(tmp_path)] == ["do thing 1"]


def test_a_folder_by_a_relative_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a name with a colon nor a path in the data set is taken for an address."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("demo:1"))
    assert len(list(LeRobotReader("demo:1"))) == 3
    monkeypatch.chdir("demo:1")
    info = json.loads(Path(INFO_PATH).read_text())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http:/127.0.0.1:{server.getsockname()[1]}/stolen"
        Path(INFO_PATH).write_text(json.dumps(info | {"video_path": address}))
        with pytest.raises(DamagedEpisodeError, match="No such file"):
            LeRobotReader(".")[0]
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody has called


def test_two_cameras_of_one_short_name_are_both_read(dataset: Path) -> None:
    info = json.loads((dataset / INFO_PATH).read_text())
    info["features"]["observation.image"] = info["features"]["observation.images.image"]
    (dataset / INFO_PATH).write_text(json.dumps(info))
    assert list(LeRobotReader(dataset)._features) == ["image", "observation.image"]


def test_a_copy_has_the_same_fingerprint_and_a_changed_byte_another(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "elsewhere" / "copy")
    (copy / "README.md").write_text("A card of my own.")
    (copy / "data" / "chunk-000" / ".file-000.parquet.part").write_text("a temporary file")
    assert LeRobotReader(copy).fingerprint() == LeRobotReader(dataset, cameras=()).fingerprint()
    write_dataset(tmp_path / "again")
    assert LeRobotReader(tmp_path / "again").fingerprint() == LeRobotReader(dataset).fingerprint()
    video = copy / "videos/observation.images.image/chunk-000/file-001.mp4"
    body = bytearray(video.read_bytes())
    body[-1] ^= 1
    video.write_bytes(body)
    assert LeRobotReader(copy).fingerprint() != LeRobotReader(dataset).fingerprint()

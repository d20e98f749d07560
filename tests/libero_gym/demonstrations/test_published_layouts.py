"""Sets of LIBERO as published: LeRobot's formats v2.0 and v2.1, openpi's names, `image2`, 10 frames a second."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import synthetic

from libero_gym.common import videos
from libero_gym.demonstrations import LeRobotReader
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode

pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

OPENPI = {"state": "state", "action": "actions", "cameras": ("image", "wrist_image")}
LEROBOT = {
    "state": "observation.state",
    "action": "action",
    "cameras": ("observation.images.image", "observation.images.image2"),
}
LENGTHS = (5, 6, 7)


def episodes() -> list[Episode]:
    return [synthetic(length, seed=index) for index, length in enumerate(LENGTHS)]


def frames_of(episode: Episode, camera: int) -> np.ndarray:
    """Frames of the first camera, or of the second, which are darker."""
    return episode.images["image"] // (1 + camera)


def cell(frame: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_legacy(root: Path, names: dict[str, Any], version: str = "v2.1", kind: str = "image") -> Path:
    """A data set of three episodes as LeRobot's earlier versions lay it out, in folders of two."""
    features: dict[str, Any] = {
        name: {"dtype": kind, "shape": [32, 32, 3], "names": ["height", "width", "channel"]}
        for name in names["cameras"]
    }
    features |= {
        names["state"]: {"dtype": "float32", "shape": [8]},
        names["action"]: {"dtype": "float32", "shape": [7]},
    }
    scalars = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in scalars.items()}
    features["task_index"] = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "fps": 10,
        "total_episodes": 3,
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "total_videos": 0 if kind == "image" else 6,
        "total_chunks": 2,
        "chunks_size": 2,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    rows, stats, start = [], [], 0
    for index, episode in enumerate(episodes()):
        n = len(episode)
        columns: dict[str, Any] = {
            names["state"]: pa.array(episode.state.tolist(), pa.list_(pa.float32())),
            names["action"]: pa.array(episode.actions.tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(n) / 10, pa.float32()),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, index),
            "index": start + np.arange(n),
            "task_index": np.full(n, index % 2),
        }
        for camera, name in enumerate(names["cameras"]):
            frames = frames_of(episode, camera)
            if kind == "image":
                columns[name] = [cell(frame) for frame in frames]
                continue
            path = root / f"videos/chunk-{index // 2:03d}/{name}/episode_{index:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(videos.encode(frames, 10, crf=1))
        path = root / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        rows.append({"episode_index": index, "tasks": [episode.instruction], "length": n})
        stats.append({"episode_index": index, "stats": statistics(episode, names)})
        start += n
    (root / "meta/info.json").write_text(json.dumps(info))
    write_lines(root / "meta/episodes.jsonl", rows)
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": f"do thing {i}"} for i in range(2)])
    if version == "v2.1":
        write_lines(root / "meta/episodes_stats.jsonl", stats)
    return root


def statistics(episode: Episode, names: dict[str, Any]) -> dict[str, Any]:
    values = {names["state"]: episode.state, names["action"]: episode.actions}
    found = {
        name: {
            **{key: getattr(value, key)(axis=0).tolist() for key in ("min", "max", "mean", "std")},
            "count": [len(value)],
        }
        for name, value in values.items()
    }
    for name in names["cameras"]:
        found[name] = {key: [[[value]]] * 3 for key, value in (("min", 0), ("max", 1), ("mean", 0.5), ("std", 0.5))}
        found[name]["count"] = [len(episode)]
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        found[name] = {key: [0.0] for key in ("min", "max", "mean", "std")} | {"count": [len(episode)]}
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def check(reader: LeRobotReader, cameras: tuple[str, str], tolerance: float = 0.0) -> None:
    assert len(reader) == 3
    for original, episode in zip(episodes(), reader, strict=True):
        assert episode.instruction == original.instruction
        assert episode.fps == 10
        np.testing.assert_array_equal(episode.state, original.state)
        np.testing.assert_array_equal(episode.actions, original.actions)
        assert tuple(episode.images) == cameras
        for camera, key in enumerate(cameras):
            error = np.abs(episode.images[key].astype(int) - frames_of(original, camera))
            assert error.mean() <= tolerance


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_openpis_names_and_frames_in_parquet(tmp_path: Path, version: str) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI, version)
    reader = LeRobotReader(root, fps=None)
    check(reader, ("image", "wrist_image"))
    assert reader.origin(1).instruction == "do thing 1"


@pytest.mark.parametrize("kind", ["image", "video"])
def test_lerobots_names_are_found_by_ours(tmp_path: Path, kind: str) -> None:
    root = write_legacy(tmp_path / "libero", LEROBOT, kind=kind)
    tolerance = 0.0 if kind == "image" else 1.0
    check(LeRobotReader(root, fps=None), ("image", "image2"), tolerance)
    check(LeRobotReader(root, fps=10, cameras=("image", "wrist_image")), ("image", "wrist_image"), tolerance)
    with pytest.raises(ValueError, match=r"has no camera 'side'; it has \['image', 'image2'\]"):
        LeRobotReader(root, fps=None, cameras=("side",))


def test_another_frame_rate_is_taken_only_where_the_caller_says_so(tmp_path: Path) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI)
    with pytest.raises(ValueError, match=r"has 10 frames per second; 20 were expected\. fps=None takes any"):
        LeRobotReader(root)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_a_gripper_of_another_convention_is_told(tmp_path: Path, version: str) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI, version)
    stats = statistics(episodes()[0], OPENPI)
    stats["actions"]["min"][6], stats["actions"]["max"][6] = 0.0, 1.0
    if version == "v2.1":
        write_lines(root / "meta/episodes_stats.jsonl", [{"episode_index": 0, "stats": stats}])
    else:
        (root / "meta/stats.json").write_text(json.dumps(stats))
    with pytest.warns(UserWarning, match="never negative: the hand would never open"):
        LeRobotReader(root, fps=None)


def test_damage_costs_one_episode_and_is_named(tmp_path: Path) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI)
    (root / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    reader = LeRobotReader(root, fps=None)
    with pytest.warns(UserWarning, match=r"Episode 1 .* is skipped: .*episode_000001.parquet is damaged"):
        assert [len(episode) for episode in reader] == [5, 7]


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("meta/episodes.jsonl", b"", "episodes.jsonl lists no episodes"),
        ("meta/episodes.jsonl", b"[1]\n", "line 1, is damaged: expected an object"),
        ("meta/episodes.jsonl", b"{\n", "line 1, is damaged: it is no JSON"),
        ("meta/episodes.jsonl", b'{"length": 3}\n', "of an episode, its row is damaged: 'episode_index' is missing"),
        ("meta/episodes.jsonl", None, "episodes.jsonl is missing or cannot be read"),
    ],
)
def test_a_damaged_list_of_episodes(tmp_path: Path, path: str, content: bytes | None, message: str) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI)
    (root / path).unlink()
    if content is not None:
        (root / path).write_bytes(content)
    with pytest.raises(DamagedEpisodeError, match=message):
        LeRobotReader(root, fps=None)


@pytest.mark.parametrize("size", [None, 0, "2"])
def test_a_set_that_does_not_say_how_large_its_folders_are(tmp_path: Path, size: Any) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"chunks_size": size}))
    with pytest.raises(DamagedEpisodeError, match=r"info.json is damaged: chunks_size="):
        LeRobotReader(root, fps=None)[0]


def test_statistics_that_are_damaged_are_done_without(tmp_path: Path) -> None:
    root = write_legacy(tmp_path / "libero", OPENPI)
    write_lines(root / "meta/episodes_stats.jsonl", [{"episode_index": 0, "stats": 3}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(LeRobotReader(root, fps=None), ("image", "wrist_image"))


def test_lerobots_own_converter_and_reader_agree(tmp_path: Path) -> None:
    """The data set above is one that LeRobot takes; what its v3.0 holds is what we read before."""
    pytest.importorskip("lerobot", reason="needs lerobot (0.6.1 goes together with this package, on Python 3.12)")
    pytest.importorskip("jsonlines", reason="needs jsonlines (lerobot[dataset])")
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    root = write_legacy(tmp_path / "libero", LEROBOT)
    before = list(LeRobotReader(root, fps=None))
    convert_dataset("mine/libero", root=str(root), push_to_hub=False)
    assert json.loads((root / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    shutil.rmtree(tmp_path / "libero_old", ignore_errors=True)
    for one, two in zip(before, LeRobotReader(root, fps=None), strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.state, two.state)
        assert one.instruction == two.instruction
        for key in ("image", "image2"):
            np.testing.assert_array_equal(one.images[key], two.images[key])

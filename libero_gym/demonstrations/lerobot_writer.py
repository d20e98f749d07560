"""Writing demonstrations as a LeRobot dataset, which other people's tools open."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common import videos
from libero_gym.common.atomic import write_bytes
from libero_gym.common.checks import as_path, flag, sequence, whole_number
from libero_gym.demonstrations.dataset_card import write_card
from libero_gym.demonstrations.episodes import Episode, check_episode
from libero_gym.demonstrations.leftovers import MARK, foreign_data, listed_files, remove_leftovers
from libero_gym.demonstrations.lerobot_fields import MAX_FPS
from libero_gym.demonstrations.lerobot_layout import (
    ACTION_NAMES,
    CHUNK_SIZE,
    CODEBASE_VERSION,
    DATA_PATH,
    EPISODES_PATH,
    IMAGE_PREFIX,
    INFO_PATH,
    NEXT_DONE,
    NEXT_REWARD,
    NEXT_SUCCESS,
    OWN_FIELDS,
    OWN_PREFIX,
    STATE_NAMES,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    require_pyarrow,
)
from libero_gym.demonstrations.lerobot_stats import Stats, image_stats, pooled_stats, vector_stats
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, STATE_DIM

_SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


class LeRobotWriter:
    """Writes a dataset, one episode after another. It can be read after `finish`, which writes the ``meta`` folder.

    A dataset that is overwritten loses its ``meta/info.json`` as the first file is written, so that nobody takes a
    half-written folder for a whole dataset.

    Args:
        root: The dataset's folder.
        cameras: The observation keys of the frames, such as ``("image", "wrist_image")``.
        fps: Frames per second of every episode.
        crf: Quality of the videos, see `videos.encode`.
        overwrite: Whether the writer may replace a dataset in the folder. `finish` removes what that one's own ``meta``
            folder lists. Files of other origin stay unless the dataset needs their names; a ``README.md`` always stays.

    Raises:
        FileExistsError: If the folder holds a dataset that may not be replaced, or other data.
        ValueError: If a number is out of range, or a camera is named twice or by what LeRobot takes for no name.
        ImportError: If pyarrow is missing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        cameras: Sequence[str],
        fps: int = CONTROL_FREQ,
        crf: int = videos.DATASET_CRF,
        overwrite: bool = False,
    ) -> None:
        require_pyarrow()
        self.root = as_path("root", root).absolute()
        self.cameras = _checked_cameras(cameras)
        self.fps = whole_number("fps", fps, 1, MAX_FPS)
        self.crf = whole_number("crf", crf, 0, videos.MAX_CRF)
        overwrite = flag("overwrite", overwrite)
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._columns: list[dict[str, np.ndarray]] = []
        self._image_stats: dict[str, list[dict[str, Any]]] = {key: [] for key in self.cameras}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._n_frames = 0
        if self.root.exists() and not self.root.is_dir():
            raise FileExistsError(f"{self.root} is a file; choose a folder for the dataset.")
        if (self.root / INFO_PATH).exists() and not overwrite:
            raise FileExistsError(f"{self.root} holds a dataset; choose another folder, or overwrite=True.")
        if not overwrite and (other := foreign_data(self.root)) is not None:
            raise FileExistsError(f"{other} is in the way of a dataset, and is none of ours; choose another folder.")
        self._old = listed_files(self.root) if overwrite else set()
        self._written: set[Path] = set()

    def add(self, episode: Episode) -> None:
        """Write an episode.

        Raises:
            ValueError: If the frame rate, a camera, a frame size or a dimension does not fit.
            OSError: If the disk is full; the episodes before are untouched.
        """
        name = f"Episode {len(self._rows)} ({episode.task_name or episode.instruction})"
        check_episode(episode, name)
        if set(episode.images) != set(self.cameras):
            raise ValueError(f"{name} has cameras {sorted(episode.images)}; this dataset has {sorted(self.cameras)}.")
        encoded = {key: videos.encode(episode.images[key], episode.fps, self.crf) for key in self.cameras}
        shapes = {key: episode.images[key].shape[1:] for key in self.cameras}
        stats = {key: image_stats(episode.images[key]) for key in self.cameras}
        self.add_encoded(episode, encoded, shapes, stats)

    def add_encoded(
        self, episode: Episode, encoded: dict[str, bytes], shapes: dict[str, tuple[int, ...]], stats: Stats
    ) -> None:
        """Write an episode whose frames are encoded already.

        Args:
            episode: The episode; its ``images`` are ignored.
            encoded: MP4 files by camera, from `videos.encode`.
            shapes: (H, W, 3) of the frames by camera.
            stats: `image_stats` of the frames by camera.

        Raises:
            ValueError: If the frame rate, a camera or a frame size does not fit.
        """
        index = len(self._rows)
        self._check_fits(f"Episode {index} ({episode.task_name or episode.instruction})", episode.fps, shapes)
        row_of_task = self._tasks.get(episode.instruction, len(self._tasks))
        chunk, file = divmod(index, CHUNK_SIZE)
        columns = self._frame_columns(episode, index, row_of_task)
        self._write(DATA_PATH.format(chunk_index=chunk, file_index=file), _data_parquet(columns))
        for key in self.cameras:
            path = VIDEO_PATH.format(video_key=IMAGE_PREFIX + key, chunk_index=chunk, file_index=file)
            self._write(path, encoded[key])
        # All is written: only now does the dataset have the episode.
        self._tasks[episode.instruction] = row_of_task
        self._shapes = self._shapes or dict(shapes)
        for key in self.cameras:
            self._image_stats[key].append(stats[key])
        self._rows.append(self._episode_row(episode, index, columns, stats))
        self._columns.append(columns)
        self._n_frames += len(episode)

    def finish(self) -> None:
        """Write the ``meta`` folder; ``info.json``, which makes the dataset readable, comes last.

        Raises:
            ValueError: If no episode was added.
        """
        import pyarrow as pa

        if not self._rows:
            raise ValueError(f"No episode was added to {self.root}; a dataset needs one at least.")
        self._write(TASKS_PATH, _tasks_parquet(self._tasks))
        self._write(EPISODES_PATH, _parquet(pa.Table.from_pylist(self._rows)))
        names = self._columns[0]
        stats = {name: vector_stats(_two_dims(np.concatenate([c[name] for c in self._columns]))) for name in names}
        stats |= {IMAGE_PREFIX + key: pooled_stats(self._image_stats[key]) for key in self.cameras}
        self._write(STATS_PATH, json.dumps(stats, indent=4).encode())
        for path in self._old - self._written:
            path.unlink(missing_ok=True)
        wanted = {divmod(index, CHUNK_SIZE) for index in range(len(self._rows))}
        remove_leftovers(self.root, wanted, [IMAGE_PREFIX + key for key in self.cameras])
        write_card(self.root)
        write_bytes(self.root / INFO_PATH, json.dumps(self._info(), indent=4).encode())

    def _write(self, path: str, content: bytes) -> None:
        if not self._written:
            (self.root / INFO_PATH).unlink(missing_ok=True)
        write_bytes(self.root / path, content)
        self._written.add(self.root / path)

    def _check_fits(self, name: str, fps: int, shapes: dict[str, tuple[int, ...]]) -> None:
        if fps != self.fps:
            raise ValueError(f"{name} has {fps} frames per second; this dataset has {self.fps}.")
        if set(shapes) != set(self.cameras):
            raise ValueError(f"{name} has cameras {sorted(shapes)}; this dataset has {sorted(self.cameras)}.")
        for key, shape in shapes.items():
            if tuple(shape) != tuple(self._shapes.get(key, shape)):
                raise ValueError(f"{name} has frames {tuple(shape)} of {key!r}; this dataset has {self._shapes[key]}.")

    def _frame_columns(self, episode: Episode, index: int, row_of_task: int) -> dict[str, np.ndarray]:
        """The data file's columns in the order of the features; each frame has a row."""
        n_frames = len(episode)
        last = np.arange(n_frames) == n_frames - 1
        rewards = last & episode.success if episode.rewards is None else episode.rewards  # LIBERO's, 1 for success
        return {
            "observation.state": np.asarray(episode.state, np.float32),
            "action": np.asarray(episode.actions, np.float32),
            NEXT_REWARD: np.asarray(rewards, np.float32),
            NEXT_DONE: last if episode.dones is None else np.asarray(episode.dones, bool),
            NEXT_SUCCESS: last & episode.success,
            "timestamp": (np.arange(n_frames) / self.fps).astype(np.float32),
            "frame_index": np.arange(n_frames),
            "episode_index": np.full(n_frames, index),
            "index": np.arange(n_frames) + self._n_frames,
            "task_index": np.full(n_frames, row_of_task),
        }

    def _episode_row(
        self, episode: Episode, index: int, columns: dict[str, np.ndarray], stats: Stats
    ) -> dict[str, Any]:
        chunk, file = divmod(index, CHUNK_SIZE)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.instruction],
            "length": len(episode),
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._n_frames,
            "dataset_to_index": self._n_frames + len(episode),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key in self.cameras:
            prefix = f"videos/{IMAGE_PREFIX}{key}/"
            row |= {prefix + "chunk_index": chunk, prefix + "file_index": file}
            row |= {prefix + "from_timestamp": 0.0, prefix + "to_timestamp": len(episode) / self.fps}
        row |= {OWN_PREFIX + name: getattr(episode, name) for name in OWN_FIELDS}
        row[OWN_PREFIX + "versions"] = json.dumps(episode.versions, sort_keys=True)
        every = {name: vector_stats(_two_dims(values)) for name, values in columns.items()}
        every |= {IMAGE_PREFIX + key: stats[key] for key in self.cameras}
        row |= {f"stats/{name}/{kind}": value for name, entry in every.items() for kind, value in entry.items()}
        return row

    def _info(self) -> dict[str, Any]:
        n_episodes = len(self._rows)
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": "panda",
            "total_episodes": n_episodes,
            "total_frames": self._n_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 500,
            "fps": self.fps,
            "splits": {"train": f"0:{n_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": self._features(),
        }

    def _features(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key in self.cameras:
            shape = self._shapes[key]
            features[IMAGE_PREFIX + key] = {
                "dtype": "video",
                "shape": list(shape),
                "names": ["height", "width", "channels"],
                "info": _video_info(shape, self.fps),
            }
        features["observation.state"] = {"dtype": "float32", "shape": [STATE_DIM], "names": STATE_NAMES}
        features["action"] = {"dtype": "float32", "shape": [ACTION_DIM], "names": ACTION_NAMES}
        features[NEXT_REWARD] = {"dtype": "float32", "shape": [1], "names": None}
        for name in (NEXT_DONE, NEXT_SUCCESS):
            features[name] = {"dtype": "bool", "shape": [1], "names": None}
        for name, dtype in _SCALARS.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return features


def _checked_cameras(cameras: Any) -> tuple[str, ...]:
    """The cameras; a slash in a name would lead to another folder, and braces the reader takes for a field."""
    names = tuple(sequence("cameras", cameras))
    are_keys = all(isinstance(name, str) and name and not set("{}/\0") & set(name) for name in names)
    if not are_keys or len(set(names)) < len(names):
        raise ValueError(
            f"cameras={names!r:.200}; expected observation keys, such as ('image',), each once, without '/' or braces."
        )
    return names


def _video_info(shape: tuple[int, ...], fps: int) -> dict[str, Any]:
    """The description of a video of `videos.encode` in ``meta/info.json``."""
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def _two_dims(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values[:, None]


def _data_parquet(columns: dict[str, np.ndarray]) -> bytes:
    import pyarrow as pa

    arrays = {
        name: pa.array(values.tolist(), pa.list_(pa.float32(), values.shape[1]))
        if values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    return _parquet(pa.table(arrays).replace_schema_metadata({MARK: b"data"}))


def _tasks_parquet(tasks: dict[str, int]) -> bytes:
    """The table of tasks. LeRobot reads it by pandas with the instructions as index, which the metadata declare."""
    import pyarrow as pa

    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "task": pa.array(list(tasks))})
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in kinds
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return _parquet(table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def _parquet(table: Any) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="snappy")
    return buffer.getvalue()

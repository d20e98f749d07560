"""The LeRobot dataset format v3.0: write demonstrations so that other people's tools open them, and read theirs.

A folder holds ``meta/info.json`` (features, paths, totals), ``meta/stats.json``, ``meta/tasks.parquet``,
``meta/episodes/chunk-000/file-000.parquet`` (where each episode lies), ``data/chunk-000/file-000.parquet`` and
``videos/<key>/chunk-000/file-000.mp4``. The format lets a file hold many episodes; we write one file per episode, so
that damage costs one episode, and read both.

Checked: the field names against LeRobot's own source for v3.0; LeRobot 0.4.4 (with datasets 5.2.0) opens a dataset of
ours, with its episodes, tasks, statistics and rows; PyAV 18.1.0 decodes its videos, with a frame at every 1/fps. Not
checked: LeRobot's own decoding of frames into tensors, and its web viewer.

Beside the standard fields, each episode's row has ours, ``libero/success``, ``libero/suite``, ``libero/task_id``,
``libero/task_name``, ``libero/init_state_id``, ``libero/placement_seed``, ``libero/seed``, ``libero/versions`` (JSON).

Frames and actions are those of our environments: images turned by 180 degrees, gripper +1 closing.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.atomic import write_bytes
from libero_gym.checks import as_path, flag, real_number, sequence, whole_number
from libero_gym.demonstrations import videos
from libero_gym.demonstrations.dataset_card import write_card
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode, check_episode
from libero_gym.demonstrations.gripper_commands import GripperCommands
from libero_gym.demonstrations.leftovers import MARK, foreign_data, remove_leftovers
from libero_gym.demonstrations.lerobot_fields import (
    MAX_FPS,
    Feature,
    camera_feature,
    check_info,
    file_path,
    instruction_of,
    length_of,
    own_cells,
    seconds_cell,
    versions_of,
    whole_cell,
)
from libero_gym.demonstrations.lerobot_frames import from_cells, from_video
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, STATE_DIM
from libero_gym.json_files import read_json

CODEBASE_VERSION = "v3.0"
CHUNK_SIZE = 1000  # files per folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"

IMAGE_PREFIX = "observation.images."
STATE_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"]
ACTION_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper"]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_OURS: dict[str, type] = {
    "success": bool,
    "suite": str,
    "task_id": int,
    "task_name": str,
    "init_state_id": int,
    "placement_seed": int,
    "seed": int,
}
_MAX_ROWS, _MAX_TABLE_BYTES = 10**7, 16 * 2**30  # of one parquet file; LeRobot begins another at 100 MB

Stats = dict[str, dict[str, Any]]


def image_stats(frames: np.ndarray, max_samples: int = 100) -> dict[str, Any]:
    """LeRobot's statistics of an episode's frames uint8 (T, H, W, 3): per channel (3, 1, 1), of values in [0, 1].

    At most ``max_samples`` frames, evenly spaced, and about 150 to 300 pixels a side are looked at.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), max_samples)).round().astype(int)
    stride = max(1, min(frames.shape[1:3]) // 150)
    pixels = frames[chosen, ::stride, ::stride].reshape(-1, 3) / 255.0
    stats = vector_stats(pixels)
    return {
        name: [len(chosen)] if name == "count" else np.reshape(value, (3, 1, 1)).tolist()
        for name, value in stats.items()
    }


def vector_stats(values: np.ndarray) -> dict[str, Any]:
    """LeRobot's statistics of values (T, D): min, max, mean, std, count and quantiles, as lists of length D."""
    values = np.asarray(values, dtype=np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    stats.update(zip(QUANTILES, quantiles, strict=True))
    return {**{name: value.tolist() for name, value in stats.items()}, "count": [len(values)]}


def pooled_stats(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of several episodes' frames together, of those of each; quantiles are averaged, so approximate."""
    counts = np.array([entry["count"][0] for entry in stats], dtype=np.float64)
    weights = counts / counts.sum()

    def mean_of(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.tensordot(weights, values, axes=1))

    stacked = {name: np.array([entry[name] for entry in stats]) for name in stats[0] if name != "count"}
    mean = mean_of(stacked["mean"])
    pooled = {name: mean_of(values) for name, values in stacked.items() if name in QUANTILES}
    pooled["min"], pooled["max"], pooled["mean"] = stacked["min"].min(0), stacked["max"].max(0), mean
    pooled["std"] = np.sqrt(mean_of(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2))
    return {**{name: value.tolist() for name, value in pooled.items()}, "count": [int(counts.sum())]}


class LeRobotWriter:
    """Writes a dataset, episode by episode; it can be read once `finish` has written its ``meta`` folder.

    An overwritten dataset's ``meta/info.json`` is removed first, so that a half-written folder is never taken for a
    whole one.

    Args:
        root: The dataset's folder.
        cameras: Observation keys of the frames to write, such as ``("image", "wrist_image")``.
        fps: Frames per second of every episode.
        crf: See `videos.encode`.
        overwrite: Whether a dataset in the folder may be replaced. Files that we did not write, and whose names are not
            needed, stay in any case; so does a ``README.md``.

    Raises:
        FileExistsError: If there is one, and it may not, or something else is in the way.
        ValueError: If a number is out of range.
        ImportError: If pyarrow is missing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        cameras: Sequence[str],
        fps: int = CONTROL_FREQ,
        crf: int = videos.DEFAULT_CRF,
        overwrite: bool = False,
    ) -> None:
        require_pyarrow()
        self.root = as_path("root", root)
        self.cameras = tuple(sequence("cameras", cameras))
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
        (self.root / INFO_PATH).unlink(missing_ok=True)

    def add(self, episode: Episode) -> None:
        """Write an episode.

        Raises:
            ValueError: If its frame rate, cameras, frame sizes or dimensions do not fit.
            OSError: If the disk is full; episodes added before are untouched.
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
        """Write an episode whose frames are MP4 files already, of ``(H, W, 3)`` shapes and `image_stats`.

        Raises:
            ValueError: If its frame rate, cameras or frame sizes do not fit.
        """
        index = len(self._rows)
        self._check_fits(f"Episode {index} ({episode.task_name or episode.instruction})", episode.fps, shapes)
        chunk, file = divmod(index, CHUNK_SIZE)
        columns = self._frame_columns(episode, index)
        write_bytes(self.root / DATA_PATH.format(chunk_index=chunk, file_index=file), _data_parquet(columns))
        for key in self.cameras:
            path = VIDEO_PATH.format(video_key=IMAGE_PREFIX + key, chunk_index=chunk, file_index=file)
            write_bytes(self.root / path, encoded[key])
            self._image_stats[key].append(stats[key])
        self._rows.append(self._episode_row(episode, index, columns, stats))
        self._columns.append(columns)
        self._n_frames += len(episode)

    def finish(self) -> None:
        """Write the ``meta`` folder, ``info.json`` last.

        Raises:
            ValueError: If no episode was added.
        """
        import pyarrow as pa

        if not self._rows:
            raise ValueError(f"No episode was added to {self.root}; a dataset needs one at least.")
        write_bytes(self.root / TASKS_PATH, _tasks_parquet(self._tasks))
        write_bytes(self.root / EPISODES_PATH, _parquet(pa.Table.from_pylist(self._rows)))
        names = self._columns[0]
        stats = {name: vector_stats(_two_dims(np.concatenate([c[name] for c in self._columns]))) for name in names}
        stats |= {IMAGE_PREFIX + key: pooled_stats(self._image_stats[key]) for key in self.cameras}
        write_bytes(self.root / STATS_PATH, json.dumps(stats, indent=4).encode())
        wanted = {divmod(index, CHUNK_SIZE) for index in range(len(self._rows))}
        remove_leftovers(self.root, wanted, [IMAGE_PREFIX + key for key in self.cameras])
        write_card(self.root)
        write_bytes(self.root / INFO_PATH, json.dumps(self._info(), indent=4).encode())

    def _check_fits(self, name: str, fps: int, shapes: dict[str, tuple[int, ...]]) -> None:
        if fps != self.fps:
            raise ValueError(f"{name} has {fps} frames per second; this dataset has {self.fps}.")
        if set(shapes) != set(self.cameras):
            raise ValueError(f"{name} has cameras {sorted(shapes)}; this dataset has {sorted(self.cameras)}.")
        self._shapes = self._shapes or dict(shapes)
        for key, shape in shapes.items():
            if tuple(shape) != tuple(self._shapes[key]):
                raise ValueError(f"{name} has frames {tuple(shape)} of {key!r}; this dataset has {self._shapes[key]}.")

    def _frame_columns(self, episode: Episode, index: int) -> dict[str, np.ndarray]:
        """Columns of the data file, a row per frame, in the order of the features."""
        n_frames = len(episode)
        done = np.arange(n_frames) == n_frames - 1
        return {
            "observation.state": np.asarray(episode.state, np.float32),
            "action": np.asarray(episode.actions, np.float32),
            "next.done": done,
            "next.success": done & episode.success,
            "timestamp": (np.arange(n_frames) / self.fps).astype(np.float32),
            "frame_index": np.arange(n_frames),
            "episode_index": np.full(n_frames, index),
            "index": np.arange(n_frames) + self._n_frames,
            "task_index": np.full(n_frames, self._tasks.setdefault(episode.instruction, len(self._tasks))),
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
        row |= {"libero/" + name: getattr(episode, name) for name in _OURS}
        row["libero/versions"] = json.dumps(episode.versions, sort_keys=True)
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
                "info": videos.info(shape, self.fps),
            }
        features["observation.state"] = {"dtype": "float32", "shape": [STATE_DIM], "names": STATE_NAMES}
        features["action"] = {"dtype": "float32", "shape": [ACTION_DIM], "names": ACTION_NAMES}
        for name in ("next.done", "next.success"):
            features[name] = {"dtype": "bool", "shape": [1], "names": None}
        for name, dtype in _SCALARS.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return features


class LeRobotReader:
    """A dataset in LeRobot's format v3.0, of ours or others'; frames are decoded an episode at a time.

    ``len(reader)``, ``reader[i]``, and iteration, which names damaged episodes in a warning and skips them. Frames are
    read from videos, and from PNG or JPEG bytes in the data files ("dtype": "image").

    Args:
        root: The dataset's folder.
        cameras: Keys to decode, the part after ``observation.images.``; None for all, ``()`` for none.
        fps: Frames per second that the caller needs, None for any. Nothing is resampled.

    Raises:
        FileNotFoundError: If the folder holds no finished dataset.
        ImportError: If pyarrow is missing.
        ValueError: If version, frame rate, dimensions or cameras do not fit.
        DamagedEpisodeError: If the ``meta`` folder is damaged.

    Warns:
        UserWarning: If the gripper's commands are of another convention, or cameras are of a kind that is not read.
    """

    def __init__(
        self, root: str | Path, *, cameras: Sequence[str] | None = None, fps: float | None = CONTROL_FREQ
    ) -> None:
        require_pyarrow()
        self.root = as_path("root", root)
        if fps is not None:
            real_number("fps", fps, above=0)
        if not (self.root / INFO_PATH).is_file():
            raise FileNotFoundError(f"{self.root} has no {INFO_PATH}: it is empty, half-written or no LeRobot dataset.")
        self.info = read_json(self.root / INFO_PATH, error=DamagedEpisodeError)
        check_info(self.info, self.root, fps)
        self._rows = self._read_rows()
        self._features = self._find_cameras(all_of_them=cameras is None)
        self.cameras = self._check_cameras(cameras)
        if fault := self._stated_gripper().fault:
            warnings.warn(f"{self.root}: {fault}", stacklevel=2)

    @property
    def fps(self) -> int:
        return int(self.info["fps"])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Episode:
        """An episode with its frames.

        Raises:
            IndexError: If there is none of that index.
            DamagedEpisodeError: If its files are damaged or missing; the message names them.
        """
        row = self._rows[self._checked_index(index)]
        path = self._data_path(row)
        columns = self._read_data(row, path)
        episode = Episode(
            instruction=instruction_of(row),
            state=columns["observation.state"],
            actions=columns["action"],
            images={key: self._read_frames(row, key, columns, path) for key in self.cameras},
            fps=self.fps,
            versions=versions_of(row),
            **own_cells(row, _OURS),
        )
        try:
            check_episode(episode, f"Episode {row['episode_index']} of {self.root}")
        except ValueError as error:
            raise DamagedEpisodeError(str(error)) from error
        return episode

    def _checked_index(self, index: int) -> int:
        if not -len(self) <= (index := whole_number("The episode's index", index)) < len(self):
            raise IndexError(f"{self.root} has no episode {index}; it has {len(self)}.")
        return index

    def __iter__(self) -> Iterator[Episode]:
        return (episode for _, episode in self.enumerate())

    def enumerate(self, indices: Iterable[int] | None = None) -> Iterator[tuple[int, Episode]]:
        """Episodes with their indices; damaged ones are named in a warning and skipped.

        Args:
            indices: Which to read; None for all.
        """
        for index in range(len(self)) if indices is None else indices:
            try:
                episode = self[index]
            except DamagedEpisodeError as error:
                warnings.warn(f"Episode {index} of {self.root} is skipped: {error}", stacklevel=2)
                continue
            yield index, episode

    def _find_cameras(self, all_of_them: bool) -> dict[str, Feature]:
        """The cameras by key; those of other kinds are named in a warning if all were asked for."""
        features: dict[str, Feature] = {}
        for name, feature in self.info["features"].items():
            kind = feature.get("dtype")
            if kind in ("video", "image"):
                features[name.removeprefix(IMAGE_PREFIX)] = camera_feature(name, feature, self.root)
            elif name.startswith(IMAGE_PREFIX) and all_of_them:
                warnings.warn(
                    f"{self.root} keeps {name!r} as {kind!r}, which is not read; 'video' and 'image' are.", stacklevel=3
                )
        return features

    def _check_cameras(self, cameras: Sequence[str] | None) -> tuple[str, ...]:
        wanted = list(self._features) if cameras is None else sequence("cameras", cameras)
        for key in wanted:
            if key in self._features:
                continue
            other = self.info["features"].get(f"{IMAGE_PREFIX}{key}")
            kind = f" It keeps {key!r} as {other.get('dtype')!r}, which is not read." if other else ""
            raise ValueError(f"{self.root} has no camera {key!r}; it has {list(self._features)}.{kind}")
        return tuple(wanted)

    def _stated_gripper(self) -> GripperCommands:
        """The gripper's commands as ``meta/stats.json`` states their range; nothing where it states none."""
        try:
            stats = read_json(self.root / STATS_PATH)
            low, high = (float(stats["action"][name][ACTION_DIM - 1]) for name in ("min", "max"))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return GripperCommands()  # reading needs no statistics
        return GripperCommands(low, high, has_zero=0 in (low, high))

    def _read_rows(self) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        paths = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        for path in paths:
            try:
                _check_parquet(path)
                schema = pq.read_schema(path)
                wanted = [name for name in schema.names if not name.startswith("stats/")]
                rows += pq.read_table(path, columns=wanted).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise DamagedEpisodeError(f"{path} is damaged ({error}).") from error
        if not rows:
            raise DamagedEpisodeError(f"{self.root / 'meta' / 'episodes'} lists no episodes.")
        try:
            return sorted(rows, key=lambda row: whole_cell(row, "episode_index"))
        except DamagedEpisodeError as error:
            raise DamagedEpisodeError(
                f"{self.root / 'meta' / 'episodes'} is damaged: of an episode, {error}"
            ) from error

    def _data_path(self, row: dict[str, Any]) -> Path:
        numbers = {name: whole_cell(row, f"data/{name}") for name in ("chunk_index", "file_index")}
        return file_path(self.root, self.info["data_path"], **numbers)

    def _read_data(self, row: dict[str, Any], path: Path) -> dict[str, Any]:
        """States, actions and image cells of an episode, checked for gaps."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = [self._features[key].name for key in self.cameras if self._features[key].kind == "image"]
        numbers = ("observation.state", "action")
        length = length_of(row)
        try:
            _check_parquet(path)
            wanted = [*numbers, "frame_index", "episode_index", *images]
            if missing := [name for name in wanted if name not in pq.read_schema(path).names]:
                raise DamagedEpisodeError(f"{path} is damaged: it has no column {', '.join(map(repr, missing))}.")
            table = pq.read_table(
                path,
                columns=[*numbers, "frame_index", *images],
                filters=[("episode_index", "=", row["episode_index"])],
            )
            if len(table) != length or table["frame_index"].to_pylist() != list(range(length)):
                raise DamagedEpisodeError(f"{path} holds {len(table)} of {length} frames, or disordered.")
            columns = {name: np.array(table[name].to_pylist(), dtype=np.float32) for name in numbers}
        except DamagedEpisodeError:
            raise
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise DamagedEpisodeError(f"{path} is damaged or missing ({error}).") from error
        return {**columns, **{name: table[name].to_pylist() for name in images}}

    def _read_frames(self, row: dict[str, Any], key: str, columns: dict[str, Any], data_path: Path) -> np.ndarray:
        feature = self._features[key]
        if feature.kind == "image":
            return from_cells(columns[feature.name], feature, data_path)
        template = self.info.get("video_path")
        if not isinstance(template, str):
            raise DamagedEpisodeError(f"{self.root / INFO_PATH} is damaged: it has videos, but no 'video_path'.")
        prefix = f"videos/{feature.name}/"
        numbers = {name: whole_cell(row, prefix + name) for name in ("chunk_index", "file_index")}
        path = file_path(self.root, template, video_key=feature.name, **numbers)
        return from_video(path, feature, length_of(row), seconds_cell(row, prefix + "from_timestamp"), self.fps)


def require_pyarrow() -> None:
    """Raise an ImportError with the cure if pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError("LeRobot's format needs pyarrow: pip install 'libero-vla[data]'") from error


def _check_parquet(path: Path) -> None:
    """Refuse a file that states more than any dataset's has, before it is read."""
    import pyarrow.parquet as pq

    stated = pq.read_metadata(path)
    size = sum(stated.row_group(index).total_byte_size for index in range(stated.num_row_groups))
    if stated.num_rows > _MAX_ROWS or not 0 <= size <= _MAX_TABLE_BYTES:
        raise DamagedEpisodeError(f"{path} is damaged: it states {stated.num_rows} rows of {size} bytes in all.")


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
    """Tasks and their indices; LeRobot reads the file with pandas and takes the words as its index."""
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

"""Reading demonstrations from LeRobot datasets, our own or other people's."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.checks import as_path, real_number, sequence, whole_number
from libero_gym.common.json_files import read_json
from libero_gym.demonstrations import lerobot_legacy
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode, EpisodeOrigin, check_episode
from libero_gym.demonstrations.lerobot_fields import (
    Feature,
    camera_feature,
    check_info,
    file_path,
    instruction_of,
    length_of,
    origin_of,
    own_cells,
    seconds_cell,
    versions_of,
    whole_cell,
)
from libero_gym.demonstrations.lerobot_frames import from_cells, from_video
from libero_gym.demonstrations.lerobot_layout import (
    EPISODES_FOLDER,
    IMAGE_PREFIX,
    INFO_PATH,
    NEXT_DONE,
    NEXT_REWARD,
    NEXT_SUCCESS,
    STATS_PATH,
    require_pyarrow,
)
from libero_gym.demonstrations.lerobot_names import camera_key, same_camera
from libero_gym.demonstrations.lerobot_tables import check_parquet, episode_images, episode_numbers, parquet_rows
from libero_gym.dimensions import CONTROL_FREQ, GRIPPER_DIM
from libero_gym.gripper import GripperCommands

# Columns that not every dataset has, and their types.
_OUTCOMES = {NEXT_REWARD: np.float32, NEXT_DONE: np.bool_, NEXT_SUCCESS: np.bool_}
_BLOCK = 2**20  # bytes read at once


class LeRobotReader:
    """A dataset in LeRobot's format (v2.0, v2.1, v3.0) as a sequence of episodes, decoded when an episode is read.

    ``len(reader)`` and ``reader[i]`` work as for lists. Iteration warns of damaged episodes and skips them. The reader
    takes frames from videos, and from PNG or JPEG bytes in the data files ("dtype": "image"). Features may have
    LeRobot's names or openpi's (``state``, ``actions``, ``image``, ``wrist_image``).

    Args:
        root: The dataset's folder.
        cameras: The cameras to decode, named by what follows ``observation.images.``; None for all, ``()`` for none.
            The names of our environments, "image" and "wrist_image", find these cameras where the dataset has another
            usual name for them, such as "image2".
        fps: Frames per second that the caller needs; None if any will do. The reader does not resample. Most published
            sets of LIBERO state 10, though their frames are of 20 control steps per second, as LIBERO's.

    Raises:
        FileNotFoundError: If the folder holds no finished dataset.
        ImportError: If pyarrow is missing.
        ValueError: If the version, the frame rate, a dimension or a camera does not fit.
        DamagedEpisodeError: If the ``meta`` folder is damaged.

    Warns:
        UserWarning: If the gripper's commands follow another convention, or the reader cannot read a kind of camera.
    """

    def __init__(
        self, root: str | Path, *, cameras: Sequence[str] | None = None, fps: float | None = CONTROL_FREQ
    ) -> None:
        require_pyarrow()
        self.root = as_path("root", root).absolute()  # a relative one with a colon would be taken for an address
        if fps is not None:
            real_number("fps", fps, above=0)
        if not (self.root / INFO_PATH).is_file():
            raise FileNotFoundError(f"{self.root} has no {INFO_PATH}: it is empty, half-written or no LeRobot dataset.")
        self.info = read_json(self.root / INFO_PATH, error=DamagedEpisodeError)
        self._columns = check_info(self.info, self.root, fps)
        self._rows = self._read_rows()
        self._features = self._find_cameras(all_of_them=cameras is None)
        self._wanted = self._wanted_cameras(cameras)
        self.cameras = tuple(self._wanted)
        if fault := self._stated_gripper().fault:
            warnings.warn(f"{self.root}: {fault}", stacklevel=2)

    @property
    def fps(self) -> int:
        """Control steps per second."""
        return int(self.info["fps"])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Episode:
        """Read an episode with its frames.

        Raises:
            IndexError: If there is no episode of that index.
            DamagedEpisodeError: If its files are damaged or missing; the message names them.
        """
        row = self._rows[self._checked_index(index)]
        path = self._data_path(row)
        columns = self._read_data(row, path)
        episode = Episode(
            instruction=instruction_of(row),
            state=columns[self._columns.state],
            actions=columns[self._columns.action],
            images={key: self._read_frames(row, feature, columns, path) for key, feature in self._wanted.items()},
            rewards=columns.get(NEXT_REWARD),
            dones=columns.get(NEXT_DONE),
            fps=self.fps,
            versions=versions_of(row),
            **{"success": _succeeded(columns), **own_cells(row)},
        )
        try:
            check_episode(episode, f"Episode {row['episode_index']} of {self.root}")
        except ValueError as error:
            raise DamagedEpisodeError(str(error)) from error
        return episode

    def origin(self, index: int) -> EpisodeOrigin:
        """Where an episode began, and what it was told, without reading the episode.

        Raises:
            IndexError: If there is no episode of that index.
            DamagedEpisodeError: If its row in ``meta/episodes`` is damaged.
        """
        return origin_of(self._rows[self._checked_index(index)])

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the dataset's files, in hexadecimal; a copy has the same.

        Raises:
            OSError: If a file cannot be read.
        """
        digest = hashlib.sha256()
        files = (path for folder in ("meta", "data", "videos") for path in (self.root / folder).rglob("*"))
        for path in sorted(path for path in files if path.is_file() and not path.name.startswith(".")):
            digest.update(f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()

    def _checked_index(self, index: int) -> int:
        if not -len(self) <= (index := whole_number("The episode's index", index)) < len(self):
            raise IndexError(f"{self.root} has no episode {index}; it has {len(self)}.")
        return index

    def __iter__(self) -> Iterator[Episode]:
        return (episode for _, episode in self.enumerate())

    def enumerate(self, indices: Iterable[int] | None = None) -> Iterator[tuple[int, Episode]]:
        """Read episodes; damaged ones are named in a warning and skipped.

        Args:
            indices: The episodes to read; None for all.

        Yields:
            An index and its episode.
        """
        for index in range(len(self)) if indices is None else indices:
            try:
                episode = self[index]
            except DamagedEpisodeError as error:
                warnings.warn(f"Episode {index} of {self.root} is skipped: {error}", stacklevel=2)
                continue
            yield index, episode

    def _find_cameras(self, all_of_them: bool) -> dict[str, Feature]:
        """The dataset's cameras by key; if all are wanted, a warning names those of an unknown kind."""
        features: dict[str, Feature] = {}
        for name, feature in self.info["features"].items():
            kind = feature.get("dtype")
            if kind in ("video", "image"):
                key = camera_key(name)  # of two that shorten alike, the second keeps its whole name
                features[name if key in features else key] = camera_feature(name, feature, self.root)
            elif name.startswith(IMAGE_PREFIX) and all_of_them:
                warnings.warn(
                    f"{self.root} keeps {name!r} as {kind!r}, which is not read; 'video' and 'image' are.", stacklevel=3
                )
        return features

    def _wanted_cameras(self, cameras: Sequence[str] | None) -> dict[str, Feature]:
        """The cameras to decode, by the names that the caller knows them by."""
        wanted: dict[str, Feature] = {}
        for key in list(self._features) if cameras is None else sequence("cameras", cameras):
            if (found := same_camera(key, self._features)) is not None:
                wanted[key] = self._features[found]
                continue
            other = self.info["features"].get(f"{IMAGE_PREFIX}{key}")
            kind = f" It keeps {key!r} as {other.get('dtype')!r}, which is not read." if other else ""
            raise ValueError(f"{self.root} has no camera {key!r}; it has {list(self._features)}.{kind}")
        return wanted

    def _stated_gripper(self) -> GripperCommands:
        """The range of the gripper's commands that ``meta/stats.json`` states; an empty range if it states none."""
        stated = GripperCommands()
        try:
            ranges = list(lerobot_legacy.action_ranges(self.root, self._columns.action))
            if not ranges:
                action = read_json(self.root / STATS_PATH)[self._columns.action]
                ranges = [(action["min"], action["max"])]
            for bounds in ranges:
                low, high = (float(values[GRIPPER_DIM]) for values in bounds)
                stated |= GripperCommands(low, high, has_zero=0 in (low, high))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return GripperCommands()  # a dataset can be read without its statistics
        return stated

    def _read_rows(self) -> list[dict[str, Any]]:
        """A row per episode, in their order."""
        legacy = lerobot_legacy.is_legacy(self.info)
        listed = self.root / (lerobot_legacy.EPISODES if legacy else EPISODES_FOLDER)
        rows = (
            list(lerobot_legacy.json_lines(listed)) if legacy else parquet_rows(listed, self.info.get("total_episodes"))
        )
        if not rows:
            raise DamagedEpisodeError(f"{listed} lists no episodes.")
        try:
            return sorted(rows, key=lambda row: whole_cell(row, "episode_index"))
        except DamagedEpisodeError as error:
            raise DamagedEpisodeError(f"{listed} is damaged: of an episode, {error}") from error

    def _data_path(self, row: dict[str, Any]) -> Path:
        if lerobot_legacy.is_legacy(self.info):
            return file_path(self.root, self.info["data_path"], **lerobot_legacy.place_of(self.info, row, self.root))
        numbers = {name: whole_cell(row, f"data/{name}") for name in ("chunk_index", "file_index")}
        return file_path(self.root, self.info["data_path"], **numbers)

    def _read_data(self, row: dict[str, Any], path: Path) -> dict[str, Any]:
        """Read an episode's states, actions and image cells, and check that no frame is missing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = [feature.name for feature in self._wanted.values() if feature.kind == "image"]
        numbers = tuple(self._columns)
        length = length_of(row)
        try:
            check_parquet(path)
            wanted = [*numbers, "frame_index", "episode_index", *images]
            present = pq.read_schema(path).names
            if missing := [name for name in wanted if name not in present]:
                raise DamagedEpisodeError(f"{path} is damaged: it has no column {', '.join(map(repr, missing))}.")
            outcomes = [name for name in _OUTCOMES if name in present]
            where = row["episode_index"], length
            table = episode_numbers(path, [*numbers, *outcomes, "frame_index"], *where)
            if len(table) != length or table["frame_index"].to_pylist() != list(range(length)):
                raise DamagedEpisodeError(f"{path} holds {len(table)} of {length} frames, or disordered.")
            columns: dict[str, Any] = {name: np.array(table[name].to_pylist(), dtype=np.float32) for name in numbers}
            columns |= {name: np.array(table[name].to_pylist(), dtype=_OUTCOMES[name]).reshape(-1) for name in outcomes}
            if images:
                largest = max(math.prod(feature.shape) for feature in self._wanted.values())
                cells = episode_images(path, images, *where, largest)
                columns |= {name: cells[name].to_pylist() for name in images}
        except DamagedEpisodeError:
            raise
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise DamagedEpisodeError(f"{path} is damaged or missing ({error}).") from error
        return columns

    def _read_frames(
        self, row: dict[str, Any], feature: Feature, columns: dict[str, Any], data_path: Path
    ) -> np.ndarray:
        if feature.kind == "image":
            return from_cells(columns[feature.name], feature, data_path)
        template = self.info.get("video_path")
        if not isinstance(template, str):
            raise DamagedEpisodeError(f"{self.root / INFO_PATH} is damaged: it has videos, but no 'video_path'.")
        if lerobot_legacy.is_legacy(self.info):
            numbers = lerobot_legacy.place_of(self.info, row, self.root)
            path = file_path(self.root, template, video_key=feature.name, **numbers)
            return from_video(path, feature, length_of(row), 0.0, self.fps)
        prefix = f"videos/{feature.name}/"
        numbers = {name: whole_cell(row, prefix + name) for name in ("chunk_index", "file_index")}
        path = file_path(self.root, template, video_key=feature.name, **numbers)
        return from_video(path, feature, length_of(row), seconds_cell(row, prefix + "from_timestamp"), self.fps)


def _succeeded(columns: Mapping[str, Any]) -> bool:
    """Whether an episode of somebody else's succeeded, by ``next.success``, else by its last reward, else taken so."""
    if NEXT_SUCCESS in columns:
        return bool(columns[NEXT_SUCCESS].any())
    return NEXT_REWARD not in columns or bool(columns[NEXT_REWARD][-1] > 0)

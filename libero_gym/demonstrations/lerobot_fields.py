"""What a LeRobot dataset says of itself, read with distrust: each value in its type and bounds, or one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from libero_gym.checks import real_number, whole_number
from libero_gym.demonstrations.episodes import MAX_FRAMES, MAX_SIDE, DamagedEpisodeError
from libero_gym.demonstrations.lerobot_layout import INFO_PATH, OWN_FIELDS, OWN_PREFIX
from libero_gym.dimensions import ACTION_DIM, STATE_DIM
from libero_gym.json_files import parse_json

MAX_FPS = 1000
MAX_INDEX = 1_000_000  # of a chunk or a file
# A width of four digits is more than any dataset writes; an unbounded one would make a path of gigabytes.
_PLACEHOLDER = re.compile(r"\{(\w+)(?::0?(\d)?d?)?\}")


class Feature(NamedTuple):
    """A camera of a dataset.

    Attributes:
        name: Of the feature, such as ``observation.images.image``.
        kind: ``"video"`` or ``"image"``.
        shape: (H, W, 3).
    """

    name: str
    kind: str
    shape: tuple[int, int, int]


def check_info(info: dict[str, Any], root: Path, fps: float | None) -> None:
    """Check ``meta/info.json`` as far as every reading needs it.

    Args:
        info: Its content.
        root: The dataset's folder, for messages.
        fps: Frames per second that the caller needs, None for any.

    Raises:
        DamagedEpisodeError: If something is missing or of the wrong kind.
        ValueError: If version, frame rate or dimensions do not fit.
    """
    version = _entry(info, "codebase_version", str, root)
    if not version.startswith("v3."):
        raise ValueError(f"{root} has LeRobot's format {version}; this reads v3.0. LeRobot converts it.")
    stated = info.get("fps")
    try:
        if real_number("fps", stated, 1, MAX_FPS) % 1:
            raise ValueError(f"fps={stated!r}; expected whole frames per second.")
    except ValueError as error:
        raise _damaged(root, str(error).rstrip(".")) from error
    if fps is not None and stated != fps:
        raise ValueError(f"{root} has {stated} frames per second; {fps} were expected. fps=None takes any.")
    features = _entry(info, "features", dict, root)
    _entry(info, "data_path", str, root)
    for name, feature in features.items():
        if not isinstance(feature, dict):
            raise _damaged(root, f"its feature {name!r} is a {type(feature).__name__}")
    for name, dim in (("action", ACTION_DIM), ("observation.state", STATE_DIM)):
        shape = features.get(name, {}).get("shape")
        if shape != [dim]:
            raise ValueError(f"{root} has {name!r} of shape {shape}; LIBERO's has [{dim}].")


def camera_feature(name: str, feature: dict[str, Any], root: Path) -> Feature:
    """A camera's feature, checked.

    Raises:
        DamagedEpisodeError: If its shape is not one of frames.
    """
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_side(side) for side in shape) or 3 not in shape:
        raise _damaged(root, f"{name!r} has shape {shape}; expected H, W, 3")
    # Some datasets state the channels first.
    height, width, channels = (shape[1], shape[2], shape[0]) if shape[2] != 3 else shape
    if channels != 3:
        raise _damaged(root, f"{name!r} has shape {shape}; expected H, W, 3")
    return Feature(name, str(feature["dtype"]), (height, width, channels))


def file_path(root: Path, template: str, **values: Any) -> Path:
    """A file of the dataset, from a template such as ``data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet``.

    Raises:
        DamagedEpisodeError: If the template has other fields or formats, or the path leaves the folder.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise _damaged(root, f"the path {template!r} asks for {match[1]!r}")
        value = values[match[1]]
        return value if isinstance(value, str) else f"{value:0{int(match[2] or 0)}d}"

    path = _PLACEHOLDER.sub(fill, template)
    parts = PurePosixPath(path)
    if set("{}\0") & set(path) or parts.is_absolute() or ".." in parts.parts or len(path) > 1000:
        raise _damaged(root, f"{template!r} is no path inside the dataset")
    return root / path


def whole_cell(row: Mapping[str, Any], name: str, minimum: int = 0, maximum: int = MAX_INDEX) -> int:
    """A whole number of an episode's row.

    Raises:
        DamagedEpisodeError: If it is missing or out of bounds.
    """
    return _cell(whole_number, row, name, minimum, maximum)


def length_of(row: Mapping[str, Any]) -> int:
    """How many frames an episode's row states."""
    return whole_cell(row, "length", 1, MAX_FRAMES)


def seconds_cell(row: Mapping[str, Any], name: str) -> float:
    """A time in s of an episode's row; NaN, infinity and negative ones are refused."""
    return _cell(real_number, row, name, 0.0, 1e7)


def instruction_of(row: Mapping[str, Any]) -> str:
    """What the robot was told; empty where the row says nothing."""
    tasks = row.get("tasks")
    if tasks is None or tasks == []:
        return ""
    if not isinstance(tasks, list) or not isinstance(tasks[0], str):
        raise DamagedEpisodeError(f"its row is damaged: 'tasks' is {tasks!r:.80}; expected a list of instructions.")
    return tasks[0]


def versions_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The versions that a row of ours states."""
    text = row.get(OWN_PREFIX + "versions")
    if text is None or text == "":
        return {}
    if not isinstance(text, str):
        raise DamagedEpisodeError(f"its row is damaged: 'libero/versions' is {text!r:.80}; expected JSON.")
    versions: dict[str, str] = parse_json(text, "its row's 'libero/versions'", error=DamagedEpisodeError)
    return versions


def own_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own fields of ours by `Episode`'s names; missing ones are left out.

    Raises:
        DamagedEpisodeError: If one is of another type.
    """
    found = {}
    for name, kind in OWN_FIELDS.items():
        value = row.get(OWN_PREFIX + name)
        if value is None:
            continue
        if type(value) is not kind:
            raise DamagedEpisodeError(
                f"its row is damaged: '{OWN_PREFIX}{name}' is {value!r:.80}; expected {kind.__name__}."
            )
        found[name] = value
    return found


def _cell(check: Any, row: Mapping[str, Any], name: str, minimum: float, maximum: float) -> Any:
    if row.get(name) is None:
        raise DamagedEpisodeError(f"its row is damaged: {name!r} is missing.")
    try:
        return check(name, row[name], minimum, maximum)
    except ValueError as error:
        raise DamagedEpisodeError(f"its row is damaged: {error}") from error


def _entry(info: dict[str, Any], name: str, kind: type, root: Path) -> Any:
    value = info.get(name)
    if not isinstance(value, kind):
        came = "is missing" if value is None else f"is a {type(value).__name__}"
        raise _damaged(root, f"{name!r} {came}")
    return value


def _damaged(root: Path, what: str) -> DamagedEpisodeError:
    return DamagedEpisodeError(f"{root / INFO_PATH} is damaged: {what}.")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE

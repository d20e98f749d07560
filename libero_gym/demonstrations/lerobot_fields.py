"""The values that a LeRobot dataset states: each is checked for its type and bounds, or an error says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from libero_gym.common.checks import real_number, whole_number
from libero_gym.common.json_files import parse_json
from libero_gym.demonstrations.episodes import MAX_FRAMES, MAX_SIDE, DamagedEpisodeError, EpisodeOrigin
from libero_gym.demonstrations.lerobot_layout import INFO_PATH, OWN_FIELDS, OWN_PREFIX
from libero_gym.demonstrations.lerobot_legacy import VERSIONS, is_legacy
from libero_gym.demonstrations.lerobot_names import Columns
from libero_gym.dimensions import ACTION_DIM, STATE_DIM

MAX_FPS = 1000
MAX_INDEX = 1_000_000  # of a chunk or a file
# One digit of width suffices for every dataset; an unbounded width could make a path of gigabytes.
_PLACEHOLDER = re.compile(r"\{(\w+)(?::0?(\d)?d?)?\}")


class Feature(NamedTuple):
    """A camera of a dataset.

    Attributes:
        name: The feature's name, such as ``observation.images.image``.
        kind: ``"video"`` or ``"image"``.
        shape: (H, W, 3).
    """

    name: str
    kind: str
    shape: tuple[int, int, int]


def check_info(info: dict[str, Any], root: Path, fps: float | None) -> Columns:
    """Check the parts of ``meta/info.json`` that every reader needs, and say what it calls states and actions.

    Args:
        info: The file's content.
        root: The dataset's folder, for messages.
        fps: Frames per second that the caller needs; None if any will do.

    Raises:
        DamagedEpisodeError: If an entry is missing or of the wrong type.
        ValueError: If the version, the frame rate or a dimension does not fit.
    """
    version = _entry(info, "codebase_version", str, root)
    if not version.startswith("v3.") and not is_legacy(info):
        raise ValueError(f"{root} has LeRobot's format {version}; this reads {', '.join(VERSIONS)} and v3.0.")
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
    columns = Columns.of(features)
    for name, dim in ((columns.action, ACTION_DIM), (columns.state, STATE_DIM)):
        shape = features.get(name, {}).get("shape")
        if shape != [dim]:
            raise ValueError(f"{root} has {name!r} of shape {shape}; LIBERO's has [{dim}].")
    return columns


def camera_feature(name: str, feature: dict[str, Any], root: Path) -> Feature:
    """Check a camera's feature.

    Raises:
        DamagedEpisodeError: If its shape is not that of frames.
    """
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_side(side) for side in shape) or 3 not in shape:
        raise _damaged(root, f"{name!r} has shape {shape}; expected H, W, 3")
    # Some datasets state (channels, height, width).
    height, width, channels = (shape[1], shape[2], shape[0]) if shape[2] != 3 else shape
    if channels != 3:
        raise _damaged(root, f"{name!r} has shape {shape}; expected H, W, 3")
    return Feature(name, str(feature["dtype"]), (height, width, channels))


def file_path(root: Path, template: str, **values: Any) -> Path:
    """The path of a file of the dataset.

    Args:
        root: The dataset's folder.
        template: Such as ``data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet``.
        **values: The values of its fields.

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
    """Read a whole number from an episode's row.

    Raises:
        DamagedEpisodeError: If it is missing or out of bounds.
    """
    return _cell(whole_number, row, name, minimum, maximum)


def length_of(row: Mapping[str, Any]) -> int:
    """The number of frames that an episode's row states."""
    return whole_cell(row, "length", 1, MAX_FRAMES)


def seconds_cell(row: Mapping[str, Any], name: str) -> float:
    """Read a time in s from an episode's row; NaN, infinity and negative times raise a DamagedEpisodeError."""
    return _cell(real_number, row, name, 0.0, 1e7)


def instruction_of(row: Mapping[str, Any]) -> str:
    """The episode's instruction; empty if the row states none."""
    tasks = row.get("tasks")
    if tasks is None or tasks == []:
        return ""
    if not isinstance(tasks, list) or not isinstance(tasks[0], str):
        raise DamagedEpisodeError(f"its row is damaged: 'tasks' is {tasks!r:.80}; expected a list of instructions.")
    return tasks[0]


def versions_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The versions of packages that the row states; empty if it states none."""
    text = row.get(OWN_PREFIX + "versions")
    if text is None or text == "":
        return {}
    if not isinstance(text, str):
        raise DamagedEpisodeError(f"its row is damaged: 'libero/versions' is {text!r:.80}; expected JSON.")
    versions: dict[str, str] = parse_json(text, "its row's 'libero/versions'", error=DamagedEpisodeError)
    return versions


def own_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's fields that only our datasets have, by their names in `Episode`; missing fields are left out.

    Raises:
        DamagedEpisodeError: If a field is of another type.
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


def origin_of(row: Mapping[str, Any]) -> EpisodeOrigin:
    """Where the row's episode began; what it does not state keeps its default.

    Raises:
        DamagedEpisodeError: If a field is of another type.
    """
    found = {name: value for name, value in own_cells(row).items() if name in EpisodeOrigin._fields}
    return EpisodeOrigin(instruction_of(row), **found)


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

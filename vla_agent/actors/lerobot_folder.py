"""The folder of a policy that LeRobot saved: what it reads, and that it is one, before LeRobot is asked to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from libero_gym.common.checks import choice, did_you_mean
from libero_gym.common.json_files import read_json
from libero_gym.dimensions import ACTION_DIM, STATE_DIM
from vla_agent.actors.interface import RENDER_SIZE, PolicyError
from vla_agent.common.hub import download

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt"]

# What data sets and policies for LIBERO call its two cameras, without "observation.images.".
_NAMES = {
    "agentview": ("image", "agentview", "agentview_image", "agentview_rgb", "base_0_rgb", "camera1"),
    "wrist": (
        "image2",
        "wrist_image",
        "wrist",
        "eye_in_hand",
        "eye_in_hand_rgb",
        "robot0_eye_in_hand_image",
        "left_wrist_0_rgb",
        "camera2",
    ),
}
# Frames that policies with room for three cameras fill by themselves.
_FILLED = ("empty_camera", "right_wrist_0_rgb", "camera3")
STATE_KEY, ACTION_KEY = "observation.state", "action"


class PolicyFolder(NamedTuple):
    """What the files of a policy say.

    Attributes:
        path: The folder.
        kind: LeRobot's name of its kind, such as "act".
        cameras: Camera of each observation that holds frames, by the key that its preprocessor reads.
        reads_state: Whether it reads the robot's state.
        image_size: Side of the frames in pixels.
        steps: Names of the steps of its preprocessor.
    """

    path: Path
    kind: str
    cameras: dict[str, str]
    reads_state: bool
    image_size: int
    steps: list[str]


def find_folder(path_or_id: str | Path) -> Path:
    """Folder of a policy, downloaded if it is the id of one on the hub.

    Raises:
        PolicyError: If there is no such folder, and no such id or no way to the hub.
    """
    name = str(path_or_id)
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise PolicyError(f"There is no folder '{name}'; give one that LeRobot saved a policy to, or a hub id.")
    return download(name, _PATTERNS, "policy", PolicyError)


def read_folder(path: Path, cameras: Mapping[str, str] | None = None) -> PolicyFolder:
    """What the files of a policy say of what it reads and gives.

    Args:
        path: The folder.
        cameras: Camera ("agentview", "wrist") by the name of its frames in the policy's observations, where that is
            none of the usual.

    Raises:
        PolicyError: If the folder holds no policy of LeRobot, or one for another robot.
        ValueError: If ``cameras`` names frames that the policy does not read, or no camera.
    """
    absent = [name for name in (CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR) if not (path / name).is_file()]
    if absent:
        old = absent == [PREPROCESSOR, POSTPROCESSOR]
        hint = "; older policies are given theirs by LeRobot's migrate_policy_normalization.py" if old else ""
        raise PolicyError(f"'{path}' is no policy that LeRobot saved with its processors: it has no {absent[0]}{hint}.")
    try:
        config, before, after = (read_json(path / name) for name in (CONFIG, PREPROCESSOR, POSTPROCESSOR))
    except ValueError as error:
        raise PolicyError(str(error)) from error
    kind, inputs = config.get("type"), config.get("input_features")
    action = _shape(config.get("output_features"), ACTION_KEY)
    if not isinstance(kind, str) or not isinstance(inputs, dict) or action is None:
        raise PolicyError(f"'{path / CONFIG}' is no LeRobot policy's: expected type, input_features, output_features.")
    if action != (ACTION_DIM,):
        raise PolicyError(
            f"The policy in '{path}' gives actions of shape {action}; LIBERO's have {ACTION_DIM} numbers."
        )
    state = _shape(inputs, STATE_KEY)
    if state not in (None, (STATE_DIM,)):
        raise PolicyError(f"The policy in '{path}' reads a state of shape {state}; LIBERO's has {STATE_DIM} numbers.")
    steps = _steps(path / PREPROCESSOR, before)
    _steps(path / POSTPROCESSOR, after)
    shapes = {key: _shape(inputs, key) for key in inputs if key.startswith("observation.image")}
    found = _cameras(path, shapes, _renamed(before), cameras or {})
    sizes = {shapes[key] for key in shapes if not _is_filled(key)}
    if len(sizes) > 1 or any(size is None or len(size) != 3 or size[1] != size[2] for size in sizes):
        raise PolicyError(
            f"The policy in '{path}' reads frames of {sorted(map(str, sizes))}; expected one square size."
        )
    side = next((size[1] for size in sizes if size), RENDER_SIZE)
    return PolicyFolder(path, kind, found, state is not None, side, steps)


def _shape(features: Any, key: str) -> tuple[int, ...] | None:
    """The shape of a feature; None if there is none of that key."""
    feature = features.get(key) if isinstance(features, dict) else None
    shape = feature.get("shape") if isinstance(feature, dict) else None
    return tuple(shape) if isinstance(shape, list) and all(type(n) is int for n in shape) else None


def _steps(path: Path, content: dict[str, Any]) -> list[str]:
    """Names of a pipeline's steps, all of LeRobot's own registry: others name a class that would be imported."""
    steps = content.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise PolicyError(f"'{path}' is no pipeline of LeRobot's: expected a list of steps.")
    strange = [step.get("class") for step in steps if not isinstance(step.get("registry_name"), str)]
    if strange:
        raise PolicyError(
            f"'{path}' has a step that is none of LeRobot's registry ({strange[0]}), which would run code of its own; "
            "load such a policy in Python and give LeRobotPolicy(policy, preprocessor, postprocessor)."
        )
    return [step["registry_name"] for step in steps]


def _renamed(pipeline: dict[str, Any]) -> dict[str, str]:
    """The keys before the pipeline renames them, by those after."""
    configs = [step["config"] for step in pipeline["steps"] if isinstance(step.get("config"), dict)]
    maps = [config["rename_map"] for config in configs if isinstance(config.get("rename_map"), dict)]
    return {after: before for names in maps for before, after in names.items() if isinstance(after, str)}


def _is_filled(key: str) -> bool:
    return key.rpartition(".")[2].startswith(_FILLED)


def _cameras(
    path: Path, shapes: Mapping[str, Any], renamed: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    known: dict[str, str] = {name: camera for camera, names in _NAMES.items() for name in names} | dict(given)
    read = {key: renamed.get(key, key) for key in shapes}
    names = {key: before.rpartition(".")[2] for key, before in read.items()}
    for name, camera in given.items():
        choice(f"camera of the frames called {name!r}:", camera, _NAMES)
        if name not in names.values():
            raise ValueError(
                f"cameras names {name!r}, and the policy in '{path}' reads "
                f"{', '.join(map(repr, sorted(names.values())))}.{did_you_mean(name, names.values())}"
            )
    for key, name in names.items():
        if name not in known and not _is_filled(key):
            raise PolicyError(
                f"The policy in '{path}' reads frames called '{name}', which may be any camera; say which, as in "
                f"LeRobotPolicy.from_pretrained(folder, cameras={{'{name}': 'agentview'}})."
            )
    return {before: known[names[key]] for key, before in read.items() if names[key] in known}

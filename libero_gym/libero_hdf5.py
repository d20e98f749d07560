"""LIBERO's own demonstrations: HDF5 files, one per task, of 50 teleoperated episodes at 128x128 pixels.

A file holds ``data/demo_i`` with ``actions`` (T, 7), ``states`` and ``obs``: ``agentview_rgb``, ``eye_in_hand_rgb``,
``ee_pos``, ``ee_ori`` (axis-angle), ``gripper_states``. Its frames have OpenGL's rows, bottom first; ours are turned by
180 degrees, so they are turned here, and keep their size. Written from knowledge of the layout; not yet tried on a
published file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.episodes import DamagedEpisodeError, Episode, check_episode
from libero_gym.tasks import get_suite, get_tasks

# The file's name of each of our observation keys.
HDF5_KEYS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}


def read_libero_hdf5(
    path: str | Path, *, suite: str | None = None, cameras: Sequence[str] = ("image", "wrist_image")
) -> Iterator[Episode]:
    """Episodes of a LIBERO demonstration file, or of every file of a folder, one at a time.

    Damaged files and episodes are named in a warning and skipped.

    Args:
        path: A ``.hdf5`` file, or a folder of them.
        suite: LIBERO's name of the suite, to find each task's id; None leaves it at -1.
        cameras: Observation keys of the frames to read; ``()`` for none.

    Yields:
        Episodes with frames turned as ours are. Their instruction is the one of the suite, else the file's.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If h5py is missing.
        ValueError: If a camera or the suite is unknown.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("LIBERO's HDF5 demonstrations need h5py: pip install 'libero-vla[data]'") from error
    path = Path(path)
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path} holds no .hdf5 demonstrations.")
    for key in cameras:
        if key not in HDF5_KEYS:
            raise ValueError(f"Unknown camera {key!r}. Cameras: {', '.join(map(repr, HDF5_KEYS))}.")
    tasks = {} if suite is None else {task.name: task for task in get_tasks(get_suite(suite).name)}
    for file in files:
        name = file.stem.removesuffix("_demo")
        about: dict[str, Any] = {"task_name": name}
        if name in tasks:
            about |= {"suite": suite, "task_id": tasks[name].task_id, "instruction": tasks[name].instruction}
        try:
            with h5py.File(file, "r") as archive:
                yield from _read_file(archive, file, about, tuple(cameras))
        except (OSError, KeyError, RuntimeError) as error:
            warnings.warn(f"{file} is damaged ({error}) and skipped.", stacklevel=2)


def _read_file(archive: Any, file: Path, about: dict[str, Any], cameras: tuple[str, ...]) -> Iterator[Episode]:
    data = archive["data"]
    about = {"instruction": _instruction(data, about["task_name"]), **about}
    for name in sorted(data, key=lambda name: int(name.rpartition("_")[2])):
        try:
            episode = _read_demo(data[name], about, cameras)
            check_episode(episode, f"{name} of {file}")
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            warnings.warn(f"{name} of {file} is damaged ({error}) and skipped.", stacklevel=3)
            continue
        yield episode


def _read_demo(demo: Any, about: dict[str, Any], cameras: tuple[str, ...]) -> Episode:
    obs = demo["obs"]
    actions = np.asarray(demo["actions"], dtype=np.float32)
    state = [np.asarray(obs[key], dtype=np.float32) for key in ("ee_pos", "ee_ori", "gripper_states")]
    if any(len(part) != len(actions) for part in state):
        raise DamagedEpisodeError(f"{len(actions)} actions, but {[len(part) for part in state]} states")
    return Episode(
        state=np.concatenate(state, axis=1),
        actions=actions,
        images={key: np.ascontiguousarray(np.asarray(obs[HDF5_KEYS[key]])[:, ::-1, ::-1]) for key in cameras},
        success=bool(demo["dones"][-1]) if "dones" in demo else True,
        **about,
    )


def _instruction(data: Any, task_name: str) -> str:
    """What the file says that the robot was told."""
    try:
        text = json.loads(data.attrs["problem_info"])["language_instruction"]
    except (KeyError, ValueError, TypeError):
        return task_name.replace("_", " ")
    return "".join(text).strip().strip('"')

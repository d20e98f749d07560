"""LIBERO's own demonstrations: HDF5 files, one per task, of 50 teleoperated episodes at 128x128 pixels.

A file holds ``data/demo_i`` with ``actions`` (T, 7), ``states`` and ``obs``: ``agentview_rgb``, ``eye_in_hand_rgb``,
``ee_pos``, ``ee_ori`` (axis-angle), ``gripper_states``. Its frames have OpenGL's rows, bottom first; the
reader turns them by 180 degrees, like the environment's, and keeps their size. It follows LIBERO's script
(scripts/create_dataset.py), which notes what was seen *after* each action, and has not read a published file yet. Files
that OpenVLA's script made of them note what was seen before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.checks import as_path, did_you_mean, sequence
from libero_gym.common.json_files import parse_json
from libero_gym.common.version import install_extra
from libero_gym.demonstrations.episodes import (
    MAX_FRAMES,
    MAX_PIXEL_BYTES,
    MAX_SIDE,
    DamagedEpisodeError,
    Episode,
    check_episode,
)
from libero_gym.dimensions import ACTION_DIM
from libero_gym.tasks import file_name_instruction, get_suite, get_tasks

# The name in the file of each observation key.
HDF5_KEYS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}
_STATE_WIDTHS = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
# The errors that h5py raises for damaged files.
_SEEN_AFTER = ("init_state", "model_file")  # attributes that LIBERO's script gives each episode, and OpenVLA's does not
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError)
_MAX_RATIO = 1100  # no compressed data expand further: deflate's limit is 1032


def read_libero_hdf5(
    path: str | Path, *, suite: str | None = None, cameras: Sequence[str] = ("image", "wrist_image")
) -> Iterator[Episode]:
    """Read the episodes of a LIBERO demonstration file, or of every file in a folder, one at a time.

    A warning names damaged files and episodes, which are skipped.

    Args:
        path: A ``.hdf5`` file, or a folder of them.
        suite: LIBERO's name of the suite, in which each task's id is looked up; None leaves the ids at -1.
        cameras: The observation keys of the frames to read; ``()`` for none.

    Yields:
        Episodes with frames turned like the environment's, each of which was seen before its action; LIBERO's own files
        lack what was seen before their first one, so that is left out. Their instruction is the suite's, else the
        file's.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If h5py is missing.
        ValueError: If a camera or the suite is unknown.

    Warns:
        UserWarning: If a file's task is not in the suite.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"LIBERO's HDF5 demonstrations need h5py: {install_extra('data')}") from error
    path = as_path("path", path)
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path} holds no .hdf5 demonstrations.")
    for key in sequence("cameras", cameras):
        if key not in HDF5_KEYS:
            raise ValueError(f"Unknown camera {key!r}. Cameras: {', '.join(map(repr, HDF5_KEYS))}.")
    tasks = {} if suite is None else {task.name: task for task in get_tasks(get_suite(suite).name)}
    for file in files:
        name = file.stem.removesuffix("_demo")
        about: dict[str, Any] = {"task_name": name}
        if name in tasks:
            about |= {"suite": suite, "task_id": tasks[name].task_id, "instruction": tasks[name].instruction}
        elif suite is not None:
            guess = did_you_mean(name, tasks)
            warnings.warn(f"{file}: {suite} has no task {name!r}; its episodes have task_id -1.{guess}", stacklevel=2)
        try:
            with h5py.File(file, "r") as archive:
                yield from _read_file(archive, file, about, tuple(cameras))
        except _DAMAGE as error:
            warnings.warn(f"{file} is damaged ({error}) and skipped.", stacklevel=2)


def _read_file(archive: Any, file: Path, about: dict[str, Any], cameras: tuple[str, ...]) -> Iterator[Episode]:
    data = _group(archive, "data")
    about = {"instruction": _instruction(data, about["task_name"]), **about}
    for name in sorted(data, key=_demo_order):
        try:
            episode = _read_demo(_group(data, name), about, cameras)
            check_episode(episode, f"{name} of {file}")
        except _DAMAGE as error:
            warnings.warn(f"{name} of {file} is damaged ({error}) and skipped.", stacklevel=3)
            continue
        yield episode


def _read_demo(demo: Any, about: dict[str, Any], cameras: tuple[str, ...]) -> Episode:
    obs = _group(demo, "obs")
    actions = _array(demo, "actions", (None, ACTION_DIM))
    n_frames = len(actions)
    state = [_array(obs, key, (n_frames, width)) for key, width in _STATE_WIDTHS.items()]
    late = int(any(name in demo.attrs for name in _SEEN_AFTER))  # by how many actions observations come too late
    seen = slice(n_frames - late)
    return Episode(
        state=np.concatenate(state, axis=1)[seen].astype(np.float32),
        actions=actions[late:].astype(np.float32),
        images={key: _frames(obs, HDF5_KEYS[key], n_frames)[seen] for key in cameras},
        # Whether there is such a link, for `in` also looks whether it leads anywhere.
        success=demo.get("dones", getlink=True) is None or bool(_array(demo, "dones", (n_frames,))[-1]),
        **about,
    )


def _frames(obs: Any, name: str, n_frames: int) -> np.ndarray:
    """Frames uint8 (T, H, W, 3), turned by 180 degrees."""
    frames = _array(obs, name, (n_frames, None, None, 3))
    if frames.dtype != np.uint8:
        raise DamagedEpisodeError(f"{name!r} is {frames.dtype}; expected uint8")
    return np.ascontiguousarray(frames[:, ::-1, ::-1])


def _array(group: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Read a dataset of numbers, after its shape and size are checked.

    Args:
        group: The group that holds the dataset.
        name: The dataset's name.
        shape: The shape that it must have; None allows any number of frames (first axis) or of pixels (others).

    Raises:
        DamagedEpisodeError: If it is missing, of another shape, or states more data than the file holds.
    """
    import h5py

    dataset = _own(group, name, h5py.Dataset, "dataset")
    got: tuple[int, ...] = dataset.shape or ()
    if len(got) != len(shape) or any(want not in (None, size) for want, size in zip(shape, got, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DamagedEpisodeError(f"{name!r} has shape {got}; expected ({wanted})")
    if not 1 <= got[0] <= MAX_FRAMES or max(got[1:], default=0) > MAX_SIDE or 0 in got:
        raise DamagedEpisodeError(f"{name!r} has shape {got}; expected 1 to {MAX_FRAMES} frames of at most {MAX_SIDE}")
    if dataset.dtype.kind not in "biuf":
        raise DamagedEpisodeError(f"{name!r} holds {dataset.dtype}; expected numbers")
    # A few bytes can state an enormous shape: the data that it promises must be in the file, compressed at most. Data
    # that lie in other files (external, virtual) would let a file read any other one.
    stored, compressed = dataset.id.get_storage_size(), dataset.compression is not None
    if dataset.is_virtual or dataset.external or dataset.nbytes > stored * (_MAX_RATIO if compressed else 1):
        raise DamagedEpisodeError(f"{name!r} states {dataset.nbytes} bytes, and the file holds {stored} for it")
    if dataset.nbytes > MAX_PIXEL_BYTES:
        raise DamagedEpisodeError(f"{name!r} states {dataset.nbytes} bytes; at most {MAX_PIXEL_BYTES} are read")
    return np.asarray(dataset)


def _group(parent: Any, name: str) -> Any:
    import h5py

    return _own(parent, name, h5py.Group, "group")


def _own(parent: Any, name: str, kind: type, what: str) -> Any:
    """A group's own member: no external link, which reads any other file, and no soft one, which may lead to such.

    Raises:
        DamagedEpisodeError: If there is no such member of that kind.
    """
    import h5py

    if not isinstance(parent.get(name, getlink=True), h5py.HardLink) or not isinstance(parent[name], kind):
        raise DamagedEpisodeError(f"{name!r} is missing, or no {what} of its own")
    return parent[name]


def _demo_order(name: str) -> tuple[float, str]:
    """A key that sorts demonstrations by number and puts other names behind them."""
    number = name.removeprefix("demo_")
    return (int(number), "") if number.isascii() and number.isdecimal() and len(number) < 10 else (np.inf, name)


def _instruction(data: Any, task_name: str) -> str:
    """The instruction that the file states, else that of its name: regenerated files have no attributes."""
    try:
        words = parse_json(data.attrs["problem_info"], "problem_info")["language_instruction"]
        return "".join(words).strip().strip('"')
    except (KeyError, ValueError, TypeError, OSError):
        return file_name_instruction(task_name)

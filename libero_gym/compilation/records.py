"""Compiled tasks as bytes for the cache, and the keys that they are kept under.

A key names everything that its content depends on, so an entry is never misread: another version of MuJoCo, of
robosuite, of the benchmark or its assets, another layout of the bytes, another reading of goals, or other files of an
object that is not LIBERO's asks for another key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.version import BENCHMARK, BENCHMARK_ASSETS, installed_version
from libero_gym.equivalence.physics import REVISION
from libero_gym.simulation import goals
from libero_gym.simulation.compiled import Burner, CompiledTask, FixtureDraw, RobotIndices
from libero_gym.stock import own_files
from libero_gym.tasks import Task

# The distributions whose versions decide what a task compiles to.
SOURCES = (*BENCHMARK, *BENCHMARK_ASSETS)
# Raise it when the layout of what is cached changes.
_SCHEMA = 5


def task_key(task: Task) -> str:
    """The cache's key of a compiled task: its definition's content counts, wherever the file lies."""
    repair = f"-repair{REVISION}" if REVISION > 1 else ""
    content = task.bddl_file.read_bytes()
    return f"task-{_versions_digest()}-{_tasks_digest()}-{_digest(content)}{repair}{own_digest(content)}"


def scene_key(xml: str) -> str:
    """The name of a scene, by its MJCF; tasks with the same scene share it. See `visual_key`."""
    return f"visual-{_versions_digest()}-{_digest(xml.encode())}"


def own_digest(definition: bytes) -> str:
    """A part of keys for the files of objects that are not LIBERO's, of those in a BDDL file; without any, nothing."""
    files = own_files(definition.decode(errors="replace"))
    return f"-own{_digest(b''.join(_digest(path.read_bytes()).encode() for path in files))}" if files else ""


def visual_key(scene: str) -> str:
    """The cache's key of a scene's model that cameras see."""
    return f"{scene}-exact"


@functools.cache
def _versions_digest() -> str:
    """A digest of all that a compiled task depends on apart from its BDDL file: `SOURCES` and the layout."""
    versions = [f"{name}={installed_version(name)}" for name in SOURCES]
    return _digest("|".join([*versions, str(_SCHEMA)]).encode())


@functools.cache
def _tasks_digest() -> str:
    """A digest of what tasks hold and how goals are read, so that whoever adds a predicate meets no task of before."""
    try:
        reader = Path(__file__).with_name("extraction.py").read_bytes()
    except OSError:  # installed without sources: nobody edits it there
        reader = b""
    records = (CompiledTask, *get_args(goals.Predicate))
    kinds = {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in records}
    return _digest(reader + json.dumps(kinds).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def to_bytes(compiled: CompiledTask) -> bytes:
    """A compiled task, apart from the `Task` itself, as a NumPy archive; `from_bytes` reverses it."""
    meta = {
        "goal": goals.to_json(compiled.goal),
        "burners": [(burner.site, goals.to_json((burner.knob,))) for burner in compiled.burners],
        "visual_key": compiled.visual_key,
    }
    robot = dict(vars(compiled.robot))
    stale = robot.pop("stale")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
        physics=np.frombuffer(model_to_bytes(compiled.physics), dtype=np.uint8),
        xml=np.frombuffer(zlib.compress(compiled.xml.encode()), dtype=np.uint8),
        **_with_prefix("robot_", robot),
        **_with_prefix("stale_", stale),
        **_with_prefix("fixtures_", vars(compiled.fixtures)),
    )
    return buffer.getvalue()


def from_bytes(task: Task, blob: bytes) -> CompiledTask:
    """The compiled task that `to_bytes` wrote."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes())
    robot = _without_prefix("robot_", arrays)
    eef_site, hand_body = int(robot.pop("eef_site")), int(robot.pop("hand_body"))
    stale = _without_prefix("stale_", arrays)
    return CompiledTask(
        task=task,
        physics=model_from_bytes(arrays["physics"].tobytes()),
        goal=goals.from_json(meta["goal"]),
        robot=RobotIndices(**robot, eef_site=eef_site, hand_body=hand_body, stale=stale),
        fixtures=FixtureDraw(**_without_prefix("fixtures_", arrays)),
        burners=tuple(_burner(site, knob) for site, knob in meta["burners"]),
        visual_key=meta["visual_key"],
        xml=zlib.decompress(arrays["xml"].tobytes()).decode(),
    )


def scene_of(blob: bytes) -> str:
    """The ``visual_key`` of the compiled task that `to_bytes` wrote, without building its model."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        return str(json.loads(archive["meta"].tobytes())["visual_key"])


def _burner(site: str, knob: list[dict[str, Any]]) -> Burner:
    (threshold,) = goals.from_json(knob)
    assert isinstance(threshold, goals.JointThreshold)
    return Burner(site, threshold)


def _with_prefix(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in arrays.items()}


def _without_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def model_to_bytes(model: mujoco.MjModel) -> bytes:
    """A model in MuJoCo's binary format."""
    buffer = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def model_from_bytes(blob: bytes) -> mujoco.MjModel:
    """The model that `model_to_bytes` wrote."""
    return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": blob})

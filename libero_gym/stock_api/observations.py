"""Stock LIBERO's observations: all of its keys, in its order, each computed when it is read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering.posing import pose_bodies
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw
from libero_gym.simulation.simulator import Simulator
from libero_gym.stock_api.arguments import Camera
from libero_gym.stock_api.poses import seen_from, world_in_gripper

_ROBOT = "robot0_"
# What is computed for one key serves others.
_Group = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """What a simulator's sampled substep had; a `rendering.posing.Pose`, so that frames can be drawn of it later.

    Attributes:
        compiled: The task.
        fixtures: Where fixtures stood.
        kinematics_qpos: Positions that frames and bodies' poses belong to, (nq,).
        burners_shown: Whether each burner burnt.
        eef_pos, eef_quat: The end effector's position in m and xyzw quaternion.
        qpos, qvel: Positions and velocities, (nq,), (nv,).
    """

    compiled: CompiledTask
    fixtures: FixtureDraw
    kinematics_qpos: np.ndarray
    burners_shown: tuple[bool, ...]
    eef_pos: np.ndarray
    eef_quat: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray

    @classmethod
    def of(cls, simulator: Simulator) -> Sample:
        """What a simulator's last sampled substep had."""
        return cls(
            simulator.compiled,
            simulator.fixtures,
            simulator.kinematics_qpos.copy(),
            simulator.burners_shown,
            simulator.eef_pos().copy(),
            simulator.eef_quat(),
            simulator.sampled_qpos.copy(),
            simulator.sampled_qvel.copy(),
        )


class Observation(dict[str, Any]):
    """A dictionary whose values are computed when they are read. It pickles and copies as a plain one.

    Args:
        values: By key, what computes the value; called once at most.
    """

    def __init__(self, values: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__(values)
        self._pending = set(values)

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key in self._pending:
            value = value()
            super().__setitem__(key, value)
            self._pending.discard(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._pending.discard(key)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:  # that it is defined here makes dict(obs) and {**obs} ask for values, too
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def pop(self, key: str, *default: Any) -> Any:
        if key in self:
            self[key]
        self._pending.discard(key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **values: Any) -> None:
        for key, value in dict(*others, **values).items():
            self[key] = value

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return ItemsView(self)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(self) | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(other) | dict(self)

    def __ior__(self, other: Any) -> Observation:  # type: ignore[override]
        self.update(other)
        return self

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Sensors:
    """What an environment's observations hold.

    Args:
        compiled: The task.
        objects: Names of what can be moved, in LIBERO's order.
        cameras: What is drawn.
        draw: Draws a camera's frame of a sample: the image, bottom row first, and the depth buffer or None.
        segment: What a camera shows of a sample by a kind of segmentation.
    """

    def __init__(
        self,
        compiled: CompiledTask,
        objects: tuple[str, ...],
        cameras: tuple[Camera, ...],
        draw: Callable[[Sample, Camera], tuple[np.ndarray, np.ndarray | None]],
        segment: Callable[[Sample, Camera, str], np.ndarray],
    ) -> None:
        self._compiled, self._robot = compiled, compiled.robot
        self._objects = objects
        self._bodies = [compiled.physics.body(f"{name}_main").id for name in objects]
        self._cameras = cameras
        self._draw, self._segment = draw, segment
        model = compiled.physics
        joints = [np.flatnonzero(model.jnt_qposadr == address)[0] for address in compiled.robot.gripper_qpos]
        self._gripper_dof = model.jnt_dofadr[joints]

    def observe(self, sample: Callable[[], Sample]) -> Observation:
        """The observation of a sample, which is asked for when the first key is read."""
        robot = functools.cache(lambda: self._robot_values(sample()))
        objects = functools.cache(lambda: self._object_values(sample()))
        values: dict[str, Callable[[], Any]] = {_ROBOT + name: _from(robot, _ROBOT + name) for name in _ROBOT_NAMES}
        for camera in self._cameras:
            values |= self._camera_values(camera, sample)
        for name in self._objects:
            values |= {key: _from(objects, key) for key in _object_keys(name)}
        values[f"{_ROBOT}proprio-state"] = lambda: np.concatenate([robot()[_ROBOT + name] for name in _ROBOT_NAMES])
        values["object-state"] = lambda: np.concatenate(
            [objects()[key] for name in self._objects for key in _object_keys(name)]
        )
        return Observation(values)

    def _camera_values(self, camera: Camera, sample: Callable[[], Sample]) -> dict[str, Callable[[], Any]]:
        frame = functools.cache(lambda: self._draw(sample(), camera))
        values: dict[str, Callable[[], Any]] = {f"{camera.name}_image": lambda: frame()[0]}
        if camera.depth:
            values[f"{camera.name}_depth"] = lambda: _with_channel(frame()[1])
        for kind in camera.segmentations:
            values[f"{camera.name}_segmentation_{kind}"] = functools.partial(
                lambda kind: _with_channel(self._segment(sample(), camera, kind)), kind
            )
        return values

    def _robot_values(self, sample: Sample) -> _Group:
        robot = self._robot
        joints = sample.qpos[robot.qpos]
        values = {
            "joint_pos": joints,
            "joint_pos_cos": np.cos(joints),
            "joint_pos_sin": np.sin(joints),
            "joint_vel": sample.qvel[robot.dof],
            "eef_pos": sample.eef_pos,
            "eef_quat": sample.eef_quat,
            "gripper_qpos": sample.qpos[robot.gripper_qpos],
            "gripper_qvel": sample.qvel[self._gripper_dof],
        }
        return {_ROBOT + name: value for name, value in values.items()}

    @functools.cached_property
    def _posed(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A model of the task's bodies that samples pose, and its data."""
        model = copy.copy(self._compiled.physics)
        return model, mujoco.MjData(model)

    def _object_values(self, sample: Sample) -> _Group:
        model, data = self._posed
        pose_bodies(model, data, sample)
        frame = world_in_gripper(sample.eef_pos, sample.eef_quat)
        values: _Group = {}
        for name, body in zip(self._objects, self._bodies, strict=True):
            pos, quat = data.xpos[body].copy(), data.xquat[body][[1, 2, 3, 0]]
            values |= dict(zip(_object_keys(name), (pos, quat, *seen_from(frame, pos, quat)), strict=True))
        return values


_ROBOT_NAMES = (
    "joint_pos",
    "joint_pos_cos",
    "joint_pos_sin",
    "joint_vel",
    "eef_pos",
    "eef_quat",
    "gripper_qpos",
    "gripper_qvel",
)


def _with_channel(image: Any) -> np.ndarray:
    return np.asarray(image)[..., None]


def _object_keys(name: str) -> tuple[str, str, str, str]:
    seen = f"{name}_to_{_ROBOT}eef"
    return f"{name}_pos", f"{name}_quat", f"{seen}_pos", f"{seen}_quat"


def _from(group: Callable[[], _Group], key: str) -> Callable[[], np.ndarray]:
    return lambda: group()[key]

"""What evaluations use of ``env.sim``, robosuite's ``MjSim``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering.renderer import render_rows
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw
from libero_gym.simulation.simulator import Simulator

# robosuite's names of lists in the model, MuJoCo's kinds, and MuJoCo's accessors.
_KINDS = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "joint": mujoco.mjtObj.mjOBJ_JOINT,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "camera": mujoco.mjtObj.mjOBJ_CAMERA,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
}


@dataclass(frozen=True)
class SimState:
    """robosuite's ``MjSimState``."""

    time: float
    qpos: np.ndarray
    qvel: np.ndarray

    def flatten(self) -> np.ndarray:
        """``[time, qpos, qvel]``, float64 (1 + nq + nv,)."""
        return np.concatenate([[self.time], self.qpos, self.qvel])


@dataclass(frozen=True)
class _Now:
    """Where everything is by the latest kinematics; a `rendering.posing.Pose`."""

    compiled: CompiledTask
    fixtures: FixtureDraw
    kinematics_qpos: np.ndarray
    burners_shown: tuple[bool, ...]


class Names:
    """An object of MuJoCo, with robosuite's look-ups by name: ``body_name2id`` and its like.

    Args:
        inner: The ``mjModel`` or ``mjData``.
        model: The model.
    """

    def __init__(self, inner: Any, model: mujoco.MjModel) -> None:
        self._inner, self._model = inner, model

    def __getattr__(self, name: str) -> Any:
        kind, found, rest = name.partition("_name2id")
        if found and not rest and kind in _KINDS:
            return functools.partial(self._id, kind)
        kind, found, rest = name.partition("_id2name")
        if found and not rest and kind in _KINDS:
            return lambda index: mujoco.mj_id2name(self._model, _KINDS[kind], index)
        # mujoco-py's names of arrays, which robosuite keeps.
        if name in ("body_xpos", "body_xquat", "body_xmat"):
            name = name.removeprefix("body_")
        try:
            return getattr(self._inner, name)
        except AttributeError:
            part = "model" if self._inner is self._model else "data"
            raise AttributeError(
                f"libero_gym's stand-in has no sim.{part}.{name}; LIBERO's own environment has."
            ) from None

    def _id(self, kind: str, name: str) -> int:
        index = mujoco.mj_name2id(self._model, _KINDS[kind], name)
        if index < 0:
            raise ValueError(f'No "{kind}" with name {name} exists here; models leave out what cameras alone see.')
        return int(index)

    def get_joint_qpos_addr(self, name: str) -> Any:
        """Address of a joint's position, or (first, last + 1) of several."""
        joint = self._model.joint(name)
        return _address(int(joint.qposadr[0]), joint.qpos0.size)

    def get_joint_qvel_addr(self, name: str) -> Any:
        """Address of a joint's velocity, or (first, last + 1) of several."""
        joint = self._model.joint(name)
        return _address(int(joint.dofadr[0]), joint.damping.size)

    def _slice(self, address: Any) -> Any:
        return slice(*address) if isinstance(address, tuple) else address

    def get_joint_qpos(self, name: str) -> Any:
        """A joint's position, of the data."""
        return self._inner.qpos[self._slice(self.get_joint_qpos_addr(name))]

    def set_joint_qpos(self, name: str, value: Any) -> None:
        """Overwrite a joint's position, of the data."""
        self._inner.qpos[self._slice(self.get_joint_qpos_addr(name))] = value

    def get_body_xpos(self, name: str) -> np.ndarray:
        """A body's position in m, (3,), of the data."""
        position: np.ndarray = self._inner.xpos[self._id("body", name)]
        return position

    def get_body_xquat(self, name: str) -> np.ndarray:
        """A body's orientation, wxyz (4,), of the data."""
        orientation: np.ndarray = self._inner.xquat[self._id("body", name)]
        return orientation

    def get_site_xpos(self, name: str) -> np.ndarray:
        """A site's position in m, (3,), of the data."""
        position: np.ndarray = self._inner.site_xpos[self._id("site", name)]
        return position


class Sim:
    """The simulation of an environment: its state, names, arrays and frames.

    Args:
        simulator: What simulates.
        renderer: "exact" or "fast".
    """

    def __init__(self, simulator: Simulator, renderer: str) -> None:
        self._simulator, self._renderer = simulator, renderer
        self.model = Names(simulator.model, simulator.model)
        self.data = Names(simulator.data, simulator.model)

    def get_state(self) -> SimState:
        """Time, positions and velocities."""
        data = self._simulator.data
        return SimState(float(data.time), data.qpos.copy(), data.qvel.copy())

    def set_state(self, value: Any) -> None:
        """Overwrite time, positions and velocities."""
        self._simulator.write(np.concatenate([[value.time], value.qpos, value.qvel]))

    def set_state_from_flattened(self, value: np.ndarray) -> None:
        """Overwrite time, positions and velocities, given in one array (1 + nq + nv,)."""
        self._simulator.write(value)

    def forward(self) -> None:
        """Compute everything that follows from the state."""
        self._simulator.forward()

    def render(
        self,
        width: int,
        height: int,
        *,
        camera_name: str,
        depth: bool = False,
        mode: str = "offscreen",
        device_id: int = -1,
        segmentation: bool = False,
    ) -> Any:
        """What a camera sees where the latest kinematics were: uint8 (height, width, 3), bottom row first.

        With ``depth``, also OpenGL's depth buffer, float32 (height, width).

        Raises:
            NotImplementedError: If a segmentation is asked for.
            ValueError: If a depth buffer is asked for and frames are fast, or there is no such frame or camera.
        """
        if segmentation:
            raise NotImplementedError("libero_gym's stand-in draws no segmentation.")
        if depth and self._renderer == "fast":
            raise ValueError("depth=True needs renderer='exact'; fast frames come without.")
        simulator = self._simulator
        pose = _Now(simulator.compiled, simulator.fixtures, simulator.latest_qpos, simulator.burners_on)
        image, depths = render_rows(pose, camera_name, height, width, self._renderer, with_depth=depth)
        return (image, depths) if depth else image


def _address(first: int, size: int) -> Any:
    return first if size == 1 else (first, first + size)

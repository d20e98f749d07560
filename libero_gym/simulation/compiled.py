"""A compiled task: all that is needed to run a task without LIBERO, as plain records and a MuJoCo model."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.dimensions import CONTROL_FREQ
from libero_gym.simulation import goals
from libero_gym.tasks import Task

COARSE_SUBSTEPS = 10  # of a control step, for training alone; stock takes 25


@dataclass(frozen=True)
class RobotIndices:
    """Indices and constants of the Panda arm, its gripper and its operational-space controller.

    Attributes:
        qpos: Addresses of the seven arm joints in ``qpos``. dof: The same in ``qvel``.
        actuators: Ids of the seven torque actuators.
        gripper_qpos: Addresses of the two finger joints. gripper_actuators: Ids of their actuators.
        eef_site: Site id of the grip site, whose pose is controlled.
        hand_body: Body id whose quaternion LIBERO reports as the end effector's.
        torque_low, torque_high: Torque limits in Nm, shape (7,).
        stale: Controller state that the stock reset leaves, by robosuite's attribute name; see `simulator`.
    """

    qpos: np.ndarray
    dof: np.ndarray
    actuators: np.ndarray
    gripper_qpos: np.ndarray
    gripper_actuators: np.ndarray
    eef_site: int
    hand_body: int
    torque_low: np.ndarray
    torque_high: np.ndarray
    stale: dict[str, np.ndarray]


@dataclass(frozen=True)
class FixtureDraw:
    """What a stock reset leaves in the simulator that an initial state does not overwrite.

    Attributes:
        body_ids: Body ids of cabinets, stoves and racks, (k,).
        pos: Their positions in m, (k, 3).
        quat: Their orientations as wxyz, (k, 4).
        warmstart: Starting point of the contact solver, (nv,). It decides the last bits of the first step.
    """

    body_ids: np.ndarray
    pos: np.ndarray
    quat: np.ndarray
    warmstart: np.ndarray


@dataclass(frozen=True)
class Burner:
    """A site that is shown while a knob is turned on: the flame of a stove."""

    site: str
    knob: goals.JointThreshold


@dataclass(frozen=True)
class CompiledTask:
    """All that is needed to run a task without LIBERO.

    Attributes:
        task: The task itself.
        physics: Model without visual geoms, with the fixtures of the protocol's first reset. Shared: do not write.
        goal: Conjunction of predicates.
        robot: Indices and constants of the robot.
        fixtures: Fixture poses of the protocol's first reset.
        burners: Sites whose visibility follows a knob.
        visual_key: Names the model that cameras see; tasks of one scene share it. See `compile.visual_model`.
        xml: The scene as MJCF, with absolute paths of its meshes and textures, for other simulators. It says neither
            where this task's fixtures stand nor what `physics` leaves out.
    """

    task: Task
    physics: mujoco.MjModel
    goal: tuple[goals.Predicate, ...]
    robot: RobotIndices
    fixtures: FixtureDraw
    burners: tuple[Burner, ...]
    visual_key: str
    xml: str

    @functools.cached_property
    def coarse_physics(self) -> mujoco.MjModel:
        """The model with the time step of ``physics="coarse"``. Shared: do not write."""
        model = copy.copy(self.physics)
        model.opt.timestep = 1 / (CONTROL_FREQ * COARSE_SUBSTEPS)
        return model

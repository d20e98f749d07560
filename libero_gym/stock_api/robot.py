"""What evaluations read and set of ``env.robots[0]``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from libero_gym.simulation.simulator import Simulator


class Controller:
    """The operational-space controller of robosuite's robot.

    Attributes:
        use_delta: Whether actions change the goal pose, or are the goal pose, in m and rad.
    """

    name = "OSC_POSE"

    def __init__(self, simulator: Callable[[], Simulator]) -> None:
        self.use_delta = True
        self._simulator = simulator

    @property
    def ee_pos(self) -> np.ndarray:
        """Position of the end effector in m, (3,), as the controller knows it."""
        return self._simulator().controller_pose()[0]

    @property
    def ee_ori_mat(self) -> np.ndarray:
        """Orientation of the end effector, (3, 3), as the controller knows it."""
        return self._simulator().controller_pose()[1]

    @property
    def goal_ori(self) -> np.ndarray:
        """Orientation that the controller pulls the end effector to, (3, 3)."""
        return self._simulator().goal_ori()

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"libero_gym's stand-in has no robots[0].controller.{name}; LIBERO's own environment has.")


class Robot:
    """A Panda. Of robosuite's robot it has the controller and the joints."""

    def __init__(self, simulator: Callable[[], Simulator]) -> None:
        self.controller = Controller(simulator)
        self._simulator = simulator

    @property
    def _joint_positions(self) -> np.ndarray:
        simulator = self._simulator()
        return simulator.data.qpos[simulator.compiled.robot.qpos]

    @property
    def _joint_velocities(self) -> np.ndarray:
        simulator = self._simulator()
        return simulator.data.qvel[simulator.compiled.robot.dof]

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"libero_gym's stand-in has no robots[0].{name}; LIBERO's own environment has.")

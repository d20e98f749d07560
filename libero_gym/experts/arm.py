"""The arm as scripts use it: where its hand is, what is around it, and sequences of actions that move it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from libero_gym.experts.geometry import UP, down, geom_points, rotation_vector
from libero_gym.gripper import gripper_opening
from libero_gym.simulation.controller import POSITION_SCALE, ROTATION_SCALE
from libero_gym.simulation.simulator import Simulator

OPEN, CLOSED = -1.0, 1.0
MAX_TURN = 0.8  # largest rotation component of an action
START_HAND = down(np.pi / 2)

Actions: TypeAlias = Iterator[np.ndarray]


class Arm:
    """Reads a simulator and yields actions, float64 (7,). The caller steps the simulator with each of them.

    Attributes:
        simulator: The simulator to read.
        phase: What the arm is doing, in words; the skills set it.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.phase = "start"
        self._integral = np.zeros(3)
        self._last_target = np.zeros(3)

    # ----------------------------------------------------------------------------------------------------- motion

    def move(
        self, target: np.ndarray, hand: np.ndarray, gripper: float, tol: float, max_steps: int, angle_tol: float = 0.3
    ) -> Actions:
        """Go to a pose until it is within ``tol`` m and ``angle_tol`` rad, or the steps run out."""
        target = np.array(target)
        for _ in range(max_steps):
            angle = np.linalg.norm(rotation_vector(hand @ self.mat().T))
            if np.linalg.norm(target - self.pos()) < tol and angle < angle_tol:
                return
            yield self.towards(target, hand, gripper)

    def towards(self, target: np.ndarray, hand: np.ndarray, gripper: float) -> np.ndarray:
        """One action towards a pose; an integral removes the error that friction and gravity leave near the target."""
        error = target - self.pos()
        if np.linalg.norm(target - self._last_target) > 0.02:
            self._integral[:] = 0.0
        self._last_target = np.array(target)
        if np.linalg.norm(error) < 0.04:
            self._integral = np.clip(self._integral + 0.08 * error, -0.03, 0.03)
        motion = (error + self._integral) / POSITION_SCALE
        turn = rotation_vector(hand @ self.mat().T) / ROTATION_SCALE
        motion /= max(1.0, np.abs(motion).max())
        turn /= max(1.0, np.abs(turn).max() / MAX_TURN)
        return np.array([*motion, *turn, gripper])

    def rise(self, height: float, hand: np.ndarray | None = None, gripper: float = OPEN) -> Actions:
        """Go straight up to a height in m if the hand is below it, and turn towards an orientation on the way."""
        hand = self.mat() if hand is None else hand
        if self.pos()[2] < height:
            target = np.array([*self.pos()[:2], height])
            yield from self.move(target, hand, gripper, tol=0.02, max_steps=25, angle_tol=np.inf)

    def squeeze(self) -> Actions:
        """Close until the fingers stand still. The controller ramps their command over 8 steps."""
        pose, hand, still = self.pos(), self.mat(), 0
        for step in range(14):
            width = self.width()
            yield self.towards(pose, hand, CLOSED)
            still = still + 1 if step > 4 and abs(self.width() - width) < 4e-4 else 0
            if still >= 2:
                return

    def release(self, away: np.ndarray = 0.08 * UP) -> Actions:
        """Open, and move away by the vector ``away`` in m, (3,)."""
        hand = self.mat()
        yield from self.stay(OPEN, 7)
        yield from self.move(self.pos() + away, hand, OPEN, tol=0.02, max_steps=15)

    def stay(self, gripper: float, n: int) -> Actions:
        """Hold the pose for ``n`` control steps."""
        for _ in range(n):
            yield np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])

    # ------------------------------------------------------------------------------------------------------ state

    def pos(self) -> np.ndarray:
        """The grip site's position in m, (3,)."""
        return np.array(self.simulator.data.site_xpos[self.simulator.compiled.robot.eef_site])

    def mat(self) -> np.ndarray:
        """The hand's orientation (3, 3). Columns: closing axis, the axis across it, the approach direction."""
        return np.array(self.simulator.data.site_xmat[self.simulator.compiled.robot.eef_site].reshape(3, 3))

    def nearest(self, hand: np.ndarray) -> np.ndarray:
        """The orientation, or the same with the fingers exchanged, whichever is nearer to the hand's at the start."""
        flipped = hand * [-1, -1, 1]
        return min((hand, flipped), key=lambda pose: float(np.linalg.norm(rotation_vector(pose @ START_HAND.T))))

    def width(self) -> float:
        """Distance between the fingers in m."""
        return float(gripper_opening(self.simulator.data.qpos[self.simulator.compiled.robot.gripper_qpos]))

    def holds(self, body: str) -> bool:
        """Whether the fingers are apart and the object is between or near them."""
        near = np.linalg.norm(self.points(body) - self.pos(), axis=1).min() < 0.03
        return bool(self.width() > 0.002 and near)

    # ----------------------------------------------------------------------------------------------------- surroundings

    def points(self, body: str) -> np.ndarray:
        """Surface points of the whole object that a body belongs to, (n, 3) in m."""
        model = self.simulator.model
        root = model.body_rootid[model.body(body).id]
        return self._geom_points(np.flatnonzero(model.body_rootid[model.geom_bodyid] == root), 0.003)

    def part_points(self, body: int) -> np.ndarray:
        """Surface points of one body of a jointed object, (n, 3) in m."""
        return self._geom_points(np.flatnonzero(self.simulator.model.geom_bodyid == body), 0.003)

    def obstacles(self, body: str) -> np.ndarray:
        """Surface points of everything except the robot, the object itself, the floor and the walls, (n, 3) in m."""
        model = self.simulator.model
        roots = model.body_rootid[model.geom_bodyid]
        own = model.body_rootid[model.body(body).id]
        robot = model.body_rootid[self.simulator.compiled.robot.hand_body]
        small = model.geom_rbound < 0.4
        return self._geom_points(np.flatnonzero((roots != own) & (roots != robot) & (roots != 0) & small), 0.007)

    def _geom_points(self, geoms: np.ndarray, spacing: float) -> np.ndarray:
        return geom_points(self.simulator.model, self.simulator.data, geoms, spacing)

"""Skills that move joints: drawers, doors and knobs."""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.experts.arm import CLOSED, OPEN, START_HAND, Actions, Arm
from libero_gym.experts.geometry import UP, down, rotation_about_z, tilted, unit
from libero_gym.simulation import goals

DRAWER_OPEN = 0.155  # m; a drawer ends at 0.16
DRAWER_USABLE = 0.12  # m; a drawer that is open this far takes objects


class Joints:
    """Drawers, doors and knobs of the arm's scene, named by their joints."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.model, self.data = arm.simulator.model, arm.simulator.data

    def achieve(self, predicate: goals.JointThreshold) -> Actions:
        """Move the first joint that is not past its threshold there; without a skill for its kind, do nothing."""
        sign = 1.0 if predicate.above else -1.0
        lacking = [joint for joint in predicate.joints if sign * (self.position(joint) - predicate.threshold) <= 0]
        joint = (lacking or predicate.joints)[0]
        if self.model.joint(joint).type[0] == mujoco.mjtJoint.mjJNT_SLIDE:
            opens = sign == self.opening_sign(joint)
            yield from self.open_drawer(joint) if opens else self.close_drawer(joint)
        elif "microwave" in joint:
            if predicate.above:
                yield from self.close_door(joint)
        elif abs(self.data.joint(joint).xaxis[2]) > 0.9:
            yield from self.turn_knob(joint, predicate.threshold, sign)

    def position(self, joint: str) -> float:
        """A joint's position in m or rad."""
        return float(self.data.joint(joint).qpos[0])

    # ---------------------------------------------------------------------------------------------------- drawers

    def drawer_of(self, predicate: goals.Predicate) -> str | None:
        """The sliding joint of the drawer that the object goes into; None if it goes elsewhere."""
        if not isinstance(predicate, goals.InSite):
            return None
        joint = self.model.body_jntadr[self.model.site_bodyid[self.model.site(predicate.site).id]]
        if joint < 0 or self.model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_SLIDE:
            return None
        return str(self.model.joint(joint).name)

    def opening_sign(self, joint: str) -> float:
        """The sign of an open drawer's positions: those of the short cabinet are positive, others negative."""
        low, high = self.model.joint(joint).range
        return 1.0 if high > -low else -1.0

    def opened(self, joint: str) -> float:
        """How far a drawer is open, in m."""
        return self.opening_sign(joint) * self.position(joint)

    def pull(self, joint: str) -> np.ndarray:
        """Direction in which the drawer opens, a unit vector."""
        return np.array(self.opening_sign(joint) * self.data.joint(joint).xaxis)

    def opened_points(self, joint: str) -> np.ndarray:
        """Surface points of the drawer as they will be when it is open, (n, 3) in m."""
        points = self.arm.part_points(int(self.model.joint(joint).bodyid[0]))
        return points + (DRAWER_OPEN - self.opened(joint)) * self.pull(joint)

    def _handle(self, joint: str) -> np.ndarray:
        """Centre of the drawer's box that is farthest along the pull, (3,) in m."""
        geoms = np.flatnonzero(self.model.geom_bodyid == self.model.joint(joint).bodyid[0])
        return np.array(self.data.geom_xpos[geoms[np.argmax(self.data.geom_xpos[geoms] @ self.pull(joint))]])

    def open_drawer(self, joint: str) -> Actions:
        """Grasp the handle with the hand level, and pull."""
        arm, pull = self.arm, self.pull(joint)
        arm.phase = f"open {joint}"
        hand = arm.nearest(tilted(pull, np.deg2rad(85.0), vertical=True))
        handle = self._handle(joint)
        yield from arm.rise(handle[2] + 0.02)
        yield from arm.move(handle + 0.09 * pull, hand, OPEN, tol=0.015, angle_tol=0.12, max_steps=90)
        yield from arm.move(handle, hand, OPEN, tol=0.012, max_steps=35)
        yield from arm.squeeze()
        for _ in range(60):
            if self.opened(joint) > DRAWER_OPEN:
                break
            yield arm.towards(self._handle(joint) + 0.05 * pull, hand, CLOSED)
        yield from arm.stay(OPEN, 5)
        yield from arm.move(arm.pos() + 0.07 * pull, hand, OPEN, tol=0.02, max_steps=15)

    def close_drawer(self, joint: str) -> Actions:
        """Push the front with the closed hand, which leans away from the cabinet above."""
        arm, pull = self.arm, self.pull(joint)
        arm.phase = f"close {joint}"
        hand = arm.nearest(tilted(pull, np.deg2rad(50.0), vertical=False))
        handle = self._handle(joint) + 0.012 * UP
        yield from arm.rise(handle[2] + 0.2)
        yield from arm.move(handle + 0.12 * pull + 0.15 * UP, hand, CLOSED, tol=0.03, max_steps=60)
        yield from arm.move(handle + 0.07 * pull, hand, CLOSED, tol=0.015, angle_tol=0.15, max_steps=50)
        for _ in range(70):
            if self.opened(joint) < -0.002:
                break
            yield arm.towards(self._handle(joint) + 0.012 * UP - 0.04 * pull, hand, CLOSED)
        yield from arm.move(arm.pos() + 0.08 * pull + 0.03 * UP, hand, CLOSED, tol=0.03, max_steps=12)

    # ------------------------------------------------------------------------------------------------------ doors

    def close_door(self, joint: str) -> Actions:
        """Push a door on an upright hinge shut from outside, with the closed hand's tip below the door's top."""
        arm = self.arm
        arm.phase = f"close {joint}"
        panel = self._door_points(joint)
        top = panel[:, 2].max()
        over = top + 0.06
        push, _ = self._door_spot(joint)
        yield from arm.rise(over, gripper=CLOSED)
        yield from arm.move(np.array([*push[:2], over]), START_HAND, CLOSED, tol=0.02, max_steps=80)
        yield from arm.move(push, START_HAND, CLOSED, tol=0.015, max_steps=40)
        for _ in range(120):
            if self.position(joint) > -0.001:
                break
            push, normal = self._door_spot(joint)
            yield arm.towards(push + 0.07 * normal, START_HAND, CLOSED)
        yield from arm.stay(CLOSED, 2)
        push, normal = self._door_spot(joint)
        yield from arm.move(arm.pos() - 0.05 * normal + 0.03 * UP, START_HAND, CLOSED, tol=0.02, max_steps=12)

    def _door_points(self, joint: str) -> np.ndarray:
        return self.arm.part_points(int(self.model.joint(joint).bodyid[0]))

    def _door_spot(self, joint: str) -> tuple[np.ndarray, np.ndarray]:
        """The point at which to push a door from outside with the hand down, (3,) in m, and the closing direction."""
        body = int(self.model.joint(joint).bodyid[0])
        geoms = np.flatnonzero((self.model.geom_bodyid == body) & (self.model.geom_conaffinity > 0))
        panel = geoms[np.argmax(self.model.geom_rbound[geoms])]
        hinge, axis = self.data.joint(joint).xanchor, self.data.joint(joint).xaxis
        radius = self.data.geom_xpos[panel] - hinge
        radius[2] = 0.0
        normal = unit(np.cross(axis, radius))
        top = self._door_points(joint)[:, 2].max()
        spot = hinge + 1.15 * radius - 0.045 * normal
        return np.array([*spot[:2], top - 0.026]), normal

    # ------------------------------------------------------------------------------------------------------ knobs

    def turn_knob(self, joint: str, threshold: float, direction: float) -> Actions:
        """Grasp a knob's lever across its long axis and turn it past the threshold by 0.25 rad."""
        arm = self.arm
        arm.phase = f"turn {joint}"
        points = arm.part_points(int(self.model.joint(joint).bodyid[0]))
        top = points[points[:, 2] > points[:, 2].max() - 0.015]
        _, vectors = np.linalg.eigh(np.cov((top - top.mean(axis=0))[:, :2].T))
        across = vectors[:, 0] if vectors[1, 0] >= 0 else -vectors[:, 0]
        yaw = float(np.arctan2(across[1], across[0]))
        spot = np.array([*(0.5 * (top.min(axis=0) + top.max(axis=0)))[:2], points[:, 2].max() - 0.012])
        yield from arm.rise(spot[2] + 0.1)
        yield from arm.move(spot + 0.07 * UP, down(yaw), OPEN, tol=0.02, max_steps=60)
        yield from arm.move(spot, down(yaw), OPEN, tol=0.006, angle_tol=0.08, max_steps=40)
        yield from arm.squeeze()
        start, anchor = self.position(joint), self.data.joint(joint).xanchor.copy()
        sign = np.sign(self.data.joint(joint).xaxis[2])
        for _ in range(50):
            if direction * (self.position(joint) - threshold) > 0.25:
                break
            angle = float(sign * (self.position(joint) + direction * 0.35 - start))
            turned = anchor + rotation_about_z(angle) @ (spot - anchor)
            yield arm.towards(np.array([*turned[:2], spot[2]]), down(yaw + angle), CLOSED)
        yield from arm.release()

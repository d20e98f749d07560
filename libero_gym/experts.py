"""Scripted experts on privileged state: skills that read the simulator and the goal, and act through the arm's actions.

A skill is a generator of actions. `Expert` does the first unmet predicate of the goal, looks again, and goes on until
all hold with the hand empty. Grasps come from the geometry of collision boxes; there is no table of grasps per object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import mujoco
import numpy as np

from libero_gym import goals
from libero_gym.controller import POSITION_SCALE, ROTATION_SCALE
from libero_gym.simulator import SETTLE_ACTION, Simulator

OPEN, CLOSED = -1.0, 1.0
# Panda hand, measured from the grip site in m: inner face and outer face of an open finger, half-width of a finger,
# its tip below, the palm above, half extents of the palm along and across the closing axis.
FINGER_INNER, FINGER_OUTER, FINGER_HALF, TIP, PALM = 0.0395, 0.0565, 0.0105, 0.011, 0.033
PALM_HALF = (0.105, 0.034)
GRASP_DEPTHS = (0.010, 0.018, 0.028, 0.040, 0.055, 0.075, 0.100)  # m below the object's local top
MAX_TASKS = 16
DOWN = np.array([0.0, 0.0, -1.0])

Actions: TypeAlias = Iterator[np.ndarray]


@dataclass(frozen=True)
class Grasp:
    """A top-down grasp: grip site's position in m (3,), the closing axis's angle to x in rad, and a score."""

    pos: np.ndarray
    yaw: float
    score: float


@dataclass(frozen=True)
class GraspOptions:
    """What is sought in a grasp.

    Attributes:
        max_width: Widest span between the fingers, m.
        centering: Cost per m between grasp and object centre.
        avoid: Horizontal direction (2,) along which the fingers should not close; zeros for none.
    """

    max_width: float = 0.070
    centering: float = 8.0
    avoid: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        success: Whether the goal held at the end of some control step within the limit.
        steps: Control steps until then, or until the expert gave up.
        rests: Whether the goal still held when the script had ended, the hand open and away.
        cause: The skill that ran when time or attempts were up; empty on success.
    """

    success: bool
    steps: int
    rests: bool
    cause: str


class Expert:
    """Solves a task by script from the simulator's current state.

    Args:
        simulator: Whose state is read; the caller steps it with each action before asking for the next.
        noise: Standard deviation of Gaussian noise on the six motion dimensions, in units of action.
        seed: Seed of the noise; equal seeds give equal actions.
    """

    def __init__(self, simulator: Simulator, noise: float = 0.0, seed: int = 0) -> None:
        self.simulator = simulator
        self.noise = noise
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget the episode; call it after the simulator's own reset and settling."""
        self.phase = "start"
        self.done = False
        self._rng = np.random.default_rng(self.seed)
        self._integral = np.zeros(3)
        self._last_target = np.zeros(3)
        self._failed_grasps: dict[str, int] = {}
        self._start_low: dict[str, float] = {}
        self._actions = self._solve()

    def act(self) -> np.ndarray:
        """The next action, float64 (7,) in [-1, 1]; holds still with an open hand once `done`."""
        action = next(self._actions, None)
        if action is None:
            self.done = True
            return SETTLE_ACTION.copy()
        if self.noise:
            action[:6] += self._rng.normal(0.0, self.noise, 6)
        return np.clip(action, -1.0, 1.0)

    # ---------------------------------------------------------------------------------------------------- goals

    def _solve(self) -> Actions:
        for predicate in self.simulator.compiled.goal:
            body = moved_body(predicate)
            if body:
                self._start_low[body] = self._points(body)[:, 2].min()
        for _ in range(MAX_TASKS):
            held = self.simulator.predicates()
            unmet = [p for p, holds in zip(self.simulator.compiled.goal, held, strict=True) if not holds]
            if not unmet:
                yield from self._stay(OPEN, 5)
                if all(self.simulator.predicates()):
                    return
                continue
            yield from self._achieve(min(unmet, key=_rank))

    def _achieve(self, predicate: goals.Predicate) -> Actions:
        if isinstance(predicate, goals.JointThreshold):
            joint = self.simulator.model.joint(predicate.joints[0])
            if joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE:
                yield from self._turn(predicate)
            elif predicate.above:
                yield from self._close_drawer(predicate.joints[0])
            else:
                yield from self._open_drawer(predicate.joints[0])
            return
        body = moved_body(predicate)
        drawer = self._drawer_of(predicate)
        if drawer is not None and self._joint(drawer) > -0.12:
            yield from self._open_drawer(drawer)
        elif "plate" in str(body):
            yield from self._push(predicate)
        else:
            yield from self._carry(str(body), predicate)

    def _drawer_of(self, predicate: goals.Predicate) -> str | None:
        """The sliding joint of the drawer that the object goes into."""
        if not isinstance(predicate, goals.InSite):
            return None
        model = self.simulator.model
        body = model.site_bodyid[model.site(predicate.site).id]
        joint = model.body_jntadr[body]
        if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_SLIDE:
            return None
        return str(model.joint(joint).name)

    # --------------------------------------------------------------------------------------------------- carrying

    def _carry(self, body: str, predicate: goals.Predicate) -> Actions:
        yield from self._pick(body, predicate)
        if self._holds(body):
            yield from self._place(body, predicate)

    def _pick(self, body: str, predicate: goals.Predicate) -> Actions:
        self.phase = f"pick {body}"
        data = self.simulator.data
        yield from self._rise(self._points(body)[:, 2].max() + 0.05)
        for _ in range(3):
            planned_at = data.body(body).xpos.copy()
            grasp = self._grasp(body, predicate)
            if grasp is None:
                yield from self._stay(OPEN, 5)
                return
            hand = down(grasp.yaw)
            yield from self._move(grasp.pos + [0, 0, 0.07], hand, OPEN, tol=0.02, max_steps=70)
            if np.linalg.norm(data.body(body).xpos - planned_at) < 0.004:
                break
            yield from self._stay(OPEN, 6)
        assert grasp is not None
        yield from self._move(grasp.pos, hand, OPEN, tol=0.005, angle_tol=0.08, max_steps=40)
        yield from self._squeeze()
        before = data.body(body).xpos[2]
        yield from self._move(self._hand_pos() + [0, 0, 0.06], hand, CLOSED, tol=0.015, max_steps=20)
        if data.body(body).xpos[2] - before < 0.015 or not self._holds(body):
            self._failed_grasps[body] = self._failed_grasps.get(body, 0) + 1
            yield from self._release()

    def _grasp(self, body: str, predicate: goals.Predicate) -> Grasp | None:
        """The best grasp; after failures the next best ones in turn."""
        points, obstacles = self._points(body), self._obstacles(body)
        avoid = self._avoided(predicate)
        current = self._hand_mat()[:, 0]
        found = plan_grasps(points, obstacles, grasp_options(body, avoid), float(np.arctan2(current[1], current[0])))
        return found[self._failed_grasps.get(body, 0) % len(found)] if found else None

    def _avoided(self, predicate: goals.Predicate) -> tuple[float, float]:
        """The palm is 21 cm wide: it must not lie across a drawer's front, nor across a second pot."""
        drawer = self._drawer_of(predicate)
        if drawer is not None:
            pull = self._pull(drawer)
            return float(pull[0]), float(pull[1])
        return (1.0, 0.0) if self._shares_target(predicate) and "moka" in str(moved_body(predicate)) else (0.0, 0.0)

    def _holds(self, body: str) -> bool:
        """Whether the fingers are apart with the object within reach of them."""
        near = np.linalg.norm(self._points(body) - self._hand_pos(), axis=1).min() < 0.03
        return bool(self._width() > 0.002 and near)

    def _place(self, body: str, predicate: goals.Predicate) -> Actions:
        self.phase = f"transport {body}"
        data = self.simulator.data
        hand = self._hand_mat()
        hand = down(float(np.arctan2(hand[1, 0], hand[0, 0])))
        target = self._place_target(body, predicate)  # xy of the body, z of its lowest point
        offset = data.body(body).xpos - self._hand_pos()
        hang = self._hand_pos()[2] - self._points(body)[:, 2].min()
        start = self._hand_pos()
        goal_xy = target[:2] - offset[:2]
        clear = corridor_height(self._obstacles(body), start[:2], goal_xy) + 0.025 + hang
        lowest = target[2] + hang + 0.03  # over a high target, whatever the cap on the rise
        height = max(lowest, min(clear, start[2] + 0.18))
        yield from self._move(np.array([*start[:2], height]), hand, CLOSED, tol=0.02, max_steps=30)
        for over in range(2):
            offset = data.body(body).xpos - self._hand_pos()
            above = np.array([*(target[:2] - offset[:2]), height])
            yield from self._move(above, hand, CLOSED, tol=0.02 if over == 0 else 0.01, max_steps=80)
            if not self._holds(body):
                yield from self._release()
                return
        self.phase = f"lower {body}"
        offset = data.body(body).xpos - self._hand_pos()
        hang = self._hand_pos()[2] - self._points(body)[:, 2].min()
        low = np.array([*(target[:2] - offset[:2]), target[2] + hang])
        yield from self._move(low, hand, CLOSED, tol=0.008, max_steps=45)
        yield from self._release()

    def _place_target(self, body: str, predicate: goals.Predicate) -> np.ndarray:
        """Where the body's centre goes in the plane and at what height its lowest point is let go, (3,) in m."""
        data, obstacles = self.simulator.data, self._obstacles(body)
        if isinstance(predicate, goals.OnObject):
            centre = data.body(predicate.lower_body).xpos
            if "plate" in predicate.lower_body:
                return centre + [0, 0, 0.017]
            return np.array([*centre[:2], highest_near(obstacles, centre[:2], centre[2]) + 0.012])
        assert isinstance(predicate, (goals.OnSite, goals.InSite))
        site = data.site(predicate.site).xpos.copy()
        if "basket" in predicate.site:
            return self._basket_target(body, predicate, site)
        drawer = self._drawer_of(predicate)
        if drawer is not None:
            site += 0.018 * self._pull(drawer)
        if isinstance(predicate, goals.InSite):
            obstacles = obstacles[obstacles[:, 2] < site[2]]
        elif predicate.parent_geoms is None:
            return np.array([*site[:2], self._start_low[body] + 0.006])
        elif self._shares_target(predicate):
            site[0] += 0.044 * self._shares_target(predicate)
        return np.array([*site[:2], highest_near(obstacles, site[:2], site[2]) + 0.012])

    def _basket_target(self, body: str, predicate: goals.Predicate, site: np.ndarray) -> np.ndarray:
        own = self._points(body)[:, 2]
        owner = self.simulator.model.site_bodyid[self.simulator.model.site(getattr(predicate, "site", "")).id]
        rim = self._points(self.simulator.model.body(owner).name)[:, 2].max()
        site[1] += 0.028 * self._shares_target(predicate)
        return np.array([*site[:2], rim - min(0.6 * (own.max() - own.min()), 0.05)])

    def _shares_target(self, predicate: goals.Predicate) -> int:
        """-1 for the first and +1 for the second of two objects that go to one site; else 0."""
        site = getattr(predicate, "site", None)
        both = [p for p in self.simulator.compiled.goal if site and getattr(p, "site", None) == site]
        return 0 if len(both) < 2 else 2 * both.index(predicate) - 1

    # --------------------------------------------------------------------------------------------- drawers, knobs

    def _handle(self, joint: str) -> np.ndarray:
        """Centre of the drawer's box that is farthest along the pull, (3,) in m."""
        model, data = self.simulator.model, self.simulator.data
        geoms = np.flatnonzero(model.geom_bodyid == model.joint(joint).bodyid[0])
        return np.array(data.geom_xpos[geoms[np.argmax(data.geom_xpos[geoms] @ self._pull(joint))]])

    def _pull(self, joint: str) -> np.ndarray:
        """Unit vector in which the drawer opens: LIBERO's drawers have negative positions when open."""
        return np.array(-self.simulator.data.joint(joint).xaxis)

    def _joint(self, joint: str) -> float:
        return float(self.simulator.data.joint(joint).qpos[0])

    def _open_drawer(self, joint: str) -> Actions:
        self.phase = f"open {joint}"
        pull = self._pull(joint)
        hand = self._nearest(tilted(pull, np.deg2rad(85.0), vertical=True))
        handle = self._handle(joint)
        yield from self._rise(handle[2] + 0.1)
        yield from self._move(handle + 0.16 * pull + [0, 0, 0.08], hand, OPEN, tol=0.03, max_steps=60)
        yield from self._move(handle + 0.11 * pull, hand, OPEN, tol=0.015, angle_tol=0.12, max_steps=60)
        yield from self._move(handle, hand, OPEN, tol=0.008, max_steps=35)
        yield from self._squeeze()
        for _ in range(60):
            if self._joint(joint) < -0.155:
                break
            yield self._towards(self._handle(joint) + 0.05 * pull, hand, CLOSED)
        yield from self._stay(OPEN, 5)
        away = self._hand_pos() + 0.09 * pull
        yield from self._move(away, hand, OPEN, tol=0.02, max_steps=15)
        yield from self._move(away + [0, 0, 0.12], self._hand_down(), OPEN, tol=0.03, max_steps=25)

    def _close_drawer(self, joint: str) -> Actions:
        self.phase = f"close {joint}"
        pull = self._pull(joint)
        hand = self._nearest(tilted(pull, np.deg2rad(50.0), vertical=False))
        handle = self._handle(joint) + [0, 0, 0.012]
        yield from self._rise(handle[2] + 0.2)
        yield from self._move(handle + 0.12 * pull + [0, 0, 0.15], hand, CLOSED, tol=0.03, max_steps=60)
        yield from self._move(handle + 0.07 * pull, hand, CLOSED, tol=0.015, angle_tol=0.15, max_steps=50)
        for _ in range(70):
            if self._joint(joint) > 0.002:
                break
            yield self._towards(self._handle(joint) + [0, 0, 0.012] - 0.04 * pull, hand, CLOSED)
        yield from self._move(self._hand_pos() + 0.08 * pull + [0, 0, 0.03], hand, CLOSED, tol=0.03, max_steps=12)

    def _turn(self, predicate: goals.JointThreshold) -> Actions:
        """Grasp a knob's lever across its long axis and turn it past the threshold by 0.25 rad."""
        joint = predicate.joints[0]
        self.phase = f"turn {joint}"
        model, data = self.simulator.model, self.simulator.data
        if abs(data.joint(joint).xaxis[2]) < 0.9:
            return
        points = self._body_points(int(model.joint(joint).bodyid[0]))
        axis_z = float(data.joint(joint).xaxis[2])
        if "microwave" in joint:
            return
        top = points[points[:, 2] > points[:, 2].max() - 0.015]
        _, vectors = np.linalg.eigh(np.cov((top - top.mean(axis=0))[:, :2].T))
        across = vectors[:, 0] if vectors[1, 0] >= 0 else -vectors[:, 0]
        yaw = float(np.arctan2(across[1], across[0]))
        spot = np.array([*(0.5 * (top.min(axis=0) + top.max(axis=0)))[:2], points[:, 2].max() - 0.012])
        yield from self._rise(spot[2] + 0.1)
        yield from self._move(spot + [0, 0, 0.07], down(yaw), OPEN, tol=0.02, max_steps=60)
        yield from self._move(spot, down(yaw), OPEN, tol=0.006, angle_tol=0.08, max_steps=40)
        yield from self._squeeze()
        start, anchor, sign = self._joint(joint), data.joint(joint).xanchor.copy(), np.sign(axis_z)
        direction = 1.0 if predicate.above else -1.0
        for _ in range(50):
            if direction * (self._joint(joint) - predicate.threshold) > 0.25:
                break
            angle = sign * (self._joint(joint) + direction * 0.35 - start)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            target = np.array([*(anchor[:2] + turn @ (spot - anchor)[:2]), spot[2]])
            yield self._towards(target, down(yaw + angle), CLOSED)
        yield from self._release()

    def _push(self, predicate: goals.Predicate) -> Actions:
        """Push a plate over the table with the closed hand inside its rim: the rim is too thin to grasp."""
        assert isinstance(predicate, goals.OnSite)
        self.phase = f"push {predicate.body}"
        data = self.simulator.data
        plate, target = data.body(predicate.body).xpos, data.site(predicate.site).xpos
        direction = (target - plate)[:2] / np.linalg.norm((target - plate)[:2])
        hand = self._hand_down()
        spot = np.array([*(plate[:2] + 0.03 * direction), plate[2] + 0.02])
        yield from self._move(spot + [0, 0, 0.07], hand, CLOSED, tol=0.02, max_steps=60)
        yield from self._move(spot, hand, CLOSED, tol=0.008, max_steps=30)
        for _ in range(80):
            gap = (target - plate)[:2]
            if np.linalg.norm(gap) < 0.012 or np.linalg.norm((self._hand_pos() - plate)[:2]) > 0.075:
                break
            action = self._towards(self._hand_pos(), hand, CLOSED)
            action[:3] = [*(0.6 * gap / np.linalg.norm(gap)), -0.15]
            yield action
        yield from self._move(self._hand_pos() + [0, 0, 0.08], hand, CLOSED, tol=0.02, max_steps=15)

    # ------------------------------------------------------------------------------------------------------ motion

    def _move(
        self, target: np.ndarray, hand: np.ndarray, gripper: float, tol: float, max_steps: int, angle_tol: float = 0.3
    ) -> Actions:
        """Go to a pose: position within ``tol`` m and orientation within ``angle_tol`` rad, or out of steps."""
        target = np.array(target)
        for _ in range(max_steps):
            angle = np.linalg.norm(rotation_vector(hand @ self._hand_mat().T))
            if np.linalg.norm(target - self._hand_pos()) < tol and angle < angle_tol:
                return
            yield self._towards(target, hand, gripper)

    def _towards(self, target: np.ndarray, hand: np.ndarray, gripper: float) -> np.ndarray:
        """One action towards a pose; an integral takes out what friction and gravity leave near the target."""
        error = target - self._hand_pos()
        if np.linalg.norm(target - self._last_target) > 0.02:
            self._integral[:] = 0.0
        self._last_target = np.array(target)
        if np.linalg.norm(error) < 0.04:
            self._integral = np.clip(self._integral + 0.08 * error, -0.03, 0.03)
        motion = (error + self._integral) / POSITION_SCALE
        turn = rotation_vector(hand @ self._hand_mat().T) / ROTATION_SCALE
        motion /= max(1.0, np.abs(motion).max())
        turn /= max(1.0, np.abs(turn).max() / 0.5)
        return np.array([*motion, *turn, gripper])

    def _rise(self, height: float) -> Actions:
        if self._hand_pos()[2] < height:
            target = np.array([*self._hand_pos()[:2], height])
            yield from self._move(target, self._hand_mat(), OPEN, tol=0.02, max_steps=25)

    def _squeeze(self) -> Actions:
        """Close until the fingers stand still; their command takes 8 steps to ramp."""
        pose, hand, still = self._hand_pos(), self._hand_mat(), 0
        for step in range(14):
            width = self._width()
            yield self._towards(pose, hand, CLOSED)
            still = still + 1 if step > 4 and abs(self._width() - width) < 4e-4 else 0
            if still >= 2:
                return

    def _release(self) -> Actions:
        hand = self._hand_mat()
        yield from self._stay(OPEN, 7)
        yield from self._move(self._hand_pos() + [0, 0, 0.08], hand, OPEN, tol=0.02, max_steps=15)

    def _stay(self, gripper: float, n: int) -> Actions:
        for _ in range(n):
            yield np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])

    # ------------------------------------------------------------------------------------------------------- state

    def _hand_pos(self) -> np.ndarray:
        return np.array(self.simulator.data.site_xpos[self.simulator.compiled.arm.eef_site])

    def _hand_mat(self) -> np.ndarray:
        """Columns: closing axis, the axis across it, the approach direction."""
        return np.array(self.simulator.data.site_xmat[self.simulator.compiled.arm.eef_site].reshape(3, 3))

    def _hand_down(self) -> np.ndarray:
        return down(np.pi / 2)

    def _nearest(self, hand: np.ndarray) -> np.ndarray:
        """The pose or the same with the fingers exchanged, whichever turns less from the hand's start."""
        flipped = hand * [-1, -1, 1]
        start = self._hand_down()
        return min((hand, flipped), key=lambda pose: float(np.linalg.norm(rotation_vector(pose @ start.T))))

    def _width(self) -> float:
        fingers = self.simulator.data.qpos[self.simulator.compiled.arm.gripper_qpos]
        return float(fingers[0] - fingers[1])

    def _points(self, body: str) -> np.ndarray:
        """Surface points of the whole object that a body belongs to, (n, 3) in m."""
        model = self.simulator.model
        root = model.body_rootid[model.body(body).id]
        return self._geom_points(np.flatnonzero(model.body_rootid[model.geom_bodyid] == root), 0.003)

    def _body_points(self, body: int) -> np.ndarray:
        return self._geom_points(np.flatnonzero(self.simulator.model.geom_bodyid == body), 0.003)

    def _obstacles(self, body: str) -> np.ndarray:
        """Surface points of everything but the robot, the object itself, the floor and the walls, (n, 3) in m."""
        model = self.simulator.model
        roots = model.body_rootid[model.geom_bodyid]
        own = model.body_rootid[model.body(body).id]
        robot = model.body_rootid[self.simulator.compiled.arm.hand_body]
        small = model.geom_rbound < 0.4
        return self._geom_points(np.flatnonzero((roots != own) & (roots != robot) & (roots != 0) & small), 0.007)

    def _geom_points(self, geoms: np.ndarray, spacing: float) -> np.ndarray:
        model, data = self.simulator.model, self.simulator.data
        clouds = []
        for geom in geoms:
            if model.geom_contype[geom] == 0 and model.geom_conaffinity[geom] == 0:
                continue
            size = model.geom_size[geom]
            kind = model.geom_type[geom]
            if kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
                size = np.array([size[0], size[0], size[1]])
            elif kind != mujoco.mjtGeom.mjGEOM_BOX:
                continue
            clouds.append(box_surface(size, spacing) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))


def run_expert(simulator: Simulator, state: np.ndarray, max_steps: int, settle_steps: int = 10) -> Outcome:
    """Run one episode as the evaluation protocol does, and on until the object is released.

    Args:
        simulator: The task's simulator.
        state: Official initial state.
        max_steps: Control steps after settling within which the goal has to hold once.
        settle_steps: Control steps with an open gripper before.
    """
    simulator.reset(state)
    for _ in range(settle_steps):
        simulator.step(SETTLE_ACTION)
    expert = Expert(simulator)
    solved_at, cause = 0, ""
    for step in range(1, max_steps + 60):
        action = expert.act()
        if expert.done:
            break
        simulator.step(action)
        if simulator.success and not solved_at:
            solved_at = step
        if step >= max_steps and not solved_at:
            break
    success = 0 < solved_at <= max_steps
    if not success:
        cause = expert.phase
    return Outcome(success, solved_at or step, expert.done and simulator.success, cause)


# ----------------------------------------------------------------------------------------------------------- geometry


def plan_grasps(
    points: np.ndarray, obstacles: np.ndarray, options: GraspOptions, hand_yaw: float, n_best: int = 6
) -> list[Grasp]:
    """Top-down grasps whose straight descent is free, best first.

    Args:
        points: Surface points of the object, (n, 3) in m.
        obstacles: Surface points of all else, (m, 3) in m.
        options: What is sought.
        hand_yaw: The closing axis's present angle to x, rad.
        n_best: How many to return; they differ by 1 cm or 0.3 rad.
    """
    centre = 0.5 * (points.min(axis=0) + points.max(axis=0))
    reach = np.linalg.norm(points - centre, axis=1).max() + 0.12
    around = obstacles[np.linalg.norm((obstacles - centre)[:, :2], axis=1) < reach]
    everything = np.concatenate([points, around])
    found: list[Grasp] = []
    for yaw in np.linspace(0.0, np.pi, 16, endpoint=False):
        frame = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])  # columns: along, across
        local = np.column_stack([(points - centre)[:, :2] @ frame, points[:, 2]])
        world = np.column_stack([(everything - centre)[:, :2] @ frame, everything[:, 2]])
        for u, z, v, width, slant in _spans(local, options.max_width):
            if _blocked(world, u, v, z):
                continue
            turn = abs((yaw - hand_yaw + np.pi / 2) % np.pi - np.pi / 2)
            score = (
                -options.centering * np.hypot(u, v)
                - 30 * slant
                - 0.25 * turn
                - 40 * max(0.0, width - 0.062)
                - 5 * max(0.0, z - centre[2] - 0.005)
                - 5 * max(0.0, centre[2] - z - 0.03)
                - 1.2 * abs(float(frame[:, 0] @ options.avoid))
            )
            found.append(Grasp(np.array([*(centre[:2] + frame @ [u, v]), z]), float(yaw), float(score)))
    return _distinct(sorted(found, key=lambda grasp: -grasp.score), n_best)


def _spans(local: np.ndarray, max_width: float) -> Iterator[tuple[float, float, float, float, float]]:
    """What fits between the pads: along, height, across, width and slant, for every slab and depth."""
    bottom = local[:, 2].min()
    for v in np.arange(local[:, 1].min() + 0.004, local[:, 1].max() - 0.003, 0.006):
        slab = local[np.abs(local[:, 1] - v) < 0.0085]
        if not len(slab):
            continue
        heights = {round(max(slab[:, 2].max() - depth, bottom + TIP + 0.002), 4) for depth in GRASP_DEPTHS}
        for z in sorted(heights):
            band = slab[(slab[:, 2] > z - 0.006) & (slab[:, 2] < z + 0.012)]
            if len(band) < 3:
                continue
            band = band[np.argsort(band[:, 0])]
            cuts = np.flatnonzero(np.diff(band[:, 0]) > 0.016) + 1
            groups = np.split(band, cuts)
            for group in groups if len(groups) == 1 else [*groups, band]:
                width = group[-1, 0] - group[0, 0]
                if width <= max_width:
                    left, right = group[group[:, 1] < v, 0], group[group[:, 1] >= v, 0]
                    slant = abs(left.mean() - right.mean()) if len(left) and len(right) else 0.01
                    yield 0.5 * (group[0, 0] + group[-1, 0]), z, v, width, slant


def _blocked(world: np.ndarray, u: float, v: float, z: float) -> bool:
    """Whether anything lies where the open fingers or the palm descend."""
    along, across = np.abs(world[:, 0] - u), np.abs(world[:, 1] - v)
    fingers = (along > FINGER_INNER) & (along < FINGER_OUTER) & (across < FINGER_HALF) & (world[:, 2] > z - TIP)
    palm = (along < PALM_HALF[0]) & (across < PALM_HALF[1]) & (world[:, 2] > z + PALM)
    return bool(np.any(fingers | palm))


def _distinct(grasps: list[Grasp], n_best: int) -> list[Grasp]:
    kept: list[Grasp] = []
    for grasp in grasps:
        if all(np.linalg.norm(grasp.pos - k.pos) > 0.01 or abs(grasp.yaw - k.yaw) > 0.3 for k in kept):
            kept.append(grasp)
        if len(kept) == n_best:
            break
    return kept


def grasp_options(body: str, avoid: tuple[float, float]) -> GraspOptions:
    """Rims of bowls and mugs, necks of bottles, else the middle."""
    if "bowl" in body:
        return GraspOptions(0.022, 2.0, avoid)
    if "mug" in body:
        return GraspOptions(0.030, 2.0, avoid)
    if "bottle" in body:
        return GraspOptions(0.070, 3.0, avoid)
    return GraspOptions(avoid=avoid)


def box_surface(half: np.ndarray, spacing: float) -> np.ndarray:
    """Points on a box's surface about ``spacing`` m apart, in its frame, (n, 3)."""
    axes = [np.linspace(-h, h, max(2, int(np.ceil(2 * h / spacing)) + 1)) for h in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(grid[np.any(np.isclose(np.abs(grid), half), axis=1)])


def corridor_height(points: np.ndarray, start: np.ndarray, end: np.ndarray, half_width: float = 0.11) -> float:
    """Highest point within ``half_width`` m of the straight line from start to end in the plane; 0 if none."""
    line = end - start
    t = np.clip((points[:, :2] - start) @ line / max(float(line @ line), 1e-9), 0, 1)
    near = np.linalg.norm(points[:, :2] - start - t[:, None] * line, axis=1) < half_width
    return float(points[near, 2].max()) if near.any() else 0.0


def highest_near(points: np.ndarray, xy: np.ndarray, default: float, radius: float = 0.03) -> float:
    """Height in m of the highest point within a radius in the plane."""
    near = np.linalg.norm(points[:, :2] - xy, axis=1) < radius
    return float(points[near, 2].max()) if near.any() else float(default)


def down(yaw: float) -> np.ndarray:
    """Hand pointing down with its closing axis at an angle to x, (3, 3)."""
    closing = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return np.column_stack([closing, np.cross(DOWN, closing), DOWN])


def tilted(pull: np.ndarray, angle: float, vertical: bool) -> np.ndarray:
    """Hand tilted from down by an angle so that it points against ``pull``, (3, 3).

    Args:
        pull: Horizontal unit vector (3,).
        angle: Tilt in rad.
        vertical: Close in the vertical plane of the pull (around a horizontal handle) or across it.
    """
    approach = -np.sin(angle) * pull + np.cos(angle) * DOWN
    across = np.cross([0.0, 0.0, 1.0], pull)
    closing = np.cross(across, approach) if vertical else across
    return np.column_stack([closing, np.cross(approach, closing), approach])


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle in rad, (3,), of a rotation matrix (3, 3)."""
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(matrix).ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def moved_body(predicate: goals.Predicate) -> str | None:
    """The body that a predicate asks to be moved; None for a joint."""
    if isinstance(predicate, goals.JointThreshold):
        return None
    return predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body


def _rank(predicate: goals.Predicate) -> int:
    """Open and turn on first, then place, close last."""
    if isinstance(predicate, goals.JointThreshold):
        return 3 if predicate.every else 0
    return 2 if isinstance(predicate, goals.InSite) else 1

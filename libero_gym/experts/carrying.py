"""Skills that bring an object somewhere: pick and place from above, or put in from the side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from libero_gym.experts.arm import CLOSED, OPEN, START_HAND, Actions, Arm
from libero_gym.experts.geometry import UP, corridor_height, down, highest_near, long_axis, tilted, yaw_of
from libero_gym.experts.grasps import FAR, PALM_LENGTH, TIP, Grasp, grasp_options, plan_grasps
from libero_gym.experts.joints import Joints
from libero_gym.experts.pushing import is_hollow, push_plate, shove_from_inside
from libero_gym.simulation import goals

Placement = goals.OnObject | goals.OnSite | goals.InSite
SIDEWAYS_TILT = np.deg2rad(70.0)  # of the hand that reaches into something with a roof


class Carrying:
    """Moves the bodies that a goal names.

    Args:
        arm: The arm that moves them.
        joints: The scene's drawers.
    """

    def __init__(self, arm: Arm, joints: Joints) -> None:
        self.arm, self.joints = arm, joints
        self.model, self.data = arm.simulator.model, arm.simulator.data
        self.goal = arm.simulator.compiled.goal
        self._failed_grasps: dict[str, int] = {}
        bodies = {moved_body(predicate) for predicate in self.goal if isinstance(predicate, Placement)}
        self._start_low = {body: arm.points(body)[:, 2].min() for body in bodies}

    def achieve(self, predicate: Placement) -> Actions:
        """Try once to bring the predicate's body to a place where the predicate holds; losing the body ends the try."""
        body = moved_body(predicate)
        if isinstance(predicate, goals.OnSite) and "plate" in body:
            yield from push_plate(self.arm, predicate)
        elif isinstance(predicate, goals.InSite) and self._has_roof(predicate):
            yield from self._insert(predicate)
        else:
            yield from self._pick(body, self._avoided(predicate))
            if self.arm.holds(body):
                yield from self._place(predicate)

    def make_room(self, body: str, drawer: str) -> Actions:
        """Move an object away if an opened drawer would hang over it."""
        opened = self.joints.opened_points(drawer)
        if np.linalg.norm((opened - self.data.body(body).xpos)[:, :2], axis=1).min() > self._radius(body) + 0.02:
            return
        spot = self._free_spot(body, opened)
        if spot is None:
            return
        if is_hollow(self.arm, body):
            yield from shove_from_inside(self.arm, body, spot[:2])
            return
        yield from self._pick(body, (0.0, 0.0))
        if self.arm.holds(body):
            yield from self._bring(body, spot)

    # ------------------------------------------------------------------------------------------------------- pick

    def _pick(self, body: str, avoid: tuple[float, float]) -> Actions:
        arm, data = self.arm, self.data
        arm.phase = f"pick {body}"
        for _ in range(3):
            planned_at = data.body(body).xpos.copy()
            grasp = self._grasp(body, avoid)
            if grasp is None:
                yield from arm.rise(arm.points(body)[:, 2].max() + 0.05)
                yield from arm.stay(OPEN, 5)
                return
            hand = down(grasp.yaw)
            yield from self._go_over(grasp, body)
            if np.linalg.norm(data.body(body).xpos - planned_at) < 0.004:
                break
            yield from arm.stay(OPEN, 6)
        assert grasp is not None
        yield from arm.move(grasp.pos, hand, OPEN, tol=0.005, angle_tol=0.08, max_steps=40)
        yield from arm.squeeze()
        before = data.body(body).xpos[2]
        yield from arm.move(arm.pos() + 0.06 * UP, hand, CLOSED, tol=0.015, max_steps=20)
        if data.body(body).xpos[2] - before < 0.015 or not arm.holds(body):
            self._failed_grasps[body] = self._failed_grasps.get(body, 0) + 1
            yield from arm.release()

    def _go_over(self, grasp: Grasp, body: str) -> Actions:
        """Go to 7 cm above a grasp, high enough over whatever stands on the way."""
        arm, hand = self.arm, down(grasp.yaw)
        above = grasp.pos + 0.07 * UP
        start = arm.pos()
        clear = corridor_height(arm.obstacles(body), start[:2], above[:2], half_width=0.07) + TIP + 0.015
        if arm.mat()[2, 2] > -0.8:  # a hand that is tilted this far may lock the arm's elbow
            aside = np.array([*(0.5 * (start + above)[:2]), max(clear, start[2])])
            yield from arm.move(aside, hand, OPEN, tol=0.05, max_steps=40, angle_tol=0.6)
        yield from arm.rise(max(clear, arm.points(body)[:, 2].max() + 0.05))
        if clear > above[2]:
            yield from arm.move(np.array([*above[:2], clear]), hand, OPEN, tol=0.02, max_steps=70)
        yield from arm.move(above, hand, OPEN, tol=0.02, max_steps=70)

    def _grasp(self, body: str, avoid: tuple[float, float]) -> Grasp | None:
        """The best grasp; after each failure the next best one."""
        arm = self.arm
        options = replace(grasp_options(body, avoid), base=self._base())
        found = plan_grasps(arm.points(body), arm.obstacles(body), options, yaw_of(arm.mat()))
        return found[self._failed_grasps.get(body, 0) % len(found)] if found else None

    def _avoided(self, predicate: Placement) -> tuple[float, float]:
        """Direction along which the fingers should not close, (2,); zeros for none.

        The palm is 21 cm wide: it must not lie across a drawer's front, nor across a second pot.
        """
        drawer = self.joints.drawer_of(predicate)
        if drawer is not None:
            return self._along(drawer)
        return (1.0, 0.0) if self._shares_target(predicate) and "moka" in moved_body(predicate) else (0.0, 0.0)

    def _along(self, drawer: str) -> tuple[float, float]:
        """The direction in the plane in which the drawer opens."""
        pull = self.joints.pull(drawer)
        return float(pull[0]), float(pull[1])

    # ------------------------------------------------------------------------------------------------------ place

    def _place(self, predicate: Placement) -> Actions:
        body = moved_body(predicate)
        yield from self._bring(body, self._target(predicate), self._turn_to_fit(predicate))

    def _bring(self, body: str, target: np.ndarray, turn: float | None = None) -> Actions:
        """Carry a held object over what is on the way, lower it and let it go.

        Args:
            body: The object.
            target: xy of the body's origin and z of its lowest point, (3,) in m.
            turn: Angle in rad by which to turn the object on the way, for a tight fit. Its middle then goes to the
                target, instead of its origin. None for no turn.
        """
        arm, data = self.arm, self.data
        arm.phase = f"transport {body}"
        hand = down(yaw_of(arm.mat()))
        start = arm.pos()

        def offset() -> np.ndarray:
            points = arm.points(body)
            middle = 0.5 * (points.min(axis=0) + points.max(axis=0))
            return (data.body(body).xpos if turn is None else middle)[:2] - arm.pos()[:2]

        hang = start[2] - arm.points(body)[:, 2].min()
        way = arm.obstacles(body), start[:2], target[:2] - offset()
        clear, wide = (corridor_height(*way, half) + hang for half in (self._radius(body), 0.11))
        # The object always passes over the target and over what it would hit. Things beside the way, which only the
        # palm could hit, raise the path by 18 cm at most.
        height = max(target[2] + hang + 0.03, clear + 0.015, min(wide + 0.025, start[2] + 0.18))
        yield from arm.move(np.array([*start[:2], height]), hand, CLOSED, tol=0.02, max_steps=30)
        hand = down(yaw_of(hand) + (turn or 0.0))
        loose, tight = ((0.02, 0.3), (0.01, 0.3)), ((0.02, 0.1), (0.006, 0.05), (0.004, 0.05))  # m and rad
        for near, angle_tol in loose if turn is None else tight:
            above = np.array([*(target[:2] - offset()), height])
            yield from arm.move(above, hand, CLOSED, tol=near, max_steps=80, angle_tol=angle_tol)
            if not arm.holds(body):
                yield from arm.release()
                return
        arm.phase = f"lower {body}"
        hang = arm.pos()[2] - arm.points(body)[:, 2].min()
        low = np.array([*(target[:2] - offset()), target[2] + hang])
        yield from arm.move(low, hand, CLOSED, tol=0.008, max_steps=45)
        yield from arm.release()

    def _target(self, predicate: Placement) -> np.ndarray:
        """The target of `_bring`, (3,) in m: xy of the body's origin, and z of its lowest point when it is let go."""
        data, body = self.data, moved_body(predicate)
        obstacles = self.arm.obstacles(body)
        if isinstance(predicate, goals.OnObject):
            centre = data.body(predicate.lower_body).xpos
            if "plate" in predicate.lower_body:
                return centre + [0, 0, 0.017]
            return np.array([*centre[:2], highest_near(obstacles, centre[:2], centre[2]) + 0.012])
        site = data.site(predicate.site).xpos.copy()
        if "basket" in predicate.site:
            return self._basket_target(predicate, site)
        drawer = self.joints.drawer_of(predicate)
        if drawer is not None:
            site += 0.018 * self.joints.pull(drawer)
        if isinstance(predicate, goals.InSite):
            obstacles = obstacles[obstacles[:, 2] < site[2]]
        elif predicate.parent_geoms is None:
            return np.array([*site[:2], self._start_low[body] + 0.006])
        else:
            site[0] += 0.044 * self._shares_target(predicate)
        return np.array([*site[:2], highest_near(obstacles, site[:2], site[2]) + 0.012])

    def _basket_target(self, predicate: Placement, site: np.ndarray) -> np.ndarray:
        own = self.arm.points(moved_body(predicate))[:, 2]
        owner = self.model.site_bodyid[self.model.site(getattr(predicate, "site", "")).id]
        rim = self.arm.points(self.model.body(owner).name)[:, 2].max()
        site[1] += 0.028 * self._shares_target(predicate)
        return np.array([*site[:2], rim - min(0.6 * (own.max() - own.min()), 0.05)])

    def _shares_target(self, predicate: Placement) -> float:
        """From -1 for the first to +1 for the last of several objects that go to one site; 0 for one alone."""
        site = getattr(predicate, "site", None)
        both = [p for p in self.goal if site and getattr(p, "site", None) == site]
        return 0.0 if len(both) < 2 else 2 * both.index(predicate) / (len(both) - 1) - 1

    def _turn_to_fit(self, predicate: Placement) -> float | None:
        """Angle in rad that lays a long object along a narrow site; None if either is about as long as wide."""
        if not isinstance(predicate, goals.InSite) or max(predicate.size[:2]) < 1.5 * min(predicate.size[:2]):
            return None
        own = long_axis(self.arm.points(moved_body(predicate)))
        if own is None:
            return None
        axis = self.data.site(predicate.site).xmat.reshape(3, 3)[:2, int(np.argmax(predicate.size[:2]))]
        turn = np.arctan2(own[0] * axis[1] - own[1] * axis[0], own @ axis)
        yaw, start = yaw_of(self.arm.mat()), yaw_of(START_HAND)
        ends = [float(turn + k * np.pi) for k in (-2, -1, 0, 1, 2)]
        return min(ends, key=lambda end: abs(yaw + end - start))  # the wrist's range is limited

    def _free_spot(self, body: str, opened: np.ndarray) -> np.ndarray | None:
        """The nearest place on the table that an opened drawer leaves free, (3,) as `_bring` takes it; None if none."""
        centre, radius = self.data.body(body).xpos[:2], self._radius(body)
        others, drawer = self.arm.obstacles(body)[:, :2], opened[:, :2]
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        rings = [centre + r * np.array([np.cos(a), np.sin(a)]) for r in np.arange(0.05, 0.3, 0.01) for a in angles]
        free = [
            xy
            for xy in rings
            if np.linalg.norm(others - xy, axis=1).min() > radius + 0.008
            and np.linalg.norm(drawer - xy, axis=1).min() > radius + 0.04
        ]
        if not free:
            return None
        spot = next((xy for xy in free if np.linalg.norm(xy - self._base()) < FAR), free[0])
        return np.array([*spot, self._start_low[body] + 0.006])

    def _base(self) -> tuple[float, float]:
        """Position of the arm's base in the plane, m."""
        x, y, _ = self.data.body("robot0_base").xpos
        return float(x), float(y)

    def _radius(self, body: str) -> float:
        """Largest distance in m in the plane from the body's origin to a point of the object."""
        return float(np.linalg.norm((self.arm.points(body) - self.data.body(body).xpos)[:, :2], axis=1).max())

    # ----------------------------------------------------------------------------------------------- from the side

    def _has_roof(self, predicate: goals.InSite) -> bool:
        """Whether something covers the site, so that nothing can be lowered into it."""
        site = self.data.site(predicate.site).xpos
        return highest_near(self.arm.obstacles(predicate.body), site[:2], 0.0, radius=0.02) > site[2] + 0.03

    def _insert(self, predicate: goals.InSite) -> Actions:
        """Grasp with the hand nearly level, put the object through the open side, and leave the same way."""
        arm, body, data = self.arm, predicate.body, self.data
        pull, target = self._opening(predicate)
        hand = arm.nearest(tilted(pull, SIDEWAYS_TILT, vertical=False))
        arm.phase = f"pick {body}"
        spot = self._side_grasp(body, hand)
        if spot is None:
            yield from arm.stay(OPEN, 5)
            return
        above = spot - 0.02 * hand[:, 2] + 0.08 * UP
        yield from arm.rise(above[2])
        yield from arm.move(above, hand, OPEN, tol=0.01, angle_tol=0.1, max_steps=80)
        yield from arm.move(spot, hand, OPEN, tol=0.006, angle_tol=0.08, max_steps=40)
        yield from arm.squeeze()
        arm.phase = f"insert {body}"
        low = arm.points(body)[:, 2].min()
        yield from arm.move(arm.pos() + (target[2] - low) * UP, hand, CLOSED, tol=0.008, max_steps=30)
        if not arm.holds(body):
            self._failed_grasps[body] = self._failed_grasps.get(body, 0) + 1
            yield from arm.release(0.1 * pull)
            return
        offset = data.body(body).xpos - arm.pos()
        outside = max(0.12, float((data.body(body).xpos - target) @ pull))
        for back, tol, max_steps in ((outside, 0.012, 60), (0.0, 0.008, 60)):
            where = target - offset + back * pull
            yield from arm.move(np.array([*where[:2], arm.pos()[2]]), hand, CLOSED, tol=tol, max_steps=max_steps)
        yield from arm.release(0.14 * pull)

    def _opening(self, predicate: goals.InSite) -> tuple[np.ndarray, np.ndarray]:
        """The side from which a roofed site is open: unit vector out of it (3,), and the target (3,) as in `_bring`.

        The object goes midway between the walls, its outer end level with the site's edge.
        """
        site = self.data.site(predicate.site)
        points = self.arm.obstacles(predicate.body) - site.xpos
        level = points[np.abs(points[:, 2]) < 0.05]
        ways = [np.array(way) for way in ((1.0, 0, 0), (-1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0))]
        rooms = [_room(level, way) for way in ways]
        pull = ways[int(np.argmax(rooms))]
        side = np.cross(UP, pull)
        half = np.abs(site.xmat.reshape(3, 3) @ predicate.size) @ np.abs(pull)
        own = self.arm.points(predicate.body) - self.data.body(predicate.body).xpos
        target = site.xpos + (half - (own @ pull).max()) * pull
        target += 0.5 * (_room(level, side) - _room(level, -side)) * side
        below = points[points[:, 2] < 0] + site.xpos
        target[2] = highest_near(below, site.xpos[:2], site.xpos[2]) + 0.01
        return pull, target

    def _side_grasp(self, body: str, hand: np.ndarray) -> np.ndarray | None:
        """The point to grasp with a tilted hand, (3,) in m, planned in a frame in which that hand points down."""
        points = self.arm.points(body)
        span = np.arange(-0.25, 0.25, 0.01)
        table = np.stack(np.meshgrid(span, span, [0.0]), axis=-1).reshape(-1, 3) + [
            *points.mean(axis=0)[:2],
            points[:, 2].min(),
        ]
        upright = down(0.0) @ hand.T
        obstacles = np.concatenate([self.arm.obstacles(body), table])
        options = replace(grasp_options(body), yaws=(0.0,), palm_length=PALM_LENGTH)
        found = plan_grasps(points @ upright.T, obstacles @ upright.T, options, 0.0)
        return upright.T @ found[self._failed_grasps.get(body, 0) % len(found)].pos if found else None


def moved_body(predicate: Placement) -> str:
    """The body that a predicate asks to be somewhere."""
    return predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body


def _room(points: np.ndarray, way: np.ndarray) -> float:
    """Free distance in m from the origin along a horizontal unit vector, 3 cm wide to either side; at most 0.3."""
    ahead = points @ way
    aside = np.abs(points @ np.cross(UP, way))
    hit = ahead[(aside < 0.03) & (ahead > 0)]
    return float(min(hit.min(), 0.3)) if len(hit) else 0.3

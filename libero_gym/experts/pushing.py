"""Skills that move an object over the table without lifting it."""

from __future__ import annotations

import numpy as np

from libero_gym.experts.arm import CLOSED, OPEN, START_HAND, Actions, Arm
from libero_gym.experts.geometry import UP, highest_near
from libero_gym.experts.grasps import TIP
from libero_gym.simulation import goals

PUSH_SPEED, PUSH_PRESS = 0.3, 0.1  # components of the actions that drag a plate: forward and down


def push_plate(arm: Arm, predicate: goals.OnSite) -> Actions:
    """Drag a plate over the table with the closed hand on its middle: its rim is too thin to grasp.

    The hand holds the plate by friction, which is hardly stronger than the table's. A hand that presses harder stops
    the plate, one that moves faster climbs over the rim, and one that presses on the rim tips the plate.
    """
    data = arm.simulator.data
    arm.phase = f"push {predicate.body}"
    plate, target = data.body(predicate.body).xpos, data.site(predicate.site).xpos
    spot = plate + 0.02 * UP
    yield from arm.move(spot + 0.07 * UP, START_HAND, CLOSED, tol=0.02, max_steps=60)
    yield from arm.move(spot, START_HAND, CLOSED, tol=0.008, max_steps=30)
    for _ in range(200):
        gap = (target - plate)[:2]
        if np.linalg.norm(gap) < 0.015 or np.linalg.norm((arm.pos() - plate)[:2]) > 0.075:
            break
        action = arm.towards(arm.pos(), START_HAND, CLOSED)
        action[:3] = [*(PUSH_SPEED * gap / np.linalg.norm(gap)), -PUSH_PRESS]
        yield action
    yield from arm.move(arm.pos() + 0.08 * UP, START_HAND, CLOSED, tol=0.02, max_steps=15)


def shove_from_inside(arm: Arm, body: str, spot: np.ndarray) -> Actions:
    """Push a hollow object to a spot (2,) on the table from inside, with the closed hand over its floor."""
    arm.phase = f"shove {body}"
    origin = arm.simulator.data.body(body).xpos
    floor = _floor(arm, body)
    inside = np.array([*origin[:2], floor + TIP + 0.008])
    yield from arm.move(inside + 0.06 * UP, START_HAND, CLOSED, tol=0.02, max_steps=60)
    yield from arm.move(inside, START_HAND, CLOSED, tol=0.01, max_steps=30)
    for _ in range(40):
        gap = spot - origin[:2]
        if np.linalg.norm(gap) < 0.01:
            break
        step = gap * (1 + 0.02 / np.linalg.norm(gap))
        yield arm.towards(np.array([*(arm.pos()[:2] + step), inside[2]]), START_HAND, CLOSED)
    yield from arm.move(arm.pos() + 0.08 * UP, START_HAND, OPEN, tol=0.03, max_steps=15)


def is_hollow(arm: Arm, body: str) -> bool:
    """Whether an object is open at the top, like a bowl."""
    return bool(_floor(arm, body) < arm.points(body)[:, 2].max() - 0.02)


def _floor(arm: Arm, body: str) -> float:
    """Height in m of the object's highest point near its middle."""
    return highest_near(arm.points(body), arm.simulator.data.body(body).xpos[:2], 0.0, radius=0.02)

"""LIBERO's goal predicates and their progress on the device: the records of `simulation.goals` as tables, and kernels.

A scene has a row per task, with a slot per predicate of its goal; slots behind them ask whether a burner's knob is
turned on. Formulas are those of `simulation.goals` and `rewards.TaskProgress`, in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import warp as wp

from libero_gym.gpu.arm_kernels import to_vec3d
from libero_gym.rewards import NEARNESS_HALF, NEARNESS_SCALE, SHARES
from libero_gym.simulation import goals
from libero_gym.simulation.compiled import CompiledTask

wp.set_module_options({"enable_backward": False})

# Kinds of slots; an empty slot holds.
EMPTY, ON_OBJECT, ON_SITE, IN_SITE, JOINT, UP = range(6)
_KINDS: dict[type, int] = {
    goals.OnObject: ON_OBJECT,
    goals.OnSite: ON_SITE,
    goals.InSite: IN_SITE,
    goals.JointThreshold: JOINT,
    goals.Up: UP,
}
_WORDS = sorted(kind.__name__ for kind in _KINDS)
_EMPTY = wp.constant(EMPTY)
_ON_OBJECT = wp.constant(ON_OBJECT)
_ON_SITE = wp.constant(ON_SITE)
_IN_SITE = wp.constant(IN_SITE)
_JOINT = wp.constant(JOINT)
_RADIUS = wp.constant(wp.float64(goals.ON_TOP_RADIUS))
_ABOVE = wp.constant(wp.float64(goals.ABOVE_SITE_HEIGHT))
_SLACK = wp.constant(wp.float64(goals.BELOW_SITE_SLACK))
_FLOOR_SLACK = wp.constant(wp.float64(goals.BOX_FLOOR_SLACK))
_UP_HEIGHT = wp.constant(wp.float64(goals.UP_HEIGHT))
_NEARNESS_RATE = wp.constant(wp.float64(NEARNESS_HALF / NEARNESS_SCALE))
_REACH, _PLACE = (wp.constant(wp.float64(share)) for share in SHARES[:2])


@wp.struct
class GoalTable:
    """Predicates of a scene's tasks; the first axes are tasks (t) and slots (p).

    Attributes:
        n_goal: Number of slots that belong to goals; those behind are burners.
        kind: Kind of each slot, (t, p).
        body, other: The object's body, and the lower object's body or the site, (t, p); -1 where there is none.
        size: Half sizes of the site's box in m, (t, p).
        touches: Whether two groups of geoms have to touch, (t, p).
        groups: Bits of each geom, (t, p, ngeom): 1 for the first group, 2 for the second.
        joints, joint_bodies: Addresses in qpos and bodies of a threshold's joints, (t, p, j); -1 where there is none.
        spans: Lengths of the joints' ranges, (t, p, j).
        threshold, sign: Position to compare with, and 1 if the predicate holds above it, -1 below, (t, p).
        inclusive, every: Whether it holds at the threshold, and whether all joints have to hold, (t, p).
    """

    n_goal: int
    kind: wp.array2d[int]
    body: wp.array2d[int]
    other: wp.array2d[int]
    size: wp.array2d[wp.vec3d]
    touches: wp.array2d[int]
    groups: wp.array3d[int]
    joints: wp.array3d[int]
    joint_bodies: wp.array3d[int]
    spans: wp.array3d[wp.float64]
    threshold: wp.array2d[wp.float64]
    sign: wp.array2d[wp.float64]
    inclusive: wp.array2d[int]
    every: wp.array2d[int]


@wp.struct
class Bodies:
    """MuJoCo Warp's arrays that predicates read, per world."""

    qpos: wp.array2d[float]
    xpos: wp.array2d[wp.vec3]
    xipos: wp.array2d[wp.vec3]
    site_xpos: wp.array2d[wp.vec3]
    site_xmat: wp.array2d[wp.mat33]


def goal_table(tasks: Sequence[CompiledTask], device: Any) -> GoalTable:
    """The table of a scene's tasks, which have the same burners."""
    model = tasks[0].physics
    n_goal = max(len(task.goal) for task in tasks)
    slots = [
        [*task.goal, *(None,) * (n_goal - len(task.goal)), *(burner.knob for burner in task.burners)] for task in tasks
    ]
    shape = len(tasks), len(slots[0])
    n_joints = max([len(slot.joints) for row in slots for slot in row if isinstance(slot, goals.JointThreshold)] + [1])
    columns: dict[str, np.ndarray] = {
        name: np.zeros(shape, dtype=np.int32) for name in ("kind", "body", "touches", "inclusive", "every")
    }
    columns["other"] = np.full(shape, -1, dtype=np.int32)
    columns |= {name: np.zeros(shape) for name in ("threshold", "sign")}
    columns |= {name: np.full((*shape, n_joints), -1, dtype=np.int32) for name in ("joints", "joint_bodies")}
    columns |= {"size": np.zeros((*shape, 3)), "spans": np.ones((*shape, n_joints))}
    columns["groups"] = np.zeros((*shape, model.ngeom), dtype=np.int32)
    for place in np.ndindex(*shape):
        predicate = slots[place[0]][place[1]]
        if predicate is not None:
            if type(predicate) not in _KINDS:
                raise NotImplementedError(
                    f"The goal {predicate.label} of '{tasks[place[0]].task.name}' cannot be judged in worlds on a "
                    f"device, which know {', '.join(_WORDS)}; take backend='processes'."
                )
            for name, value in _entries(predicate, model).items():
                columns[name][(*place, slice(np.size(value))) if np.ndim(value) else place] = value
            _mark_groups(columns, place, predicate, model)
    table = GoalTable()
    table.n_goal = n_goal
    for name, values in columns.items():
        kind = {"i": wp.int32, "f": wp.vec3d if name == "size" else wp.float64}[values.dtype.kind]
        setattr(table, name, wp.array(values, dtype=kind, device=device))
    return table


def _entries(predicate: goals.Predicate, model: mujoco.MjModel) -> dict[str, Any]:
    """What the table's columns hold for a predicate, apart from its groups of geoms."""
    entries: dict[str, Any] = {"kind": _KINDS[type(predicate)]}
    if isinstance(predicate, goals.JointThreshold):
        ids = [model.joint(name).id for name in predicate.joints]
        low, high = model.jnt_range[ids].T
        return entries | {
            "joints": model.jnt_qposadr[ids],
            "joint_bodies": model.jnt_bodyid[ids],
            "spans": np.maximum(high - low, 1e-6),
            "threshold": predicate.threshold,
            "sign": 1.0 if predicate.above else -1.0,
            "inclusive": predicate.inclusive,
            "every": predicate.every,
        }
    if isinstance(predicate, goals.OnObject):
        return entries | {
            "body": model.body(predicate.upper_body).id,
            "other": model.body(predicate.lower_body).id,
            "touches": 1,
        }
    entries["body"] = model.body(predicate.body).id
    if isinstance(predicate, goals.Up):
        return entries
    assert isinstance(predicate, (goals.OnSite, goals.InSite))
    entries |= {"other": model.site(predicate.site).id, "size": predicate.size}
    return entries | {"touches": isinstance(predicate, goals.OnSite) and predicate.parent_geoms is not None}


def _mark_groups(columns: dict[str, np.ndarray], place: tuple[int, ...], predicate: Any, model: mujoco.MjModel) -> None:
    """Set the bits of the geoms that have to touch; those that cannot collide are not in the model."""
    pairs: dict[type, tuple[str, str]] = {
        goals.OnObject: ("upper_geoms", "lower_geoms"),
        goals.OnSite: ("body_geoms", "parent_geoms"),
    }
    for bit, attribute in zip((1, 2), pairs.get(type(predicate), ()), strict=False):
        for name in getattr(predicate, attribute) or ():
            index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)
            if index >= 0:
                columns["groups"][(*place, index)] |= bit


@wp.kernel
def find_touching(
    n_contacts: wp.array[int],
    geom: wp.array[wp.vec2i],
    world: wp.array[int],
    task: wp.array[int],
    table: GoalTable,
    touching: wp.array2d[int],
):
    """Set the flags (n, p) of slots whose two groups of geoms touch; a thread per contact and slot."""
    contact, slot = wp.tid()
    if contact >= n_contacts[0]:
        return
    row = task[world[contact]]
    if table.touches[row, slot] == 0 or geom[contact][0] < 0 or geom[contact][1] < 0:
        return
    first = table.groups[row, slot, geom[contact][0]]
    second = table.groups[row, slot, geom[contact][1]]
    if ((first & 1) != 0 and (second & 2) != 0) or ((first & 2) != 0 and (second & 1) != 0):
        touching[world[contact], slot] = 1


@wp.func
def _turned(matrix: wp.mat33, vector: wp.vec3d):
    result = wp.vec3d()
    for i in range(3):
        for j in range(3):
            result[i] = result[i] + wp.float64(matrix[i, j]) * vector[j]
    return result


@wp.func
def _joints_hold(table: GoalTable, row: int, slot: int, bodies: Bodies, world: int):
    held = int(0)
    count = int(0)
    for k in range(table.joints.shape[2]):
        address = table.joints[row, slot, k]
        if address >= 0:
            count += 1
            beyond = (wp.float64(bodies.qpos[world, address]) - table.threshold[row, slot]) * table.sign[row, slot]
            if beyond > wp.float64(0.0) or (beyond == wp.float64(0.0) and table.inclusive[row, slot] != 0):
                held += 1
    if table.every[row, slot] != 0:
        return held == count
    return held > 0


@wp.func
def _holds(table: GoalTable, row: int, slot: int, bodies: Bodies, world: int, touching: int):
    kind = table.kind[row, slot]
    if kind == _EMPTY:
        return True
    if kind == _JOINT:
        return _joints_hold(table, row, slot, bodies, world)
    if table.touches[row, slot] != 0 and touching == 0:
        return False
    position = to_vec3d(bodies.xpos[world, table.body[row, slot]])
    size = table.size[row, slot]
    if kind == _ON_OBJECT:
        delta = to_vec3d(bodies.xpos[world, table.other[row, slot]]) - position
        across = wp.sqrt(delta[0] * delta[0] + delta[1] * delta[1])
        return delta[2] <= wp.float64(0.0) and across < _RADIUS
    if kind == _ON_SITE:
        # The site's matrix, where its transpose would turn into its frame: LIBERO's own way; see `goals.OnSite`.
        site = table.other[row, slot]
        local = _turned(bodies.site_xmat[world, site], position - to_vec3d(bodies.site_xpos[world, site]))
        over = wp.abs(local[0]) < size[0] and wp.abs(local[1]) < size[1]
        return over and size[2] - _SLACK < local[2] and local[2] < size[2] + _ABOVE
    if kind == _IN_SITE:
        centre = to_vec3d(bodies.site_xpos[world, table.other[row, slot]])
        half = _turned(bodies.site_xmat[world, table.other[row, slot]], size)
        for k in range(3):
            floor = wp.float64(0.0)
            if k == 2:
                floor = _FLOOR_SLACK
            reach = wp.abs(half[k])
            if position[k] <= centre[k] - reach - floor or position[k] >= centre[k] + reach:
                return False
        return True
    return position[2] >= _UP_HEIGHT


@wp.func
def _nearness(distance: wp.float64):
    return wp.float64(1.0) - wp.tanh(_NEARNESS_RATE * distance)


@wp.func
def _progress(table: GoalTable, row: int, slot: int, bodies: Bodies, world: int, hand: wp.vec3d):
    """Reach and place of a predicate that does not hold; see `rewards.TaskProgress`."""
    kind = table.kind[row, slot]
    nearest = wp.float64(1e30)
    done = wp.float64(0.0)
    if kind == _JOINT:
        if table.every[row, slot] != 0:
            done = wp.float64(1.0)
        for k in range(table.joints.shape[2]):
            if table.joints[row, slot, k] >= 0:
                place = to_vec3d(bodies.xipos[world, table.joint_bodies[row, slot, k]])
                nearest = wp.min(nearest, wp.length(place - hand))
                lack = table.threshold[row, slot] - wp.float64(bodies.qpos[world, table.joints[row, slot, k]])
                share = lack * table.sign[row, slot] / table.spans[row, slot, k]
                own = wp.float64(1.0) - wp.clamp(share, wp.float64(0.0), wp.float64(1.0))
                if table.every[row, slot] != 0:
                    done = wp.min(done, own)
                else:
                    done = wp.max(done, own)
        return _REACH * _nearness(nearest) + _PLACE * done
    position = to_vec3d(bodies.xpos[world, table.body[row, slot]])
    target = wp.vec3d(position[0], position[1], _UP_HEIGHT)
    if kind == _ON_OBJECT:
        target = to_vec3d(bodies.xpos[world, table.other[row, slot]])
    if kind != _ON_OBJECT and table.other[row, slot] >= 0:
        target = to_vec3d(bodies.site_xpos[world, table.other[row, slot]])
    return _REACH * _nearness(wp.length(position - hand)) + _PLACE * _nearness(wp.length(target - position))


@wp.kernel
def judge(
    begins: int,
    table: GoalTable,
    task: wp.array[int],
    bodies: Bodies,
    touching: wp.array2d[int],
    sample: wp.array2d[float],
    flags: wp.array2d[int],
    phi: wp.array2d[wp.float64],
):
    """Write whether goals hold, which burners burn and are shown, and the potential of progress.

    ``flags`` (n, 1 + 2 b) holds success, the burners that burn, and those that the next frame shows: what held at the
    end of the control step before, except where an episode ``begins``.
    """
    world = wp.tid()
    row = task[world]
    hand = wp.vec3d(wp.float64(sample[world, 0]), wp.float64(sample[world, 1]), wp.float64(sample[world, 2]))
    count = wp.float64(0.0)
    total = wp.float64(0.0)
    success = int(1)
    for slot in range(table.n_goal):
        if table.kind[row, slot] != _EMPTY:
            count += wp.float64(1.0)
            if _holds(table, row, slot, bodies, world, touching[world, slot]):
                total += wp.float64(1.0)
            else:
                success = 0
                total += _progress(table, row, slot, bodies, world, hand)
    flags[world, 0] = success
    phi[world, 0] = total / count
    n_burners = table.kind.shape[1] - table.n_goal
    for burner in range(n_burners):
        burns = int(0)
        if _holds(table, row, table.n_goal + burner, bodies, world, 0):
            burns = 1
        shown = flags[world, 1 + burner]
        if begins != 0:
            shown = burns
        flags[world, 1 + n_burners + burner] = shown
        flags[world, 1 + burner] = burns

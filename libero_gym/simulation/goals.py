"""LIBERO's goal predicates as data, and their evaluation on MuJoCo's arrays.

A goal is a conjunction of predicates. At compile time each predicate becomes a small frozen record of names and numbers
(it can be written to JSON). It has three members:

* ``label``: the predicate in words, for the names of reward terms;
* ``bind(model)`` resolves the names in a model and gives a function of `StateArrays` that says in which of the n
  environments the predicate holds, bool (n,);
* ``bind_relation(model)`` gives a function of the same arrays that says where its object is and where it should be, a
  `Relation`. Progress (`libero_gym.rewards`) and privileged features (`libero_gym.privileged`) are made of it.

To add a predicate, write such a dataclass here and add it to the union `Predicate`; `compilation.extraction` says which
word of a BDDL file it stands for.

The formulas are those of LIBERO's ``object_states`` and ``site_object`` modules; tests hold them to it. Sums over the
three coordinates are NumPy's reductions, which round alike for one environment and for many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.simulation.arrays import StateArrays

# LIBERO's tolerances: ObjectState.check_ontop, SiteObject.under, SiteObject.in_box, predicates.Up.
ON_TOP_RADIUS = 0.03
ABOVE_SITE_HEIGHT = 0.10
BELOW_SITE_SLACK = 0.005
BOX_FLOOR_SLACK = 0.01
UP_HEIGHT = 1.0


class Relation(NamedTuple):
    """Where a predicate's object is in n environments, and where it should be.

    Attributes:
        points: Positions in m that the hand has to reach one of, (n, p, 3): the object's, or those of the joints'
            bodies. The first one is the object's place. There are none if no motion changes the predicate.
        to_target: The way from the object to its target in m, (n, 3). A joint's has three times what its position
            lacks to the threshold, in m or rad.
        upright: The direction of the object's own z axis, a unit vector (n, 3).
        done: Share in [0, 1] of the way that is behind it, (n,); None if the distance ``to_target`` tells that.
    """

    points: np.ndarray
    to_target: np.ndarray
    upright: np.ndarray
    done: np.ndarray | None = None


Check: TypeAlias = Callable[[StateArrays], np.ndarray]
Relate: TypeAlias = Callable[[StateArrays], Relation]


@dataclass(frozen=True)
class OnObject:
    """The upper object touches the lower one, is not below it, and is within 3 cm of its centre in the plane."""

    upper_body: str
    lower_body: str
    upper_geoms: tuple[str, ...]
    lower_geoms: tuple[str, ...]

    @property
    def label(self) -> str:
        """The predicate in words."""
        return f"on({_object(self.upper_body)}, {_object(self.lower_body)})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        upper, lower = _body(model, self.upper_body), _body(model, self.lower_body)
        touches = _contact_check(model, self.upper_geoms, self.lower_geoms)

        def check(state: StateArrays) -> np.ndarray:
            low, high = state.xpos[:, lower], state.xpos[:, upper]
            above = (low[:, 2] <= high[:, 2]) & (length(low[:, :2] - high[:, :2]) < ON_TOP_RADIUS)
            return above & touches(state) if above.any() else above

        return check

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the upper object is, and that it should be at the lower one's centre."""
        upper, lower = _body(model, self.upper_body), _body(model, self.lower_body)
        return lambda state: _relation(state, upper, state.xpos[:, lower])


@dataclass(frozen=True)
class OnSite:
    """The object's centre lies over a site's box, at most 10 cm above it, and touches the site's owner, if any."""

    body: str
    site: str
    size: tuple[float, float, float]
    body_geoms: tuple[str, ...]
    parent_geoms: tuple[str, ...] | None

    @property
    def label(self) -> str:
        """The predicate in words."""
        return f"on({_object(self.body)}, {self.site})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        body, site = _body(model, self.body), _site(model, self.site)
        size = np.array(self.size)
        touches = None if self.parent_geoms is None else _contact_check(model, self.parent_geoms, self.body_geoms)

        def check(state: StateArrays) -> np.ndarray:
            # `SiteObject.under` multiplies by the site's matrix where its transpose would turn into the site's frame.
            delta = (state.site_xmat[:, site] @ (state.xpos[:, body] - state.site_xpos[:, site])[..., None])[..., 0]
            height, across = delta[:, 2], np.abs(delta[:, :2])
            inside = (size[2] - BELOW_SITE_SLACK < height) & (height < size[2] + ABOVE_SITE_HEIGHT)
            inside &= np.logical_and.reduce(across < size[:2], axis=-1)
            return inside if touches is None or not inside.any() else inside & touches(state)

        return check

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the object is, and that it should be at the site."""
        body, site = _body(model, self.body), _site(model, self.site)
        return lambda state: _relation(state, body, state.site_xpos[:, site])


@dataclass(frozen=True)
class InSite:
    """The object's centre lies inside a site's box, taken as aligned with the axes, with 1 cm of slack at its floor."""

    body: str
    site: str
    size: tuple[float, float, float]

    @property
    def label(self) -> str:
        """The predicate in words."""
        return f"in({_object(self.body)}, {self.site})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        body, site = _body(model, self.body), _site(model, self.site)
        size = np.array(self.size)[:, None]
        floor = np.array([0.0, 0.0, BOX_FLOOR_SLACK])

        def check(state: StateArrays) -> np.ndarray:
            centre, position = state.site_xpos[:, site], state.xpos[:, body]
            half = np.abs((state.site_xmat[:, site] @ size)[..., 0])
            inside = (position > centre - half - floor) & (position < centre + half)
            return np.logical_and.reduce(inside, axis=-1)

        return check

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the object is, and that it should be at the site."""
        body, site = _body(model, self.body), _site(model, self.site)
        return lambda state: _relation(state, body, state.site_xpos[:, site])


@dataclass(frozen=True)
class JointThreshold:
    """A joint's position compared with a threshold: open, close, turn on or turn off.

    Attributes:
        joints: Joint names. Without any, the predicate holds if ``every``, and else never: LIBERO's True and False, and
            what it says of a region that no joint moves.
        threshold: Position in m or rad.
        above: True if the predicate holds above the threshold, else below it.
        inclusive: Whether it holds at the threshold itself.
        every: Whether all joints have to hold (close, turn off) or one is enough (open, turn on).
    """

    joints: tuple[str, ...]
    threshold: float
    above: bool
    inclusive: bool
    every: bool

    @property
    def label(self) -> str:
        """The predicate in words."""
        if not self.joints:
            return "true" if self.every else "false"
        return f"{'above' if self.above else 'below'}({', '.join(self.joints)}, {self.threshold:g})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        addresses = model.jnt_qposadr[_joints(model, self.joints)]
        compare = {
            (True, True): np.greater_equal,
            (True, False): np.greater,
            (False, True): np.less_equal,
            (False, False): np.less,
        }[self.above, self.inclusive]
        combine = np.logical_and if self.every else np.logical_or

        def check(state: StateArrays) -> np.ndarray:
            return combine.reduce(compare(state.qpos[:, addresses], self.threshold), axis=-1)

        return check

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the joints' bodies are, and how much of the way to the threshold is done.

        The share that is missing is measured in the joint's range. The best joint counts if one is enough, the worst if
        all have to hold.
        """
        if not self.joints:
            return lambda state: _nowhere(state, float(self.every))
        joints = _joints(model, self.joints)
        addresses, bodies = model.jnt_qposadr[joints], model.jnt_bodyid[joints]
        spans = np.maximum(model.jnt_range[joints, 1] - model.jnt_range[joints, 0], 1e-6)
        combine, sign = np.minimum if self.every else np.maximum, 1.0 if self.above else -1.0

        def relate(state: StateArrays) -> Relation:
            missing = self.threshold - state.qpos[:, addresses]
            done = combine.reduce(1.0 - np.clip(missing * sign / spans, 0.0, 1.0), axis=-1)
            to_target = np.repeat(missing[:, :1], 3, axis=-1)
            return Relation(state.xipos[:, bodies], to_target, state.xmat[:, bodies[0], :, 2], done)

        return relate


@dataclass(frozen=True)
class Up:
    """The object's centre is at least one metre above the floor."""

    body: str

    @property
    def label(self) -> str:
        """The predicate in words."""
        return f"up({_object(self.body)})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        body = _body(model, self.body)
        return lambda state: np.asarray(state.xpos[:, body, 2] >= UP_HEIGHT)

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the object is, and that it should be straight above, at one metre."""
        body = _body(model, self.body)

        def relate(state: StateArrays) -> Relation:
            target = state.xpos[:, body].copy()
            target[:, 2] = UP_HEIGHT
            return _relation(state, body, target)

        return relate


@dataclass(frozen=True)
class SiteUp:
    """A site of the object is at least one metre above the floor."""

    body: str
    site: str

    @property
    def label(self) -> str:
        """The predicate in words."""
        return f"up({self.site})"

    def bind(self, model: mujoco.MjModel) -> Check:
        """A function that says where the predicate holds, bool (n,)."""
        site = _site(model, self.site)
        return lambda state: np.asarray(state.site_xpos[:, site, 2] >= UP_HEIGHT)

    def bind_relation(self, model: mujoco.MjModel) -> Relate:
        """A function that says where the object is, and how far its site is below one metre."""
        body, site = _body(model, self.body), _site(model, self.site)

        def relate(state: StateArrays) -> Relation:
            target = state.xpos[:, body].copy()
            target[:, 2] += UP_HEIGHT - state.site_xpos[:, site, 2]
            return _relation(state, body, target)

        return relate


Predicate: TypeAlias = OnObject | OnSite | InSite | JointThreshold | Up | SiteUp
_KINDS: dict[str, type[Predicate]] = {kind.__name__: kind for kind in get_args(Predicate)}


def bind_goal(goal: tuple[Predicate, ...], model: mujoco.MjModel) -> Check:
    """A function that says where all predicates of a goal hold, bool (n,)."""
    checks = [predicate.bind(model) for predicate in goal]

    def check(state: StateArrays) -> np.ndarray:
        holds = checks[0](state)
        for other in checks[1:]:
            if not holds.any():
                break
            holds = holds & other(state)
        return holds

    return check


def length(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths, (...,), of vectors (..., k)."""
    return np.asarray(np.sqrt(np.add.reduce(vectors * vectors, axis=-1)))


def to_json(goal: tuple[Predicate, ...]) -> list[dict[str, Any]]:
    """The goal as plain lists and dicts; `from_json` reverses it."""
    return [{"kind": type(predicate).__name__, **asdict(predicate)} for predicate in goal]


def from_json(records: list[dict[str, Any]]) -> tuple[Predicate, ...]:
    """The goal that `to_json` wrote."""
    return tuple(_predicate(dict(record)) for record in records)


def _predicate(record: dict[str, Any]) -> Predicate:
    kind: Any = _KINDS[record.pop("kind")]
    values = {field.name: record[field.name] for field in fields(kind)}
    predicate: Predicate = kind(
        **{k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
    )
    return predicate


def _relation(state: StateArrays, body: int, target: np.ndarray) -> Relation:
    """The relation of a body to the place where it should be, (n, 3) in m."""
    position = state.xpos[:, body]
    return Relation(position[:, None], target - position, state.xmat[:, body, :, 2])


def _nowhere(state: StateArrays, done: float) -> Relation:
    """The relation of a predicate that no motion changes: there is nothing to reach."""
    n = len(state.xpos)
    return Relation(np.zeros((n, 0, 3)), np.zeros((n, 3)), np.zeros((n, 3)), np.full(n, done))


def _object(root_body: str) -> str:
    return root_body.removesuffix("_main")


def _body(model: mujoco.MjModel, name: str) -> int:
    return _id(model, mujoco.mjtObj.mjOBJ_BODY, name)


def _site(model: mujoco.MjModel, name: str) -> int:
    return _id(model, mujoco.mjtObj.mjOBJ_SITE, name)


def _joints(model: mujoco.MjModel, names: tuple[str, ...]) -> np.ndarray:
    return np.array([_id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in names], dtype=np.int64)


def _id(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> int:
    index = mujoco.mj_name2id(model, kind, name)
    if index < 0:
        raise KeyError(f"The compiled model has no {kind.name} named {name!r}.")
    return int(index)


def _contact_check(model: mujoco.MjModel, geoms_1: tuple[str, ...], geoms_2: tuple[str, ...]) -> Check:
    """Whether any geom of one group touches any of the other. Geoms that cannot collide are not in the model."""
    in_1, in_2 = _geom_mask(model, geoms_1), _geom_mask(model, geoms_2)

    def check(state: StateArrays) -> np.ndarray:
        a, b = state.contacts[..., 0], state.contacts[..., 1]
        return np.logical_or.reduce((in_1[a] & in_2[b]) | (in_2[a] & in_1[b]), axis=-1)

    return check


def _geom_mask(model: mujoco.MjModel, names: tuple[str, ...]) -> np.ndarray:
    """Whether a geom is one of these, by its id; False at the end, which is where `NO_GEOM` looks."""
    mask = np.zeros(model.ngeom + 1, dtype=bool)
    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names]
    mask[[index for index in ids if index >= 0]] = True
    return mask

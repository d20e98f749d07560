"""LIBERO's goal predicates as data, and their evaluation on a MuJoCo state.

A goal is a conjunction of predicates. At compile time each predicate becomes a small frozen record of names and
numbers (it can be written to JSON); `bind` resolves the names to ids of a model, and the result is called with an
`MjData`. The formulas are those of LIBERO's ``object_states`` and ``site_object`` modules; tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from libero_gym.mujoco_import import mujoco

# LIBERO's tolerances: ObjectState.check_ontop, SiteObject.under, SiteObject.in_box, predicates.Up.
ON_TOP_RADIUS = 0.03
ABOVE_SITE_HEIGHT = 0.10
BELOW_SITE_SLACK = 0.005
BOX_FLOOR_SLACK = 0.01
UP_HEIGHT = 1.0

Check: TypeAlias = Callable[[mujoco.MjData], bool]


@dataclass(frozen=True)
class OnObject:
    """The upper object touches the lower one, is not below it, and is within 3 cm of its centre in the plane."""

    upper_body: str
    lower_body: str
    upper_geoms: tuple[str, ...]
    lower_geoms: tuple[str, ...]

    def bind(self, model: mujoco.MjModel) -> Check:
        """The predicate with its names resolved in a model, as a function of its data."""
        upper, lower = _body(model, self.upper_body), _body(model, self.lower_body)
        touches = _contact_check(model, self.upper_geoms, self.lower_geoms)

        def check(data: mujoco.MjData) -> bool:
            low, high = data.xpos[lower], data.xpos[upper]
            return bool(low[2] <= high[2] and np.linalg.norm(low[:2] - high[:2]) < ON_TOP_RADIUS and touches(data))

        return check


@dataclass(frozen=True)
class OnSite:
    """The object's centre lies over a site's box, at most 10 cm above it, and touches the site's owner, if any."""

    body: str
    site: str
    size: tuple[float, float, float]
    body_geoms: tuple[str, ...]
    parent_geoms: tuple[str, ...] | None

    def bind(self, model: mujoco.MjModel) -> Check:
        """The predicate with its names resolved in a model, as a function of its data."""
        body, site = _body(model, self.body), _site(model, self.site)
        size = np.array(self.size)
        touches = None if self.parent_geoms is None else _contact_check(model, self.parent_geoms, self.body_geoms)

        def check(data: mujoco.MjData) -> bool:
            delta = data.site_xmat[site].reshape(3, 3) @ (data.xpos[body] - data.site_xpos[site])
            above = size[2] - BELOW_SITE_SLACK < delta[2] < size[2] + ABOVE_SITE_HEIGHT
            inside = bool(above and np.all(np.abs(delta[:2]) < size[:2]))
            return inside and (touches is None or touches(data))

        return check


@dataclass(frozen=True)
class InSite:
    """The object's centre lies inside a site's box, taken as aligned with the axes, with 1 cm of slack at its floor."""

    body: str
    site: str
    size: tuple[float, float, float]

    def bind(self, model: mujoco.MjModel) -> Check:
        """The predicate with its names resolved in a model, as a function of its data."""
        body, site = _body(model, self.body), _site(model, self.site)
        size = np.array(self.size)

        def check(data: mujoco.MjData) -> bool:
            half = np.abs(data.site_xmat[site].reshape(3, 3) @ size)
            lower = data.site_xpos[site] - half
            lower[2] -= BOX_FLOOR_SLACK
            position = data.xpos[body]
            return bool(np.all(position > lower) and np.all(position < data.site_xpos[site] + half))

        return check


@dataclass(frozen=True)
class JointThreshold:
    """A joint's position compared with a threshold: open, close, turn on or turn off.

    Attributes:
        joints: Joint names.
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

    def bind(self, model: mujoco.MjModel) -> Check:
        """The predicate with its names resolved in a model, as a function of its data."""
        addresses = np.array([model.jnt_qposadr[_joint(model, name)] for name in self.joints], dtype=np.int64)
        compare = {
            (True, True): np.greater_equal,
            (True, False): np.greater,
            (False, True): np.less_equal,
            (False, False): np.less,
        }[self.above, self.inclusive]
        combine = np.all if self.every else np.any

        def check(data: mujoco.MjData) -> bool:
            return bool(combine(compare(data.qpos[addresses], self.threshold)))

        return check


@dataclass(frozen=True)
class Up:
    """The object's centre is at least one metre above the floor."""

    body: str

    def bind(self, model: mujoco.MjModel) -> Check:
        """The predicate with its names resolved in a model, as a function of its data."""
        body = _body(model, self.body)
        return lambda data: bool(data.xpos[body][2] >= UP_HEIGHT)


Predicate: TypeAlias = OnObject | OnSite | InSite | JointThreshold | Up
_KINDS: dict[str, type[Predicate]] = {kind.__name__: kind for kind in (OnObject, OnSite, InSite, JointThreshold, Up)}


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


def _body(model: mujoco.MjModel, name: str) -> int:
    return _id(model, mujoco.mjtObj.mjOBJ_BODY, name)


def _site(model: mujoco.MjModel, name: str) -> int:
    return _id(model, mujoco.mjtObj.mjOBJ_SITE, name)


def _joint(model: mujoco.MjModel, name: str) -> int:
    return _id(model, mujoco.mjtObj.mjOBJ_JOINT, name)


def _id(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> int:
    index = mujoco.mj_name2id(model, kind, name)
    if index < 0:
        raise KeyError(f"The compiled model has no {kind.name} named {name!r}.")
    return int(index)


def _contact_check(model: mujoco.MjModel, geoms_1: tuple[str, ...], geoms_2: tuple[str, ...]) -> Check:
    """Whether any geom of one group touches any of the other. Geoms that cannot collide are not in the model."""
    in_1, in_2 = _geom_mask(model, geoms_1), _geom_mask(model, geoms_2)

    def check(data: mujoco.MjData) -> bool:
        pairs = data.contact.geom  # (ncon, 2)
        a, b = pairs[:, 0], pairs[:, 1]
        return bool(np.any((in_1[a] & in_2[b]) | (in_2[a] & in_1[b])))

    return check


def _geom_mask(model: mujoco.MjModel, names: tuple[str, ...]) -> np.ndarray:
    mask = np.zeros(model.ngeom, dtype=bool)
    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names]
    mask[[index for index in ids if index >= 0]] = True
    return mask

"""Reads a stock environment out: its physics, goal, robot and fixtures as a `CompiledTask`.

Nothing here imports LIBERO or robosuite; `env` is what `stock.stock_env` gives, and ``env.env`` LIBERO's own domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation import records
from libero_gym.simulation import goals
from libero_gym.simulation.compiled import Burner, CompiledTask, FixtureDraw, RobotIndices
from libero_gym.stock import without_visuals
from libero_gym.tasks import Task

# What the controller keeps of the stock reset and uses in the first control step after `set_init_state`.
_STALE_ARRAYS = (
    "ee_pos",
    "ee_ori_mat",
    "ee_pos_vel",
    "ee_ori_vel",
    "joint_pos",
    "joint_vel",
    "J_pos",
    "J_ori",
    "J_full",
    "mass_matrix",
    "goal_ori",
    "initial_joint",
)


def extract(task: Task, env: Any) -> CompiledTask:
    """The compiled task of a stock environment that was reset once.

    Raises:
        NotImplementedError: If the goal has a predicate that `goals` does not know, or states something to be in an
            object, or no stated position of a joint decides whether it is open, closed, on or off.
        RuntimeError: If the model without visual geoms is not the physics of the full one.
    """
    domain = env.env
    xml = domain.model.get_xml()
    return CompiledTask(
        task=task,
        physics=_physics(domain),
        goal=tuple(_predicate(domain, state) for state in domain.parsed_problem["goal_state"]),
        robot=_read_robot(domain),
        fixtures=read_draw(env),
        burners=tuple(_burners(domain)),
        visual_key=records.scene_key(xml),
        xml=xml,
    )


def full_model(env: Any) -> mujoco.MjModel:
    """The stock environment's own model, with everything that a camera sees."""
    return env.env.sim.model._model


def read_draw(env: Any) -> FixtureDraw:
    """What the last reset of a stock environment has left."""
    domain = env.env
    model = domain.sim.model
    ids = np.array([model.body_name2id(fixture.root_body) for fixture in domain.fixtures_dict.values()], dtype=np.int64)
    warmstart = np.array(domain.sim.data.qacc_warmstart)
    return FixtureDraw(ids, np.array(model.body_pos[ids]), np.array(model.body_quat[ids]), warmstart)


def _physics(domain: Any) -> mujoco.MjModel:
    """The model without visual geoms, fixtures at the poses of the last reset."""
    full = domain.sim.model._model
    physics = mujoco.MjModel.from_xml_string(without_visuals(domain.model.get_xml()))
    same = all(getattr(physics, count) == getattr(full, count) for count in ("nq", "nv", "nu", "nbody", "nsite"))
    # A visual geom that had mass would be missed here.
    if not same or not np.array_equal(physics.body_inertia, full.body_inertia):
        raise RuntimeError("The physics-only model differs from the full one; please report this task.")
    physics.body_pos[:] = full.body_pos
    physics.body_quat[:] = full.body_quat
    physics.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)  # nothing reads the force sensors
    return physics


def _read_robot(domain: Any) -> RobotIndices:
    robot = domain.robots[0]
    low, high = robot.torque_limits
    return RobotIndices(
        qpos=np.array(robot._ref_joint_pos_indexes, dtype=np.int64),
        dof=np.array(robot._ref_joint_vel_indexes, dtype=np.int64),
        actuators=np.array(robot._ref_joint_actuator_indexes, dtype=np.int64),
        gripper_qpos=np.array(robot._ref_gripper_joint_pos_indexes, dtype=np.int64),
        gripper_actuators=np.array(robot._ref_joint_gripper_actuator_indexes, dtype=np.int64),
        eef_site=int(robot.eef_site_id),
        hand_body=int(domain.sim.model.body_name2id(robot.robot_model.eef_name)),
        torque_low=np.array(low, dtype=np.float64),
        torque_high=np.array(high, dtype=np.float64),
        stale={name: np.array(getattr(robot.controller, name)) for name in _STALE_ARRAYS},
    )


def _predicate(domain: Any, state: Sequence[str]) -> goals.Predicate:
    """One goal predicate of the BDDL file as data. Follows LIBERO's predicates/base_predicates.py."""
    name, *arguments = state
    if name in ("open", "close", "turnon", "turnoff"):
        return _joint_predicate(domain, name, arguments[0])
    if name in ("true", "false", "printjointstate"):  # the last one prints, and holds
        return goals.JointThreshold((), 0.0, above=True, inclusive=True, every=name != "false")
    if name == "up":
        return _up(domain, domain.object_states_dict[arguments[0]])
    if name not in ("on", "in"):
        raise NotImplementedError(f"Goal predicate {name!r} of {domain.bddl_file_name} is not known.")
    upper, target = (domain.object_states_dict[argument] for argument in arguments)
    body = domain.get_object(upper.object_name)
    if target.object_state_type == "object":
        if name == "in":
            raise NotImplementedError(f"(In {arguments[0]} {arguments[1]}): only sites can contain an object.")
        lower = domain.get_object(target.object_name)
        return goals.OnObject(body.root_body, lower.root_body, tuple(body.contact_geoms), tuple(lower.contact_geoms))
    site = domain.object_sites_dict[target.object_name]
    size = (float(site.size[0]), float(site.size[1]), float(site.size[2]))
    if name == "in":
        return goals.InSite(body.root_body, site.name, size)
    parent = domain.get_object(target.parent_name)
    parent_geoms = None if parent is None else tuple(parent.contact_geoms)  # a table's region belongs to no object
    return goals.OnSite(body.root_body, site.name, size, tuple(body.contact_geoms), parent_geoms)


def _up(domain: Any, state: Any) -> goals.Up | goals.SiteUp:
    if state.object_state_type == "object":
        return goals.Up(domain.get_object(state.object_name).root_body)
    owner = domain.get_object(state.parent_name)  # a table is no object, and its regions stand still
    return goals.SiteUp("world" if owner is None else owner.root_body, state.object_name)


def _joint_predicate(domain: Any, name: str, object_name: str) -> goals.JointThreshold:
    state = domain.object_states_dict[object_name]
    owner = domain.get_object(state.object_name if state.object_state_type == "object" else state.parent_name)
    holder = owner if state.object_state_type == "object" else domain.object_sites_dict[object_name]
    rule = getattr(owner, {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}[name])
    articulation = owner.object_properties["articulation"]
    candidates = sorted({float(value) for values in articulation.values() for value in values})
    # LIBERO's `is_open` and `turn_on` return at the first joint that is; `is_close` and `turn_off` ask all of them.
    return _threshold(rule, candidates, tuple(holder.joints), every=name in ("close", "turnoff"))


def _threshold(rule: Any, candidates: Sequence[float], joints: tuple[str, ...], every: bool) -> goals.JointThreshold:
    """Find the position at which an object's own rule flips; it is one of the object's stated ranges' ends."""
    for value in candidates:
        # The rules are methods with numbers inside, so they are asked on both sides of a candidate and at it.
        below, at, above = (bool(rule(q)) for q in (np.nextafter(value, -np.inf), value, np.nextafter(value, np.inf)))
        if below != above:
            return goals.JointThreshold(joints, value, above=above, inclusive=at, every=every)
    raise NotImplementedError(f"No threshold among {candidates} decides the state of {joints}.")


def _burners(domain: Any) -> Iterator[Burner]:
    """Sites that LIBERO shows while their object is turned on (`set_visualization`, `ObjectState.update_state`)."""
    for name in dict.fromkeys(domain.visualization_sites_list):
        for site, _ in domain.get_object(name).object_properties["vis_site_names"].values():
            yield Burner(site, _joint_predicate(domain, "turnon", name))

"""Initial states beyond the official ones: LIBERO's own samplers put objects into the regions of the BDDL file.

LIBERO ships 50 initial states per task, and evaluations use all of them. A training that starts from others keeps those
unseen.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from libero_gym.common import cache
from libero_gym.common.checks import whole_number
from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation.records import task_key
from libero_gym.stock import finds_place, stock_env, without_visuals
from libero_gym.tasks import Task

# Making a stock environment takes seconds and a draw milliseconds, so they are drawn, and kept, in blocks.
BLOCK = 50
# LIBERO draws with NumPy's old generator, whose seeds have 32 bits; the last block must fit.
MAX_SEED = 2**32 - 1 - BLOCK
_kept: dict[str, np.ndarray] = {}


class NoPlaceError(ValueError):
    """LIBERO's samplers find no place for all objects with a placement seed."""


def sampled_state(task: Task, placement_seed: int) -> np.ndarray:
    """An initial state drawn by LIBERO's samplers, fixtures at the poses of the protocol's first reset.

    Args:
        task: The task.
        placement_seed: A seed from 0 to `MAX_SEED`; equal seeds give equal states.

    Returns:
        Flattened state ``[time, qpos, qvel]``, float64 of shape (1 + nq + nv,). Read-only.

    Raises:
        NoPlaceError: If the samplers find no place for all objects with this seed, as happens in narrow regions.
        ValueError: If the seed is no whole number, or out of range.
    """
    seed = check_placement_seed(placement_seed)
    state = _state(task, seed)
    if np.isnan(state).any():
        raise NoPlaceError(
            f"placement_seed={seed}: LIBERO's samplers find no place for all objects of {task.name!r} with it; give "
            f"another seed, or make the regions of {task.bddl_file} larger."
        )
    return state


def has_place(task: Task, placement_seed: int) -> bool:
    """Whether there is a `sampled_state` of this seed."""
    return not np.isnan(_state(task, placement_seed)).any()


def check_placement_seed(placement_seed: Any) -> int:
    """The seed as an int.

    Raises:
        ValueError: If it is no whole number, or out of range.
    """
    seed = whole_number("placement_seed", placement_seed, minimum=0)
    if seed > MAX_SEED:
        raise ValueError(f"placement_seed={seed} is out of range; LIBERO's generator takes 0 to {MAX_SEED}.")
    return seed


def prepare(task: Task, placement_seeds: Sequence[int]) -> None:
    """Draw the states of these seeds now, or read them from the cache, and keep them for `sampled_state`."""
    missing = []
    for block in sorted({seed // BLOCK for seed in placement_seeds}):
        key = _key(task, block)
        if key in _kept:
            continue
        if (blob := cache.read(key)) is None:
            missing.append(block)
        else:
            _keep(key, np.load(io.BytesIO(blob), allow_pickle=False))
    if not missing:
        return
    states = _draw(task, [seed for block in missing for seed in range(BLOCK * block, BLOCK * (block + 1))])
    for block, part in zip(missing, np.split(states, len(missing)), strict=True):
        buffer = io.BytesIO()
        np.save(buffer, part)
        cache.write(_key(task, block), buffer.getvalue())
        _keep(_key(task, block), part)


def are_drawn(task: Task, placement_seeds: Sequence[int]) -> bool:
    """Whether `prepare` would find the states of these seeds in the cache."""
    return all(cache.contains(_key(task, block)) for block in {seed // BLOCK for seed in placement_seeds})


def _state(task: Task, seed: int) -> np.ndarray:
    """The state of a seed; NaN if it finds no place."""
    prepare(task, [seed])
    state: np.ndarray = _kept[_key(task, seed // BLOCK)][seed % BLOCK]
    return state


def _keep(key: str, states: np.ndarray) -> None:
    states.setflags(write=False)
    _kept[key] = states


def _key(task: Task, block: int) -> str:
    return f"{task_key(task)}-placements{block}"


def _draw(task: Task, seeds: Sequence[int]) -> np.ndarray:
    """Initial states of these seeds, float64 (n, 1 + nq + nv)."""
    with stock_env(task.bddl_file) as env:
        return draw_from(env, seeds)


def draw_from(env: Any, seeds: Sequence[int]) -> np.ndarray:
    """The states after one soft reset of a stock environment per seed, with fixtures where they stand now.

    The environment cannot be used for anything else afterwards.

    Args:
        env: What `stock.stock_env` gives after its first reset, whose fixtures are those of the protocol.
        seeds: Seeds of LIBERO's samplers, one per state.

    Returns:
        States ``[time, qpos, qvel]``, float64 (n, 1 + nq + nv); NaN for a seed that finds no place for all objects.
    """
    domain = env.env
    model = domain.sim.model
    _hold_fixtures(domain)
    _leave_out_what_no_sampler_reads(domain)
    # Samplers of drawers and shelves add a fixture's pose to where its sites are before fixtures are placed.
    unplaced = mujoco.MjModel.from_xml_string(without_visuals(domain.model.get_xml()))
    states = []
    for seed in seeds:
        np.random.seed(seed)  # noqa: NPY002 - LIBERO and robosuite draw from the global generators
        random.seed(seed)
        model.body_pos[:], model.body_quat[:] = unplaced.body_pos, unplaced.body_quat
        domain.sim.reset()
        placed = finds_place(domain)  # what a reset without a place leaves, the next one replaces
        state = domain.sim.get_state().flatten()
        states.append(state if placed else np.full_like(state, np.nan))
    return np.array(states, dtype=np.float64)


def _leave_out_what_no_sampler_reads(domain: Any) -> None:
    """Let resets skip forward passes, contacts, look-ups of names and a new controller, which take most of their time.

    LIBERO itself runs ``mj_step1`` before it samples (`BDDLBaseDomain._reset_internal`). That computes from positions
    alone everything that its samplers look at: where sites are.
    """
    domain.sim.forward = lambda: None
    domain._setup_references = lambda: None
    domain.sim.model._model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    for robot in domain.robots:
        robot._load_controller = lambda: None


def _hold_fixtures(domain: Any) -> None:
    """Let the samplers put fixtures where they stand now."""
    model = domain.sim.model
    poses = {}
    for name, fixture in domain.fixtures_dict.items():
        body = model.body_name2id(fixture.root_body)
        poses[name] = np.array(model.body_pos[body]), np.array(model.body_quat[body])
    sample = domain.placement_initializer.sample

    def sample_objects() -> dict[str, Any]:
        return {name: (*poses.get(name, placement[:2]), placement[2]) for name, placement in sample().items()}

    domain.placement_initializer.sample = sample_objects

"""A model of an iteration's seconds from measured pieces, see `scaling_model.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

UNITS = (1, 2, 4, 8, 16, 32, 64)
ENVS_PER_UNIT, N_STEPS = 4, 16


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Seconds and bytes that the model is made of."""

    env_s: float  # an environment's decision, on one core, with its share of resets
    decode_call_s: float  # with what a step costs besides: checks, callbacks, the buffer
    decode_row_s: float
    update_batch_s: float  # a minibatch, besides its rows
    update_row_s: float  # a row of a minibatch, all epochs of the value head included
    again_row_s: float  # a row that is scored once more, by the policy of now
    between_s: float  # an iteration, besides its rollout and its update
    reduce_call_s: float
    reduce_byte_s: float
    call_s: float  # a call of another process
    item_s: float  # what another process tells of a step, once it is there
    byte_s: float  # between processes
    trained_bytes: float
    sample_bytes: float  # of a rollout
    cores_per_unit: float = 1
    units_are_cores: bool = True  # what learns cannot step environments at the same time
    units_per_machine: int = 8


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an iteration is, for each unit."""

    envs: int = ENVS_PER_UNIT
    n_steps: int = N_STEPS
    batch: int = ENVS_PER_UNIT * N_STEPS
    n_epochs: int = 1


def sent_s(pieces: Pieces, recipe: Recipe, units: int, players: int, elsewhere: int) -> float:
    """Seconds until the rollouts of those that play elsewhere are with learner 0."""
    n_samples = elsewhere / players * recipe.envs * units * recipe.n_steps
    return n_samples * pieces.sample_bytes * pieces.byte_s


def rollout_s(
    pieces: Pieces, recipe: Recipe, units: int, players: int, elsewhere: int, *, stale: bool = False
) -> float:
    """Seconds of a rollout that so many units play, of which some are other processes than learner 0."""
    with_cores = players if stale and pieces.units_are_cores else units
    n_envs, cores = recipe.envs * units, pieces.cores_per_unit * with_cores
    env = max(pieces.env_s, n_envs * pieces.env_s / cores)
    decode = pieces.decode_call_s + n_envs / players * pieces.decode_row_s
    read = elsewhere * pieces.item_s
    step = env + decode + read if elsewhere < players else max(env + decode, read)
    called = pieces.call_s if elsewhere else 0.0
    return recipe.n_steps * step + called + sent_s(pieces, recipe, units, players, elsewhere)


def update_s(pieces: Pieces, recipe: Recipe, units: int, learners: int, *, stale: bool = False) -> float:
    """Seconds of an update that so many units compute."""
    samples, batch = recipe.envs * recipe.n_steps * units, recipe.batch * units
    n_batches = recipe.n_epochs * samples / batch
    again = samples / learners * pieces.again_row_s if stale else 0.0
    reduce = sent = 0.0
    if learners > 1:
        machines = -(-learners // pieces.units_per_machine)
        ring = 2 * (learners - 1) / learners * pieces.trained_bytes
        reduce = pieces.reduce_call_s + ring * pieces.reduce_byte_s
        sent = machines * samples * pieces.sample_bytes * pieces.byte_s  # once into the store, then to each machine
    return again + n_batches * (pieces.update_batch_s + batch / learners * pieces.update_row_s + reduce) + sent


def iteration_s(pieces: Pieces, recipe: Recipe, units: int, players: int, *, split: bool, stale: bool = False) -> float:
    """Seconds of an iteration; ``players`` counts all units if they are colocated."""
    elsewhere = players if split else units - 1
    played = rollout_s(pieces, recipe, units, players, elsewhere, stale=stale)
    learned = update_s(pieces, recipe, units, units - players if split else units, stale=stale) + pieces.between_s
    if not split:
        return played + learned
    machines = -(-players // pieces.units_per_machine)
    played += players * pieces.call_s + machines * pieces.trained_bytes * pieces.byte_s  # weights
    if not stale:
        return played + learned
    # What was played meanwhile is read after the update.
    read = recipe.n_steps * elsewhere * pieces.item_s + sent_s(pieces, recipe, units, players, elsewhere)
    return max(played, learned + read)


def scale(pieces: Pieces, recipe: Recipe) -> list[dict[str, Any]]:
    """Decisions per second of each placement, and the best split, by number of units."""
    rows = []
    for units in UNITS:
        n_samples = recipe.envs * recipe.n_steps * units
        row: dict[str, Any] = {"units": units}
        row["colocated"] = n_samples / iteration_s(pieces, recipe, units, units, split=False)
        for name, stale in (("split", False), ("stale", True)):
            if units == 1:
                continue
            times = {p: iteration_s(pieces, recipe, units, p, split=True, stale=stale) for p in range(1, units)}
            best = min(times, key=lambda players: times[players])
            row |= {name: n_samples / times[best], f"{name}_players": best}
        rows.append(row)
    return rows


def crossing(rows: list[dict[str, Any]], name: str) -> int | None:
    """The least number of units from which on a placement is ahead of the colocated one; None if it never is."""
    ahead = [row["units"] for row in rows if row.get(name, 0.0) > row["colocated"]]
    behind = [row["units"] for row in rows if name in row and row[name] <= row["colocated"]]
    later = [units for units in ahead if units > max(behind, default=0)]
    return min(later, default=None)

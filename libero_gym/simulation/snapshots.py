"""Simulator states and random generators as JSON can hold them; exactly, as decimal forms of doubles are exact."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from libero_gym.common.checks import real_number, whole_number
from libero_gym.simulation.simulator import Memory, SimState

_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_SNAPSHOT_KEYS = (
    "task_id",
    "fixture_draw",
    "init_state_id",
    "elapsed_steps",
    "phi",
    "privileged",
    "generator",
    "simulator",
)


def state_to_json(state: SimState) -> dict[str, Any]:
    """A state of `Simulator.get_state` as lists and numbers."""
    assert state.memory is not None
    memory = {field.name: getattr(state.memory, field.name) for field in fields(Memory)}
    lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in memory.items()}
    return {"values": state.tolist(), "memory": lists}


def state_from_json(data: dict[str, Any]) -> SimState:
    """The state that `state_to_json` wrote.

    Raises:
        ValueError: If it is no such thing.
    """
    try:
        memory = dict(data["memory"])
        for name in ("gripper", "goal_ori", "warmstart", "ctrl", "kinematics_qpos", "sample"):
            memory[name] = np.array(memory[name], dtype=np.float64)
        for name in ("burners_on", "burners_shown"):
            memory[name] = tuple(memory[name])
        return SimState(np.array(data["values"], dtype=np.float64), Memory(**memory))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The snapshot's 'simulator' is damaged: {error!r}.") from None


def generator_from_json(data: dict[str, Any]) -> np.random.Generator:
    """The generator whose ``bit_generator.state`` was written.

    Raises:
        ValueError: If it is no such thing.
    """
    try:
        generator = np.random.Generator(_BIT_GENERATORS[data["bit_generator"]]())
        generator.bit_generator.state = data
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The snapshot's 'generator' is damaged: {error!r}.") from None
    return generator


def check_snapshot(snapshot: Any, privileged_size: int, suite: str) -> None:
    """Check that this can be a snapshot of `LiberoEnv`, as far as one can tell without its parts.

    Args:
        snapshot: The value to check.
        privileged_size: Size of the environment's privileged observations; 0 if it shows none.
        suite: Name of the environment's suite; snapshots of earlier versions do not name theirs, and pass.

    Raises:
        ValueError: If it is none, or of another suite.
    """
    if not isinstance(snapshot, dict):
        raise ValueError(f"The snapshot is a {type(snapshot).__name__}; expected the dict that snapshot() gave.")
    missing = [key for key in _SNAPSHOT_KEYS if key not in snapshot]
    if missing:
        raise ValueError(f"The snapshot lacks {', '.join(map(repr, missing))}; expected the dict that snapshot() gave.")
    if snapshot.get("suite", suite) != suite:
        raise ValueError(f"The snapshot is of suite {snapshot['suite']!r}, and this environment of {suite!r}.")
    for key, minimum in {"task_id": 0, "fixture_draw": 1, "init_state_id": -1, "elapsed_steps": 0}.items():
        whole_number(f"The snapshot's {key}", snapshot[key], minimum=minimum)
    for key in ("generator", "simulator"):
        if not isinstance(snapshot[key], dict):
            raise ValueError(f"The snapshot's {key!r} is damaged: expected a dict, got {type(snapshot[key]).__name__}.")
    real_number("The snapshot's phi", snapshot["phi"])
    if privileged_size and np.shape(snapshot["privileged"]) != (privileged_size,):
        raise ValueError(
            "The snapshot is of an environment without privileged=True, and this one has it; make it without."
        )

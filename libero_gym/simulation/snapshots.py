"""Simulator states and random generators as JSON can hold them; exactly, as decimal forms of doubles are exact."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from libero_gym.simulation.states import Memory, SimState

_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


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

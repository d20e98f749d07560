"""Callbacks that have a state: it is saved with the run, and given back to them when the run goes on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.callbacks import BaseCallback

from vla_agent.callbacks.tree import parts


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state is saved with the run, and given back to one of its class when the run goes on."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, as JSON can hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; the learner calls this before the training starts."""


def stateful_callbacks(root: BaseCallback) -> dict[str, StatefulCallback]:
    """The callbacks in a tree that have a state, by class name; a number follows the name of a second of its class."""
    found: dict[str, StatefulCallback] = {}
    counts: Counter[str] = Counter()
    for callback in parts([root]):
        if isinstance(callback, StatefulCallback):
            name = type(callback).__name__
            found[f"{name}-{counts[name]}" if counts[name] else name] = callback
            counts[name] += 1
    return found


def give_states_back(states: Mapping[str, Any], callbacks: Mapping[str, StatefulCallback]) -> None:
    """Give the states of a saved run to the callbacks of their names; warn of those that no callback takes.

    Raises:
        ValueError: If a callback goes on otherwise than the one that was saved.
    """
    for name in states.keys() & callbacks.keys():
        callbacks[name].load_state_dict(states[name])
    if left := sorted(states.keys() - callbacks.keys()):
        warnings.warn(
            f"The run was saved with the state of {' and '.join(left)}, which no callback takes: what it knew is lost "
            "from here on. Give `learn` the callbacks that the run had.",
            stacklevel=5,
        )

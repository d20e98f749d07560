"""Callbacks that have a state: it is saved with the run, and given back to them when the run goes on."""

from __future__ import annotations

from collections import Counter
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

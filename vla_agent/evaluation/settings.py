"""What identifies the test of evaluations inside `learn`: success on another test is no point of the same history."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from vla_agent.evaluation.evaluator import Evaluator
from vla_agent.evaluation.results import describe_ids

# Arguments of `Evaluator` that decide a trial, a frame or an action; the number of environments, say, does not.
_IDS = ("task_ids", "init_state_ids", "placement_seeds")
_OTHERS = ("protocol", "center_crop", "renderer", "max_episode_steps", "unnorm_key", "best_of_n", "scorer")
_OF_ENVIRONMENTS = {"physics": "exact", "backend": "processes", "settle_steps": None}  # and their defaults
_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(Evaluator).parameters.items()
} | _OF_ENVIRONMENTS


def settings_of_test(env_id: str, arguments: Mapping[str, Any], decoding: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a test, as JSON can hold them.

    Args:
        env_id: Id of the environments.
        arguments: Further arguments of `Evaluator`, whose defaults stand for what is left out.
        decoding: Arguments of `Evaluator.run` that say how actions are taken.
    """
    given = {name: arguments.get(name, _DEFAULTS[name]) for name in (*_IDS, *_OTHERS, *_OF_ENVIRONMENTS)}
    plain = {name: _plain(value) for name, value in given.items()}
    return {"env_id": str(env_id), **plain, **{name: _plain(value) for name, value in decoding.items()}}


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two tests, as "name: made, not now"; what either lacks is not compared."""
    changed = [name for name in now if name in made and made[name] != now[name]]
    return [f"{name}: {_shown(name, made[name])}, not {_shown(name, now[name])}" for name in changed]


def _plain(value: Any) -> Any:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return sorted(map(_plain, value), key=str)  # ids, in whatever order
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__qualname__


def _shown(name: str, value: Any) -> str:
    if name in _IDS and isinstance(value, list):
        return describe_ids(value)
    return "all" if name in _IDS and value is None else repr(value)

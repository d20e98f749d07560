"""What identifies the test of evaluations inside `learn`: success on another test is no point of the same history."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_agent.evaluation.evaluator import Evaluator
from vla_agent.evaluation.frames import name_of_function
from vla_agent.evaluation.results import ID_LISTS, describe_ids

# Arguments that decide no trial, no frame and no action: what is evaluated, where it is computed, and what people see.
_HARMLESS = frozenset(
    {"self", "model", "env_id", "env_kwargs", "engine", "n_envs", "device", "backend_device"}
    | {"n_workers", "timeout", "restart", "render_device", "n_render_threads", "render_mode", "render_size"}
)
_OF_ENVIRONMENTS = {"physics": "exact", "backend": "processes", "settle_steps": None}  # and their defaults
_DECODING = ("deterministic", "temperature", "seed")
_DEFAULTS: dict[str, Any] = {
    **{name: argument.default for name, argument in inspect.signature(Evaluator).parameters.items()},
    **_OF_ENVIRONMENTS,
}
_DEFAULTS = {name: value for name, value in _DEFAULTS.items() if name not in _HARMLESS}
_OF_RUN = inspect.signature(Evaluator.run).parameters


def settings_of_test(env_id: str, arguments: Mapping[str, Any], decoding: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a test, as JSON can hold them.

    Args:
        env_id: Id of the environments.
        arguments: Further arguments of `Evaluator`, whose defaults stand for what is left out.
        decoding: Arguments of `Evaluator.run` that say how actions are taken.
    """
    given = _DEFAULTS | {name: value for name, value in arguments.items() if name not in _HARMLESS}
    return {"env_id": str(env_id), **{name: _plain(name, value) for name, value in (given | dict(decoding)).items()}}


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two tests, as "name: made, not now".

    What either lacks has its default; but settings of before there were any, {}, are not compared.
    """
    if not made:
        return []
    defaults = {name: _plain(name, value) for name, value in _DEFAULTS.items()}
    defaults |= {name: _OF_RUN[name].default for name in _DECODING} | {"env_id": now.get("env_id")}
    pairs = {name: [side.get(name, defaults.get(name)) for side in (made, now)] for name in [*now, *made]}
    return [
        f"{name}: {_shown(name, before)}, not {_shown(name, after)}"
        for name, (before, after) in pairs.items()
        if before != after
    ]


def _plain(name: str, value: Any) -> Any:
    value = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value  # of NumPy
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        parts = [_plain(name, part) for part in value]
        return sorted(parts, key=str) if name in ID_LISTS else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    return name_of_function(value) if name == "image_transform" else type(value).__qualname__


def _shown(name: str, value: Any) -> str:
    if name in ID_LISTS and isinstance(value, list):
        return describe_ids(value)
    return "all" if name in ID_LISTS and value is None else repr(value)

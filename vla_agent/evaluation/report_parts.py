"""Checks of a report's file, so that whatever reads a loaded report may rely on the types of its parts."""

from __future__ import annotations

import math
from typing import Any

from libero_gym.common.json_files import KINDS
from libero_gym.equivalence.versions import DISTRIBUTION
from vla_agent.evaluation.learning import RunCurve
from vla_agent.evaluation.results import ReportError, shortened

_WORDS: dict[type, str] = {**KINDS, str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
# Conditions and settings, if they are there, by their type.
_CONDITIONS = {"protocol": str, "fixture_seed": int, "fixture_draw": str, "renderer": str, "settle_steps": int}
_CONDITIONS |= {"task_files": str, "physics": str}
_SETTINGS = {"env_id": str, "mujoco": str, "cameras": list, "chunk_size": int, "image_size": int, "n_envs": int}
_SETTINGS |= {"center_crop": bool, "deterministic": bool, "seed": int, "best_of_n": int, "replan_steps": int}
_SETTINGS |= {"image_transform": str, "decoding": str}
_OR_NONE = {"unnorm_key": str, "temperature": float, "rendered_size": int}


class Parts:
    """An object of a file, whose entries are looked at before they are used."""

    def __init__(self, name: str, content: dict[str, Any]) -> None:
        self.name, self.content = name, content

    def get(self, key: str, kind: type) -> Any:
        """An entry.

        Raises:
            ReportError: If it is missing, or of another type.
        """
        if key not in self.content:
            raise ReportError(f"{self.name} is damaged: it has no '{key}'.")
        value = self.content[key]
        fits = is_number(value) if kind is float else type(value) is int if kind is int else isinstance(value, kind)
        if not fits:
            raise ReportError(f"{self.name} is damaged: expected {_WORDS[kind]} as '{key}', got {shortened(value)}.")
        return value

    def check(self, kinds: dict[str, Any]) -> None:
        """Complain of an entry that is there and of another type."""
        for key, kind in kinds.items():
            if key in self.content:
                self.get(key, kind)


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be shown: no bool, and none that a float cannot hold."""
    try:
        return type(value) in (int, float) and math.isfinite(float(value))
    except OverflowError:
        return False


def check_conditions(name: str, conditions: dict[str, Any]) -> None:
    """Check a report's conditions.

    Raises:
        ReportError: If an entry is missing, or of another type.
    """
    parts = Parts(f"{name}, 'conditions',", conditions)
    parts.get("suite", str)
    for ids in ("task_ids", "init_state_ids"):
        if not _are_whole(numbers := parts.get(ids, list)):
            raise ReportError(f"{name} is damaged: expected whole numbers in '{ids}', got {shortened(numbers)}.")
    parts.check(_CONDITIONS)
    if "fixture_draw" in conditions:
        parts.get("fixture_seed", int)
    limits, n_tasks = conditions.get("max_steps"), len(conditions["task_ids"])
    if not isinstance(limits, list):
        parts.check({"max_steps": int})
    elif not _are_whole(limits) or len(limits) != n_tasks:
        raise ReportError(
            f"{name} is damaged: expected a whole number for each of {n_tasks} tasks as 'max_steps', got "
            f"{shortened(limits)}."
        )


def check_settings(name: str, settings: dict[str, Any]) -> None:
    """Check a report's settings.

    Raises:
        ReportError: If an entry is of another type.
    """
    parts = Parts(f"{name}, 'settings',", settings)
    parts.check(_SETTINGS)
    parts.check({key: kind for key, kind in _OR_NONE.items() if settings.get(key) is not None})


def check_manifest(name: str, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check a report's manifest.

    Args:
        name: Name of the report.
        manifest: The manifest.
        settings: The report's settings; older ones leave it to the versions to say how exact the simulation was.

    Raises:
        ReportError: If an entry is of another type.
    """
    for part in ("model", "versions", "machine"):
        if not isinstance(manifest.get(part, {}), dict):
            raise ReportError(f"{name} is damaged: expected an object as '{part}' of its manifest.")
    versions = Parts(f"{name}, 'versions',", manifest.get("versions", {}))
    if versions.content.get(DISTRIBUTION) and "mujoco" not in settings:
        versions.get(DISTRIBUTION, str)
    if not isinstance(manifest.get("model", {}).get("sha256", {}), dict):
        raise ReportError(f"{name} is damaged: expected an object as 'sha256' of its manifest's model.")
    if not isinstance(manifest.get("machine", {}).get("gpus", []), list):
        raise ReportError(f"{name} is damaged: expected a list as 'gpus' of its manifest's machine.")
    states = manifest.get("training_states")
    if isinstance(states, dict) and not all(isinstance(ids, list) and _are_whole(ids) for ids in states.values()):
        raise ReportError(f"{name} is damaged: expected whole numbers in 'training_states', got {shortened(states)}.")
    if "learning_curve" in manifest:
        try:
            RunCurve.from_json(manifest["learning_curve"])
        except ValueError as error:
            raise ReportError(f"{name} is damaged: {error} of 'learning_curve' in its manifest.") from error


def _are_whole(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)

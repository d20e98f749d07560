"""What the finished cells of `forty_tasks.py` say: rates, gains with intervals, and comparisons, paired by state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gains import Outcomes, gain_by_state, mean_in_points, paired, rate, success_by_state
from measuring import provenance

from forty.cells import DECODINGS, ENV_IDS, SUITES, TASKS, Group
from forty.work import MODELS, Work
from libero_gym.equivalence.versions import EXACT, fidelity, refuse_to_mix


class Finished(NamedTuple):
    """A finished cell.

    Attributes:
        name: Such as "strong/spatial/0".
        content: What its file holds.
    """

    name: str
    content: dict[str, Any]

    @property
    def seed(self) -> int:
        """Seed of its training."""
        return self.content["seed"]

    @property
    def suites(self) -> list[str]:
        """The suites that it was judged on."""
        return list(self.content["judged"]["last"])

    def after(self, model: str, suite: str, decoding: str) -> Outcomes:
        """Success of its best or last model on each state; of the last if no other was judged."""
        judged = self.content["judged"]
        return outcomes(judged.get(model, judged["last"])[suite][decoding])


class Evidence:
    """The finished cells of a work folder, and the judgements of what they started from.

    Args:
        work: The work folder.

    Attributes:
        cells: The cells, by group, in the order of the suites and seeds.
    """

    def __init__(self, work: Work) -> None:
        self.groups: Mapping[str, Group] = work.groups
        self._befores = [json.loads(path.read_text()) for path in sorted((work.root / "before").glob("*/*.json"))]
        self.cells: dict[str, list[Finished]] = {name: [] for name in work.groups}
        folder = work.cells_folder
        for path in folder.glob("*/*/*.json"):
            content = json.loads(path.read_text())
            if content["group"] in self.cells:
                name = path.relative_to(folder).with_suffix("").as_posix()
                self.cells[content["group"]].append(Finished(name, content))
        self._refuse_to_mix()
        for cells in self.cells.values():
            cells.sort(key=lambda cell: (list(ENV_IDS).index(cell.content["suite"]), cell.seed))

    def _refuse_to_mix(self) -> None:
        """Raise a ValueError if cells were made with different versions of MuJoCo."""
        contents = [cell.content for cells in self.cells.values() for cell in cells]
        known = [content.get("provenance", {}).get("versions", {}).get("mujoco", EXACT) for content in contents]
        for version in known:
            refuse_to_mix(fidelity(known[0]), fidelity(version), "cells")

    def of_suite(self, group: str, suite: str) -> list[Finished]:
        """A group's cells that were judged on a suite."""
        return [cell for cell in self.cells[group] if suite in cell.suites]

    def suites(self, group: str) -> list[str]:
        """The suites that a group's cells were judged on."""
        return [suite for suite in SUITES if self.of_suite(group, suite)]

    def before(self, cell: Finished, suite: str, decoding: str) -> Outcomes:
        """Success of what a cell started from on each state.

        Raises:
            ValueError: If it was not judged.
        """
        wanted = {
            "start": cell.content["settings"]["start"],
            "suite": suite,
            "decoding": decoding,
            "renderer": cell.content["renderer"],
        }
        if decoding == "sampled":
            wanted["temperature"] = cell.content["temperature"]
        for content in self._befores:
            if wanted.items() <= content.items():
                return outcomes(content)
        raise ValueError(f"{cell.name} has no judgement of its start ({wanted}); `run --cells {cell.name}` makes it.")


def outcomes(content: Mapping[str, Any]) -> Outcomes:
    """Success by task and state, as a file holds it."""
    return {(task_id, state): bool(success) for task_id, state, success, _ in content["episodes"]}


def results(evidence: Evidence) -> dict[str, Any]:
    """Every figure."""
    return {
        "provenance": provenance(),
        "cells": {cell.name: describe_cell(evidence, cell) for cells in evidence.cells.values() for cell in cells},
        "groups": {name: describe_group(evidence, name) for name, cells in evidence.cells.items() if cells},
        "comparisons": {
            f"{name} - {group.against}": compared
            for name, group in evidence.groups.items()
            if group.against and (compared := compare(evidence, name, group.against))
        },
    }


def describe_cell(evidence: Evidence, cell: Finished) -> dict[str, Any]:
    """A cell's rates and gains, and each episode's outcome as one character, by task in the order of states."""
    kept = ("settings", "renderer", "temperature", "commits", "provenance", "seconds", "decisions", "best_is_last")
    row: dict[str, Any] = {name: cell.content[name] for name in kept}
    row["memory_mb"] = cell.content.get("memory_mb", {})  # nobody looked before
    row["best_at"] = (cell.content["curve"] or {}).get("evaluated_at")
    row["judged"] = {
        model: {
            suite: {
                decoding: {
                    **rate(cell.after(model, suite, decoding)),
                    **paired(evidence.before(cell, suite, decoding), cell.after(model, suite, decoding)),
                    "outcomes": as_text(cell.after(model, suite, decoding)),
                }
                for decoding in DECODINGS
            }
            for suite in cell.suites
        }
        for model in MODELS
        if model in cell.content["judged"]
    }
    return row


def as_text(found: Outcomes) -> list[str]:
    """Outcomes by task, such as "1101" for the states of one."""
    tasks = {task_id for task_id, _ in found}
    return ["".join(str(int(found[key])) for key in sorted(found) if key[0] == task_id) for task_id in sorted(tasks)]


def describe_group(evidence: Evidence, group: str) -> dict[str, Any]:
    """Before, after and gain of each suite with its seeds together, and of the mean over suites."""
    found: dict[str, Any] = {"start": evidence.groups[group].start, "against": evidence.groups[group].against}
    for decoding in DECODINGS:
        for model in MODELS:
            gains: dict[str, np.ndarray] = {}
            rows: dict[str, Any] = {}
            sides: list[list[np.ndarray]] = [[], []]
            for suite in evidence.suites(group):
                cells = evidence.of_suite(group, suite)
                before = [evidence.before(cell, suite, decoding) for cell in cells]
                after = [cell.after(model, suite, decoding) for cell in cells]
                gains[suite] = gain_by_state(before, after)
                for side, episodes in zip(sides, (before, after), strict=True):
                    side.append(success_by_state(episodes))
                rows[suite] = {
                    "seeds": [cell.seed for cell in cells],
                    "before": together(before[:1]),
                    "after": together(after),
                    "gain": mean_in_points([gains[suite]]),
                    "rerun": f"python benchmarks/forty_tasks.py cell {cells[0].name}",
                }
            rows["mean"] = {
                "suites": list(gains),
                "before": mean_in_points(sides[0]),
                "after": mean_in_points(sides[1]),
                "gain": mean_in_points(list(gains.values())),
            }
            found.setdefault(decoding, {})[model] = rows
    return found


def together(evaluations: Sequence[Outcomes]) -> dict[str, Any]:
    """Rate of several evaluations' episodes together."""
    return rate(
        {(TASKS * n + task, state): s for n, found in enumerate(evaluations) for (task, state), s in found.items()}
    )


def compare(evidence: Evidence, group: str, against: str) -> dict[str, Any]:
    """How a group differs from another after training, by suite, on the seeds that both have."""
    found: dict[str, Any] = {}
    for decoding in DECODINGS:
        for model in MODELS:
            differences: dict[str, np.ndarray] = {}
            rows: dict[str, Any] = {}
            for suite in evidence.suites(group):
                first = {cell.seed: cell.after(model, suite, decoding) for cell in evidence.of_suite(against, suite)}
                second = {cell.seed: cell.after(model, suite, decoding) for cell in evidence.of_suite(group, suite)}
                seeds = [seed for seed in second if seed in first]
                if not seeds:
                    continue
                sides = [[side[seed] for seed in seeds] for side in (first, second)]
                differences[suite] = gain_by_state(*sides)
                rows[suite] = {
                    "seeds": seeds,
                    "first": together(sides[0]),
                    "second": together(sides[1]),
                    "difference": mean_in_points([differences[suite]]),
                    "by_seed": [paired(*pair) for pair in zip(*sides, strict=True)],
                }
            if len(differences) > 1:
                difference = mean_in_points(list(differences.values()))
                rows["mean"] = {"suites": list(differences), "difference": difference}
            if rows:
                found.setdefault(decoding, {})[model] = rows
    return found

"""What an evaluation found: episodes, success per task with intervals, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.atomic import replacing, write_text
from libero_gym.checks import flag, whole_number
from libero_gym.json_files import KINDS, read_json
from vla_agent.intervals import wilson_interval

SCHEMA = 1
REPORT_FILE, PAGE_FILE, CHART_FILE = "report.json", "report.md", "success.png"


class ReportError(ValueError):
    """A report that is missing, damaged, or of another version."""


class EpisodeResult(NamedTuple):
    """One episode of an evaluation.

    Attributes:
        task_id: Task of the suite.
        init_state_id: Official initial state that it began from, or -1 - s for that of placement seed s.
        success: Whether the goal held.
        steps: Control steps, settling left out.
    """

    task_id: int
    init_state_id: int
    success: bool
    steps: int

    @classmethod
    def from_json(cls, content: Any, name: str) -> EpisodeResult:
        """An episode as files have it.

        Args:
            content: What stands in the file.
            name: What messages call it.

        Raises:
            ReportError: If it is no episode.
        """
        if not isinstance(content, dict) or content.keys() != set(cls._fields):
            raise ReportError(f"{name} is damaged: expected {', '.join(cls._fields)}, got {_shortened(content)}.")
        try:
            return cls(
                whole_number("task_id", content["task_id"], 0),
                whole_number("init_state_id", content["init_state_id"]),
                flag("success", content["success"]),
                whole_number("steps", content["steps"], 0),
            )
        except ValueError as error:
            raise ReportError(f"{name} is damaged: {error}") from error


class SuccessRow(NamedTuple):
    """Success over some episodes.

    Attributes:
        n: Episodes.
        successes: Of those.
        low: Lower end of the rate's interval, Wilson's at 95 %.
        high: Upper end.
        mean_steps: Control steps of all episodes, mean.
        mean_success_steps: Control steps of the successful ones, mean; None without any.
    """

    n: int
    successes: int
    low: float
    high: float
    mean_steps: float
    mean_success_steps: float | None

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.n if self.n else 0.0

    @classmethod
    def of(cls, episodes: Sequence[EpisodeResult]) -> SuccessRow:
        """The row of some episodes."""
        successes = [episode.steps for episode in episodes if episode.success]
        low, high = wilson_interval(len(successes), len(episodes))
        mean_steps = float(np.mean([episode.steps for episode in episodes])) if episodes else 0.0
        mean_success_steps = float(np.mean(successes)) if successes else None
        return cls(len(episodes), len(successes), low, high, mean_steps, mean_success_steps)

    def to_json(self) -> dict[str, Any]:
        """As `report.json` has it."""
        return {
            "n": self.n,
            "successes": self.successes,
            "success_rate": round(self.rate, 6),
            "wilson_95": [round(self.low, 6), round(self.high, 6)],
            "mean_steps": round(self.mean_steps, 3),
            "mean_success_steps": None if self.mean_success_steps is None else round(self.mean_success_steps, 3),
        }


@dataclass
class EvaluationReport:
    """What an evaluation found, and how.

    Attributes:
        conditions: What two reports must share to be compared: suite, tasks, states, protocol, renderer, limits.
        settings: What else was chosen: decoding, seed, the model's image path, number of environments.
        episodes: In the order of tasks and initial states, whichever ended first.
        task_names: LIBERO's names, by task id.
        timing: Seconds and latencies of the last run, where an evaluation took several; of the machine, not the result.
        manifest: Versions, hashes and the initial states that the model was trained on.
        complete: False if the evaluation was interrupted.
    """

    conditions: dict[str, Any]
    settings: dict[str, Any]
    episodes: list[EpisodeResult]
    task_names: dict[int, str]
    timing: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    complete: bool = True

    def __str__(self) -> str:
        lines = [f"{i:3} {describe_row(row)}  {self.task_names[i].replace('_', ' ')}" for i, row in self.tasks.items()]
        return "\n".join([*lines, f"All {describe_row(self.total)}"])

    @property
    def success_rate(self) -> float:
        """Share of successes over all episodes: the mean over tasks, where these have as many episodes each."""
        return self.total.rate

    @property
    def total(self) -> SuccessRow:
        """All episodes together."""
        return SuccessRow.of(self.episodes)

    @property
    def tasks(self) -> dict[int, SuccessRow]:
        """A row per task, by task id."""
        ids = dict.fromkeys(episode.task_id for episode in self.episodes)
        return {i: SuccessRow.of([episode for episode in self.episodes if episode.task_id == i]) for i in ids}

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md` and `success.png` into a folder."""
        from vla_agent.evaluation.pages import draw_chart, markdown

        folder = Path(folder)
        write_text(folder / REPORT_FILE, json.dumps(self.to_json(), indent=1) + "\n")
        write_text(folder / PAGE_FILE, markdown(self))
        with replacing(folder / CHART_FILE) as temporary:
            draw_chart(self, temporary)

    @classmethod
    def load(cls, path: str | Path) -> EvaluationReport:
        """The report that `save` wrote.

        Args:
            path: The folder, or the `report.json` in it.

        Raises:
            ReportError: If there is none, or it is damaged or of another schema.
            TypeError: If ``path`` is none.
        """
        path = as_path("path", path)
        path = path / REPORT_FILE if path.is_dir() else path
        try:
            content = read_json(path, error=ReportError)
        except FileNotFoundError as error:
            raise ReportError(f"There is no report at '{path}'; give a folder that an evaluation wrote.") from error
        except OSError as error:
            raise ReportError(f"'{path}' cannot be read ({error.strerror}); give a folder with a report.") from error
        return _report(content, f"'{path}'")

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        rows = self.tasks
        nothing = SuccessRow.of([])
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "summary": self.total.to_json(),
            "conditions": self.conditions,
            "settings": self.settings,
            "tasks": {
                str(task_id): {"name": name, **rows.get(task_id, nothing).to_json()}
                for task_id, name in self.task_names.items()
            },
            "timing": self.timing,
            "manifest": self.manifest,
            "episodes": [episode._asdict() for episode in self.episodes],
        }


def _report(content: dict[str, Any], name: str) -> EvaluationReport:
    """The report that is written in a `report.json`; a ReportError says what is not as it should be."""
    if "schema" not in content:
        raise ReportError(f"{name} is no report of an evaluation: it has no 'schema'.")
    if content["schema"] != SCHEMA:
        raise ReportError(f"{name} has schema {_shortened(content['schema'])}; this version reads schema {SCHEMA}.")
    parts = _Parts(name, content)
    task_names = {}
    for key, task in parts.get("tasks", dict).items():
        if not (key.isascii() and key.isdecimal() and isinstance(task, dict) and isinstance(task.get("name"), str)):
            raise ReportError(f"{name} is damaged: expected a number and a name of each of 'tasks', got {key!r}.")
        task_names[int(key)] = task["name"]
    episodes = [
        EpisodeResult.from_json(episode, f"{name}, episode {number},")
        for number, episode in enumerate(parts.get("episodes", list))
    ]
    if strange := {episode.task_id for episode in episodes} - set(task_names):
        raise ReportError(f"{name} is damaged: 'tasks' does not name tasks {sorted(strange)} of its episodes.")
    conditions, timing, manifest = (parts.get(part, dict) for part in ("conditions", "timing", "manifest"))
    _Parts(f"{name}, 'conditions',", conditions).get("suite", str)
    for ids in ("task_ids", "init_state_ids"):
        numbers = _Parts(f"{name}, 'conditions',", conditions).get(ids, list)
        if not all(type(number) is int for number in numbers):
            raise ReportError(f"{name} is damaged: expected whole numbers in '{ids}', got {_shortened(numbers)}.")
    if not all(type(seconds) in (int, float) for seconds in timing.values()):
        raise ReportError(f"{name} is damaged: expected numbers in 'timing', got {_shortened(timing)}.")
    for part in ("model", "versions"):
        if not isinstance(manifest.get(part, {}), dict):
            raise ReportError(f"{name} is damaged: expected an object as '{part}' of its manifest.")
    states = manifest.get("training_states")
    if isinstance(states, dict) and not all(
        isinstance(ids, list) and set(map(type, ids)) <= {int} for ids in states.values()
    ):
        raise ReportError(f"{name} is damaged: expected whole numbers in 'training_states', got {_shortened(states)}.")
    return EvaluationReport(
        conditions=conditions,
        settings=parts.get("settings", dict),
        episodes=episodes,
        task_names=task_names,
        timing=timing,
        manifest=manifest,
        complete=parts.get("complete", bool),
    )


class _Parts:
    """An object of a file, whose entries are looked at before they are used."""

    def __init__(self, name: str, content: dict[str, Any]) -> None:
        self.name, self.content = name, content

    def get(self, key: str, kind: type) -> Any:
        if key not in self.content:
            raise ReportError(f"{self.name} is damaged: it has no '{key}'.")
        value = self.content[key]
        if not isinstance(value, kind):
            wanted = KINDS.get(kind) or {str: "a text", bool: "true or false"}[kind]
            raise ReportError(f"{self.name} is damaged: expected {wanted} as '{key}', got {_shortened(value)}.")
        return value


def as_path(name: str, value: Any) -> Path:
    """A path, given as text or as one."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name}={value!r}; expected the path of a folder.")
    return Path(value)


def as_folder(name: str, value: Any) -> Path:
    """The path of a folder that is there or can be made.

    Raises:
        TypeError: If it is no path.
        ReportError: If a file is in its place.
    """
    path = as_path(name, value)
    if path.exists() and not path.is_dir():
        raise ReportError(f"{name}='{path}' is a file; expected a folder, which may be missing.")
    return path


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def describe_row(row: SuccessRow) -> str:
    """Such as "7/10 = 70.0 %, 95 % interval 39.7 to 89.2 %"."""
    return (
        f"{row.successes}/{row.n} = {100 * row.rate:.1f} %, 95 % interval {100 * row.low:.1f} to {100 * row.high:.1f} %"
    )


def describe_ids(ids: Sequence[int]) -> str:
    """Such as "0-4, 7" for [0, 1, 2, 3, 4, 7]."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{first}-{last}" if first != last else f"{first}" for first, last in runs) or "none"

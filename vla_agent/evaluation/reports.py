"""Reports of evaluations as files: written, and read again with a check of every part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libero_gym.common.atomic import replacing, write_text
from libero_gym.common.checks import as_path
from libero_gym.common.json_files import KINDS, read_json
from vla_agent.evaluation.html import report_page
from vla_agent.evaluation.learning import RunCurve
from vla_agent.evaluation.pages import CHART_FILE, draw_chart, markdown
from vla_agent.evaluation.results import SCHEMA, EpisodeResult, EvaluationResults, ReportError, shortened

REPORT_FILE, PAGE_FILE, WEB_PAGE_FILE = "report.json", "report.md", "report.html"


@dataclass
class EvaluationReport(EvaluationResults):
    """The results of an evaluation, which can be saved and loaded."""

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md`, `report.html` and `success.png` into a folder.

        The web page holds the films of failures that are in ``failures`` there.
        """
        folder = Path(folder)
        write_text(folder / REPORT_FILE, json.dumps(self.to_json(), indent=1) + "\n")
        write_text(folder / PAGE_FILE, markdown(self))
        write_text(folder / WEB_PAGE_FILE, report_page(self, folder))
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


def _report(content: dict[str, Any], name: str) -> EvaluationReport:
    """The report that is written in a `report.json`; a ReportError says what is not as it should be."""
    if "schema" not in content:
        raise ReportError(f"{name} is no report of an evaluation: it has no 'schema'.")
    if content["schema"] != SCHEMA:
        raise ReportError(f"{name} has schema {shortened(content['schema'])}; this version reads schema {SCHEMA}.")
    parts = _Parts(name, content)
    task_names, task_suites = {}, {}
    for key, task in parts.get("tasks", dict).items():
        if not (key.isascii() and key.isdecimal() and isinstance(task, dict) and isinstance(task.get("name"), str)):
            raise ReportError(f"{name} is damaged: expected a number and a name of each of 'tasks', got {key!r}.")
        task_names[int(key)] = task["name"]
        if "suite" in task:  # which reports of before do not name
            task_suites[int(key)] = _Parts(f"{name}, task {key},", task).get("suite", str)
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
            raise ReportError(f"{name} is damaged: expected whole numbers in '{ids}', got {shortened(numbers)}.")
    if not all(type(seconds) in (int, float) for seconds in timing.values()):
        raise ReportError(f"{name} is damaged: expected numbers in 'timing', got {shortened(timing)}.")
    for part in ("model", "versions", "machine"):
        if not isinstance(manifest.get(part, {}), dict):
            raise ReportError(f"{name} is damaged: expected an object as '{part}' of its manifest.")
    if not isinstance(manifest.get("model", {}).get("sha256", {}), dict):
        raise ReportError(f"{name} is damaged: expected an object as 'sha256' of its manifest's model.")
    if not isinstance(manifest.get("machine", {}).get("gpus", []), list):
        raise ReportError(f"{name} is damaged: expected a list as 'gpus' of its manifest's machine.")
    states = manifest.get("training_states")
    if isinstance(states, dict) and not all(
        isinstance(ids, list) and set(map(type, ids)) <= {int} for ids in states.values()
    ):
        raise ReportError(f"{name} is damaged: expected whole numbers in 'training_states', got {shortened(states)}.")
    if "learning_curve" in manifest:
        try:
            RunCurve.from_json(manifest["learning_curve"])
        except ValueError as error:
            raise ReportError(f"{name} is damaged: {error} of 'learning_curve' in its manifest.") from error
    return EvaluationReport(
        conditions=conditions,
        settings=parts.get("settings", dict),
        episodes=episodes,
        task_names=task_names,
        timing=timing,
        manifest=manifest,
        complete=parts.get("complete", bool),
        task_suites=task_suites,
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
            raise ReportError(f"{self.name} is damaged: expected {wanted} as '{key}', got {shortened(value)}.")
        return value


def finished_timing(folder: Path | None) -> dict[str, Any]:
    """The timing of a folder's finished report; nothing if there is none."""
    if folder is None:
        return {}
    try:
        report = EvaluationReport.load(folder)
    except ReportError:
        return {}
    return report.timing if report.complete else {}


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

"""Reports of evaluations as files: written, and read again with a check of every part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libero_gym.common.atomic import replacing, write_text
from libero_gym.common.checks import as_path
from libero_gym.common.json_files import read_json
from vla_agent.evaluation.html import report_page
from vla_agent.evaluation.pages import CHART_FILE, draw_chart, markdown
from vla_agent.evaluation.report_parts import Parts, check_conditions, check_manifest, check_settings, is_number
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
    parts = Parts(name, content)
    task_names, task_suites = {}, {}
    for key, task in parts.get("tasks", dict).items():
        if not (key.isascii() and key.isdecimal() and isinstance(task, dict) and isinstance(task.get("name"), str)):
            raise ReportError(f"{name} is damaged: expected a number and a name of each of 'tasks', got {key!r}.")
        task_names[int(key)] = task["name"]
        if "suite" in task:  # which reports of before do not name
            task_suites[int(key)] = Parts(f"{name}, task {key},", task).get("suite", str)
    episodes = [
        EpisodeResult.from_json(episode, f"{name}, episode {number},")
        for number, episode in enumerate(parts.get("episodes", list))
    ]
    if strange := {episode.task_id for episode in episodes} - set(task_names):
        raise ReportError(f"{name} is damaged: 'tasks' does not name tasks {sorted(strange)} of its episodes.")
    conditions, settings = parts.get("conditions", dict), parts.get("settings", dict)
    timing, manifest = parts.get("timing", dict), parts.get("manifest", dict)
    check_conditions(name, conditions)
    check_settings(name, settings)
    if not all(map(is_number, timing.values())):
        raise ReportError(f"{name} is damaged: expected numbers in 'timing', got {shortened(timing)}.")
    check_manifest(name, manifest, settings)
    return EvaluationReport(
        conditions=conditions,
        settings=settings,
        episodes=episodes,
        task_names=task_names,
        timing=timing,
        manifest=manifest,
        complete=parts.get("complete", bool),
        task_suites=task_suites,
    )


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

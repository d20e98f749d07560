"""Results as one HTML page that needs nothing else: no server, no script, no file beside it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from libero_gym.dimensions import CONTROL_FREQ
from vla_agent.evaluation.charts import SIZES, Plot, plot, summarize
from vla_agent.evaluation.clips import MAX_BYTES, read_clips
from vla_agent.evaluation.learning import RunCurve
from vla_agent.evaluation.pages import describe_setting, facts, model_name, training_note
from vla_agent.evaluation.results import EpisodeResult, EvaluationResults, SuccessRow, describe_ids, describe_row

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


class TaskResult(NamedTuple):
    """A task in a table.

    Attributes:
        task_id: Number of the task in its suite.
        name: Its name in words.
        row: Its success.
        failed: Initial states that it failed from, in words; empty if there is none.
    """

    task_id: int
    name: str
    row: SuccessRow
    failed: str


class SuiteResult(NamedTuple):
    """The tasks of a suite in a table."""

    name: str
    tasks: list[TaskResult]
    row: SuccessRow


class LearningSection(NamedTuple):
    """A learning curve in a page.

    Attributes:
        title: Name of the model that it is of.
        curve: The curve.
        plots: The same curve drawn for a laptop and for a phone.
        summary: What the picture shows, in words.
    """

    title: str
    curve: RunCurve
    plots: list[Plot]
    summary: str


class Film(NamedTuple):
    """A film of a failure, with what stands below it.

    Attributes:
        uri: The film.
        task: Name of the task in words.
        where: Initial state and length in words.
    """

    uri: str
    task: str
    where: str


class FilmSection(NamedTuple):
    """The films of an evaluation.

    Attributes:
        films: Films that the page holds.
        left_out: Files that the page does not hold.
        limit: Size that all films may take in the page, in words.
    """

    films: list[Film]
    left_out: list[str]
    limit: str


def report_page(report: EvaluationResults, folder: Path) -> str:
    """The page `report.html`, the same bytes for the same report and films.

    Args:
        report: The results.
        folder: Folder of the evaluation, whose films of failures are embedded.
    """
    note, seen = training_note(report)
    return render(
        "report.html",
        title=f"{model_name(report)} on {report.conditions['suite']}",
        report=report,
        suites=by_suite(report),
        protocol=describe_setting(report),
        training_note=note,
        trained_on_evaluated=seen,
        curves=learning_sections({model_name(report): report}),
        films=film_section(report, folder),
        facts=facts(report),
    )


def by_suite(report: EvaluationResults) -> list[SuiteResult]:
    """The rows of a report, by the suites that its tasks come from."""
    tasks: dict[str, list[TaskResult]] = {}
    for task_id, row in report.tasks.items():
        name, failed = report.task_names[task_id].replace("_", " "), failed_from(report.episodes, task_id)
        tasks.setdefault(report.suite_of(task_id), []).append(TaskResult(task_id, name, row, failed))
    return [SuiteResult(suite, tasks[suite], total) for suite, total in report.suites.items()]


def failed_from(episodes: Sequence[EpisodeResult], task_id: int) -> str:
    """Initial states that a task failed from, in words; empty if there is none."""
    return states_in_words([episode for episode in episodes if episode.task_id == task_id and not episode.success])


def states_in_words(episodes: Sequence[EpisodeResult]) -> str:
    """Where episodes began, such as "states 3, 7-9" or "placement seeds 0-1"; empty if there is none."""
    states = [episode.init_state_id for episode in episodes]
    official = [state for state in states if state >= 0]
    words = "states " if len(official) > 1 else "state " if official else ""
    return words + describe_ids(states) if states else ""


def learning_sections(reports: Mapping[str, EvaluationResults]) -> list[LearningSection]:
    """The learning curves of those reports that have one, by the name of the model."""
    sections = []
    for title, report in reports.items():
        if (content := report.manifest.get("learning_curve")) is None:
            continue
        curve = RunCurve.from_json(content)
        parts = [
            f"{name}, {summarize(points)}"
            for name, points in (("evaluations", curve.evaluations), ("training episodes", curve.training))
            if points
        ]
        plots = [plot(curve, name) for name in SIZES]
        sections.append(LearningSection(title, curve, plots, f"Success of {'; '.join(parts)}."))
    return sections


def film_section(report: EvaluationResults, folder: Path) -> FilmSection:
    """The films of failures in a folder."""
    clips = read_clips(folder, report.episodes)
    films = [
        Film(
            clip.uri,
            f"{clip.episode.task_id}  {report.task_names[clip.episode.task_id].replace('_', ' ')}",
            f"{_state(clip.episode)}, failed after {clip.episode.steps / CONTROL_FREQ:.1f} s",
        )
        for clip in clips.shown
    ]
    return FilmSection(films, clips.left_out, f"{MAX_BYTES / 1e6:.0f} MB")


def _state(episode: EpisodeResult) -> str:
    """Where an episode began, such as "initial state 3"."""
    state = episode.init_state_id
    return f"initial state {state}" if state >= 0 else f"placement seed {-1 - state}"


def render(template: str, **values: Any) -> str:
    """A page of a template; whatever a value holds is text in it and never markup."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "describe": describe_row}
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    """A difference in percentage points, with its sign."""
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}") if points else "0.0"

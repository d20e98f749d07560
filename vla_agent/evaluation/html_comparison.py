"""Two evaluations side by side as one HTML page: before and after, task by task, gained and lost episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vla_agent.evaluation.comparison import SIGNIFICANCE_LEVEL, compare_reports, pairs_of
from vla_agent.evaluation.html import film_section, learning_sections, render, states_in_words
from vla_agent.evaluation.pages import facts, model_name
from vla_agent.evaluation.protocols import with_fixtures
from vla_agent.evaluation.reports import EvaluationReport
from vla_agent.evaluation.results import EpisodeResult, SuccessRow

COMPARISON_FILE = "comparison.html"


class Side(NamedTuple):
    """One of the two models.

    Attributes:
        label: "Before" or "After".
        css: Class of its bars.
        model: Name of the model.
        row: Its success over the episodes compared.
    """

    label: str
    css: str
    model: str
    row: SuccessRow


class Change(NamedTuple):
    """What changed in some episodes.

    Attributes:
        task_id: The task; -1 for several.
        name: Its name in words.
        before: Success of the first model.
        after: Success of the second.
        gained: Which episodes the second alone succeeded in, in words.
        lost: Which episodes the first alone succeeded in, in words.
    """

    task_id: int
    name: str
    before: SuccessRow
    after: SuccessRow
    gained: str
    lost: str


class SuiteChange(NamedTuple):
    """The changes of a suite."""

    name: str
    tasks: list[Change]
    total: Change


def comparison_page(
    first: EvaluationReport, second: EvaluationReport, folder: Path, *, across_simulations: bool = False
) -> str:
    """The page `comparison.html`, the same bytes for the same reports and films.

    Args:
        first: The evaluation before.
        second: The evaluation after.
        folder: Folder of the second, whose films of failures are embedded.
        across_simulations: See `compare_reports`.
    """
    comparison = compare_reports(first, second, across_simulations=across_simulations)
    one, two = _compared(first, second, comparison.paired)
    names = [model_name(first), model_name(second)]
    rows = [facts(replace(report, conditions=with_fixtures(report.conditions))) for report in (first, second)]
    suites = changes_by_suite(first, second, one, two, comparison.paired)
    labels = names if names[0] != names[1] else [f"{names[0]} (before)", f"{names[1]} (after)"]
    return render(
        "comparison.html",
        title=f"{' and '.join(dict.fromkeys(names))}, before and after, on {' and '.join(s.name for s in suites)}",
        comparison=comparison,
        sides=[Side("Before", "before", names[0], comparison.first), Side("After", "", names[1], comparison.second)],
        level=f"{100 * SIGNIFICANCE_LEVEL:.0f} %",
        suites=suites,
        total=_change(-1, "", one, two, comparison.paired, counted=True),
        curves=learning_sections(dict(zip(labels, (first, second), strict=True))),
        films=film_section(second, folder),
        facts={name: (rows[0].get(name, ""), rows[1].get(name, "")) for name in rows[0] | rows[1]},
    )


def changes_by_suite(
    first: EvaluationReport,
    second: EvaluationReport,
    before: Sequence[EpisodeResult],
    after: Sequence[EpisodeResult],
    paired: bool,
) -> list[SuiteChange]:
    """The changes, by the suites that tasks come from; what one side alone has played has a suite of its own.

    Args:
        first: The evaluation before.
        second: The evaluation after.
        before: Episodes of the first that are compared.
        after: Episodes of the second that are compared.
        paired: Whether these are the same episodes.
    """
    # Older reports name no suites of tasks, so pairs are grouped by whichever report tells more.
    told = max((second, first), key=lambda report: len(report.task_suites))
    suites: dict[str, dict[tuple[int, str], tuple[list[EpisodeResult], list[EpisodeResult]]]] = {}
    for side, (report, episodes) in enumerate(((first, before), (second, after))):
        by = told if paired else report
        for episode in episodes:
            task = episode.task_id, report.task_names[episode.task_id]  # a number may stand for two tasks
            suites.setdefault(by.suite_of(episode.task_id), {}).setdefault(task, ([], []))[side].append(episode)
    changes = []
    for suite, of_task in suites.items():
        tasks = [_change(task_id, name.replace("_", " "), *sides, paired) for (task_id, name), sides in of_task.items()]
        one, two = ([episode for sides in of_task.values() for episode in sides[side]] for side in (0, 1))
        changes.append(SuiteChange(suite, tasks, _change(-1, "", one, two, paired, counted=True)))
    return changes


def _compared(
    first: EvaluationReport, second: EvaluationReport, paired: bool
) -> tuple[list[EpisodeResult], list[EpisodeResult]]:
    """The episodes that are compared: those that both ran if they are paired, else all."""
    if not paired:
        return first.episodes, second.episodes
    pairs = pairs_of(first, second)
    return [one for one, _ in pairs], [two for _, two in pairs]


def _change(
    task_id: int,
    name: str,
    before: Sequence[EpisodeResult],
    after: Sequence[EpisodeResult],
    paired: bool,
    *,
    counted: bool = False,
) -> Change:
    """The change over some episodes; ``counted`` tells how many were gained and not from which states."""
    pairs = list(zip(before, after, strict=True)) if paired else []
    gained = [two for one, two in pairs if two.success and not one.success]
    lost = [one for one, two in pairs if one.success and not two.success]
    words = [_count(found) if counted and paired else states_in_words(found) for found in (gained, lost)]
    return Change(task_id, name, SuccessRow.of(before), SuccessRow.of(after), *words)


def _count(episodes: Sequence[EpisodeResult]) -> str:
    return "1 episode" if len(episodes) == 1 else f"{len(episodes)} episodes"

"""Comparisons of two evaluations: whether they can be compared, and whether they differ beyond chance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from libero_gym.equivalence.versions import DISTRIBUTION, EXACT, SAME_VERSION, fidelity, refuse_to_mix
from vla_agent.common.intervals import mcnemar_exact, newcombe_interval
from vla_agent.evaluation.decoding import describe_decoding
from vla_agent.evaluation.frames import with_frames
from vla_agent.evaluation.protocols import with_fixtures
from vla_agent.evaluation.reports import EvaluationReport
from vla_agent.evaluation.results import (
    EpisodeResult,
    ReportError,
    SuccessRow,
    describe_ids,
    describe_row,
    describe_value,
    lost_and_gained,
    paired_episodes,
)

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """What two reports say of each other.

    Attributes:
        differences: Conditions that differ, one sentence each; the reports are comparable if there is none.
        choices: Settings that differ, such as how images were cropped: the model's side, not the benchmark's.
        simulations: How exact the simulation of each was; they differ only if simulations are compared on purpose.
        first: Success of the first, over the episodes compared.
        second: Success of the second.
        paired: Whether both ran the episodes compared, so that these are compared one by one.
        only_first: Paired episodes in which the first alone succeeded.
        only_second: Paired episodes in which the second alone succeeded.
        p_value: Two-sided p-value of McNemar's exact test; None if episodes are not paired.
        interval: Newcombe's 95 % interval of the difference, as of independent episodes: wide for paired ones.
        suites: The same of each suite that tasks come from, by its name, if both reports have several.
    """

    differences: list[str]
    choices: list[str]
    simulations: tuple[str, str]
    first: SuccessRow
    second: SuccessRow
    paired: bool
    only_first: int
    only_second: int
    p_value: float | None
    interval: tuple[float, float]
    suites: dict[str, Comparison] = field(default_factory=dict)

    @property
    def comparable(self) -> bool:
        """Whether the two differ in the model alone; or, if simulations are compared, in the simulation alone."""
        return not self.differences

    @property
    def across_simulations(self) -> bool:
        """Whether the two are of different simulations of LIBERO."""
        return self.simulations[0] != self.simulations[1]

    @property
    def subject(self) -> str:
        """What the two differ in, "model" or "simulation"."""
        return "simulation" if self.across_simulations else "model"

    @property
    def difference(self) -> float:
        """Success rate of the second minus that of the first."""
        return self.second.rate - self.first.rate

    @property
    def significant(self) -> bool:
        """Whether the difference is beyond chance at 5 %: by McNemar's test if paired, else by Newcombe's interval."""
        if self.p_value is not None:
            return self.p_value < SIGNIFICANCE_LEVEL
        return not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        lines = ["Comparable: yes." if self.comparable else "Comparable: no."]
        lines += [f"  {difference}" for difference in self.differences]
        if self.across_simulations:
            lines.append(f"Simulations: {self.simulations[0]} against {self.simulations[1]}.")
        if self.choices:
            lines.append("Chosen differently: " + " ".join(self.choices))
        for name, row in (("First", self.first), ("Second", self.second)):
            lines.append(f"{name}: {describe_row(row)}.")
        lines.append(
            f"Difference: {100 * self.difference:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}."
        )
        if self.p_value is not None:
            lines.append(
                f"On the {self.first.n} episodes that both ran, the first alone succeeded in {self.only_first} and the "
                f"second alone in {self.only_second}: p = {self.p_value:.3g} (McNemar, exact, two-sided)."
            )
        else:
            lines.append("No episode was run by both, so they are compared as independent samples (Newcombe).")
        for name, part in self.suites.items():
            test = "" if part.p_value is None else f", p = {part.p_value:.3g}"
            rates = f"{100 * part.first.rate:.1f} % against {100 * part.second.rate:.1f} %"
            lines.append(f"  {name}: {rates} of {part.first.n} and {part.second.n} episodes{test}.")
        verdict = "The difference is significant" if self.significant else "No significant difference"
        lines.append(f"{verdict} at {SIGNIFICANCE_LEVEL:.0%}.")
        if not self.comparable:
            lines[-1] += f" It need not be the {self.subject}'s: the conditions differ."
        return "\n".join(lines)


def compare_reports(
    first: EvaluationReport, second: EvaluationReport, *, across_simulations: bool = False
) -> Comparison:
    """Whether two reports can be compared, and whether their success rates differ beyond chance.

    Episodes of the same task and initial state are paired, so that what makes some states harder than others cancels.
    Tasks of one number and two names are no pairs. If there is no pair, all episodes of both are compared. Reports that
    do not state draws of fixtures are older; all their episodes had the first draw. Whether actions are greedy or
    drawn, and at which temperature, is a condition.

    Args:
        first: The one to compare with, such as a baseline.
        second: The other.
        across_simulations: Whether to compare reports of different simulations ("exact", "equivalent", "batched").
            Another model is then a condition that differs: what is compared is what the simulations make of one.

    Raises:
        TypeError: If one is no report.
        ReportError: If they are of different simulations, or of different versions of one, and not meant to be.
    """
    for name, report in (("first", first), ("second", second)):
        if not isinstance(report, EvaluationReport):
            raise TypeError(
                f"The {name} is a {type(report).__name__}; expected an EvaluationReport, such as of "
                "EvaluationReport.load(folder)."
            )
    simulations = _fidelity(first), _fidelity(second)
    differences = _differing(*map(_conditions, (first, second))) + _tasks(first, second)
    if across_simulations:
        differences += _differing(*map(_model, (first, second))) if simulations[0] != simulations[1] else []
    else:
        _refuse_to_mix(*simulations)
    choices = _differing(*map(_choices, (first, second)))
    for name, report in (("first", first), ("second", second)):
        if not report.complete:
            differences.append(f"The {name} report is of an interrupted evaluation ({len(report.episodes)} episodes).")
    both = pairs_of(first, second)
    row_one = SuccessRow.of([one for one, _ in both] or first.episodes)
    row_two = SuccessRow.of([two for _, two in both] or second.episodes)
    only_one, only_two = lost_and_gained(both)
    shared = [name for name in first.suites if name in second.suites] if _may_pair(first, second) else []
    return Comparison(
        differences,
        choices,
        simulations,
        row_one,
        row_two,
        bool(both),
        only_one,
        only_two,
        mcnemar_exact(only_one, only_two) if both else None,
        newcombe_interval((row_one.successes, row_one.n), (row_two.successes, row_two.n)),
        {
            name: compare_reports(_part(first, name), _part(second, name), across_simulations=across_simulations)
            for name in shared
            if len(shared) > 1
        },
    )


def pairs_of(first: EvaluationReport, second: EvaluationReport) -> list[tuple[EpisodeResult, EpisodeResult]]:
    """Episodes of both reports from the same initial state of the same task, in the order of the first."""
    if not _may_pair(first, second):
        return []
    others = _other_tasks(first, second)
    return paired_episodes([episode for episode in first.episodes if episode.task_id not in others], second.episodes)


def _refuse_to_mix(first: str, second: str) -> None:
    way_out = f"{SAME_VERSION} and back end, or add --across-simulations (across_simulations=True) to compare these"
    try:
        refuse_to_mix(first, second, "reports", way_out)
    except ValueError as error:
        raise ReportError(str(error)) from None


def _part(report: EvaluationReport, suite: str) -> EvaluationReport:
    """The report of the tasks that come from a suite."""
    own = [episode for episode in report.episodes if report.suite_of(episode.task_id) == suite]
    return replace(report, episodes=own)


def _fidelity(report: EvaluationReport) -> str:
    """How exact a report's simulation was; older reports state the version of MuJoCo alone."""
    stated = report.settings.get("mujoco")
    return str(stated) if stated else fidelity(report.manifest.get("versions", {}).get(DISTRIBUTION) or EXACT)


def _conditions(report: EvaluationReport) -> dict[str, Any]:
    conditions = with_fixtures(report.conditions) | {"actions": describe_decoding(report.settings)}
    return {name: value for name, value in conditions.items() if name != "task_files"}


def _same_suite(first: EvaluationReport, second: EvaluationReport) -> bool:
    return first.conditions.get("suite") == second.conditions.get("suite")


def _may_pair(first: EvaluationReport, second: EvaluationReport) -> bool:
    """Whether episodes of one task's name and state are the same; other names say what else differs in the files."""
    return _same_suite(first, second) and (bool(_other_tasks(first, second)) or not _differ_in_files(first, second))


def _other_tasks(first: EvaluationReport, second: EvaluationReport) -> list[int]:
    """Ids of tasks that two reports of one suite call by different names."""
    if not _same_suite(first, second):
        return []
    names = first.task_names, second.task_names
    return [task_id for task_id in names[0] if task_id in names[1] and names[0][task_id] != names[1][task_id]]


def _differ_in_files(first: EvaluationReport, second: EvaluationReport) -> bool:
    """Whether the files of the same tasks differ; older reports do not tell."""
    told = {report.conditions.get("task_files") for report in (first, second)} - {None}
    return len(told) > 1 and first.conditions.get("task_ids") == second.conditions.get("task_ids")


def _tasks(first: EvaluationReport, second: EvaluationReport) -> list[str]:
    """A sentence if reports of a suite's name are of other tasks by their names, or else by their files."""
    if other := _other_tasks(first, second):
        names = [f"{report.task_names[other[0]]!r}" for report in (first, second)]
        more = f"; tasks {describe_ids(other)} are others" if len(other) > 1 else ""
        left_out = "their episodes are no pairs and left out" if pairs_of(first, second) else "no episodes are paired"
        return [f"task {other[0]}: {' against '.join(names)}{more}, so {left_out}."]
    is_changed = _same_suite(first, second) and _differ_in_files(first, second)
    return ["tasks: their BDDL files or initial states differ."] if is_changed else []


def _model(report: EvaluationReport) -> dict[str, Any]:
    """What tells a model from another: its files' or weights' hashes, or what it states; its name if there is none."""
    model = report.manifest.get("model", {})
    return {"model": model.get("sha256") or model.get("fingerprint") or model.get("name")}


def _choices(report: EvaluationReport) -> dict[str, Any]:
    others = ("env_id", "n_envs", "deterministic", "temperature", "mujoco")
    settings = with_frames(report.settings, report.conditions.get("protocol"))
    return {name: value for name, value in settings.items() if name not in others}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """A sentence per entry that differs."""
    return [
        f"{name}: {_short(name, first.get(name))} against {_short(name, second.get(name))}."
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _short(name: str, value: Any) -> str:
    return describe_value(name, value) if isinstance(value, list) else repr(value)

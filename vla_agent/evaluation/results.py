"""What an evaluation found, as data: episodes, success per task with intervals, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.checks import flag, real_number, whole_number
from vla_agent.common.intervals import wilson_interval
from vla_agent.test_time.calibration import success_auc

SCHEMA = 1
ID_LISTS = ("task_ids", "init_state_ids", "placement_seeds")  # whose order says nothing


class ReportError(ValueError):
    """A report that is missing, damaged, or of another version."""


class EpisodeResult(NamedTuple):
    """One episode of an evaluation.

    Attributes:
        task_id: Task of the suite.
        init_state_id: Official initial state that it began from, or -1 - s for that of placement seed s.
        success: Whether the goal held.
        steps: Control steps, settling left out.
        score: Mean score of what was chosen, by a policy that chooses among candidates; None for others.
    """

    task_id: int
    init_state_id: int
    success: bool
    steps: int
    score: float | None = None

    @classmethod
    def from_json(cls, content: Any, name: str) -> EpisodeResult:
        """An episode as files have it.

        Args:
            content: Content of the file.
            name: Name of the episode in messages.

        Raises:
            ReportError: If it is no episode.
        """
        needed = cls._fields[:-1]
        if not isinstance(content, dict) or content.keys() - {"score"} != set(needed):
            raise ReportError(f"{name} is damaged: expected {', '.join(needed)}, got {shortened(content)}.")
        try:
            return cls(
                whole_number("task_id", content["task_id"], 0),
                whole_number("init_state_id", content["init_state_id"]),
                flag("success", content["success"]),
                whole_number("steps", content["steps"], 0),
                real_number("score", content["score"]) if "score" in content else None,
            )
        except ValueError as error:
            raise ReportError(f"{name} is damaged: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The episode as files have it."""
        return {name: value for name, value in self._asdict().items() if name != "score" or value is not None}


class SuccessRow(NamedTuple):
    """Success over some episodes.

    Attributes:
        n: Number of episodes.
        successes: Number of successes.
        low: Lower end of the rate's interval, Wilson's at 95 %.
        high: Upper end.
        mean_steps: Mean control steps of all episodes.
        mean_success_steps: Mean control steps of the successes; None if there are none.
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
        """The row of `report.json`."""
        return {
            "n": self.n,
            "successes": self.successes,
            "success_rate": round(self.rate, 6),
            "wilson_95": [round(self.low, 6), round(self.high, 6)],
            "mean_steps": round(self.mean_steps, 3),
            "mean_success_steps": None if self.mean_success_steps is None else round(self.mean_success_steps, 3),
        }


@dataclass
class EvaluationResults:
    """What an evaluation found, and how.

    Attributes:
        conditions: Conditions that two reports must share to be compared: suite, tasks, states, protocol, renderer,
            limits.
        settings: Other choices: decoding, seed, the model's image path, number of environments.
        episodes: Episodes in the order of tasks and initial states.
        task_names: LIBERO's names of the tasks by task id.
        task_suites: Names of the suites that tasks come from, by task id. A task that is not named comes from the
            evaluation's own suite.
        timing: Seconds and latencies; of the last run if the evaluation took several.
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
    task_suites: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{i:3} {describe_row(row)}  {self.task_names[i].replace('_', ' ')}" for i, row in self.tasks.items()]
        if len(self.suites) > 1:
            lines += [f"{name} {describe_row(row)}" for name, row in self.suites.items()]
        return "\n".join([*lines, f"All {describe_row(self.total)}"])

    def suite_of(self, task_id: int) -> str:
        """Name of the suite that a task comes from."""
        return self.task_suites.get(task_id, self.conditions["suite"])

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

    @property
    def scorer_auc(self) -> float | None:
        """How far the scores of what was chosen tell success; see `vla_agent.test_time.calibration.success_auc`.

        None if nothing was chosen by scores, or all episodes ended alike.
        """
        scored = [(episode.score, episode.success) for episode in self.episodes if episode.score is not None]
        return success_auc([score for score, _ in scored], [success for _, success in scored]) if scored else None

    @property
    def suites(self) -> dict[str, SuccessRow]:
        """A row per suite that tasks come from, by its name, in the order of the episodes."""
        names = dict.fromkeys(self.suite_of(episode.task_id) for episode in self.episodes)
        return {
            name: SuccessRow.of([episode for episode in self.episodes if self.suite_of(episode.task_id) == name])
            for name in names
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        rows = self.tasks
        nothing = SuccessRow.of([])
        auc = self.scorer_auc
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "summary": self.total.to_json() | ({} if auc is None else {"scorer_auc": round(auc, 6)}),
            "conditions": self.conditions,
            "settings": self.settings,
            "suites": {name: row.to_json() for name, row in self.suites.items()},
            "tasks": {
                str(task_id): {"name": name, "suite": self.suite_of(task_id), **rows.get(task_id, nothing).to_json()}
                for task_id, name in self.task_names.items()
            },
            "timing": self.timing,
            "manifest": self.manifest,
            "episodes": [episode.to_json() for episode in self.episodes],
        }


def shortened(value: Any) -> str:
    """A value as a message shows it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def describe_row(row: SuccessRow) -> str:
    """A row in words, such as "7/10 = 70.0 %, 95 % interval 39.7 to 89.2 %"."""
    return (
        f"{row.successes}/{row.n} = {100 * row.rate:.1f} %, 95 % interval {100 * row.low:.1f} to {100 * row.high:.1f} %"
    )


def paired_episodes(
    before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]
) -> list[tuple[EpisodeResult, EpisodeResult]]:
    """Episodes of the same task and initial state, in the order of the first; what one side alone has is left out."""
    second = {episode[:2]: episode for episode in after}
    return [(episode, second[episode[:2]]) for episode in before if episode[:2] in second]


def lost_and_gained(pairs: Sequence[tuple[EpisodeResult, EpisodeResult]]) -> tuple[int, int]:
    """How many episodes of `paired_episodes` succeeded before alone, and after alone."""
    lost = sum(one.success and not two.success for one, two in pairs)
    gained = sum(two.success and not one.success for one, two in pairs)
    return lost, gained


def describe_ids(ids: Sequence[int]) -> str:
    """Ids as ranges, such as "0-4, 7" for [0, 1, 2, 3, 4, 7]; initial states below 0 by their placement seeds."""
    official, drawn = [i for i in ids if i >= 0], [-1 - i for i in ids if i < 0]
    parts = [_ranges(official)] if official else []
    parts += [f"placement seeds {_ranges(drawn)}"] if drawn else []
    return ", ".join(parts) or "none"


def describe_value(name: str, value: Any) -> str:
    """A condition or setting in words: ids as ranges, other lists, such as a limit for each task, in their order."""
    if not isinstance(value, list):
        return str(value)
    return describe_ids(value) if name in ID_LISTS else ", ".join(map(str, value))


def _ranges(ids: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for i in sorted(set(ids)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{first}-{last}" if first != last else f"{first}" for first, last in runs)

"""What an evaluation found: episodes, success per task with intervals, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vla_agent.statistics import wilson_interval


class EpisodeResult(NamedTuple):
    """One episode of an evaluation.

    Attributes:
        task_id: Task of the suite.
        init_state_id: Official initial state that it began from.
        success: Whether the goal held.
        steps: Control steps, settling left out.
    """

    task_id: int
    init_state_id: int
    success: bool
    steps: int


class SuccessRow(NamedTuple):
    """Success over some episodes, with Wilson's 95 % interval.

    Attributes:
        n: Episodes.
        successes: Of those.
        low: Lower end of the rate's interval.
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


@dataclass
class EvaluationReport:
    """What an evaluation found, and how.

    Attributes:
        conditions: What two reports must share to be compared: suite, tasks, states, protocol, renderer, limits.
        settings: What else was chosen: decoding, seed, the model's image path, number of environments.
        episodes: In the order of tasks and initial states, whichever ended first.
        task_names: LIBERO's names, by task id.
        timing: Seconds and latencies; of the machine, not of the result.
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

    @property
    def success_rate(self) -> float:
        """Share of successes over all episodes; the mean over tasks, where these have as many episodes each."""
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

"""Whether a training on a process reward fooled the reward model, read from the run's log."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class HackingCheck:
    """Whether a policy that was trained on a score raised it without succeeding more often.

    Attributes:
        score: Mean score per step in the first and the last quarter of the run.
        success: Success rate of training episodes in those two quarters.
        evaluated: Success rate of greedy episodes before and after the run; None if there was no evaluation.
    """

    score: tuple[float, float]
    success: tuple[float, float]
    evaluated: tuple[float, float] | None = None

    @property
    def suspicious(self) -> bool:
        """Whether the score rose by at least 0.05, and success, of either kind, did not rise by 0.02."""
        rates = (self.success, self.evaluated) if self.evaluated else (self.success,)
        return self.score[1] - self.score[0] >= 0.05 and any(last - first < 0.02 for first, last in rates)

    def __str__(self) -> str:
        verdict = "the score rose without success: the model may be fooled" if self.suspicious else "nothing suspicious"
        pairs = {"score": self.score, "success": self.success, "greedy success": self.evaluated}
        told = ", ".join(f"{name} {pair[0]:.2f} to {pair[1]:.2f}" for name, pair in pairs.items() if pair)
        return f"{told}: {verdict}"


def check_hacking(run: str | Path, evaluated: tuple[float, float] | None = None) -> HackingCheck:
    """Compare the first and the last quarter of a run's log, and evaluations before and after it.

    Give evaluations if there are any: a policy that has learned to wait where the score is high still succeeds now and
    then in training, by the noise of its sampled actions, and waits for ever when it is greedy.

    Args:
        run: A folder with SB3's ``progress*.csv`` of a training with process rewards.
        evaluated: Greedy success rates in [0, 1] before and after the training.

    Raises:
        ValueError: If there is no such log, or it holds too little.
    """
    rows: list[tuple[float, float, float]] = []
    names = ("time/total_timesteps", "rollout/reward_score", "rollout/success_rate")
    for path in Path(run).glob("progress*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found = [[row.get(name) for name in names] for row in csv.DictReader(file)]
        told = [tuple(map(float, row)) for row in found if all(row)]  # type: ignore[arg-type]
        rows += [row for row in told if np.isfinite(row).all()]  # type: ignore[misc]
    if len(rows) < 8:
        raise ValueError(f"'{run}' logs {len(rows)} iterations with a score and successes; at least 8 are needed.")
    values = np.array(sorted(rows))[:, 1:]
    quarter = len(values) // 4
    (score_first, success_first), (score_last, success_last) = values[:quarter].mean(0), values[-quarter:].mean(0)
    return HackingCheck((float(score_first), float(score_last)), (float(success_first), float(success_last)), evaluated)

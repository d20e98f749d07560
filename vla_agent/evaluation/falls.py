"""Whether evaluated success fell during a training although the success of training episodes did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vla_agent.common.intervals import mcnemar_exact, newcombe_interval
from vla_agent.evaluation.results import EpisodeResult, SuccessRow, lost_and_gained, paired_episodes

SIGNIFICANCE_LEVEL = 0.05  # of the alarms of a whole run


class EvaluatedEpisodes(NamedTuple):
    """When an evaluation was, in timesteps, and its episodes."""

    num_timesteps: int
    episodes: list[EpisodeResult]


class Practice(NamedTuple):
    """Training episodes that ended between an evaluation and the one before it.

    Attributes:
        successes: Number of successes.
        n: Number of episodes.
    """

    successes: int = 0
    n: int = 0

    def __str__(self) -> str:
        return f"{100 * self.successes / self.n:.0f} % of {self.n} episodes" if self.n else "no episode"


class Fall(NamedTuple):
    """An evaluation that is worse than the best, beyond chance, while training is not.

    Attributes:
        best: The best evaluation of those before.
        last: The evaluation that is worse.
        p_value: McNemar's exact p-value, two-sided, over the episodes of both.
        practice_then: Training episodes up to the best evaluation, or the first that there are.
        practice_now: Training episodes up to the worse one.
    """

    best: EvaluatedEpisodes
    last: EvaluatedEpisodes
    p_value: float
    practice_then: Practice
    practice_now: Practice

    def describe(self, folder: Path | None, deterministic: bool = True) -> str:
        """What happened and what to do, as one sentence.

        Args:
            folder: Folder whose ``best`` holds the best model; None if it was not kept.
            deterministic: Whether evaluations are greedy.
        """
        rows = [(SuccessRow.of(done.episodes), done.num_timesteps) for done in (self.best, self.last)]
        best, last = (f"{row.successes} of {row.n} at timestep {steps}" for row, steps in rows)
        kept = f"the best is in '{folder / 'best'}'" if folder else "the best was not kept (give folder=)"
        greedy = "a step can tip the likeliest actions while drawn ones stay as good"
        drawn = "what is learned may suit the initial states of the training alone"
        return (
            f"{'Greedy' if deterministic else 'Evaluated'} success fell from {best} to {last} (p = {self.p_value:.2g}, "
            f"McNemar), and success in training did not ({self.practice_then} then, {self.practice_now} now): "
            f"{greedy if deterministic else drawn}; {kept}, and a lower learning rate (--learning-rate) or a rollout "
            "temperature nearer to 0 (--temperature) makes such falls rarer."
        )


def find_fall(history: Sequence[EvaluatedEpisodes], practice: Mapping[int, Practice]) -> Fall | None:
    """Whether the last evaluation is worse than the best of those before, and training is not; None if it is not so.

    Evaluated success fell if McNemar's exact test on the same initial states says so. The best was picked among all,
    and every evaluation is tested, so the level is divided by the number of pairs of evaluations so far (Bonferroni): a
    whole run without a fall raises an alarm with a probability of about `SIGNIFICANCE_LEVEL`. Training fell if
    Newcombe's 95 % interval of the difference lies below 0.

    Args:
        history: The evaluations so far.
        practice: Training episodes between each evaluation and the one before, by the timestep of the evaluation. None
            may be known, as before the first update: then those of the next evaluation stand for them.
    """
    if len(history) < 2:
        return None
    *before, last = history
    best = max(before, key=lambda done: SuccessRow.of(done.episodes).rate)  # the first of the best
    lost, gained = lost_and_gained(paired_episodes(best.episodes, last.episodes))
    p_value = mcnemar_exact(lost, gained)
    n_pairs = len(history) * (len(history) - 1) // 2
    if lost <= gained or p_value >= SIGNIFICANCE_LEVEL / n_pairs:
        return None
    known = [
        practice.get(done.num_timesteps, Practice()) for done in history if done.num_timesteps >= best.num_timesteps
    ]
    then, now = next((span for span in known if span.n), Practice()), known[-1]
    if newcombe_interval(then, now)[1] < 0:
        return None
    return Fall(best, last, p_value, then, now)

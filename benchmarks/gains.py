"""What the benchmarks of learning share: running an example, and what episodes before and after a training say."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agent import EvaluationReport
from vla_agent.common.intervals import mcnemar_exact, wilson_interval

EXAMPLES = Path(__file__).parent.parent / "examples"
N_BOOTSTRAP = 10_000
Outcomes = dict[tuple[int, int], bool]  # success by task and initial state


def run_example(script: str, *arguments: str) -> float:
    """Seconds that an example took; ends if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], check=True)
    return time.perf_counter() - start


def outcomes_of(report: EvaluationReport) -> Outcomes:
    """Success of each episode of an evaluation."""
    return {(episode.task_id, episode.init_state_id): episode.success for episode in report.episodes}


def rate(outcomes: Outcomes) -> dict[str, Any]:
    """Successes, episodes, and Wilson's 95 % interval of the rate."""
    successes, n = sum(outcomes.values()), len(outcomes)
    return {"successes": successes, "n": n, "wilson_95": [round(end, 4) for end in wilson_interval(successes, n)]}


def paired(before: Outcomes, after: Outcomes) -> dict[str, Any]:
    """How the second differs from the first, episode by episode: points, episodes gained and lost, McNemar's p.

    Raises:
        ValueError: If the two are not of the same tasks and states.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ValueError(f"{len(odd)} episodes are of one side alone, such as (task, state) {odd[0]}; expected pairs.")
    gained = sum(after[key] and not before[key] for key in before)
    lost = sum(before[key] and not after[key] for key in before)
    return {
        "points": round(100 * (gained - lost) / len(before), 2),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar_exact(lost, gained),
    }


def success_by_state(evaluations: Sequence[Outcomes]) -> np.ndarray:
    """Mean success of evaluations, such as of several seeds, for each task and state in order: (n_states,).

    Raises:
        ValueError: If they are not of the same tasks and states.
    """
    keys = sorted(evaluations[0])
    if any(outcomes.keys() != evaluations[0].keys() for outcomes in evaluations):
        raise ValueError("The evaluations are not of the same tasks and states; expected pairs.")
    return np.array([np.mean([outcomes[key] for outcomes in evaluations]) for key in keys])


def gain_by_state(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> np.ndarray:
    """Mean success after less mean success before, over each side's seeds, for each task and state: (n_states,).

    Raises:
        ValueError: If they are not of the same tasks and states.
    """
    if before[0].keys() != after[0].keys():
        raise ValueError("Before and after are not of the same tasks and states; expected pairs.")
    return success_by_state(after) - success_by_state(before)


def mean_in_points(suites: Sequence[np.ndarray]) -> dict[str, Any]:
    """The mean over suites of their states' means, in points, with its 95 % interval by a bootstrap over states.

    Args:
        suites: A value of each state, (n_states,), for each suite; states are drawn within each suite.
    """
    rng = np.random.default_rng(0)
    mean = np.mean([values.mean() for values in suites])
    draws = np.zeros(N_BOOTSTRAP)
    for values in suites:
        # States hold few different values; how often each is drawn is multinomial, which is all that a mean needs.
        different, counts = np.unique(values, return_counts=True)
        drawn = rng.multinomial(len(values), counts / len(values), size=N_BOOTSTRAP)
        draws += drawn @ different / len(values) / len(suites)
    ends = np.quantile(draws, [0.025, 0.975])
    return {"points": round(100 * float(mean), 2), "bootstrap_95": [round(100 * float(end), 2) for end in ends]}

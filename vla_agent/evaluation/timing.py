"""How long an evaluation and its decisions take."""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np


class Clock:
    """Measures an evaluation, and each decision of the policy in it.

    Attributes:
        control_steps: Control steps of the episodes so far.
        decisions: Decisions of the episodes so far.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: list[float] = []
        self.control_steps = 0
        self.decisions = 0

    def count(self, control_steps: int, decisions: int) -> None:
        """Count an episode."""
        self.control_steps += control_steps
        self.decisions += decisions

    def timed(self, policy: Any) -> SimpleNamespace:
        """The same policy, with timed decisions."""

        @functools.wraps(policy.predict)  # keeps the signature, which says what `predict` is given
        def predict(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            decision = policy.predict(*args, **kwargs)
            self.seconds.append(time.perf_counter() - start)
            return decision

        return SimpleNamespace(predict=predict)

    def summary(self, n_envs: int, complete: bool) -> dict[str, float]:
        """Seconds in all, and milliseconds of a `predict` call for all environments, per control step and decision.

        The last two are left out if the evaluation is not complete: decisions of episodes under way took time, but
        are not counted.
        """
        summary = {"wall_s": time.perf_counter() - self.start}
        if self.seconds:
            summary["predict_ms_median"] = float(np.median(self.seconds)) * 1e3
            summary["predict_ms_p95"] = float(np.quantile(self.seconds, 0.95)) * 1e3
            summary["predict_batch"] = n_envs
        if complete and self.control_steps:
            summary["ms_per_action"] = sum(self.seconds) * 1e3 / self.control_steps
        if complete and self.decisions:
            summary["ms_per_decision"] = sum(self.seconds) * 1e3 / self.decisions
        return summary

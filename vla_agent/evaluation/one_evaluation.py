"""One call for one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_agent.evaluation.evaluator import Evaluator
from vla_agent.evaluation.reports import EvaluationReport


def evaluate_policy(
    model: Any,
    env_id: str = "LIBERO-Spatial-v0",
    *,
    deterministic: bool = True,
    temperature: float | None = None,
    seed: int = 0,
    progress_bar: bool = True,
    out: str | Path | None = None,
    film_failures: int = 0,
    **kwargs: Any,
) -> EvaluationReport:
    """Run a model once from every initial state of every task asked for.

    The same arguments give the same episodes. Another ``n_envs`` changes the batches that the model sees, and with
    them its last bits: greedy decoding then rarely, sampling always takes other ways.

    Args:
        model: The model or policy; see `Evaluator`.
        env_id: Id of the environments, such as "LIBERO-Spatial-v0".
        deterministic: Whether to decode greedily, as the protocol does.
        temperature: Temperature of actions that are drawn; see `Evaluator.run`.
        seed: Seed of torch's generators for sampling; they are put back afterwards.
        progress_bar: Whether to show episodes and successes so far, on a terminal.
        out: Folder for the report and for episodes as they end; see `Evaluator.run`.
        film_failures: Number of failures of each task to film, into ``<out>/failures``.
        **kwargs: Further arguments of `Evaluator`.

    Raises:
        ValueError: If an argument is out of range, or model and environment do not fit.
        ReportError: If ``out`` holds another evaluation.
    """
    with Evaluator(model, env_id, **kwargs) as evaluator:
        return evaluator.run(
            deterministic=deterministic,
            temperature=temperature,
            seed=seed,
            progress_bar=progress_bar,
            out=out,
            film_failures=film_failures,
        )

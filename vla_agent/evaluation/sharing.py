"""Trials that other processes play: each makes an evaluator of its own, and only results come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agent.evaluation.decoding import drawing_at, own_randomness
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.evaluation.timing import Clock
from vla_agent.evaluation.trials import Trial

if TYPE_CHECKING:
    from vla_agent.engines import RayEngine

_SEEDS = 2**32


def cpus_of_each(engine: RayEngine | None) -> int:
    """CPUs of each process of an engine; those of this machine without one."""
    return (os.cpu_count() or 1) if engine is None else max(1, int(engine.roster.place.cpus))


def check_shareable(engine: RayEngine | None, name: str | None, film_failures: int = 0) -> None:
    """Complains about a model, or a film, that is in one process alone, if several are to play.

    Args:
        engine: The engine; None for this process.
        name: Name that the model was given by; None for an object.
        film_failures: Number of failures to film.

    Raises:
        ValueError: If there is no name, or failures are to be filmed.
    """
    if engine is None:
        return
    if name is None:
        raise ValueError(
            "An engine's processes read the model themselves: give its name (a checkpoint, a run's folder, a hub id), "
            "or leave the engine out."
        )
    if film_failures:
        raise ValueError(
            "Frames do not leave the process that plays, so film_failures needs an evaluation without an engine."
        )


def play_share(
    make: Callable[[], Any], deterministic: bool, temperature: float | None, seed: int, trials: Sequence[Trial]
) -> Iterator[tuple[int, EpisodeResult]]:
    """Some trials, in a process of an engine: the position of each and its result, as they end.

    Args:
        make: Makes the `Evaluator`.
        deterministic: Whether to decode greedily.
        temperature: See `Evaluator.run`.
        seed: Seed of the evaluation; each share draws by its own.
        trials: The trials.
    """
    first = [seed, *(number % _SEEDS for number in trials[0])]
    drawn = int(np.random.SeedSequence(first).generate_state(1)[0])
    with make() as evaluator, own_randomness(drawn), drawing_at(evaluator.policy, temperature):
        yield from evaluator.play(trials, deterministic, Clock())

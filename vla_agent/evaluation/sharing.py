"""Trials that other processes play: each makes an evaluator of its own, and only results come back."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agent.algorithms.engine import engine_of
from vla_agent.common.randomness import own_randomness
from vla_agent.evaluation.decoding import drawing_at
from vla_agent.evaluation.policies import Subject
from vla_agent.evaluation.provenance import describe_model
from vla_agent.evaluation.reports import EvaluationReport
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.evaluation.timing import Clock
from vla_agent.evaluation.trials import Trial

if TYPE_CHECKING:
    from vla_agent.engines import RayEngine

_SEEDS = 2**32


def cpus_of_each(engine: RayEngine | None) -> int:
    """CPUs of each process of an engine; those of this machine without one."""
    return (os.cpu_count() or 1) if engine is None else max(1, int(engine.roster.place.cpus))


def check_shareable(engine: RayEngine | None, subject: Subject, film_failures: int = 0) -> None:
    """Complains about a model, or a film, that is in one process alone, if several are to play.

    Args:
        engine: The engine; None for this process.
        subject: What is evaluated.
        film_failures: Number of failures to film.

    Raises:
        ValueError: If the model has no name and is not the engine's learner, or failures are to be filmed.
    """
    if engine is None:
        return
    if subject.name is None and not engine.who_acts_as(subject.model):
        raise ValueError(
            "An engine's processes read the model themselves: give its name (a checkpoint, a run's folder, a hub id), "
            "or leave the engine out."
        )
    if film_failures:
        raise ValueError(
            "Frames do not leave the process that plays, so film_failures needs an evaluation without an engine."
        )


def learners_engine(learner: Any) -> RayEngine | None:
    """The engine whose other processes can act as a learner does; None if there is none."""
    from vla_agent.engines import RayEngine

    found = engine_of(getattr(learner, "engine", None), getattr(learner, "env", None))
    return found if isinstance(found, RayEngine) and found.who_acts_as(learner) else None


def share_episodes(
    engine: RayEngine,
    subject: Subject,
    make: Callable[..., Any],
    report: EvaluationReport,
    trials: Sequence[Trial],
    here: Callable[[Sequence[Trial]], Iterator[tuple[int, EpisodeResult]]],
) -> Iterator[tuple[int, EpisodeResult]]:
    """Episodes of all processes of an engine as they end, with their positions.

    Args:
        engine: The engine.
        subject: What is evaluated.
        make: Makes the `Evaluator` of another process.
        report: The report, which says how to play what.
        trials: The trials.
        here: Plays this process's.
    """
    how = tuple(report.settings[name] for name in ("deterministic", "temperature", "seed"))
    if subject.name is None:
        return engine.map_learner(subject.model, functools.partial(play_share_with, make, *how), trials, here)
    return engine.map(functools.partial(play_share_of, report.manifest["model"]["sha256"], make, *how), trials, here)


def play_share_of(
    hashes: dict[str, str],
    make: Callable[[], Any],
    deterministic: bool,
    temperature: float | None,
    seed: int,
    trials: Sequence[Trial],
) -> Iterator[tuple[int, EpisodeResult]]:
    """`play_share` with the model that this process finds by its name.

    Raises:
        ValueError: If that model has other ``hashes`` (see `describe_model`).
    """

    def checked() -> Any:
        evaluator = make()
        found = describe_model(*evaluator.subject[:3])["sha256"]
        if found == hashes:
            return evaluator
        evaluator.close()
        other = sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name))
        raise ValueError(
            f"The model {evaluator.subject.name!r} on {socket.gethostname()} is another than the one evaluated: "
            f"{', '.join(other)} {'differs' if len(other) == 1 else 'differ'}. Give it the same files on all machines."
        )

    return play_share(checked, deterministic, temperature, seed, trials)


def play_share_with(
    make: Callable[..., Any],
    deterministic: bool,
    temperature: float | None,
    seed: int,
    learner: Any,
    trials: Sequence[Trial],
) -> Iterator[tuple[int, EpisodeResult]]:
    """`play_share` with the process's copy of a learner, for which ``make`` makes the `Evaluator`."""
    return play_share(functools.partial(make, model=learner), deterministic, temperature, seed, trials)


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

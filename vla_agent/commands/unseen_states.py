"""Evaluations of a training that would run on states of a training: refused before anything slow begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from libero_gym.common.checks import whole_number
from vla_agent.commands.options import ids_or_none
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.familiarity import describe_trained
from vla_agent.evaluation.provenance import TrainingStates, read_training_placements, read_training_states
from vla_agent.evaluation.results import describe_ids
from vla_agent.openvla.files import CheckpointError, resolve_folder


class TrainingOptions(Protocol):
    """What a command that trains in environments has among its options."""

    env_id: str
    task_ids: str
    init_states: str
    n_placements: int
    model: str
    total_timesteps: int
    out: Path
    resume: Path | None


class EvaluatedOptions(TrainingOptions, Protocol):
    """What one that evaluates on the way has besides."""

    eval_freq: int
    eval_states: str
    n_eval_placements: int
    allow_changes: bool


def check_anything_evaluated(options: EvaluatedOptions, otherwise: str = "") -> None:
    """Refuse evaluations on no state at all, or at no time.

    Args:
        options: The options; ``eval_freq`` is above 0 where there may be no evaluations.
        otherwise: What else to give than states, as the end of a sentence.

    Raises:
        ValueError: If there is no state, or ``eval_freq`` is below 1.
    """
    whole_number("--eval-freq", options.eval_freq, 1)
    if not ids_or_none("--eval-states", options.eval_states) and not options.n_eval_placements:
        raise ValueError(f"There is nothing to evaluate on: give --eval-states or --n-eval-placements{otherwise}.")


def check_evaluated(options: EvaluatedOptions, otherwise: str, fewer: str = "") -> None:
    """Refuse evaluations on states that a training, or what it starts from, trains on.

    Args:
        options: The options.
        otherwise: What to do where the training's own states are evaluated, instead of keeping them apart.
        fewer: What to give where the start knows the states, instead of others; the same by default.

    Raises:
        ValueError: If a state is trained on.
    """
    trained = ids_or_none("--init-states", options.init_states)
    both = sorted(set(trained or range(50)) & set(ids_or_none("--eval-states", options.eval_states) or ()))
    if both:
        raise ValueError(
            f"--init-states and --eval-states share {describe_ids(both)}: an evaluation on states that were trained on "
            f"says little. Keep them apart, or {otherwise}."
        )
    base = trained_before(options.model)
    check_unseen("--eval-states", options.eval_states, options.env_id, options.task_ids, base, fewer or otherwise)
    if options.n_eval_placements:
        check_undrawn(options)


def check_undrawn(options: EvaluatedOptions) -> None:
    """Refuse evaluations on drawn states that the model was trained on before; a training keeps its own apart.

    Raises:
        ValueError: If the model drew one of their placement seeds, which follow those of the training.
    """
    try:
        before = placements_drawn(options, options.resume)
    except CheckpointError:  # whoever loads the model says so
        return
    tasks = ids_or_none("--task-ids", options.task_ids)
    for suite in describe_suite(options.env_id).states_by_source(tasks, ()):
        if before.get(suite, 0) > options.n_placements:
            raise ValueError(
                f"--n-eval-placements {options.n_eval_placements} are drawn by the placement seeds from "
                f"{options.n_placements}, and --model {options.model} was trained on those of {suite} below "
                f"{before[suite]}: success there says little. Give --n-placements {before[suite]}, or "
                "--n-eval-placements 0."
            )


def placements_drawn(options: TrainingOptions, resumed_from: Path | None, suites: Iterable[str] = ()) -> dict[str, int]:
    """By suite, the number that the placement seeds are below which a model was trained on, or is about to be.

    Args:
        options: The options, which name the model that the training starts from.
        resumed_from: The run or save that goes on; None if none does.
        suites: Those that the training is about to draw from; () tells what was before.

    Raises:
        CheckpointError: If there is no such model.
    """
    before = read_training_placements(resolve_folder(options.model, weights=False))
    before |= read_training_placements(resumed_from)
    drawn = {suite: max(options.n_placements, before.get(suite, 0)) for suite in suites}
    return before | {suite: number for suite, number in drawn.items() if number}


def check_unseen(
    option: str, asked: str, env_id: str, task_ids: str, trained: dict[str, TrainingStates | None], way_out: str
) -> None:
    """Refuse to evaluate on initial states that were trained on.

    Args:
        option: The option that asks for them, such as "--eval-states".
        asked: Its value, such as "0-19".
        env_id: Id of the environments.
        task_ids: The tasks, such as "0,3-5"; all if empty.
        trained: States that were trained on, by what brought them, such as "--model tiny-libero"; None if unknown.
        way_out: What else to give, as the end of a sentence.

    Raises:
        ValueError: If a state was trained on.
    """
    states = ids_or_none(option, asked)
    if not states:
        return
    evaluated = describe_suite(env_id).states_by_source(ids_or_none("--task-ids", task_ids), states)
    for source, known in trained.items():
        if told := describe_trained(known, evaluated):
            raise ValueError(f"{option} {asked} are not all new: {source} {told}. Give others, or {way_out}.")


def trained_before(model: str) -> dict[str, TrainingStates | None]:
    """States that the model which a training starts from was trained on; none for a new one, or one that is not there.

    Whoever loads the model says that it is not there.
    """
    if not model:
        return {}
    try:
        folder = resolve_folder(model, weights=False)
    except CheckpointError:
        return {}
    return {f"--model {model}": read_training_states(folder)}

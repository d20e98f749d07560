"""Evaluations of a training that would run on states of a training: refused before anything slow begins."""

from __future__ import annotations

from vla_agent.commands.options import ids_or_none
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.familiarity import describe_trained
from vla_agent.evaluation.provenance import TrainingStates, read_training_states
from vla_agent.openvla.files import CheckpointError, resolve_folder


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

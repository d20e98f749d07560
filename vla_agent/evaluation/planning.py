"""What a model's own files say of an evaluation: which trials it may have, and which statistics decode its actions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from libero_gym.common.checks import sequence
from vla_agent.envs.suites import SuiteDescription
from vla_agent.evaluation.familiarity import (
    check_choice,
    choose_statistics,
    evaluated_states,
    refuse_trained,
    states_by_choice,
)
from vla_agent.evaluation.policies import Subject
from vla_agent.evaluation.provenance import TrainingStates, read_training_states, united
from vla_agent.evaluation.trials import Trial, plan_trials


def named_trials(
    env_id: str, task_ids: Iterable[int] | None, init_state_ids: Iterable[int] | str, placement_seeds: Iterable[int]
) -> tuple[list[int] | None, Any, list[int]]:
    """Tasks, initial states or a choice of them, and placement seeds, as lists: each may be an iterator.

    Raises:
        ValueError: If there are no such trials, as far as that is known without the model.
    """
    tasks = None if task_ids is None else sequence("task_ids", task_ids)
    seeds = sequence("placement_seeds", placement_seeds)
    if isinstance(init_state_ids, str):
        check_choice(init_state_ids)
        plan_trials(env_id, tasks, (), seeds or [0])
        return tasks, init_state_ids, seeds
    states = sequence("init_state_ids", init_state_ids)
    plan_trials(env_id, tasks, states, seeds)
    return tasks, states, seeds


def trials_of(
    subject: Subject,
    of_critic: TrainingStates | None,
    suite: SuiteDescription,
    env_id: str,
    task_ids: Sequence[int] | None,
    init_state_ids: Iterable[int] | str,
    placement_seeds: Sequence[int],
    trained_states: bool,
) -> tuple[list[Trial], TrainingStates | None]:
    """The trials, and the official initial states that the model and a critic were trained on; None if unknown.

    Args:
        subject: What is evaluated.
        of_critic: States that a scorer's critic was trained on; None for no critic, or if unknown.
        suite: The suite.
        env_id: Id of the environments.
        task_ids: The tasks; None for all.
        init_state_ids: Official initial states, or a choice of them.
        placement_seeds: Seeds of drawn initial states.
        trained_states: Whether states that it was trained on are meant.

    Raises:
        ValueError: If there are no such trials, or the model or the critic was trained on some and they are not meant.
    """
    own = read_training_states(subject.folder)
    training = own if own is None or of_critic is None else united(own, of_critic)
    states: Any = init_state_ids
    if isinstance(states, str):
        states = states_by_choice(suite, training, states, task_ids, trained_states)
    trials = plan_trials(env_id, task_ids, states, placement_seeds)
    for trained_on, what in () if trained_states else ((own, "the model"), (of_critic, "the scorer's critic")):
        refuse_trained(trained_on, evaluated_states(suite, trials), what)
    return trials, training


def statistics_of(
    subject: Subject,
    processor: Any,
    unnorm_key: str | None,
    evaluated: Collection[str],
    training: TrainingStates | None,
) -> str | None:
    """Key of the statistics that decode the actions; None leaves it to the processor.

    Args:
        subject: What is evaluated.
        processor: Its processor.
        unnorm_key: Key that the caller names.
        evaluated: Suites that the evaluated tasks come from.
        training: States that it was trained on, by suite.

    Raises:
        ValueError: If the checkpoint's statistics are all of other suites, and none is named.
    """
    trained = getattr(subject.model, "policy", None)
    unnorm_key = unnorm_key or getattr(trained, "unnorm_key", None)
    # Statistics served the training of a learner that is at hand, and of a model that names its suites.
    is_at_hand = trained is not None and subject.name is None
    if is_at_hand or set(evaluated) <= set(training or ()):
        return unnorm_key
    return choose_statistics(getattr(processor, "unnorm_keys", ()), unnorm_key, sorted(evaluated))

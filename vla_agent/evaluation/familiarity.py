"""What a model was trained on against what it is evaluated on: states, suites, action statistics."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vla_agent.envs.suites import SuiteDescription, base_suite, suites_of_statistics
from vla_agent.evaluation.provenance import TRAINING_FILE, TrainingStates, overlap
from vla_agent.evaluation.results import describe_ids
from vla_agent.evaluation.trials import Trial

UNSEEN, HELD_OUT = "unseen", "held-out"


def check_choice(init_state_ids: str) -> None:
    """Refuse a choice of initial states that has another name than `UNSEEN` and `HELD_OUT`.

    Raises:
        ValueError: If it has.
    """
    if init_state_ids not in (UNSEEN, HELD_OUT):
        raise ValueError(
            f"Unknown init_state_ids {init_state_ids!r}; give states, such as range(50), {UNSEEN!r} or {HELD_OUT!r}."
        )


def states_by_choice(
    suite: SuiteDescription,
    training: TrainingStates | None,
    choice: str,
    task_ids: Sequence[int] | None = None,
    trained_states: bool = False,
) -> dict[int, list[int]]:
    """Official initial states of each task, by its id, that a choice stands for.

    Args:
        suite: The suite.
        training: The states that the model was trained on; None if that is unknown.
        choice: `HELD_OUT` for those that the model was not trained on; `UNSEEN` for the same, and for all if the states
            of the training are unknown.
        task_ids: The tasks; None for all.
        trained_states: Whether `UNSEEN` takes all states, those of the training included.

    Raises:
        ValueError: If the choice is unknown, or `HELD_OUT` while the states of the training are; if a task has no
            state that the model was not trained on.
    """
    check_choice(choice)
    if choice == HELD_OUT and training is None:
        raise ValueError(
            f"init_state_ids={HELD_OUT!r} needs the checkpoint's {TRAINING_FILE}, which says what it was trained on; "
            "name the states instead."
        )
    known = {} if training is None or (choice == UNSEEN and trained_states) else training
    tasks = range(len(suite.sources)) if task_ids is None else task_ids
    states = {
        task_id: [i for i in range(suite.n_initial_states(task_id)) if i not in known.get(suite.sources[task_id], [])]
        for task_id in tasks
    }
    used_up = dict.fromkeys(
        suite.sources[task_id] for task_id in tasks if not states[task_id] and suite.n_initial_states(task_id)
    )
    if used_up:
        raise ValueError(
            f"By its {TRAINING_FILE}, the model was trained on every official initial state of {', '.join(used_up)}; "
            "evaluate it on placement_seeds and init_state_ids=() (--placement-seeds), or on trained states with "
            "trained_states=True (--trained-states)."
        )
    return states


def evaluated_states(suite: SuiteDescription, trials: Iterable[Trial]) -> dict[str, set[int]]:
    """Initial states of trials, by the suite that their tasks come from."""
    evaluated: dict[str, set[int]] = {}
    for trial in trials:
        evaluated.setdefault(suite.sources[trial.task_id], set()).add(trial.init_state_id)
    return evaluated


def describe_trained(training: TrainingStates | None, evaluated: Mapping[str, Iterable[int]]) -> str | None:
    """Which of some initial states were trained on, as the end of a sentence; None if none, or if that is unknown."""
    seen = overlap(training, evaluated)
    if not seen:
        return None
    parts = ", ".join(f"{describe_ids(ids)} of {suite}" for suite, ids in seen.items())
    return f"was trained on initial states {parts}, so success there says little"


def refuse_trained(
    training: TrainingStates | None, evaluated: Mapping[str, Iterable[int]], what: str = "the model"
) -> None:
    """Refuse initial states that the model, or ``what`` else decides, was trained on.

    Raises:
        ValueError: If there are some.
    """
    if told := describe_trained(training, evaluated):
        raise ValueError(
            f"By its {TRAINING_FILE}, {what} {told}. Leave them out (init_state_ids={HELD_OUT!r}, --init-states "
            f"{HELD_OUT}), or say that they are meant (trained_states=True, --trained-states)."
        )


def choose_statistics(keys: Collection[str], given: str | None, evaluated: Iterable[str]) -> str | None:
    """Key of the action statistics to decode by; None leaves it to the processor, which takes the only one.

    Args:
        keys: Keys that the checkpoint has.
        given: Key that the caller names; it is taken as it is.
        evaluated: Suites that the evaluated tasks come from.

    Raises:
        ValueError: If all keys name suites of LIBERO, and an evaluated one is not among them.
    """
    if given is not None or not keys:
        return given
    served = {key: suites_of_statistics(key) for key in keys}
    wanted = [base for base in map(base_suite, evaluated) if base is not None]
    missing = [suite for suite in wanted if not any(suite in (suites or ()) for suites in served.values())]
    if missing and None not in served.values():
        raise ValueError(
            f"The model has action statistics of {', '.join(keys)} alone, and none of "
            f"{', '.join(dict.fromkeys(missing))}, so its actions would come out in a wrong range. Give a checkpoint "
            "trained there, or decode by other "
            f"statistics all the same, such as unnorm_key={next(iter(keys))!r} (--unnorm-key)."
        )
    fitting = [key for key, suites in served.items() if wanted and set(wanted) <= set(suites or ())]
    return fitting[0] if len(keys) > 1 and len(fitting) == 1 else None


def unfamiliar_suites(
    training: TrainingStates | None, of_statistics: Collection[str] | None, evaluated: Iterable[str]
) -> str | None:
    """A sentence on evaluated suites that a model was not trained on, as far as its files tell; None if they do not.

    Args:
        training: The states that it was trained on, by suite.
        of_statistics: The suites that its action statistics are of; None if their key names none.
        evaluated: Suites that the evaluated tasks come from.
    """
    if training is not None:
        trained = f"on {', '.join(training)} alone" if training else "on no suite"
        strange = [suite for suite in evaluated if suite not in training]
        told = f"The model was trained {trained}, by its {TRAINING_FILE}; new to it, scenes and instructions alike:"
    else:
        known = set(of_statistics or ())
        strange = [suite for suite in evaluated if known and not known & {suite, base_suite(suite)}]
        told = f"The model's action statistics are of {', '.join(sorted(known))}; they may be wrong for"
    return f"{told} {', '.join(strange)}." if strange else None


def warn_of_unfamiliar(
    training: TrainingStates | None, unnorm_key: str | None, processor: Any, evaluated: Iterable[str]
) -> None:
    """Warn of suites that the model was not trained on.

    Args:
        training: The states that it was trained on, by suite.
        unnorm_key: Key of the statistics that decode its actions; None for the only one.
        processor: Its processor.
        evaluated: Suites that the evaluated tasks come from.
    """
    key = unnorm_key or next(iter(getattr(processor, "unnorm_keys", [])), None)
    doubt = unfamiliar_suites(training, key and suites_of_statistics(key), evaluated)
    if doubt:
        warnings.warn(doubt, stacklevel=4)

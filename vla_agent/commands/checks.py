"""Checks that several commands make of their options, before anything slow begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from libero_gym.common.checks import real_number, whole_number
from vla_agent.commands.options import ids_or_none, option_name
from vla_agent.envs.suites import describe_suite
from vla_agent.openvla.files import CheckpointError, read_config, resolve_folder

_COUNT = partial(whole_number, minimum=0)
_AT_LEAST_ONE = partial(whole_number, minimum=1)
_SHARE = partial(real_number, minimum=0, maximum=1)
_NOT_NEGATIVE = partial(real_number, minimum=0)
_ABOVE_ZERO = partial(real_number, above=0)

# The learners have ranges of their own for what they are given, which these follow.
_RANGES: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("n_placements", "n_eval_placements", "max_episode_steps", "total_timesteps", "eval_freq"), _COUNT),
    **dict.fromkeys(("n_envs", "n_steps", "n_episodes", "batch_size", "n_epochs", "checkpoint_every"), _AT_LEAST_ONE),
    **dict.fromkeys(("critic_warmup_iterations", "policy_warmup_iterations", "n_value_epochs", "lora_rank"), _COUNT),
    **dict.fromkeys(("gamma", "gae_lambda", "value_gae_lambda"), _SHARE),
    **dict.fromkeys(("learning_rate", "learning_rate_end", "value_learning_rate"), _NOT_NEGATIVE),
    **dict.fromkeys(("target_kl", "kl_ref_coef"), _NOT_NEGATIVE),
    **dict.fromkeys(("temperature", "curriculum_tau", "clip_range", "clip_range_high"), _ABOVE_ZERO),
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "group_size": partial(whole_number, minimum=2),
    "average_decay": partial(real_number, minimum=0, below=1),
    "seed": _COUNT,
}


def check_numbers(options: Any) -> None:
    """Refuse numbers that are out of range; an option that a command lacks, or that is None, is none.

    Raises:
        ValueError: If one is.
    """
    for name, check in _RANGES.items():
        if getattr(options, name, None) is not None:
            check(option_name(name), getattr(options, name))


def check_unread(options: Any, defaults: Any, names: Iterable[str], switch: str, needed: Any) -> None:
    """Refuse options that are read only with another one, which is not given.

    Args:
        options: The options.
        defaults: Their defaults.
        names: Those that are read with ``switch`` alone.
        switch: The other one.
        needed: Its value that reads them.

    Raises:
        ValueError: If ``switch`` has another value, and one of the options is given.
    """
    for name in names:
        value = getattr(options, name)
        if value != getattr(defaults, name) and getattr(options, switch) != needed:
            raise ValueError(
                f"{option_name(name)} {value} is for {option_name(switch)} {needed}; add that, or leave it out."
            )


def check_there(option: str, asked: str, env_id: str, task_ids: str) -> None:
    """Refuse tasks that a suite lacks, and official initial states that one of its tasks lacks.

    Args:
        option: The option that asks for the states, such as "--eval-states".
        asked: Its value, such as "0-19".
        env_id: Id of the environments.
        task_ids: The tasks, such as "0,3-5"; all if empty.

    Raises:
        ValueError: If there is no such task or state.
    """
    suite, states = describe_suite(env_id), ids_or_none(option, asked)
    tasks = ids_or_none("--task-ids", task_ids)
    for task_id in tasks or ():
        whole_number("--task-ids", task_id, 0, len(suite.task_names) - 1)
    for task_id in range(len(suite.task_names)) if tasks is None else tasks:
        if states and (n_states := suite.n_initial_states(task_id)) <= max(states):
            there = f"official initial states 0 to {n_states - 1}; give some of these" if n_states else "none at all"
            raise ValueError(
                f"{option} {asked}: there is no state {max(states)}. Task {task_id} of {suite.name} has {there}."
            )


def check_start(model: str) -> None:
    """Refuse a model that is no checkpoint, as ValueError; of a hub id the files beside the weights are downloaded."""
    try:
        read_config(resolve_folder(model, weights=False))
    except CheckpointError as error:
        raise ValueError(f"--model {model}: {error}") from error

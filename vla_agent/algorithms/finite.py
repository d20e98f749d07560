"""Infinite numbers and NaN are told where they appear: through GAE, one NaN reward would reach a whole episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th

from vla_agent.common.errors import NonFiniteError
from vla_agent.common.tensors import on_host

_WAY_OUT = "Nothing was learned from this rollout; what safe_learn saved goes on from before it."


def check_rewards(rewards: np.ndarray, infos: Sequence[Mapping[str, Any]], num_timesteps: int) -> None:
    """Complains about a reward that is not finite.

    Args:
        rewards: Rewards of one step, (n_envs,).
        infos: Information of the step; ``reward_terms`` tell which term it is.
        num_timesteps: Environment steps of the run so far.

    Raises:
        NonFiniteError: If there is one; the message names environment, step and term.
    """
    for index in np.flatnonzero(~np.isfinite(rewards)).tolist():
        terms = infos[index].get("reward_terms", {})
        wrong = [name for name, value in terms.items() if not np.isfinite(value)]
        shown = ", ".join(f"{name}={value:g}" for name, value in terms.items()) or "none given"
        raise NonFiniteError(
            f"The reward of {_place(index, infos[index], num_timesteps)} is {rewards[index]:g}"
            f"{f', because of its term {wrong[0]!r}' if wrong else ''} (terms: {shown}). Mend the environment or the "
            f"reward model that gives it. {_WAY_OUT}"
        )


def check_observations(
    observations: Mapping[str, np.ndarray], infos: Sequence[Mapping[str, Any]] | None, num_timesteps: int
) -> None:
    """Complains about observations with a number that is not finite, also about the last ones of episodes.

    Args:
        observations: Observations by key, (n_envs, ...), or tensors. Images and tokens are whole numbers, which are
            always finite.
        infos: Information of the step that led to them, with ``terminal_observation`` if an episode ended; None after a
            reset.
        num_timesteps: Environment steps of the run so far.

    Raises:
        NonFiniteError: If there is one; the message names environment, step and key.
    """
    for key, values in observations.items():
        for index in _rows_with_faults(values):
            raise _observation_error(key, index, (infos or {index: {}})[index], num_timesteps)
    for index, info in enumerate(infos or ()):
        for key, value in (info.get("terminal_observation") or {}).items():
            if _rows_with_faults(value[None] if isinstance(value, th.Tensor) else np.asarray(value)[None]):
                raise _observation_error(key, index, info, num_timesteps)


def check_values(values: np.ndarray, indices: Sequence[int], num_timesteps: int) -> None:
    """Complains about values of the critic that are not finite.

    Args:
        values: Values, (n,).
        indices: Index of the environment of each value, (n,).
        num_timesteps: Environment steps of the run so far.

    Raises:
        NonFiniteError: If there is one; the message names environment and step.
    """
    for row in np.flatnonzero(~np.isfinite(values)).tolist():
        raise NonFiniteError(
            f"The critic gives {_place(indices[row], {}, num_timesteps)} the value {values[row]:g}, though the "
            "observation is finite: weights of the model are not, or its type overflows. Load an earlier checkpoint, "
            f"or use float32. {_WAY_OUT}"
        )


def _rows_with_faults(values: np.ndarray | th.Tensor) -> list[int]:
    if isinstance(values, th.Tensor):
        if not values.is_floating_point():
            return []
        values = on_host(values.isfinite())
        return np.flatnonzero(~values.reshape(len(values), -1).all(axis=1)).tolist()
    if not np.issubdtype(values.dtype, np.floating):
        return []
    return np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1)).tolist()


def _observation_error(key: str, index: int, info: Mapping[str, Any], num_timesteps: int) -> NonFiniteError:
    return NonFiniteError(
        f"The observation {key!r} of {_place(index, info, num_timesteps)} is not finite. Mend the environment that "
        f"gives it. {_WAY_OUT}"
    )


def _place(index: int, info: Mapping[str, Any], num_timesteps: int) -> str:
    task = f", task {info['task_id']}" if "task_id" in info else ""
    episode = info.get("episode", {}).get("l", info.get("elapsed_steps"))
    step = f", step {episode} of its episode" if episode is not None else ""
    return f"environment {index} (after {num_timesteps} timesteps{task}{step})"

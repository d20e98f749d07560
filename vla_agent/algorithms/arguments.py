"""What learners accept: every argument is checked before anything starts, one sentence per fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import choice, flag, real_number, whole_number
from vla_agent.algorithms.groups import Advantage, Baseline, Returns
from vla_agent.algorithms.losses import Estimator, RatioLevel, ValueLoss
from vla_agent.policy.arguments import Check, check_device, check_dict

LARGEST_SEED = 2**32 - 1  # NumPy's, which SB3 seeds as well


def check_algorithm(given: Mapping[str, Any], *, loaded: bool = False) -> None:
    """Complains about an argument of a learner that is out of range.

    Args:
        given: Arguments by name.
        loaded: Whether they come from a saved run, whose schedules may have ended at 0.

    Raises:
        ValueError: See the message.
    """
    for name, check in _ALGORITHM.items():
        if given.get(name) is not None or (name in given and name not in _MAY_BE_NONE):
            check(name, given[name])
    if "clip_range" in given and not (loaded and given["clip_range"] == 0):
        check_schedule("clip_range", given["clip_range"], above_at_first=0)


def check_learn(
    total_timesteps: float, log_interval: int | None, tb_log_name: str | None, reset: bool, progress_bar: bool
) -> int:
    """The timesteps of `learn`, as a whole number; arguments of it that are out of range are a ValueError."""
    steps: Any = total_timesteps
    if isinstance(steps, float) and steps.is_integer():
        steps = int(steps)  # such as 1e6, as SB3 takes it
    steps = whole_number("total_timesteps", steps, 0)
    if log_interval is not None:
        whole_number("log_interval", log_interval, 1)
    if not (tb_log_name is None or isinstance(tb_log_name, str)):
        raise ValueError(f"tb_log_name={tb_log_name!r}; expected a string.")
    flag("reset_num_timesteps", reset)
    flag("progress_bar", progress_bar)
    return int(steps)


def check_together(given: Mapping[str, Any]) -> None:
    """Complains about arguments of `VLAPPO` that do not go together.

    Args:
        given: Arguments by name, defaults filled in.

    Raises:
        ValueError: See the message.
    """
    parts, batch_size = given["gradient_accumulation_steps"], given["batch_size"]
    if batch_size % parts:
        raise ValueError(f"gradient_accumulation_steps={parts} does not divide batch_size={batch_size}.")
    if given["normalize_advantage"] and batch_size == 1:  # SB3, GH issue 440: the deviation of one sample is NaN
        raise ValueError("batch_size=1 leaves nothing to normalise; give 2 or more, or normalize_advantage=False.")
    if given["ratio_level"] == "token" and given["rollout_buffer_class"] is not None:
        raise ValueError("ratio_level='token' brings its own rollout buffer; leave rollout_buffer_class out.")
    check_reference(given)


def check_reference(given: Mapping[str, Any]) -> None:
    """Complains about a divergence from a reference policy that there is not, as ValueError.

    Args:
        given: Arguments by name, defaults filled in.
    """
    if given["kl_ref_coef"] > 0 and given["policy_kwargs"].get("lora") is None:
        raise ValueError(
            f"kl_ref_coef={given['kl_ref_coef']} needs adapters, which are switched off to get the reference policy; "
            "give policy_kwargs=dict(lora={})."
        )


def check_only_vla(given: Mapping[str, Any], policy: Any) -> None:
    """Complains about additions that need a `VLAPolicy`, for another policy.

    Args:
        given: Arguments by name, defaults filled in.
        policy: The other policy, for the message.

    Raises:
        ValueError: One sentence for each of them.
    """
    wrong = [name for name, is_off in _ONLY_VLA.items() if name in given and not is_off(given[name])]
    if wrong:
        raise ValueError(
            " ".join(
                f"{name}={given[name]!r} is only for 'VLAPolicy', and the policy is {policy!r}; leave it out."
                for name in wrong
            )
        )


def check_policy_class(policy: Any, aliases: Mapping[str, type[BasePolicy]]) -> None:
    """Complains if there is no such policy.

    Raises:
        ValueError: The message lists the names.
    """
    if isinstance(policy, type) and issubclass(policy, BasePolicy):
        return
    if not isinstance(policy, str):
        raise ValueError(f"policy={policy!r}; expected a policy class, or one of {', '.join(map(repr, aliases))}.")
    choice("policy", policy, aliases)


def check_env(env: Any, needed: bool) -> None:
    """Complains about what is no environment.

    Raises:
        ValueError: If it is no environment, or a vector environment without SB3's interface.
    """
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            "env is a vector environment with Gymnasium's interface, which SB3 does not take; give "
            "vla_agent.make_vec_env(id, n_envs), or put VLAVecEnv around it."
        )
    if (env is None and needed) or not (env is None or isinstance(env, (str, gym.Env, VecEnv))):
        raise ValueError(f"env={env!r}; expected an id such as 'LIBERO-Spatial-v0', or what make_vec_env gives.")


def check_made(env: Any) -> None:
    """Complains about what is no environment, or the id of one.

    Raises:
        ValueError: As `check_env`, and if it is an id.
    """
    check_env(env, needed=True)
    if isinstance(env, str):
        raise ValueError(f"set_env takes environments and no id; give vla_agent.make_vec_env({env!r}, n_envs).")


def check_schedule(name: str, value: Any, above_at_first: float | None = None) -> None:
    """Complains about a number, or a schedule of the remaining share of training, that is negative or no number.

    Args:
        name: What the message calls it.
        value: A number, or a function of the remaining share, from 1 to 0.
        above_at_first: What it must be above at first; it may fall to 0.

    Raises:
        ValueError: See the message.
    """
    if not callable(value) or isinstance(value, type):
        real_number(name, value, above=above_at_first, minimum=0 if above_at_first is None else None)
        return
    for progress in (1.0, 0.5, 0.0):
        place = f"{name} at the remaining share {progress:g}"
        try:
            number = float(value(progress))
        except Exception as error:
            raise ValueError(f"The schedule {place} fails: {type(error).__name__}: {error}") from error
        real_number(place, number, minimum=0)
        if progress == 1.0 and above_at_first is not None:
            real_number(place, number, above=above_at_first)


def _gradient_norm(name: str, value: Any) -> None:
    if not (isinstance(value, float) and value == math.inf):  # "do not clip"
        real_number(name, value, above=0)


def _verbosity(name: str, value: Any) -> None:
    whole_number(name, int(value) if isinstance(value, bool) else value, 0, 2)


def _path(name: str, value: Any) -> None:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name}={value!r}; expected a folder, as str or Path.")


def _buffer_class(name: str, value: Any) -> None:
    if not (isinstance(value, type) and issubclass(value, RolloutBuffer)):
        raise ValueError(f"{name}={value!r}; expected a subclass of SB3's RolloutBuffer.")


_SHARE: Check = partial(real_number, minimum=0, maximum=1)
_COUNT: Check = partial(whole_number, minimum=0)
_AT_LEAST_ONE: Check = partial(whole_number, minimum=1)
_ABOVE_ZERO: Check = partial(real_number, above=0)
_NOT_NEGATIVE: Check = partial(real_number, minimum=0)

# `clip_range` has a line of its own in `check_algorithm`.
_ALGORITHM: dict[str, Check] = {
    "learning_rate": check_schedule,
    "n_steps": _AT_LEAST_ONE,
    "batch_size": _AT_LEAST_ONE,
    "n_epochs": _AT_LEAST_ONE,
    "gamma": _SHARE,
    "gae_lambda": _SHARE,
    "clip_range_vf": partial(check_schedule, above_at_first=0),
    "normalize_advantage": flag,
    "ent_coef": real_number,  # below 0 it punishes entropy, which may be wanted
    "vf_coef": _NOT_NEGATIVE,
    "max_grad_norm": _gradient_norm,
    "use_sde": flag,
    "sde_sample_freq": partial(whole_number, minimum=-1),
    "rollout_buffer_class": _buffer_class,
    "rollout_buffer_kwargs": check_dict,
    "target_kl": _ABOVE_ZERO,
    "stats_window_size": _AT_LEAST_ONE,
    "tensorboard_log": _path,
    "policy_kwargs": check_dict,
    "verbose": _verbosity,
    "seed": partial(whole_number, minimum=0, maximum=LARGEST_SEED),
    "device": check_device,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "critic_warmup_iterations": _COUNT,
    "value_loss": partial(choice, choices=get_args(ValueLoss)),
    "huber_delta": _ABOVE_ZERO,
    "ratio_level": partial(choice, choices=get_args(RatioLevel)),
    "value_learning_rate": check_schedule,
    "kl_ref_coef": _NOT_NEGATIVE,
    "ratio_tolerance": _NOT_NEGATIVE,
    "bootstrap_time_limits": flag,
    "value_gae_lambda": _SHARE,
    "n_value_epochs": _COUNT,
    "policy_warmup_iterations": _COUNT,
    "n_episodes": _AT_LEAST_ONE,
    "group_size": partial(whole_number, minimum=2),
    "clip_range_high": _ABOVE_ZERO,
    "advantage": partial(choice, choices=get_args(Advantage)),
    "baseline": partial(choice, choices=get_args(Baseline)),
    "max_groups": partial(real_number, minimum=1),
    "drop_uninformative": flag,
    "length_norm": flag,
    "length_penalty": partial(real_number, minimum=0, below=1),
    "failure_scorer": _path,
    "returns": partial(choice, choices=get_args(Returns)),
    "estimator": partial(choice, choices=get_args(Estimator)),
    "failure_weight": partial(real_number, minimum=0, below=1),
}
_MAY_BE_NONE = {
    *("learning_rate", "n_steps", "batch_size", "n_epochs", "clip_range_vf", "normalize_advantage", "max_grad_norm"),
    *("rollout_buffer_class", "rollout_buffer_kwargs", "target_kl", "tensorboard_log", "policy_kwargs", "seed"),
    *("critic_warmup_iterations", "value_learning_rate", "ratio_tolerance", "value_gae_lambda", "failure_scorer"),
}
# Additions for VLAPolicy alone, and whether one is off.
_ONLY_VLA: dict[str, Callable[[Any], bool]] = {
    "critic_warmup_iterations": lambda value: value == 0,
    "ratio_level": lambda value: value == "action",
    "value_learning_rate": lambda value: value is None,
    "bootstrap_time_limits": bool,
    "value_gae_lambda": lambda value: value is None,
    "n_value_epochs": lambda value: value == 0,
    "policy_warmup_iterations": lambda value: value == 0,
    "engine": lambda value: value is None,
}

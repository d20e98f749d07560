"""What `VLAPPO` and `VLAPolicy` accept: every argument is checked before anything starts, one sentence per fault."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.checks import choice, did_you_mean, flag, real_number, sequence, whole_number
from vla_agent.backbone import is_backbone
from vla_agent.policy.lora import LoraSettings

Check = Callable[[str, Any], Any]

DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST_SEED = 2**32 - 1  # NumPy's, which SB3 seeds as well


def check_algorithm(given: Mapping[str, Any], *, loaded: bool = False) -> None:
    """Complains about an argument of `VLAPPO` that is out of range.

    Args:
        given: Arguments by name.
        loaded: Whether they come from a saved run, whose schedules may have ended at 0.

    Raises:
        ValueError: See the message.
    """
    for name, check in _ALGORITHM.items():
        if given.get(name) is not None or (name in given and name not in _MAY_BE_NONE):
            check(name, given[name])
    if not (loaded and given["clip_range"] == 0):
        check_schedule("clip_range", given["clip_range"], above_at_first=0)


def check_together(given: Mapping[str, Any], is_vla: bool) -> None:
    """Complains about arguments of `VLAPPO` that do not go together.

    Args:
        given: Arguments by name, defaults filled in.
        is_vla: Whether the policy is a `VLAPolicy`.

    Raises:
        ValueError: See the message.
    """
    if is_vla and given["use_sde"]:
        raise ValueError("use_sde=True needs continuous actions; VLAPolicy's are bins. Leave it out.")
    parts, batch_size = given["gradient_accumulation_steps"], given["batch_size"]
    if batch_size % parts:
        raise ValueError(f"gradient_accumulation_steps={parts} does not divide batch_size={batch_size}.")
    if given["normalize_advantage"] and batch_size == 1:
        raise ValueError("batch_size=1 leaves nothing to normalise; give 2 or more, or normalize_advantage=False.")
    if given["ratio_level"] == "token" and given["rollout_buffer_class"] is not None:
        raise ValueError("ratio_level='token' brings its own rollout buffer; leave rollout_buffer_class out.")
    wrong = [name for name, is_default in _ONLY_VLA.items() if not is_default(given[name])]
    if wrong and not is_vla:
        shown = ", ".join(f"{name}={given[name]!r}" for name in wrong)
        raise ValueError(f"{shown}: only for 'VLAPolicy', and the policy is {given['policy']!r}. Leave it out.")
    if given["kl_ref_coef"] > 0 and given["policy_kwargs"].get("lora") is None:
        raise ValueError(
            f"kl_ref_coef={given['kl_ref_coef']} needs adapters, which are switched off to get the reference policy; "
            "give policy_kwargs=dict(lora={})."
        )


def check_policy(given: Mapping[str, Any]) -> None:
    """Complains about an argument of `VLAPolicy` that is out of range, by `policy_kwargs` or directly.

    Args:
        given: Arguments by name.

    Raises:
        ValueError: See the message.
    """
    for name, value in given.items():
        if name in _POLICY and (value is not None or name not in _POLICY_MAY_BE_NONE):
            _POLICY[name](name, value)
    if given.get("use_sde"):
        raise ValueError("use_sde=True needs continuous actions; VLAPolicy's are bins. Leave it out.")
    if given.get("optimizer_kwargs"):
        _check_optimizer(given.get("optimizer_class", th.optim.Adam), given["optimizer_kwargs"])


def check_names(policy: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> None:
    """Complains about `policy_kwargs` that the policy does not take.

    Raises:
        ValueError: The message offers the nearest name.
    """
    parameters = inspect.signature(policy.__init__).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][4:]  # after self, the spaces and the learning rate
    for name in policy_kwargs:
        if name not in known:
            guess = did_you_mean(str(name), known)
            raise ValueError(f"Unknown policy_kwargs {name!r}.{guess} Arguments: {', '.join(known)}.")


def check_own_arguments(algorithm: type, given: Iterable[str]) -> None:
    """Complains about arguments that an algorithm's constructor does not take.

    Raises:
        TypeError: The message offers the nearest name.
    """
    parameters = inspect.signature(algorithm.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            known = [known for known in parameters if known != "self" and not known.startswith("_")]
            raise TypeError(
                f"{algorithm.__name__} takes no argument {name!r}.{did_you_mean(name, known)} "
                f"Arguments: {', '.join(known)}."
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
        ValueError: If it is none, or a vector environment without SB3's interface.
    """
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            "env is a vector environment with Gymnasium's interface, which SB3 does not take; give "
            "vla_agent.make_vec_env(id, n_envs), or put VLAVecEnv around it."
        )
    if (env is None and needed) or not (env is None or isinstance(env, (str, gym.Env, VecEnv))):
        raise ValueError(f"env={env!r}; expected an id such as 'LIBERO-Spatial-v0', or what make_vec_env gives.")


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


def check_device(name: str, value: Any) -> None:
    """Complains about a device that torch does not know or cannot use.

    Raises:
        ValueError: If it cannot.
    """
    if isinstance(value, str) and value == "auto":
        return
    try:
        device = th.device(value)
        if device.type == "cuda":  # nothing is put there: workers may still have to be forked
            if not th.cuda.is_available():
                warnings.warn(f"{name}={str(value)!r}, but torch finds no GPU: going on with the CPU.", stacklevel=4)
            elif (device.index or 0) >= th.cuda.device_count():
                raise RuntimeError(f"There are {th.cuda.device_count()} GPUs")
        else:
            th.zeros(1, device=device).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        sentence = str(error).partition("\n")[0]
        raise ValueError(
            f"{name}={value!r} is no device that torch can use here; expected 'auto', 'cpu', 'cuda' or 'cuda:0' "
            f"({sentence})."
        ) from error


def parse_dtype(dtype: str | th.dtype | None, name: str = "dtype") -> th.dtype | None:
    """A floating-point type by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if dtype is None:
        return None
    found = getattr(th, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in [getattr(th, known) for known in DTYPES]:
        raise ValueError(f"Unknown {name} {dtype!r}. Choices: {', '.join(map(repr, DTYPES[:3]))}.")
    return found


def _gradient_norm(name: str, value: Any) -> None:
    if not (isinstance(value, float) and value == math.inf):  # "do not clip"
        real_number(name, value, above=0)


def _verbosity(name: str, value: Any) -> None:
    whole_number(name, int(value) if isinstance(value, bool) else value, 0, 2)


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r}; expected a string.")


def _path(name: str, value: Any) -> None:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name}={value!r}; expected a folder, as str or Path.")


def _dict(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={value!r}; expected a dict of arguments by name, such as {name}=dict(...).")


def _buffer_class(name: str, value: Any) -> None:
    if not (isinstance(value, type) and issubclass(value, RolloutBuffer)):
        raise ValueError(f"{name}={value!r}; expected a subclass of SB3's RolloutBuffer.")


def _model(name: str, value: Any) -> None:
    if isinstance(value, (str, Path)) and str(value):
        return
    if not is_backbone(value):
        raise ValueError(f"{name}={value!r}; expected 'tiny', a checkpoint folder, a hub id, or a VLABackbone.")


def _lora(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}; expected a dict of LoraSettings, {name}={{}} for its defaults.")
    LoraSettings.from_dict(dict(value))


def _widths(name: str, value: Any) -> None:
    for width in sequence(name, value):
        whole_number(f"{name}'s width", width, 1)


def _names(name: str, value: Any) -> None:
    for element in sequence(name, value):
        _text(f"{name}'s element", element)


def _autocast(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value == "auto"):
        parse_dtype(value, name)


def _optimizer_class(name: str, value: Any) -> None:
    if not (isinstance(value, type) and issubclass(value, th.optim.Optimizer)):
        raise ValueError(f"{name}={value!r}; expected a class of torch.optim, such as torch.optim.AdamW.")


def _check_optimizer(optimizer_class: type[th.optim.Optimizer], kwargs: Mapping[str, Any]) -> None:
    try:
        optimizer_class([th.zeros(1, requires_grad=True)], lr=1e-3, **kwargs)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer_kwargs={dict(kwargs)!r} do not suit {optimizer_class.__name__}: {error}"
        ) from error


_SHARE: Check = partial(real_number, minimum=0, maximum=1)
_COUNT: Check = partial(whole_number, minimum=0)
_AT_LEAST_ONE: Check = partial(whole_number, minimum=1)
_ABOVE_ZERO: Check = partial(real_number, above=0)
_NOT_NEGATIVE: Check = partial(real_number, minimum=0)

# `clip_range` has a line of its own above.
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
    "rollout_buffer_kwargs": _dict,
    "target_kl": _ABOVE_ZERO,
    "stats_window_size": _AT_LEAST_ONE,
    "tensorboard_log": _path,
    "policy_kwargs": _dict,
    "verbose": _verbosity,
    "seed": partial(whole_number, minimum=0, maximum=LARGEST_SEED),
    "device": check_device,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "critic_warmup_iterations": _COUNT,
    "value_loss": partial(choice, choices=("mse", "huber")),
    "huber_delta": _ABOVE_ZERO,
    "ratio_level": partial(choice, choices=("action", "token")),
    "value_learning_rate": check_schedule,
    "kl_ref_coef": _NOT_NEGATIVE,
    "ratio_tolerance": _NOT_NEGATIVE,
    "bootstrap_time_limits": flag,
    "value_gae_lambda": _SHARE,
    "n_value_epochs": _COUNT,
    "policy_warmup_iterations": _COUNT,
}
_MAY_BE_NONE = {
    *("learning_rate", "n_steps", "batch_size", "n_epochs", "clip_range_vf", "normalize_advantage", "max_grad_norm"),
    *("rollout_buffer_class", "rollout_buffer_kwargs", "target_kl", "tensorboard_log", "policy_kwargs", "seed"),
    *("critic_warmup_iterations", "value_learning_rate", "ratio_tolerance", "value_gae_lambda"),
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
}
_POLICY: dict[str, Check] = {
    "model": _model,
    "temperature": _ABOVE_ZERO,
    "top_k": _AT_LEAST_ONE,
    "top_p": partial(real_number, above=0, maximum=1),
    "lora": _lora,
    "value_hidden": _widths,
    "detach_value": flag,
    "frozen": _names,
    "dtype": lambda name, value: parse_dtype(value, name),
    "autocast": _autocast,
    "device": check_device,
    "gradient_checkpointing": flag,
    "cuda_graphs": flag,
    "unnorm_key": _text,
    "optimizer_class": _optimizer_class,
    "optimizer_kwargs": _dict,
    "use_sde": flag,
}
_POLICY_MAY_BE_NONE = {"top_k", "top_p", "lora", "dtype", "autocast", "device", "unnorm_key", "optimizer_kwargs"}

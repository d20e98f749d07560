"""What `VLAPolicy` accepts: every argument is checked before anything starts, one sentence per fault."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy

from libero_gym.common.checks import did_you_mean, flag, real_number, sequence, whole_number
from vla_agent.backbone import is_backbone
from vla_agent.policy.lora import LoraSettings

Check = Callable[[str, Any], Any]

DTYPES = ("float32", "bfloat16", "float16", "float64")


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
        ValueError: If no type has that name.
    """
    if dtype is None:
        return None
    found = getattr(th, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in [getattr(th, known) for known in DTYPES]:
        raise ValueError(f"Unknown {name} {dtype!r}. Choices: {', '.join(map(repr, DTYPES[:3]))}.")
    return found


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r}; expected a string.")


def check_dict(name: str, value: Any) -> None:
    """Complains about a value that is no dict of arguments by name, as ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={value!r}; expected a dict of arguments by name, such as {name}=dict(...).")


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


_AT_LEAST_ONE: Check = partial(whole_number, minimum=1)
_ABOVE_ZERO: Check = partial(real_number, above=0)

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
    "average_decay": partial(real_number, minimum=0, below=1),
    "optimizer_class": _optimizer_class,
    "optimizer_kwargs": check_dict,
    "use_sde": flag,
}
_POLICY_MAY_BE_NONE = {"top_k", "top_p", "lora", "dtype", "autocast", "device", "unnorm_key", "optimizer_kwargs"}

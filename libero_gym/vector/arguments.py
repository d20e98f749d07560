"""Checks of what `LiberoVectorEnv` is given: each returns the value in its proper type, or raises one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from libero_gym.common.checks import choice, did_you_mean, flag, sequence, whole_number
from libero_gym.common.memory import available_memory

# What an environment takes beside its observations: measured, 1.2 MB for Spatial's task 0 without cameras.
_SIMULATOR_BYTES = 1_200_000
# Arrays of the size of the observations: the current and the final ones, and the bounds of their space.
_COPIES = 4
# Longer waits than this (eleven days) overflow what the system takes.
MAX_TIMEOUT = 1e6


def keywords(function: Callable[..., Any]) -> list[str]:
    """Names of a function's keyword-only arguments."""
    return [name for name, kind in inspect.signature(function).parameters.items() if kind.kind == kind.KEYWORD_ONLY]


def refuse_misspelt_arguments(
    given: Iterable[str], own: Sequence[str], inner: Callable[..., Any], backends: Mapping[str, Callable[..., Any]]
) -> None:
    """Raise if a keyword that ``inner`` does not have is nearly one of ``own``; others are left to ``inner``.

    Args:
        given: The keywords.
        own: Those of the environments, and of their back end.
        inner: What takes the others.
        backends: All back ends, whose keywords may have no place here.
    """
    known = inspect.signature(inner).parameters
    elsewhere = {name: f"backend={key!r}" for key, backend in backends.items() for name in keywords(backend)}
    for name in given:
        if name not in known and name in elsewhere:
            raise ValueError(f"Unknown argument {name!r}: {elsewhere[name]} takes it, not this back end.")
        if name not in known and (hint := did_you_mean(name, [*own, *known])) and did_you_mean(name, own) == hint:
            raise ValueError(f"Unknown argument {name!r}.{hint}")


def check_autoreset_mode(mode: Any) -> AutoresetMode:
    """One of Gymnasium's modes, given as such or by its value (``"NextStep"``).

    Raises:
        ValueError: If there is no such mode.
    """
    if isinstance(mode, AutoresetMode):
        return mode
    return AutoresetMode(choice("autoreset_mode", mode, [known.value for known in AutoresetMode]))


def check_num_envs(num_envs: Any, observation_space: spaces.Dict) -> int:
    """The number of environments, which the machine's free memory has to hold.

    Raises:
        ValueError: If it is no whole number of at least 1, or the environments need more memory than is free.
    """
    n = whole_number("num_envs", num_envs, minimum=1)
    sizes = [
        int(np.prod(space.shape)) * space.dtype.itemsize
        for space in observation_space.spaces.values()
        if isinstance(space, spaces.Box)
    ]
    needed = n * (_SIMULATOR_BYTES + _COPIES * sum(sizes))
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"num_envs={n} needs at least {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are "
            "free; make fewer environments, or smaller images (image_size, cameras)."
        )
    return n


def split_options(options: Any, n: int) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Options of a reset, taken apart.

    Returns:
        The mask of the environments to reset, bool (n,), and for each other option its n values.

    Raises:
        ValueError: If an option has values for another number of environments, or the mask is none.
    """
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ValueError(f"options={options!r}; expected a dict, such as options={{'task_id': 0, 'init_state_id': 3}}.")
    mask = np.ones(n, dtype=bool)
    if options.get("reset_mask") is not None:
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (n,) or mask.dtype != bool:
            raise ValueError(
                f"reset_mask has shape {mask.shape} and type {mask.dtype}; expected ({n},) booleans, True for each "
                "environment to reset."
            )
    others = {name: value for name, value in options.items() if name != "reset_mask"}
    return mask, {name: per_env(name, value, n) for name, value in others.items()}


def check_seeds(seed: Any, n: int) -> list[int | None]:
    """One seed for each environment: ``seed + i`` if a single seed is given.

    Raises:
        ValueError: If a seed is no whole number of at least 0, or their number is not n.
    """
    if seed is None:
        return [None] * n
    if np.ndim(seed) == 0:
        first = whole_number("seed", seed, minimum=0)
        return [first + index for index in range(n)]
    seeds = per_env("seed", seed, n)
    return [None if value is None else whole_number("seed", value, minimum=0) for value in seeds]


def per_env(name: str, value: Any, n: int) -> list[Any]:
    """One value for each environment: the elements of a sequence, or a single value n times.

    Raises:
        ValueError: If the sequence has another length than n.
    """
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)) or np.ndim(value) == 0:
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} values; expected one, or one for each of {n}.")
    return list(value)


def check_indices(indices: Any, n: int) -> list[int]:
    """Numbers of the chosen environments; None chooses all.

    Raises:
        ValueError: If an environment does not exist.
    """
    if indices is None:
        return list(range(n))
    return [whole_number("indices", index, 0, n - 1) for index in sequence("indices", indices)]


def check_call(name: str, indices: Any, num_envs: int) -> list[int]:
    """The environments that `LiberoVectorEnv.call` asks for something.

    Raises:
        ValueError: If there is no such environment, or all have in common what is asked for: the next reset would undo
            it.
    """
    if name == "set_task_weights":
        raise ValueError("All environments draw by the same weights; call LiberoVectorEnv.set_task_weights itself.")
    return check_indices(indices, num_envs)


def check_snapshot(snapshot: Any, lengths: Mapping[str, int]) -> dict[str, Any]:
    """A snapshot of `LiberoVectorEnv`.

    Args:
        snapshot: The value to check.
        lengths: Names of the lists that it must hold, with their lengths: the number of environments or of tasks.

    Raises:
        ValueError: If the value is no snapshot, or one of another number of environments or tasks.
    """
    missing = [name for name in lengths if not isinstance(snapshot, Mapping) or name not in snapshot]
    if missing:
        raise ValueError(f"This is no snapshot of a LiberoVectorEnv: it lacks {', '.join(missing)}.")
    for name, length in lengths.items():
        if len(sequence(name, snapshot[name])) != length:
            what = "tasks" if name == "task_weights" else "environments"
            raise ValueError(f"The snapshot is of {len(snapshot[name])} {what}; here are {length}.")
    return dict(snapshot)


def check_snapshot_of_workers(snapshot: Any, n: int) -> dict[str, Any]:
    """A snapshot of n environments in worker processes.

    Raises:
        ValueError: If the value is none, or damaged.
    """
    known = {"ended": [False] * n} | snapshot if isinstance(snapshot, dict) else snapshot  # older ones do not say
    saved = check_snapshot(known, {"environments": n, "seeds": n, "restarts": n, "ended": n})
    for seed, restarts, ended in zip(saved["seeds"], saved["restarts"], saved["ended"], strict=True):
        if seed is not None:
            whole_number("The snapshot's seeds", seed, 0)
        whole_number("The snapshot's restarts", restarts, 0)
        flag("The snapshot's ended", ended)
    return saved

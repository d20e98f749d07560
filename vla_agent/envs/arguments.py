"""Checks of `make_vec_env`'s arguments, made before a model is read or a worker starts; one sentence per fault."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from libero_gym.common.checks import choice, did_you_mean, flag, whole_number

# Each environment has a simulator and frames in shared memory; a larger number is a typing error.
MAX_ENVS = 10_000
# Names that other programs give to arguments of ours: Gymnasium, robosuite and LIBERO.
KEYWORDS_ELSEWHERE = {
    "num_envs": "n_envs",
    "camera_heights": "image_size",
    "camera_widths": "image_size",
    "camera_names": "cameras",
    "tasks": "task_id",
    "horizon": "max_episode_steps",
}

_ENV, _VECTOR_ENV = "libero_gym.env:LiberoEnv", "libero_gym.vector:LiberoVectorEnv"
_WRAP = (
    "For a reward or a wrapper of your own, put a VecEnvWrapper of SB3 around what make_vec_env gives: see 'A reward "
    "of your own' in vla_agent/README.md."
)


def check_arguments(
    env_id: str,
    n_envs: int,
    model: Any,
    reward: str,
    unnorm_key: str | None,
    seed: int | None,
    image_transform: Any,
    center_crop: bool,
) -> None:
    """Check the arguments of `make_vec_env`, as they are named there.

    Raises:
        ValueError: If an argument is of another type or out of range.
    """
    if not isinstance(env_id, str):
        raise ValueError(f"env_id={env_id!r}; expected a registered id, such as 'LIBERO-Spatial-v0'.")
    spec = gym.registry.get(env_id)
    if spec is None or not _takes_chunks(spec):
        known = [name for name, other in gym.registry.items() if "suite" in other.kwargs]
        what = "Unknown id" if spec is None else "No instructions come from"
        wrapped = f" {_WRAP}" if spec is not None and "suite" in spec.kwargs else ""
        raise ValueError(f"{what} {env_id!r}.{did_you_mean(env_id, known)} Ids: {', '.join(known)}.{wrapped}")
    if spec.vector_entry_point == _VECTOR_ENV and spec.entry_point != _ENV:
        raise ValueError(
            f"{env_id!r} makes another environment than LiberoEnv, and LiberoVectorEnv knows none. {_WRAP}"
        )
    whole_number("n_envs", n_envs, 1, MAX_ENVS)
    if callable(reward):
        raise ValueError(f"reward={reward!r}; expected 'sparse', 'progress' or 'process'. {_WRAP}")
    choice("reward", reward, ("sparse", "progress", "process"))
    if not isinstance(model, (str, Path)) and not hasattr(model, "codec"):
        raise ValueError(f"model={model!r}; expected 'tiny', a checkpoint folder, a hub id, or a model's processor.")
    if unnorm_key is not None and not isinstance(unnorm_key, str):
        raise ValueError(f"unnorm_key={unnorm_key!r}; expected a string, the name of a data set.")
    if seed is not None:
        whole_number("seed", seed, 0)
    if not (image_transform is None or callable(image_transform) or image_transform == "auto"):
        raise ValueError(f"image_transform={image_transform!r}; expected 'auto', None, or a function of images.")
    flag("center_crop", center_crop)


def _takes_chunks(spec: gym.envs.registration.EnvSpec) -> bool:
    """Whether vector environments of the id take ``chunk_size``, as LIBERO's do."""
    if spec.vector_entry_point is None:
        return False
    creator: Any = spec.vector_entry_point
    creator = gym.envs.registration.load_env_creator(creator) if isinstance(creator, str) else creator
    parameters = inspect.signature(creator).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any or "chunk_size" in parameters


def check_keywords(env_id: str, env_kwargs: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Check that LIBERO's environments take these arguments; those of other environments are unknown.

    Args:
        env_id: Id of the environments.
        env_kwargs: Arguments for the environments.
        function: Function whose own arguments the message offers as well.

    Raises:
        TypeError: If an argument is unknown; the message offers the nearest name.
    """
    from libero_gym.env import LiberoEnv
    from libero_gym.vector.vector import LiberoVectorEnv, backend_factory

    if "suite" not in gym.spec(env_id).kwargs:
        return
    backend = backend_factory(env_kwargs.get("backend", "processes"))
    classes = (function, LiberoVectorEnv.__init__, backend, LiberoEnv.__init__)
    parameters = [p for part in classes for p in inspect.signature(part).parameters.values()]
    named = dict.fromkeys(p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD)
    known = [name for name in named if name not in ("self", "plan", "suite", "num_envs")]
    for name in env_kwargs:
        if name not in known:
            guess = KEYWORDS_ELSEWHERE.get(name)
            hint = f" Did you mean {guess!r}?" if guess else did_you_mean(name, known)
            raise TypeError(f"make_vec_env takes no {name!r}.{hint} Arguments: {', '.join(known)}.")

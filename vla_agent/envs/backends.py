"""What simulates the environments, as commands and evaluations ask for it: a back end's name, and where it computes."""

from __future__ import annotations

from typing import Any, Literal

import torch as th
from stable_baselines3.common.utils import get_device

# Names of `libero_gym.vector.vector.BACKENDS`.
BackendName = Literal["processes", "warp"]


def backend_arguments(backend: Any, backend_device: str, device: th.device | str) -> dict[str, Any]:
    """Arguments of `make_vec_env` for environments of a back end.

    Args:
        backend: Its name, or a function that makes one.
        backend_device: For "warp": Warp's name of the device, such as "cuda:1"; "auto" takes the policy's.
        device: The policy's.

    Raises:
        ValueError: If another back end is given a device.
    """
    if backend == "warp":
        return {"backend": backend, "device": str(get_device(device)) if backend_device == "auto" else backend_device}
    if backend_device != "auto":
        raise ValueError(
            f"backend_device={backend_device!r} is for worlds on a device, and backend is {backend!r}: take "
            'backend="warp", or leave backend_device out.'
        )
    return {} if backend == "processes" else {"backend": backend}


# Names that `make_vec_env` and other programs give to arguments of an evaluation.
_NAMES_ELSEWHERE = {
    "task_id": "task_ids",
    "init_states": "init_state_ids",
    "n_eval_episodes": "init_state_ids",
    "num_envs": "n_envs",
}


def evaluation_arguments(env_kwargs: dict[str, Any], device: th.device | str) -> dict[str, Any]:
    """Arguments of `make_vec_env` from those that an evaluation was given for its environments.

    Args:
        env_kwargs: They, with ``backend`` and ``backend_device`` among them, see `backend_arguments`.
        device: The policy's device.

    Raises:
        TypeError: If an argument has another name in an evaluation.
        ValueError: If the physics is for training alone, or a back end cannot be asked so.
    """
    for name in env_kwargs:
        if name in _NAMES_ELSEWHERE:
            raise TypeError(f"An evaluation takes no {name!r}. Did you mean {_NAMES_ELSEWHERE[name]!r}?")
    given = {"backend": "processes", "backend_device": "auto"} | env_kwargs
    if given.get("physics") == "coarse":
        raise ValueError('physics="coarse" is for training: its contacts are none of the benchmark. Leave it out.')
    chosen = backend_arguments(given.pop("backend"), given.pop("backend_device"), device)
    replaced = {} if "backend" in chosen else {"restart": True}  # workers that die
    return replaced | chosen | given

"""The options of commands that say what simulates the environments."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from libero_gym.dimensions import Physics
from libero_gym.gpu.requirements import check_device, check_physics
from vla_agent.envs.backends import BackendName, backend_arguments


class BackendOptions(Protocol):
    """What a command that makes environments has among its options."""

    backend: BackendName
    backend_device: str
    device: str
    engine: Literal["local", "ray"]


class TrainingBackendOptions(BackendOptions, Protocol):
    """What a command that trains has besides."""

    eval_backend: BackendName
    keep_on_device: bool
    physics: Physics


def check_backend(options: BackendOptions, *further: BackendName) -> None:
    """Complains about a device that is not here or that nothing uses, before anything slow begins.

    Args:
        options: The options.
        further: Other back ends that the command uses.

    Raises:
        ImportError: If MuJoCo Warp is missing.
        ValueError: If there is no such device, or worlds on a device are not asked for.
    """
    if "warp" not in (options.backend, *further):
        if options.backend_device != "auto":
            raise ValueError(
                f"--backend-device {options.backend_device} is for worlds on a device: add --backend warp, or leave it "
                "out."
            )
    elif options.engine == "local":  # an engine's processes may be where the device is
        check_device(backend_arguments("warp", options.backend_device, options.device)["device"])


def check_training_backend(options: TrainingBackendOptions) -> None:
    """As `check_backend`, and complains about what worlds on a device cannot do in training."""
    check_backend(options, options.eval_backend)
    if options.backend == "warp":
        check_physics(options.physics)
    if not options.keep_on_device:
        return
    if options.backend != "warp":
        raise ValueError("--keep-on-device is for worlds on a device: add --backend warp, or leave it out.")
    if options.engine != "local":
        raise ValueError("--keep-on-device is for one process, and --engine ray sends frames between several.")


def training_arguments(options: TrainingBackendOptions) -> dict[str, Any]:
    """Arguments of `make_vec_env` for the environments to train in."""
    if options.backend != "warp":
        return {}
    chosen = backend_arguments(options.backend, options.backend_device, options.device)
    return chosen | ({"output": "torch"} if options.keep_on_device else {})


def evaluation_backend(options: TrainingBackendOptions) -> dict[str, Any]:
    """Arguments of `Evaluator` for a training's evaluations."""
    if options.eval_backend != "warp":
        return {}
    return {"backend": options.eval_backend, "backend_device": options.backend_device}

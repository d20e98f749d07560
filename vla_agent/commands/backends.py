"""The options of commands that say what simulates the environments."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal, Protocol

from libero_gym.dimensions import Physics
from libero_gym.gpu.requirements import check_device, check_physics, require_warp
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
        tell_of_compiling(require_warp())
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


class CompilingLogger:
    """What Warp tells: of the kernels that it loads, those alone that it compiles, which takes minutes at first."""

    def debug(self, message: str) -> None:
        """Leave it out."""

    def info(self, message: str) -> None:
        """Print it if a kernel was compiled."""
        if "(compiled)" in message:
            print(message, file=sys.stderr)

    def warning(self, message: str, category: type[Warning] | None = None, stacklevel: int = 1) -> None:
        """Warn."""
        warnings.warn(message, category, stacklevel + 1)

    def error(self, message: str) -> None:
        """Print it."""
        print(message, file=sys.stderr)


def tell_of_compiling(warp: Any) -> None:
    """Have Warp leave out its hundreds of lines on kernels that its cache holds; earlier versions of it cannot."""
    if hasattr(warp, "set_logger"):
        warp.set_logger(CompilingLogger())


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

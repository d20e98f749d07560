"""Whether MuJoCo Warp is here and can do what is asked; every lack is one sentence that says what cures it."""

from __future__ import annotations

import importlib
from typing import Any

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.version import install_extra

_EXTRA = install_extra("gpu")


def require_warp() -> Any:
    """The module ``warp``, once MuJoCo Warp has been imported.

    Raises:
        ImportError: If one of them is missing, or MuJoCo is too old for them.
    """
    for name, title in (("warp", "NVIDIA Warp"), ("mujoco_warp", "MuJoCo Warp")):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ImportError(
                f'backend="warp" needs {title}, which is not installed; the extra [gpu] brings it: {_EXTRA}'
            ) from None
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{title} does not work with MuJoCo {mujoco.__version__} ({error}); install what the extra [gpu] asks "
                f"for: {_EXTRA}"
            ) from error
    return importlib.import_module("warp")


def check_device(device: Any) -> str:
    """Warp's name of a device that is here.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ImportError: If MuJoCo Warp is missing.
        ValueError: If there is no such device.
    """
    warp = require_warp()
    known = [str(found.alias) for found in warp.get_devices()]
    if device == "cuda" and warp.is_cuda_available():
        return str(warp.get_cuda_device().alias)
    if not isinstance(device, str) or device not in known:
        lacking = "there is no CUDA device" if not warp.is_cuda_available() else "no such device is here"
        raise ValueError(
            f"device={device!r}: {lacking}; devices: {', '.join(map(repr, known))}. The CPU runs the same kernels, for "
            "tests and small batches."
        )
    return device


def check_physics(physics: str | None) -> None:
    """Refuse a physics that worlds on a device do not have; they have one of their own.

    Raises:
        ValueError: If it is stock's to the bit, or the one of longer substeps.
    """
    if physics in ("exact", "coarse"):
        what = "stock's to the bit" if physics == "exact" else "of longer substeps"
        raise ValueError(
            f'physics={physics!r} is {what}, and backend="warp" has its own, in single precision: leave physics out, '
            'or take backend="processes".'
        )

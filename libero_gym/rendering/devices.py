"""Finds the GPUs that can render, and says which worker process renders on which.

EGL and CUDA number the same GPUs differently, so EGL is asked which is which. A process of its own asks, so that this
one stays free of GL, whose state does not survive a fork.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import logging
import os
import subprocess
import uuid
import warnings
from collections.abc import Sequence

import numpy as np

from libero_gym.common.interpreters import module_command, module_environment
from libero_gym.rendering.egl import DEVICE_VARIABLE, Egl, load

logger = logging.getLogger(__name__)

# Constants of EGL's extensions EXT_device_persistent_id and NV_device_cuda.
_DEVICE_UUID_EXT = 0x335C
_CUDA_DEVICE_NV = 0x323A
_QUERY_TIMEOUT = 60.0  # seconds; a driver that wakes sleeping GPUs takes a few


@dataclasses.dataclass(frozen=True)
class EglDevice:
    """One device as EGL lists it.

    Attributes:
        index: Its place in EGL's list, which ``render_device`` counts by.
        usable: Whether a display could be initialised on it; in containers EGL may list GPUs that it may not open.
        software: Whether it is a software renderer.
        cuda_device: CUDA's number for it, without regard to ``CUDA_VISIBLE_DEVICES``; None if it has none.
        uuid: Its name for CUDA and ``nvidia-smi``, such as ``"GPU-01234567-89ab-..."``; None if EGL does not say.
    """

    index: int
    usable: bool = True
    software: bool = False
    cuda_device: int | None = None
    uuid: str | None = None


@functools.lru_cache(maxsize=1)
def egl_devices() -> tuple[EglDevice, ...]:
    """All devices that EGL lists, in its order; empty if there is no EGL. EGL is asked once per process."""
    # The driver counts CUDA_VISIBLE_DEVICES out of the numbers that it reports, some versions wrongly; without it they
    # are CUDA's own. `visible_gpus` applies it afterwards.
    environment = {name: value for name, value in module_environment().items() if name != "CUDA_VISIBLE_DEVICES"}
    command = module_command("libero_gym.rendering.devices")
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=_QUERY_TIMEOUT
        )
        return tuple(EglDevice(**fields) for fields in json.loads(answer.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        logger.warning("EGL could not be asked for its devices, so it chooses one itself: %s", error)
        return ()


def visible_gpus(devices: Sequence[EglDevice], cuda_visible_devices: str | None) -> list[int]:
    """EGL indices of the GPUs to render on, in CUDA's order.

    If CUDA knows any of the devices, only those count, because another driver may list the same GPU a second time. If
    it knows none, all GPUs count, and ``CUDA_VISIBLE_DEVICES`` says nothing about them.

    Args:
        devices: What `egl_devices` gives.
        cuda_visible_devices: The variable's value, None if unset: CUDA's numbers (as ``CUDA_DEVICE_ORDER`` orders
            them) or UUIDs, which may be abbreviated. CUDA ignores what follows an invalid entry, and so does this. If
            a UUID is not known here, or one of a slice of a GPU, all GPUs are used, with a warning.
    """
    usable = [device for device in devices if device.usable and not device.software]
    by_cuda = {device.cuda_device: device for device in usable if device.cuda_device is not None}
    if not by_cuda:
        return [device.index for device in usable]
    everything = [by_cuda[number].index for number in sorted(by_cuda)]
    if cuda_visible_devices is None:
        return everything
    chosen = []
    for entry in (part.strip() for part in cuda_visible_devices.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            matches = [device for device in by_cuda.values() if (device.uuid or "").startswith(entry)]
            if len(matches) != 1:
                _warn_of_unknown(entry)
                return everything
            chosen.append(matches[0].index)
        elif entry.isdecimal() and int(entry) in by_cuda:
            chosen.append(by_cuda[int(entry)].index)
        else:
            break
    return chosen


def spread(sizes: Sequence[int], gpus: Sequence[int]) -> list[int | None]:
    """A GPU for each worker, so that all GPUs serve about as many environments.

    Larger workers choose first, each the GPU with the fewest environments so far. With workers of one environment the
    numbers per GPU differ by at most one; with others, by at most the largest worker.

    Args:
        sizes: Number of environments per worker.
        gpus: What `visible_gpus` gives.

    Returns:
        An element of ``gpus`` per worker; None for each if there are none.
    """
    if not gpus:
        return [None] * len(sizes)
    load = dict.fromkeys(gpus, 0)
    chosen: list[int | None] = [None] * len(sizes)
    for worker in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        gpu = min(load, key=load.__getitem__)  # the first of equals
        load[gpu] += sizes[worker]
        chosen[worker] = gpu
    return chosen


def default_gpus() -> list[int]:
    """EGL indices of this machine's GPUs to spread over; none if ``MUJOCO_EGL_DEVICE_ID`` has chosen already."""
    if DEVICE_VARIABLE in os.environ:
        return []
    return visible_gpus(egl_devices(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def per_worker(
    render_device: int | Sequence[int | None] | None, sizes: Sequence[int], gpus: Sequence[int]
) -> tuple[int | None, ...]:
    """The EGL device index of each worker process: the given ones, or those of `spread` for None.

    Raises:
        ValueError: If ``render_device`` is neither None, nor an index, nor a sequence with one per worker.
    """
    if render_device is None:
        return tuple(spread(sizes, gpus))
    chosen = tuple(render_device) if isinstance(render_device, Sequence) else (render_device,) * len(sizes)
    if len(chosen) != len(sizes) or not all(device is None or _is_index(device) for device in chosen):
        raise ValueError(
            f"render_device={render_device!r}; expected an EGL device index, or one for each of the {len(sizes)} "
            "worker processes (the environments of one process draw on one device; see n_workers)."
        )
    return chosen


def _is_index(device: object) -> bool:
    return isinstance(device, (int, np.integer)) and not isinstance(device, bool) and bool(device >= 0)


@functools.cache
def _warn_of_unknown(entry: str) -> None:
    """Warn once per entry and process."""
    warnings.warn(
        f"CUDA_VISIBLE_DEVICES names {entry!r}, which EGL does not know, so environments render on all GPUs. "
        "Pass render_device (EGL indices) to choose.",
        stacklevel=5,
    )


def _describe(egl: Egl, index: int, handle: int | None) -> EglDevice:
    extensions = egl.extensions(handle)
    return EglDevice(
        index,
        usable=egl.open(handle) is not None,
        software=egl.software(handle),
        cuda_device=_cuda_device(egl, handle) if "EGL_NV_device_cuda" in extensions else None,
        uuid=_uuid(egl, handle) if "EGL_EXT_device_persistent_id" in extensions else None,
    )


def _cuda_device(egl: Egl, handle: int | None) -> int | None:
    value = ctypes.c_ssize_t(-1)
    asked = egl.query_attribute and egl.query_attribute(handle, _CUDA_DEVICE_NV, ctypes.byref(value))
    return value.value if asked and value.value >= 0 else None


def _uuid(egl: Egl, handle: int | None) -> str | None:
    value, size = (ctypes.c_ubyte * 16)(), ctypes.c_int(0)
    asked = egl.query_binary and egl.query_binary(handle, _DEVICE_UUID_EXT, 16, value, ctypes.byref(size))
    return f"GPU-{uuid.UUID(bytes=bytes(value))}" if asked and size.value == 16 else None


def main() -> None:
    """Print the devices as JSON; the process that `egl_devices` starts."""
    try:
        egl = load()
        devices = [_describe(egl, index, handle) for index, handle in enumerate(egl.devices())]
    except OSError:
        devices = []
    print(json.dumps([dataclasses.asdict(device) for device in devices]))


if __name__ == "__main__":
    main()

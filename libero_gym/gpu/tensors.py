"""Observations that stay on the device, handed out as tensors: Warp makes torch's, and nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.kernel
def put_frames(
    frames: wp.array4d[wp.uint8],
    first: int,
    step: int,
    rows: wp.array[int],
    shown: wp.array4d[wp.uint8],
) -> None:
    """Copies frames ``first``, ``first + step``, ... to rows of what is shown; a thread for each row and pixel."""
    place, y, x = wp.tid()
    for k in range(3):
        shown[rows[place], y, x, k] = frames[first + place * step, y, x, k]


class DeviceFrames:
    """Frames of all environments on the device; `copy` hands them out.

    Args:
        shape: (num_envs, height, width, 3).
        device: Warp's device.
    """

    def __init__(self, shape: Sequence[int], device: Any) -> None:
        self.device, self._shown = device, wp.zeros(tuple(shape), dtype=wp.uint8, device=device)

    def put(self, rows: Sequence[int], frames: wp.array, first: int, step: int) -> None:
        """Show frames ``first``, ``first + step``, ... of a batch, uint8 (k, height, width, 3), in these rows."""
        chosen = wp.array(list(rows), dtype=wp.int32, device=self.device)
        inputs = [frames, first, step, chosen]
        wp.launch(put_frames, (len(chosen), *self._shown.shape[1:3]), inputs, outputs=[self._shown], device=self.device)

    def copy(self) -> Any:
        """A tensor of their values now."""
        return handed_out(wp.clone(self._shown))


class DeviceValues:
    """Numbers of all environments that are computed on the host; `copy` hands them out on the device.

    Args:
        values: They, (num_envs, ...).
        device: Warp's device.
    """

    def __init__(self, values: np.ndarray, device: Any) -> None:
        self._values, self._device = values, device

    def __setitem__(self, rows: Any, values: Any) -> None:
        self._values[rows] = values

    def copy(self) -> Any:
        """A tensor of their values now."""
        return tensor_of(self._values, self._device)


def tensor_of(values: np.ndarray, device: Any) -> Any:
    """A tensor on the device with an array's values and type."""
    flags = values.dtype == bool
    return handed_out(wp.array(values, dtype=wp.bool if flags else wp.dtype_from_numpy(values.dtype), device=device))


def handed_out(values: wp.array) -> Any:
    """An array as a tensor of the same memory, once it is computed: torch computes in an order of its own."""
    wp.synchronize_device(values.device)
    return wp.to_torch(values)

"""Arrays that may be NumPy's, in the host's memory, or torch's, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th


def on_host(values: Any) -> np.ndarray:
    """The values as NumPy's, copied from their device if they are on one."""
    return values.cpu().numpy() if isinstance(values, th.Tensor) else np.asarray(values)


def stacked(values: Sequence[Any]) -> Any:
    """The values along a new first axis: a tensor of tensors, on their device, or an array of arrays."""
    return th.stack(list(values)) if isinstance(values[0], th.Tensor) else np.stack(values)

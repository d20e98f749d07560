"""Pictures by matplotlib, without a display and without pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from libero_gym.common.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of that size in inches, and its axes, (rows, columns)."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure completely or not at all; the path's suffix chooses the format.

    Raises:
        OSError: If it cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)

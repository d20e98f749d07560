"""Figures drawn into files: no window, and none of pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from libero_gym.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, layout: Literal["constrained", "tight"] = "constrained") -> Figure:
    """An empty figure.

    Args:
        width: Width in inches.
        height: Height in inches.
        layout: How matplotlib places what is in it.
    """
    from matplotlib.figure import Figure  # importing it takes a second

    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure so that the file is there as a whole or not at all.

    Args:
        figure: The figure.
        path: The file; its suffix chooses the format.
        dpi: Pixels per inch.

    Raises:
        OSError: If it cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)

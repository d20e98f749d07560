"""Pictures by matplotlib, without a display and without pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from libero_gym.common.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")  # that matplotlib writes, as paths end


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of that size in inches, and its axes, (rows, columns)."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture_path(path: str | Path) -> Path:
    """The path of a picture's file; a PNG's without a suffix. It makes nothing.

    Raises:
        ValueError: If the suffix is no picture's, a folder stands there, or a file where its folder should be.
    """
    file = Path(path)
    file = file if file.suffix else file.with_name(f"{file.name}.png")
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"'{path}' ends in {file.suffix!r}; expected a picture's name: {', '.join(FORMATS)}.")
    if folder := next((place for place in (Path(path), file) if place.is_dir()), None):
        raise ValueError(f"'{folder}' is a folder; give the name of a picture in it, such as '{folder / 'a.png'}'.")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"'{path}' lies below '{above}', which is a file; give a picture in a folder.")
    return file


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure completely or not at all; the path's suffix chooses the format.

    Raises:
        ValueError: If no picture can be there, see `picture_path`.
        OSError: If it cannot be written.
    """
    with replacing(picture_path(path)) as temporary:
        figure.savefig(temporary, dpi=dpi)

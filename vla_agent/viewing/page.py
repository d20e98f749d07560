"""An episode as one HTML page that needs nothing else: films, plots, and a time line that moves through all of them.

The page fetches nothing. Its one script is ours, and its policy allows that script alone by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from libero_gym.common.videos import FILM_CRF, encode

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_BYTES = 100_000_000  # of a page
WIDTH, HEIGHT = 1000, 96  # of a plot, in units of its picture
_KEY_FRAMES = 10  # a browser goes to any frame in half a second's frames
_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = Path(__file__).parent.parent / "evaluation" / "templates"


class Line(NamedTuple):
    """A line of a plot: its name, and its pieces as SVG's ``points``, cut where there is no value."""

    name: str
    pieces: list[str]


class Plot(NamedTuple):
    """A plot over the episode's time: its name, its lines, and the values at its lower and upper edge in words."""

    name: str
    lines: list[Line]
    low: str
    high: str


def episode_page(
    *,
    title: str,
    success: bool,
    fps: float,
    frames: Mapping[str, np.ndarray],
    plots: Mapping[str, Mapping[str, np.ndarray]],
    facts: Mapping[str, str],
) -> str:
    """The page of an episode of n frames, the same bytes for the same episode.

    Args:
        title: The instruction.
        success: Whether the goal held at the end.
        fps: Frames per second.
        frames: By name, uint8 (n, H, W, 3); lower ones stand above black.
        plots: By name, lines by name, (n,) each; NaN where there is no value.
        facts: Further words by what they are.

    Raises:
        ValueError: If the sizes do not fit each other, or the page would be too large.
        RuntimeError: If ffmpeg fails.
    """
    n = len(next(iter(frames.values())))
    if any(len(values) != n for lines in plots.values() for values in lines.values()):
        raise ValueError(f"A line of a plot has another length than the {n} frames.")
    film = encode(_side_by_side(list(frames.values())), fps, FILM_CRF, _KEY_FRAMES)
    values = {name: {line: _numbers(row) for line, row in lines.items()} for name, lines in plots.items() if lines}
    script = (_TEMPLATES / "episode.js").read_text(encoding="utf-8")
    page = _environment().get_template("episode.html").render(
        title=title,
        success=success,
        cameras=[(name, each.shape[2]) for name, each in frames.items()],
        facts=facts,
        n_frames=n,
        seconds=f"{(n - 1) / fps:.2f}",
        plots=[plot(name, lines) for name, lines in plots.items() if lines],
        width=WIDTH,
        height=HEIGHT,
        film="data:video/mp4;base64," + base64.b64encode(film).decode(),
        # Markup could end the element that holds it.
        data=json.dumps({"fps": fps, "n": n, "values": values}).replace("<", "\\u003c"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    if len(page) > MAX_BYTES:
        raise ValueError(
            f"The page would have {len(page) / 1e6:.0f} MB, and {MAX_BYTES / 1e6:.0f} are the most; take fewer cameras "
            "or a smaller image_size."
        )
    return page


def plot(name: str, lines: Mapping[str, np.ndarray]) -> Plot:
    """A plot of lines that share their edges; a line that is level everywhere runs through its middle."""
    finite = [value for row in lines.values() for value in row if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    middle, half = (low + high) / 2, (high - low) / 2 or 1.0
    drawn = []
    for label, row in lines.items():
        pieces: list[list[str]] = [[]]
        for i, value in enumerate(row):
            if math.isfinite(value):
                x, y = WIDTH * i / max(len(row) - 1, 1), HEIGHT / 2 - (value - middle) / half * (HEIGHT / 2 - 5)
                pieces[-1].append(f"{x:.1f},{y:.1f}")
            elif pieces[-1]:
                pieces.append([])
        drawn.append(Line(label, [" ".join(piece) for piece in pieces if piece]))
    return Plot(name, drawn, f"{low:.3g}", f"{high:.3g}")


def _side_by_side(frames: Sequence[np.ndarray]) -> np.ndarray:
    """All cameras in one film, with black below and at the right up to even sides, which H.264 wants."""
    height = max(each.shape[1] for each in frames)
    padded = [np.pad(each, ((0, 0), (0, height - each.shape[1]), (0, 0), (0, 0))) for each in frames]
    film = np.concatenate(padded, axis=2)
    return np.pad(film, ((0, 0), (0, film.shape[1] % 2), (0, film.shape[2] % 2), (0, 0)))


def _numbers(row: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in row]


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    settings: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader([_TEMPLATES, _STYLE]), autoescape=True, **settings)

"""Learning curves as numbers that a page draws: points, ticks and lines in pixels of an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vla_agent.callbacks.success import Evaluated
from vla_agent.evaluation.learning import RunCurve

# Wide for a laptop, narrow for a phone: text that shrinks with its picture cannot be read.
SIZES = {"wide": (980, 340), "narrow": (342, 280)}
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 22, 14, 46  # margins
_TICK_WIDTH = 90  # pixels that a number below the axis takes, with air
_LABEL_WIDTH = 38  # pixels that a percentage beside a point takes


class Tick(NamedTuple):
    """A number at an axis, and its place."""

    place: float
    text: str


class Mark(NamedTuple):
    """An evaluation: its place, the ends of its interval, and its rate in words where there is room."""

    x: float
    y: float
    low: float
    high: float
    text: str


class Plot(NamedTuple):
    """A learning curve in pixels.

    Attributes:
        name: "wide" or "narrow".
        width, height: Size of the picture.
        left, right, top, bottom: Edges of the plane that curves are drawn on.
        x_ticks, y_ticks: Numbers at the axes.
        marks: Evaluations.
        line: Points of the line through the evaluations, as SVG writes them.
        training: Points of the line through the training batches.
        band: Outline of the training batches' intervals.
        evaluated_at: Where the evaluated model was saved; None if that is outside.
    """

    name: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    line: str
    training: str
    band: str
    evaluated_at: float


def plot(curve: RunCurve, name: str) -> Plot:
    """A learning curve for a page of one of `SIZES`."""
    width, height = SIZES[name]
    right, bottom = width - _RIGHT, height - _BOTTOM
    end = max([curve.evaluated_at, *(point.num_timesteps for point in curve.evaluations + curve.training), 1])

    def x(steps: float) -> float:
        return round(_LEFT + (right - _LEFT) * steps / end, 1)

    def y(rate: float) -> float:
        return round(bottom - (bottom - _TOP) * rate, 1)

    marks: list[Mark] = []
    labelled = -math.inf
    for number, point in enumerate(curve.evaluations):
        # The last rate is what a reader looks for, so it has its label in any case.
        is_last = number == len(curve.evaluations) - 1
        free = x(point.num_timesteps) - labelled >= _LABEL_WIDTH
        free &= is_last or x(curve.evaluations[-1].num_timesteps) - x(point.num_timesteps) >= _LABEL_WIDTH
        text = f"{100 * point.rate:.0f} %" if free or is_last else ""
        labelled = x(point.num_timesteps) if text else labelled
        marks.append(Mark(x(point.num_timesteps), y(point.rate), y(point.low), y(point.high), text))
    training = [(x(point.num_timesteps), point) for point in curve.training]
    upper = [(place, y(point.high)) for place, point in training]
    lower = [(place, y(point.low)) for place, point in training]
    return Plot(
        name,
        width,
        height,
        _LEFT,
        right,
        _TOP,
        bottom,
        [Tick(x(steps), f"{steps:,}") for steps in whole_ticks(end, (right - _LEFT) // _TICK_WIDTH)],
        [Tick(y(rate / 4), f"{25 * rate} %") for rate in range(5)],
        marks,
        _points([(mark.x, mark.y) for mark in marks]),
        _points([(place, y(point.rate)) for place, point in training]),
        _points(upper + lower[::-1]),
        x(curve.evaluated_at),
    )


def whole_ticks(end: int, n: int) -> list[int]:
    """At most ``n`` steps of 1, 2 or 5 times a power of ten from 0 to ``end``."""
    step = next(digit * 10**power for power in range(19) for digit in (1, 2, 5) if end <= digit * 10**power * max(n, 1))
    return list(range(0, end + 1, step))


def summarize(points: Sequence[Evaluated]) -> str:
    """First and last point in words, such as "from 52 % at timestep 0 to 95 % at timestep 4,096"."""
    first, last = points[0], points[-1]
    start = f"{100 * first.rate:.0f} % at timestep {first.num_timesteps:,}"
    return start if first is last else f"from {start} to {100 * last.rate:.0f} % at timestep {last.num_timesteps:,}"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)

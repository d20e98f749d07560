"""Losses that stop being numbers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from vla_agent import VLAPPO


def poison_losses(model: VLAPPO, numbers: Collection[int]) -> None:
    """Makes the losses of the minibatches with these numbers NaN."""
    original, calls = model._losses, iter(range(10_000))

    def losses(*args: Any) -> Any:
        result = original(*args)
        if next(calls) not in numbers:
            return result
        metrics = {name: value * math.nan for name, value in result.metrics.items()}
        return result._replace(loss=result.loss * math.nan, metrics=metrics)

    model._losses = losses  # type: ignore[method-assign]

"""Errors that several rooms raise."""

from __future__ import annotations

import math


class NonFiniteError(RuntimeError):
    """A reward, an observation or a value was infinite or NaN; or several losses or gradients in a row were."""


def finite_loss(value: float, step: int) -> float:
    """The loss of a step itself.

    Raises:
        NonFiniteError: If it is no number; nothing has been learned of it yet.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"The loss is {value} at step {step}; the weights are those before it. Lower the learning rate, or look at "
            "the data."
        )
    return value

"""A moving average of a policy's weights, kept among its optimizer's moments.

PPO's noise moves the likeliest action, which evaluations take, more than the drawn ones: greedy success jumps from
update to update. The average of the weights over the last updates is steadier (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch as th

AVERAGE = "average"  # an entry of the optimizer's state of a parameter, so that runs save and restore it

Values = Sequence[tuple[th.Tensor, th.Tensor]]  # parameters, and values for them

_own: WeakKeyDictionary[th.optim.Optimizer, Values] = WeakKeyDictionary()  # while the parameters are their average


def keep_average(optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter], decay: float) -> None:
    """Has every later step of the optimizer update the average of some parameters.

    Early weights are forgotten faster: after n steps, the decay is at most (1 + n) / (10 + n).

    Args:
        optimizer: The optimizer.
        parameters: Parameters to average; those without a gradient at a step stay as they are.
        decay: Share of the average that a step keeps, below 1; 0 keeps no average.
    """
    if not decay:
        return

    @th.no_grad()
    def update(*_: Any) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if AVERAGE not in state:
                state[AVERAGE] = parameter.detach().clone()
            n = float(state.get("step", 1e9))  # an optimizer that does not count forgets at one rate
            state[AVERAGE].lerp_(parameter, 1 - min(decay, (1 + n) / (10 + n)))

    optimizer.register_step_post_hook(update)


@contextlib.contextmanager
def averaged(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """Inside, the parameters that have an average are their average; afterwards they are what they were, to the bit."""
    averages = [(parameter, state[AVERAGE]) for parameter, state in optimizer.state.items() if AVERAGE in state]
    with _exchanged(averages) as before:
        is_outermost = _own.setdefault(optimizer, before) is before
        try:
            yield
        finally:
            if is_outermost:
                del _own[optimizer]


@contextlib.contextmanager
def own_weights(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """Inside, the parameters are what they were before `averaged`, if that is under way."""
    with _exchanged(_own.get(optimizer, ())):
        yield


@contextlib.contextmanager
def _exchanged(values: Values) -> Iterator[Values]:
    """Inside, parameters have these values; gives those that they had, and puts them back."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in values]
    _fill(values)
    try:
        yield before
    finally:
        _fill(before)


@th.no_grad()
def _fill(values: Values) -> None:
    for parameter, value in values:
        parameter.copy_(value)

"""A moving average of a policy's weights, kept among its optimizer's moments.

PPO's noise moves the likeliest action, which evaluations take, more than the drawn ones: greedy success jumps from
update to update. The average of the weights over the last updates is steadier (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch as th

AVERAGE = "average"  # an entry of the optimizer's state of a parameter, so that runs save and restore it


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
    kept = [
        (parameter, parameter.detach().clone(), state[AVERAGE])
        for parameter, state in optimizer.state.items()
        if AVERAGE in state
    ]
    with th.no_grad():
        for parameter, _, average in kept:
            parameter.copy_(average)
    try:
        yield
    finally:
        with th.no_grad():
            for parameter, own, _ in kept:
                parameter.copy_(own)

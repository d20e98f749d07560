"""When stock LIBERO's observables sample: robosuite 1.4's ``Observable.update``, with its floating-point sums."""

from __future__ import annotations

from libero_gym.simulation.simulator import STOCK_SUBSTEPS

_SUBSTEP = 0.002  # robosuite's macros.SIMULATION_TIMESTEP, s
_PERIOD = 1.0 / 20  # s


class ObservationClock:
    """Says after which substep of a control step the observation is taken.

    An observable samples at the first update of each period of 50 ms. Forced updates, of which `reset` makes one and
    ``set_init_state`` another, sample as well, and count as 2 ms that have passed; each therefore moves all later
    samples one substep earlier in their control step.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._sampled = False

    def restart(self) -> None:
        """A reset: the period begins anew."""
        self._time = 0.0

    def force(self) -> None:
        """A forced update."""
        self._time += _SUBSTEP
        self._sampled = True
        self._end_period()

    def control_step(self) -> int:
        """The substep after which this control step's observation is taken, counted from the end: 1 is the last."""
        sampled_from_end = 0
        for left in range(STOCK_SUBSTEPS, 0, -1):
            self._time += _SUBSTEP
            if not self._sampled and self._time <= _PERIOD:
                sampled_from_end = left
                self._sampled = True
            if self._time >= _PERIOD and not self._sampled:
                sampled_from_end = left
            self._end_period()
        return sampled_from_end

    def _end_period(self) -> None:
        if self._time >= _PERIOD:
            self._time %= _PERIOD
            self._sampled = False

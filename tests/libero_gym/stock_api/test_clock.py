"""When observations are taken: robosuite's own observable is the truth."""

from __future__ import annotations

import numpy as np
import pytest

from libero_gym.stock import import_stock
from libero_gym.stock_api.clock import ObservationClock


@pytest.mark.parametrize("seed", range(4))
def test_the_clock_samples_where_robosuites_observables_do(seed: int) -> None:
    import_stock()
    from robosuite.utils.observables import Observable, sensor

    now = [0]

    @sensor(modality="test")
    def substep(cache: object) -> np.ndarray:
        return np.array([now[0], now[0]])

    observable, clock = Observable("test", substep), ObservationClock()
    generator = np.random.default_rng(seed)
    different = set()
    for _ in range(300):
        event = generator.choice(["step", "step", "step", "force", "reset"])
        if event == "reset":
            observable.reset()
            clock.restart()
        if event in ("reset", "force"):
            observable.update(0.002, {}, force=True)
            clock.force()
        else:
            for now[0] in range(1, 26):
                observable.update(0.002, {})
            expected = 26 - int(observable.obs[0])
            different.add(expected)
            assert clock.control_step() == expected
    assert len(different) > 3

"""What tests do in the middle of a training, such as Ctrl-C."""

import signal
from collections.abc import Callable, Iterator

import pytest
from stable_baselines3.common.callbacks import BaseCallback


class At(BaseCallback):
    """Does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.act = step, act

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.act()
        return True


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background, with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""Ending a loop between two of its steps when somebody asks for it."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """Notes Ctrl-C (SIGINT) or SIGTERM while it is entered, so that a step that is under way ends first.

    The second signal has its usual effect. Only the main thread can set handlers; in another one nothing changes.

    Attributes:
        received: The signal that came; None before one comes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        logger.warning("%s: stopping after this step. Again to stop at once.", self.received.name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # else a handler of C, which Python cannot put back
                signal.signal(number, handler)
        self._before.clear()

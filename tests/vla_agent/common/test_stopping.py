"""Ending loops by signals."""

from __future__ import annotations

import signal

from vla_agent.common.stopping import StopRequest


def test_a_signal_is_noted_once_and_its_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert request.received is signal.SIGTERM


def test_a_signal_that_is_ignored_stays_so() -> None:
    """A shell's script starts what runs in the background so: Ctrl-C is meant for the program in front."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.received is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

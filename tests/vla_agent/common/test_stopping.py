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


def test_an_interrupt_is_heard_though_the_shell_had_it_ignored() -> None:
    """As of what a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.received is signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

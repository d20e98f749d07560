"""The network behind `benchmarks/engine_network.py` delays packets, drops them, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import delayed_network
import numpy as np
import pytest
from delayed_network import CUT, THERE, ip, network

TRY = f"""
import socket, time
begun = time.monotonic()
try:
    socket.create_connection(("{THERE}", 9), timeout=0.9)
except ConnectionRefusedError:  # nobody listens, which takes one round trip to know
    print(time.monotonic() - begun)
except TimeoutError:
    print("cut")
"""


@pytest.fixture
def delay_s() -> np.ndarray:
    return np.zeros(1)


@pytest.mark.skipif(bool(delayed_network.why_not()), reason=delayed_network.why_not())
def test_a_round_trip_takes_two_delays_and_a_cut_is_silent(delay_s: np.ndarray) -> None:
    with network(delay_s) as (here, there):
        left = subprocess.Popen(["ip", "netns", "exec", there, "sleep", "600"])
        found = {}
        for delay in (0.0, 0.2, CUT):
            delay_s[0] = delay
            found[delay] = ip("netns", "exec", here, sys.executable, "-c", TRY).strip()
    assert float(found[0.0]) < 0.2
    assert 0.4 <= float(found[0.2]) < 0.8
    assert found[CUT] == "cut"
    assert left.wait(timeout=10) < 0  # killed
    assert not {here, there} & set(ip("netns", "list").split())
    assert here not in ip("link")


def test_a_user_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert delayed_network.why_not() == "Only root makes network namespaces: run this as root."

"""Two network namespaces of this machine, with a way between them that delays packets or drops them."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

TUN = Path("/dev/net/tun")
HERE, THERE = "10.77.0.1", "10.77.0.2"
CUT = math.inf  # a delay


def why_not() -> str:
    """Why this machine cannot make the network, as a sentence; "" if it can."""
    if os.geteuid():
        return "Only root makes network namespaces: run this as root."
    if shutil.which("ip") is None:
        return "There is no program 'ip', which makes network namespaces: install iproute2."
    try:
        if not TUN.exists():
            TUN.parent.mkdir(exist_ok=True)
            os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(10, 200))
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN} cannot be opened ({error}): the kernel needs its module 'tun'."
    return ""


def ip(*words: str) -> str:
    """What the program ``ip`` prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def network(delay_s: np.ndarray) -> Iterator[list[str]]:
    """Names of two namespaces, each with a way to the other only; what runs in them ends with them.

    Args:
        delay_s: Seconds of a packet's way, (1,).
    """
    names = [f"vla{os.getpid()}{side}" for side in ("here", "there")]
    tuns: list[int] = []
    stop = threading.Event()
    forwarder = threading.Thread(target=forward, args=(tuns, delay_s, stop))
    with contextlib.ExitStack() as made:
        for name, address in zip(names, (HERE, THERE), strict=True):
            ip("netns", "add", name)
            made.callback(ip, "netns", "del", name)
            made.callback(end_all, name)
            tuns.append(os.open(TUN, os.O_RDWR))
            made.callback(os.close, tuns[-1])
            # TUNSETIFF with IFF_TUN | IFF_NO_PI, linux/if_tun.h
            fcntl.ioctl(tuns[-1], 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "mtu", "65000", "txqueuelen", "10000", "up")
            ip("-n", name, "link", "set", "lo", "up")
        forwarder.start()
        made.callback(forwarder.join)
        made.callback(stop.set)
        yield names


def end_all(namespace: str) -> None:
    """Kills what runs in a namespace."""
    while pids := ip("netns", "pids", namespace).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def forward(tuns: Sequence[int], delay_s: np.ndarray, stop: threading.Event) -> None:
    """Brings packets from each device to the other after a delay, (1,); drops them if it is infinite."""
    ways = [(source, target, deque[tuple[float, bytes]]()) for source, target in zip(tuns, tuns[::-1], strict=True)]
    while not stop.is_set():
        due = min((queue[0][0] for *_, queue in ways if queue), default=math.inf)
        ready = select.select(tuns, (), (), min(0.2, max(0.0, due - time.monotonic())))[0]
        for source, target, queue in ways:
            if source in ready:
                packet = os.read(source, 2**16)
                if delay_s[0] != CUT:
                    queue.append((time.monotonic() + float(delay_s[0]), packet))
            while queue and queue[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):  # nobody is there yet, or any more
                    os.write(target, queue.popleft()[1])

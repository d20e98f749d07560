"""The memory of a process and all below it. It imports nothing heavy, since imports are part of what is measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def memory_mb(pid: int | None = None) -> float:
    """Proportional set size of a process and all below it, MB: pages that they share count once.

    Args:
        pid: The process; this one by default. One that has ended counts nothing.
    """
    return sum(_pss_mb(member) for member in _family(os.getpid() if pid is None else pid))


def _pss_mb(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))

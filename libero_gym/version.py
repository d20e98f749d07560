"""The version of the distribution that both packages belong to, and those of other installed distributions."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

DISTRIBUTION = "libero-vla"
UNKNOWN = "unknown"


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

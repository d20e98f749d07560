"""The version of the distribution that both packages belong to."""

from __future__ import annotations

import importlib.metadata

DISTRIBUTION = "libero-vla"


def version() -> str:
    """As installed; "unknown" for a checkout on the path that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

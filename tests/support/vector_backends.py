"""The back ends that the same tests of `LiberoVectorEnv` run on, and what each is asked for with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

BACKENDS = ("processes", "warp")
_ARGUMENTS: dict[str, dict[str, Any]] = {"processes": {"n_workers": 2}, "warp": {"device": "cpu"}}


def asked_for(backend: str) -> dict[str, Any]:
    """Arguments that ask `LiberoVectorEnv` for a back end; skips the test if what it needs is not installed."""
    if backend == "warp" and find_spec("mujoco_warp") is None:
        pytest.skip("needs MuJoCo Warp, which the extra [gpu] brings: pip install mujoco-warp")
    return {"backend": backend, **_ARGUMENTS[backend]}

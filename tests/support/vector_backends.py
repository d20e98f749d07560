"""The back ends that the same tests of `LiberoVectorEnv` run on, and what each is asked for with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

BACKENDS = ("processes", "warp", pytest.param("warp on a GPU", marks=pytest.mark.gpu))
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "processes": {"backend": "processes", "n_workers": 2},
    "warp": {"backend": "warp", "device": "cpu"},
    "warp on a GPU": {"backend": "warp", "device": "cuda:0", "deterministic": True},
}


def asked_for(backend: str) -> dict[str, Any]:
    """Arguments that ask `LiberoVectorEnv` for a back end; skips the test if what it needs is not there."""
    arguments = _ARGUMENTS[backend]
    if arguments["backend"] == "warp" and find_spec("mujoco_warp") is None:
        pytest.skip("needs MuJoCo Warp, which the extra [gpu] brings: pip install mujoco-warp")
    if arguments.get("device") == "cuda:0":
        import warp

        if not warp.is_cuda_available():
            pytest.skip("needs a CUDA device")
    return arguments

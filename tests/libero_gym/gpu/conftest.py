"""Worlds of MuJoCo Warp on the CPU and, with ``pytest -m gpu``, on a GPU, for tests that run where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import get_tasks

if TYPE_CHECKING:
    from libero_gym.gpu.scene_batch import SceneBatch


@pytest.fixture(scope="session")
def warp() -> Any:
    """The module, beside MuJoCo Warp; it says nothing of compiling kernels."""
    reason = "needs MuJoCo Warp, which the extra [gpu] brings: pip install mujoco-warp"
    pytest.importorskip("mujoco_warp", reason=reason, exc_type=ImportError)
    import warp

    warp.config.quiet = True
    return warp


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, warp: Any) -> str:
    """Warp's name of the device that the worlds of a test are on."""
    if request.param != "cpu" and not warp.is_cuda_available():
        pytest.skip("needs a CUDA device")
    return str(request.param)


@pytest.fixture(scope="session")
def spatial(warp: Any) -> list[CompiledTask]:
    """Two tasks of one scene: the bowl between plate and ramekin, and the bowl on the ramekin."""
    return [compile_task(get_tasks("libero_spatial")[task_id]) for task_id in (0, 5)]


@pytest.fixture(scope="session")
def batch(device: str, spatial: list[CompiledTask]) -> SceneBatch:
    """Four worlds, for tests that load what they need."""
    from libero_gym.gpu.scene_batch import SceneBatch, Sizes

    return SceneBatch(spatial, 4, device, Sizes(256, 896))

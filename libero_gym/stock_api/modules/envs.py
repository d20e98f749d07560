"""What ``import libero.libero.envs`` finds. Vector environments are LIBERO's own, over our environments."""

from typing import Any

from libero_gym.stock_api.environment import ControlEnv, DemoRenderEnv, OffScreenRenderEnv, SegmentationRenderEnv

from .venv import DummyVectorEnv, SubprocVectorEnv

__all__ = [
    "ControlEnv",
    "DemoRenderEnv",
    "DummyVectorEnv",
    "OffScreenRenderEnv",
    "SegmentationRenderEnv",
    "SubprocVectorEnv",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"libero_gym's stand-in for libero.libero.envs has no {name}; libero_gym.uninstall_stock_api() gives LIBERO's "
        "own module back."
    )

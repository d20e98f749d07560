"""What ``import libero.libero.envs.env_wrapper`` finds."""

from libero_gym.stock_api.environment import ControlEnv, DemoRenderEnv, OffScreenRenderEnv, SegmentationRenderEnv

__all__ = ["ControlEnv", "DemoRenderEnv", "OffScreenRenderEnv", "SegmentationRenderEnv"]

"""OpenVLA on its own: configuration, vision towers, model, processor and checkpoints, without SB3 or an environment."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agent.openvla.config import OpenVLAConfig as OpenVLAConfig
    from vla_agent.openvla.files import CheckpointError as CheckpointError
    from vla_agent.openvla.image import center_crop as center_crop
    from vla_agent.openvla.image import libero_image as libero_image
    from vla_agent.openvla.model import ActionOutput as ActionOutput
    from vla_agent.openvla.model import ActionSample as ActionSample
    from vla_agent.openvla.model import OpenVLA as OpenVLA
    from vla_agent.openvla.processor import Processor as Processor
    from vla_agent.openvla.processor import load_processor as load_processor
    from vla_agent.openvla.tiny import tiny_config as tiny_config

_HOMES = {
    "ActionOutput": "model",
    "ActionSample": "model",
    "CheckpointError": "folder",
    "OpenVLA": "model",
    "OpenVLAConfig": "config",
    "Processor": "processor",
    "center_crop": "image",
    "libero_image": "image",
    "load_processor": "processor",
    "tiny_config": "tiny",
}

__all__ = [
    "ActionOutput",
    "ActionSample",
    "CheckpointError",
    "OpenVLA",
    "OpenVLAConfig",
    "Processor",
    "center_crop",
    "libero_image",
    "load_processor",
    "tiny_config",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: the model brings transformers, which takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

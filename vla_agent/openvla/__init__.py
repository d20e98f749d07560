"""OpenVLA on its own: configuration, vision towers, model, processor and checkpoints, without SB3 or an environment."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

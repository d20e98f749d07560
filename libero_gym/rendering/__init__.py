"""Frames of a simulator: exact or fast, and the OpenGL contexts that they are drawn in."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Frames of a simulator: exact ones by OpenGL, or fast ones without it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

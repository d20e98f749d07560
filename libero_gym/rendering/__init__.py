"""Frames of a simulator: exact, fast, or drawn by software of our own; and the OpenGL contexts of the first two."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Demonstrations: recorded, cut, written and read as LeRobot's and LIBERO's files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Scripted experts that solve LIBERO's tasks from the simulator's state."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

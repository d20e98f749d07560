"""Offline learning: recorded episodes of any policy, cloned by how well they went."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Process rewards: models that see from a frame how much of an instruction is done, and rewards made of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

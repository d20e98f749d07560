"""The one door to libero_gym: environments as SB3's vectors of tokens and bins."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

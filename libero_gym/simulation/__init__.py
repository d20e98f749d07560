"""The lean core: a compiled task steps, resets and says whether its goal holds; without robosuite and frames."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

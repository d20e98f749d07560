"""More computation per decision: several candidates are drawn, and the one that a scorer likes best is taken."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

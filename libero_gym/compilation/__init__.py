"""From LIBERO's files to compiled tasks, read once through robosuite and kept on disk; further starts and fixtures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The policy: a vision-language-action model behind SB3's actor-critic interface."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

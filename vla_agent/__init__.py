"""Stable-Baselines3 plugin that trains vision-language-action models by reinforcement learning."""

from typing import Any

import lazy_loader

# Names are imported at their first use, since SB3, torch and transformers take seconds; `__init__.pyi` lists them.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, or ``__version__``."""
    if name == "__version__":
        from libero_gym.common.version import version

        return version()
    return _public(name)

"""Puts our classes where ``libero.libero.envs`` has LIBERO's, and takes them away again.

Importing this costs nothing: environments come with the first import of ``libero.libero.envs``.
"""

from __future__ import annotations

import os

from libero_gym.benchmark import STOCK_API

# Interpreters that start while this is set have our classes, too: see `libero_gym.plugin`.
VARIABLE = "LIBERO_GYM_STOCK_API"


def install_stock_api() -> None:
    """Let ``from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv, DummyVectorEnv`` give ours.

    It holds in this process, and in processes that are started from now on. Call it before that import: names that a
    module has imported already stay LIBERO's. Doing it again changes nothing.
    """
    STOCK_API.place()
    os.environ[VARIABLE] = "1"


def uninstall_stock_api() -> None:
    """Undo `install_stock_api`: later imports find LIBERO's own classes."""
    STOCK_API.take_back()
    os.environ.pop(VARIABLE, None)

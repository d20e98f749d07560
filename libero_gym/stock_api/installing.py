"""Puts our classes where ``libero.libero.envs`` has LIBERO's, and takes them away again.

Importing this costs nothing: environments come with the first import of ``libero.libero.envs``.
"""

from __future__ import annotations

import os
from pathlib import Path

from libero_gym.common import stand_in

# Interpreters that start while this is set have our classes, too: see `libero_gym.plugin`.
VARIABLE = "LIBERO_GYM_STOCK_API"
_HERE = Path(__file__).parent / "modules"
_FILES = {
    "libero.libero": _HERE / "libero.py",
    "libero.libero.envs": _HERE / "envs.py",
    "libero.libero.envs.env_wrapper": _HERE / "env_wrapper.py",
}


def install_stock_api() -> None:
    """Let ``from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv, DummyVectorEnv`` give ours.

    It holds in this process, and in processes that are started from now on. Call it before that import: names that a
    module has imported already stay LIBERO's. Doing it again changes nothing.
    """
    stand_in.place(_FILES)
    os.environ[VARIABLE] = "1"


def uninstall_stock_api() -> None:
    """Undo `install_stock_api`: later imports find LIBERO's own classes."""
    stand_in.take_back()
    os.environ.pop(VARIABLE, None)

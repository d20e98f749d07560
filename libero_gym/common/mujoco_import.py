"""Imports MuJoCo such that a missing OpenGL library stops only what draws.

``import mujoco`` loads the back end that ``MUJOCO_GL`` names, else GLFW; PyOpenGL raises an AttributeError from within
if its library is not installed. All modules of this package take MuJoCo from here.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from libero_gym.common.environment_variables import restored

# What mujoco/gl_context.py takes for "none".
NO_GL = "disable"
_BACKENDS = ("egl", "osmesa")
_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")  # importing a back end writes them


def import_mujoco() -> ModuleType:
    """Import MuJoCo, without its own GL context class if the back end of ``MUJOCO_GL``, or else GLFW, cannot be loaded.

    `libero_gym.rendering` makes its contexts itself, and then says what is missing.

    Raises:
        ImportError: If MuJoCo is not installed.
    """
    with restored(*_VARIABLES):
        try:
            return importlib.import_module("mujoco")
        except (ImportError, AttributeError):
            forget_gl()
            os.environ["MUJOCO_GL"] = NO_GL
            return importlib.import_module("mujoco")


def loads(backend: str) -> bool:
    """Whether the library of a back end, ``"egl"`` or ``"osmesa"``, can be loaded; it makes no context.

    It is False as well if PyOpenGL is bound to the other one: PyOpenGL binds to one at its first import, even if that
    fails.
    """
    with restored(*_VARIABLES):
        try:
            importlib.import_module(f"mujoco.{backend}")
        except (ImportError, AttributeError):
            if not any(f"mujoco.{other}" in sys.modules for other in _BACKENDS):
                forget_gl()
            return False
    return True


def forget_gl() -> None:
    """Drop PyOpenGL and MuJoCo's back ends, so that another can be loaded."""
    for name in list(sys.modules):
        if name.split(".")[0] == "OpenGL" or name.startswith(tuple(f"mujoco.{backend}" for backend in _BACKENDS)):
            del sys.modules[name]


import_mujoco()
import mujoco as mujoco  # noqa: E402 - after the import above, which knows how; others take it from here

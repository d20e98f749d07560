"""Makes a process see no library of OpenGL or of a desktop; Python imports this at its start if it is on PYTHONPATH.

What loads one fails as it does where none is installed. Child processes see none either.
"""

import ctypes
import sys

_LIBRARIES = ("EGL", "OSMesa", "GL.so", "OpenGL", "GLX", "glfw")


class _Libraries(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name is not None and any(part in str(name) for part in _LIBRARIES):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **kwargs)


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "OpenGL":
            raise AttributeError("'NoneType' object has no attribute 'glGetError'")
        if name == "cv2":  # it links to these
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")


ctypes.CDLL = _Libraries
sys.meta_path.insert(0, _Finder())

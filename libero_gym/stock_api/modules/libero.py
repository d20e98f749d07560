"""What ``import libero.libero`` finds: LIBERO's own module, whose initial states can also be read by ``torch.load``."""

import importlib.machinery
import sys
from typing import Any

from libero_gym.stock_api.init_files import init_states_folder

_own: Any = importlib.machinery.PathFinder.find_spec("libero.libero", sys.modules["libero"].__path__)
__file__ = _own.origin  # by which it finds its folders


def input(*_: Any) -> str:
    """Answers LIBERO's question, without a configuration file, whether data sets lie elsewhere than usual: no."""
    return "n"


exec(_own.loader.get_code("libero.libero"), globals())  # LIBERO's module, in this one's name

del input
_get_libero_path = globals()["get_libero_path"]


def get_libero_path(query_key: str) -> str:
    """LIBERO's own, but for ``init_states``, which is a folder that also has the files as LIBERO published them."""
    path = str(_get_libero_path(query_key))
    return str(init_states_folder(path)) if query_key == "init_states" else path

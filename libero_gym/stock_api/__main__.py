"""Runs a script, or a module, as ``python`` would, with LIBERO's environments replaced by ours.

python -m libero_gym.stock_api script.py --its-own-arguments
python -m libero_gym.stock_api -m package.module --its-own-arguments
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from libero_gym.stock_api.installing import install_stock_api


def main() -> None:
    """What is above."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    if is_module:
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if arguments else 2)
    target = arguments[0]
    if not is_module and not Path(target).is_file():
        raise SystemExit(f"{target} is no file; expected a script, or -m and a module.")
    install_stock_api()
    sys.argv = arguments
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main()

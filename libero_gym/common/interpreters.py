"""Other Python processes that find the very modules which this one finds."""

from __future__ import annotations

import os
import sys


def module_command(name: str, *arguments: str) -> list[str]:
    """The command that runs a module in a process of its own, in the environment of `module_environment`.

    Args:
        name: Name of the module.
        *arguments: Its arguments.
    """
    return [sys.executable, "-P", "-m", name, *arguments]  # -P: not from whatever folder this process works in


def module_environment(**variables: str) -> dict[str, str]:
    """This process's environment, with variables of one's own and the folders in which it looks for modules."""
    folders = os.pathsep.join(os.path.abspath(str(folder)) for folder in sys.path)  # "" stands for the working folder
    return {**os.environ, "PYTHONPATH": folders, **variables}

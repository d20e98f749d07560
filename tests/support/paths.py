"""Where the repository's folders are, and what is in them."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
BENCHMARKS = ROOT / "benchmarks"


def without_opengl(**variables: str) -> dict[str, str]:
    """Environment variables of a process that finds no library of OpenGL or of a desktop, and these beside."""
    folders = [str(TESTS / "support" / "without_opengl"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **variables}


def example(script: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(script).stem}", EXAMPLES / script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

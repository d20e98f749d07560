"""Where the repository's folders are."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
BENCHMARKS = ROOT / "benchmarks"


def without_opengl(**variables: str) -> dict[str, str]:
    """Environment variables of a process that finds no library of OpenGL or of a desktop, and these beside."""
    folders = [str(TESTS / "support" / "without_opengl"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **variables}

"""What finished cells leave, in one file of the repository, so that a report can be made anew on another machine.

A line is one small file of the work folder: its path there, and what it holds.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from libero_gym.common.atomic import write_text

KEPT = ("before", "cells", "cells-exact", "done", "costs.json")  # of a work folder; reports read these alone


def unpack(store: Path, root: Path) -> list[str]:
    """Write what a store holds and a work folder lacks into the folder; its files stay as they are.

    Returns:
        The paths that were written, in the folder.

    Raises:
        ValueError: If the store is damaged, or names a file elsewhere.
    """
    written = []
    for name, content in _lines(store):
        path = root / name
        if not path.is_file():
            write_text(path, json.dumps(content) + "\n")
            written.append(name)
    return written


def pack(root: Path, store: Path) -> None:
    """Write all that a work folder keeps of finished cells into a store, beside what the store has already."""
    kept = dict(_lines(store))
    for name in KEPT:
        for path in (root / name).rglob("*.json") if (root / name).is_dir() else root.glob(name):
            kept[path.relative_to(root).as_posix()] = json.loads(path.read_text())
    lines = [json.dumps({"path": name, "content": kept[name]}, separators=(",", ":")) for name in sorted(kept)]
    write_text(store, "".join(f"{line}\n" for line in lines))


def _lines(store: Path) -> list[tuple[str, Any]]:
    """Paths and contents of a store; none if there is no such file."""
    found = []
    for number, line in enumerate(store.read_text().splitlines() if store.is_file() else (), 1):
        try:
            entry = json.loads(line)
            name, content = entry["path"], entry["content"]
            parts = PurePosixPath(name).parts
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of '{store}' is no path and content ({error}).") from None
        if not parts or parts[0] not in KEPT or ".." in parts or PurePosixPath(name).suffix != ".json":
            raise ValueError(f"Line {number} of '{store}' names {name!r}; expected a file of {', '.join(KEPT)}.")
        found.append((name, content))
    return found

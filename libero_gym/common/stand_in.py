"""Modules that stand in another package's place: imports of a name find ours, until they are taken back.

LIBERO's own modules of those names stay reachable for this package, which compiles tasks by them: see `aside`.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_lock = threading.RLock()
_files: dict[str, Path] = {}  # what stands in: a module's name and our file of it
_others: dict[str, ModuleType] = {}  # the modules that are out of the way now, with their submodules


class _Finder:
    """Finds our file for a name that is stood in for. Submodules that are not are still found in the other package."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        if name not in _files:
            return None
        other = importlib.machinery.PathFinder.find_spec(name, path)
        places = None if other is None else other.submodule_search_locations
        return importlib.util.spec_from_file_location(
            name, _files[name], submodule_search_locations=None if places is None else list(places)
        )


_finder = _Finder()


def place(files: Mapping[str, Path]) -> None:
    """Let imports of these names find these files from now on, also where the other modules are imported already."""
    with _lock:
        if not _files:
            _files.update(files)
            _exchange()
            sys.meta_path.insert(0, _finder)


def is_placed() -> bool:
    """Whether anything stands in."""
    return bool(_files)


def take_back() -> None:
    """Let imports find the other package's modules again."""
    with _lock:
        if _files:
            sys.meta_path.remove(_finder)
            _exchange()
            _files.clear()
            _others.clear()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Let imports find the other package's modules meanwhile."""
    with _lock:
        if not _files:
            yield
            return
        sys.meta_path.remove(_finder)
        _exchange()
        try:
            yield
        finally:
            _exchange()
            sys.meta_path.insert(0, _finder)


def _exchange() -> None:
    """Swap the modules under the names that are stood in for with those that are out of the way."""
    present = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    coming = dict(_others)
    _others.clear()
    _others.update(present)
    for name in present:
        del sys.modules[name]
        _unbind(name)
    for name, module in coming.items():
        sys.modules[name] = module
        _bind(name, module)


def _is_ours(name: str) -> bool:
    return any(name == ours or name.startswith(f"{ours}.") for ours in _files)


def _unbind(name: str) -> None:
    parent, _, child = name.rpartition(".")
    with contextlib.suppress(AttributeError):
        delattr(sys.modules.get(parent), child)


def _bind(name: str, module: ModuleType) -> None:
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)

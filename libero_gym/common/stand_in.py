"""Modules that stand in another package's place: imports of their names find our files, until they are taken back."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

_lock = threading.RLock()


class StandIn:
    """Files that imports find under other modules' names while this is placed.

    Modules that were imported under these names, and under them, are kept aside meanwhile, and are there again
    afterwards; so are ours, the next time.

    Args:
        files: By a module's name, the file that stands in. Submodules are found where the other package has its own.
        modules: By name, modules that stand in as they are.
    """

    def __init__(self, files: Mapping[str, Path], modules: Mapping[str, ModuleType] = MappingProxyType({})) -> None:
        self.files = dict(files)
        self.is_placed = False
        self._names = (*files, *modules)
        self._away = dict(modules)

    def place(self) -> None:
        """Let imports find these files from now on."""
        self._set(True)

    def take_back(self) -> None:
        """Let imports find the other modules again."""
        self._set(False)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Let imports find the other modules meanwhile."""
        return self._while(False)

    def present(self) -> contextlib.AbstractContextManager[None]:
        """Let imports find these files meanwhile."""
        return self._while(True)

    @contextlib.contextmanager
    def _while(self, placed: bool) -> Iterator[None]:
        with _lock:
            before = self.is_placed
            self._set(placed)
            try:
                yield
            finally:
                self._set(before)

    def _set(self, placed: bool) -> None:
        with _lock:
            if placed == self.is_placed:
                return
            if placed:
                self._exchange()
                sys.meta_path.insert(0, self)
            else:
                sys.meta_path.remove(self)
                self._exchange()
            self.is_placed = placed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        file = self.files.get(name)
        if file is None:
            return None
        other = importlib.machinery.PathFinder.find_spec(name, path)
        places = [] if other is None else list(other.submodule_search_locations or ())
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=places or None)

    def _exchange(self) -> None:
        """Swap the modules under these names with those that are away."""
        present = {name: module for name, module in sys.modules.items() if self._has(name)}
        coming, self._away = self._away, present
        for name in present:
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            with contextlib.suppress(AttributeError):
                delattr(sys.modules.get(parent), child)
        for name, module in coming.items():
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)

    def _has(self, name: str) -> bool:
        return any(name == ours or name.startswith(f"{ours}.") for ours in self._names)

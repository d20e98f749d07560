"""One task as an environment with the keys that LeRobot's loops look for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from libero_gym.bddl import read_problem
from libero_gym.common.checks import choice, did_you_mean, flag, whole_number
from libero_gym.compilation.draws import MAX_SEED
from libero_gym.compilation.placements import has_place, sampled_state
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, IMAGE_KEYS, STATE_DIM
from libero_gym.env import LiberoEnv
from libero_gym.env.state import PLACED, EpisodeState
from libero_gym.tasks import Suite, get_suite, initial_states

# What LeRobot calls the cameras, in its own LIBERO environment and in its data sets.
CAMERA_NAMES = {"agentview": "image", "wrist": "image2"}
# How the fixtures (cabinets, stoves, racks) of an episode are drawn.
FIXTURES = ("seed", "first")
# Control steps of an episode by LeRobot's own table (`TASK_SUITE_MAX_STEPS` of lerobot/envs/libero.py in 0.6.1).
LEROBOT_STEPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
# Arguments of `LiberoEnv` that leave what LeRobot's loops see and do as it is.
PASSED_ON = (
    "image_size",
    "renderer",
    "physics",
    "settle_steps",
    "reward",
    "reward_model",
    "render_device",
    "n_render_threads",
    "render_size",
)
MAX_DRAWS = 20  # placement seeds that a reset tries; narrow regions find no place with some


class LeRobotLiberoEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A task whose k-th episode begins from the next of its official initial states, as in LeRobot's environment.

    | observation | space |
    | --- | --- |
    | `pixels`: `image`, `image2` | uint8 (H, W, 3), upright: LIBERO's frames rotated by 180 degrees |
    | `agent_pos` | float32 (8,): position in m, axis-angle in rad, finger joints in m |

    So nothing has to be rotated or converted behind it; LeRobot's own environment leaves that to a processor.

    Args:
        suite: LIBERO's name of the suite, or one of `libero_gym.register_suite`, or a `Suite`.
        task_id: The task.
        first_state: Initial state of the first episode.
        stride: How many initial states further each next episode begins.
        fixtures: "seed" draws the fixtures from the seed of each reset, as LeRobot's environment does; the first new
            seed of a task takes seconds, and each is kept on disk. "first" leaves them where stock LIBERO draws them
            first after ``seed(0)``, and so does a reset without a seed.
        init_states: Whether episodes begin from official initial states; else their objects are placed by the seed,
            elsewhere than LeRobot's environment places them.
        camera_names: What the cameras are called.
        episode_length: Control steps that an episode may take; None takes LeRobot's own number if it knows the suite,
            and else the task's limit.
        **kwargs: Further arguments of `LiberoEnv`, those named in `PASSED_ON`.

    Attributes:
        task: LIBERO's name of the task.
        task_description: The instruction.

    Raises:
        ValueError: If an argument is out of range, or changes what LeRobot's loops see or do.

    Non-obvious behaviours:
        Where drawers or knobs have a drawn position at first (`bddl.Problem.draws_joints`), LIBERO draws other fixtures
        from the same seed after each reset. LeRobot's environment resets its own once when it is made, and then seeds
        it before each reset; so this one counts its resets.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQ}
    render_mode = "rgb_array"

    def __init__(
        self,
        suite: str | Suite,
        task_id: int,
        *,
        first_state: int = 0,
        stride: int = 1,
        fixtures: str = "seed",
        init_states: bool = True,
        camera_names: Mapping[str, str] | None = None,
        episode_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        names = CAMERA_NAMES if camera_names is None else dict(camera_names)
        if not names or not set(names) <= set(IMAGE_KEYS) or len(set(names.values())) < len(names):
            raise ValueError(f"camera_names={names!r}; expected names of {', '.join(IMAGE_KEYS)}, each another one.")
        _check_passed_on(kwargs)
        self.fixtures, self.init_states = choice("fixtures", fixtures, FIXTURES), flag("init_states", init_states)
        self._keys = {names[camera]: IMAGE_KEYS[camera] for camera in names}
        self._env = LiberoEnv(suite, task_id=task_id, cameras=tuple(names), render_mode="rgb_array", **kwargs)
        self._task = own = self._env.tasks[task_id]
        limit = LEROBOT_STEPS.get(self._env.suite.name, own.max_steps)
        self._max_episode_steps = limit if episode_length is None else whole_number("episode_length", episode_length, 1)
        self.task, self.task_description = own.name, own.instruction
        self._states = initial_states(own)
        self._next_state = whole_number("first_state", first_state, 0)
        self._stride = whole_number("stride", stride, 1)
        self._draws_joints, self._resets = read_problem(own.bddl_file).draws_joints, 0
        shape = (self._env.image_size, self._env.image_size, 3)
        frames: dict[str, spaces.Space[Any]] = {name: spaces.Box(0, 255, shape, np.uint8) for name in self._keys}
        state = spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
        self.observation_space = spaces.Dict({"pixels": spaces.Dict(frames), "agent_pos": state})
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the next episode. Options are LeRobot's, and mean nothing here.

        Raises:
            NoPlaceError: If `MAX_DRAWS` placements in a row find no place for all objects.
            ValueError: If the seed is out of range; those that fixtures are drawn from end with 2**32 - 1.
        """
        if seed is not None:
            seed = whole_number("seed", seed, 0, MAX_SEED if self.fixtures == "seed" else None)
        super().reset(seed=seed)
        if self.init_states and len(self._states):
            init_state_id = self._next_state % len(self._states)
            state = self._states[init_state_id]
        else:
            init_state_id, state = PLACED, sampled_state(self._task, self._drawn_placement())
        obs, _ = self._env.start(EpisodeState(self._task, init_state_id, *self._fixtures(seed)), state)
        self._next_state += self._stride
        self._resets += 1
        return self._observation(obs), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step. Success ends an episode; LeRobot's loop counts the steps itself."""
        obs, reward, terminated, _, _ = self._env.step(action)
        return self._observation(obs), float(reward), terminated, False, self._info(terminated)

    def render(self) -> np.ndarray | None:
        """The agentview frame, uint8 (H, W, 3), upright."""
        return self._env.render()

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _fixtures(self, seed: int | None) -> tuple[int, int, int]:
        """The draw, its seed and the resets before it that a reset takes the fixtures of; see `EpisodeState`."""
        if seed is None or self.fixtures == "first":
            return 1, 0, 0
        return 1, seed, 1 + self._resets if self._draws_joints else 0

    def _drawn_placement(self) -> int:
        """A placement seed that finds a place for all objects; one that finds none, if `MAX_DRAWS` in a row do not."""
        for _ in range(MAX_DRAWS):
            seed = int(self.np_random.integers(2**31))
            if has_place(self._task, seed):
                break
        return seed

    def _observation(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixels": {name: obs[key] for name, key in self._keys.items()}, "agent_pos": obs["state"]}

    def _info(self, success: bool) -> dict[str, Any]:
        return {"is_success": bool(success), "task": self.task, "task_id": int(self._env.task_ids[0])}


def environment_makers(
    suite: str | Suite, task_id: int, n_envs: int, **kwargs: Any
) -> list[Callable[[], LeRobotLiberoEnv]]:
    """What makes the environments of a vector environment, in this process or in others: i begins from initial state i.

    Args:
        suite: As for `LeRobotLiberoEnv`. Only this process needs to know its name.
        task_id: The task.
        n_envs: How many there are.
        **kwargs: Further arguments of `LeRobotLiberoEnv`.

    Raises:
        ValueError: If the suite is unknown.
    """
    make = functools.partial(LeRobotLiberoEnv, get_suite(suite).loaded(), task_id, stride=n_envs, **kwargs)
    return [functools.partial(make, first_state=index) for index in range(n_envs)]


def _check_passed_on(arguments: Mapping[str, Any]) -> None:
    """Raise if an argument is none of `PASSED_ON`."""
    own = {"cameras": "camera_names", "max_episode_steps": "episode_length"}
    for name, value in arguments.items():
        if name not in PASSED_ON:
            raise ValueError(
                f"{name}={value!r:.80}; of LiberoEnv's arguments, LeRobotLiberoEnv takes only {', '.join(PASSED_ON)}, "
                f"which leave LeRobot's spaces and steps as they are.{did_you_mean(name, PASSED_ON)} "
                + (f"Give {own[name]} instead." if name in own else f"Leave {name} out, or make a LiberoEnv.")
            )

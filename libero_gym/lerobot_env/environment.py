"""One task as an environment with the keys that LeRobot's loops look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from libero_gym.common.checks import choice, flag, whole_number
from libero_gym.compilation.placements import has_place
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, IMAGE_KEYS, STATE_DIM
from libero_gym.env import LiberoEnv
from libero_gym.tasks import initial_states

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
MAX_DRAWS = 20  # placement seeds that a reset tries; narrow regions find no place with some


class LeRobotLiberoEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A task whose k-th episode begins from the next of its official initial states, as in LeRobot's environment.

    | observation | space |
    | --- | --- |
    | `pixels`: `image`, `image2` | uint8 (H, W, 3), upright: LIBERO's frames rotated by 180 degrees |
    | `agent_pos` | float32 (8,): position in m, axis-angle in rad, finger joints in m |

    So nothing has to be rotated or converted behind it; LeRobot's own environment leaves that to a processor.

    Args:
        suite: LIBERO's name of the suite, or one of `libero_gym.register_suite`.
        task_id: The task.
        first_state: Initial state of the first episode.
        stride: How many initial states further each next episode begins.
        fixtures: "seed" draws the fixtures from the seed of each reset, as LeRobot's environment does; a new seed takes
            seconds, and is kept on disk. "first" leaves them where stock LIBERO draws them first after ``seed(0)``.
        init_states: Whether episodes begin from official initial states; else their objects are placed by the seed.
        camera_names: What the cameras are called.
        episode_length: Control steps that an episode may take; None takes LeRobot's own number if it knows the suite,
            and else the task's limit.
        **kwargs: Further arguments of `LiberoEnv`, such as ``renderer`` and ``image_size``.

    Attributes:
        task: LIBERO's name of the task.
        task_description: The instruction.

    Raises:
        ValueError: If an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQ}
    render_mode = "rgb_array"

    def __init__(
        self,
        suite: str,
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
        self.fixtures, self.init_states = choice("fixtures", fixtures, FIXTURES), flag("init_states", init_states)
        self._keys = {names[camera]: IMAGE_KEYS[camera] for camera in names}
        self._env = LiberoEnv(suite, task_id=task_id, cameras=tuple(names), render_mode="rgb_array", **kwargs)
        self._task = own = self._env.tasks[task_id]
        limit = LEROBOT_STEPS.get(self._env.suite.name, own.max_steps)
        self._max_episode_steps = limit if episode_length is None else whole_number("episode_length", episode_length, 1)
        self.task, self.task_description = own.name, own.instruction
        self._n_states = len(initial_states(own))
        self._next_state = whole_number("first_state", first_state, 0)
        self._stride = whole_number("stride", stride, 1)
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
        """
        super().reset(seed=seed)
        chosen: dict[str, int] = {}
        if self.init_states and self._n_states:
            chosen["init_state_id"] = self._next_state % self._n_states
            self._next_state += self._stride
            if seed is not None and self.fixtures == "seed":
                chosen |= {"fixture_seed": seed, "fixture_draw": 1}
        else:
            chosen["placement_seed"] = self._drawn_placement()
        obs, _ = self._env.reset(seed=seed, options=chosen)
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

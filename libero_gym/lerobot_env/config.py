"""The choice ``--env.type=libero_gym`` of LeRobot's commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from libero_gym.lerobot_env.environment import CAMERA_NAMES, environment_makers

try:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.envs.configs import EnvConfig
except ImportError as error:
    raise ImportError(
        f"libero_gym.lerobot_env is what LeRobot's commands load, and LeRobot is missing or too old ({error}); 0.6.1 "
        "on Python 3.12 goes together with this package."
    ) from error

from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, STATE_DIM
from libero_gym.tasks import get_suite


@EnvConfig.register_subclass("libero_gym")
@dataclass
class LiberoGymConfig(EnvConfig):
    """Environments of this package under LeRobot's commands.

    Attributes:
        task: The suites, with commas between them.
        fps: Control steps per second; LIBERO's.
        task_ids: Tasks of each suite; all by default.
        episode_length: Control steps of an episode; by default as `LeRobotLiberoEnv` has them.
        observation_height, observation_width: Side of the frames in pixels; the two are equal.
        renderer: "exact", as stock LIBERO draws, or "fast".
        fixtures: "seed" or "first"; see `LeRobotLiberoEnv`.
        init_states: Whether episodes begin from official initial states.
        camera_name_mapping: What the frames of "agentview" and "wrist" are called, without "observation.images.".
        settle_steps: Control steps with an open gripper before an episode.
    """

    task: str | None = "libero_10"
    fps: int = CONTROL_FREQ
    task_ids: list[int] | None = None
    episode_length: int | None = None
    observation_height: int = 256
    observation_width: int = 256
    renderer: str = "exact"
    fixtures: str = "seed"
    init_states: bool = True
    camera_name_mapping: dict[str, str] = field(default_factory=lambda: dict(CAMERA_NAMES))
    settle_steps: int = 10

    def __post_init__(self) -> None:
        if self.fps != CONTROL_FREQ:
            raise ValueError(f"fps={self.fps}; LIBERO has {CONTROL_FREQ} control steps per second, so leave it out.")
        if self.observation_height != self.observation_width:
            raise ValueError(
                f"observation_height={self.observation_height}, observation_width={self.observation_width}; frames are "
                "square, so give the same number."
            )
        shape = (self.observation_height, self.observation_width, 3)
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
        }
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        for name in self.camera_name_mapping.values():
            self.features[f"pixels/{name}"] = PolicyFeature(FeatureType.VISUAL, shape)
            self.features_map[f"pixels/{name}"] = f"observation.images.{name}"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of `LeRobotLiberoEnv`."""
        return {
            "image_size": self.observation_height,
            "renderer": self.renderer,
            "fixtures": self.fixtures,
            "init_states": self.init_states,
            "camera_names": dict(self.camera_name_mapping),
            "episode_length": self.episode_length,
            "settle_steps": self.settle_steps,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """Vector environments by suite and task: environment i begins from initial state i.

        Args:
            n_envs: Number of environments of each.
            use_async_envs: Whether each environment has a process; it is started when the task's turn comes.

        Raises:
            ValueError: If a suite or a task is unknown.
        """
        found: dict[str, dict[int, Any]] = {}
        for suite in [name.strip() for name in (self.task or "").split(",") if name.strip()]:
            tasks = range(get_suite(suite).n_tasks) if self.task_ids is None else self.task_ids
            found[suite] = {task: self._vector(suite, task, n_envs, use_async_envs) for task in tasks}
        if not found:
            raise ValueError(f"task={self.task!r} names no suite; give one, such as libero_spatial.")
        return found

    def _vector(self, suite: str, task_id: int, n_envs: int, use_async_envs: bool) -> Any:
        makers = environment_makers(suite, task_id, n_envs, **self.gym_kwargs)
        if use_async_envs and n_envs > 1:
            from lerobot.envs.utils import _LazyAsyncVectorEnv

            return _LazyAsyncVectorEnv(makers)
        return gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)

"""Recordings of a policy's own episodes, whose successes and failures process reward models learn to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from libero_gym.common.checks import flag, real_number, whole_number
from libero_gym.dimensions import ACTION_DIM, CAMERA_KEYS, CONTROL_FREQ
from vla_agent.action_tokens import N_BINS
from vla_agent.envs.episodes import EpisodeStart, FinishedEpisode, play_episodes
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.process_reward.episodes import PolicyEpisode

# The last bin of the gripper's dimension opens it furthest.
_OPEN = N_BINS - 1


def policy_episodes(
    env: VLAVecEnv,
    model: Any,
    n_episodes: int,
    *,
    deterministic: bool = False,
    drop_prob: float = 0.0,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[PolicyEpisode]:
    """Record whole episodes of a policy, in the order in which they end.

    Successes are shorter than failures, and would come first if the first episodes to end were taken. So every
    environment contributes the same number, and each episode that begins is recorded.

    Args:
        env: The environments, with a camera and the robot's state; they begin new episodes.
        model: What acts, by ``predict(obs, deterministic=)``.
        n_episodes: Least number of episodes; it is rounded up to a multiple of the environments.
        deterministic: Whether the policy takes its likeliest actions.
        drop_prob: Probability, at every decision, that the fingers open whatever the policy wants. What the hand held
            falls, and most policies fail after that: failures to learn from.
        seed: Seed of these openings.
        progress_bar: Whether to show a bar on a terminal.

    Raises:
        ValueError: If an argument is of another type or out of range.
    """
    n_episodes, seed = whole_number("n_episodes", n_episodes, 0), whole_number("seed", seed, 0)
    deterministic, progress_bar = flag("deterministic", deterministic), flag("progress_bar", progress_bar)
    drop_prob = real_number("drop_prob", drop_prob, 0, 1)
    cameras = [key for key in CAMERA_KEYS if key in env.observation_space.spaces]  # type: ignore[attr-defined]
    total = -(-n_episodes // env.num_envs) * env.num_envs
    fps = CONTROL_FREQ / env.codec.chunk_size
    policy = _Dropping(model, drop_prob, np.random.default_rng(seed))
    finished = play_episodes(
        env,
        policy,
        [EpisodeStart()] * total,
        deterministic=deterministic,
        in_turn=True,
        record=(*cameras, "state"),
    )
    bar = tqdm(finished, total=total, unit="episode", disable=None if progress_bar else True)
    return [_policy_episode(episode, cameras, fps) for episode in bar]


class _Dropping:
    """A policy whose fingers open now and then."""

    def __init__(self, model: Any, drop_prob: float, rng: np.random.Generator) -> None:
        self.model, self.drop_prob, self.rng = model, drop_prob, rng

    def predict(self, obs: dict[str, np.ndarray], deterministic: bool = False) -> tuple[np.ndarray, None]:
        actions = np.array(self.model.predict(obs, deterministic=deterministic)[0])
        actions[self.rng.random(len(actions)) < self.drop_prob, ACTION_DIM - 1 :: ACTION_DIM] = _OPEN
        return actions, None


def _policy_episode(episode: FinishedEpisode, cameras: list[str], fps: float) -> PolicyEpisode:
    info = episode.infos[-1]
    return PolicyEpisode(
        str(info["instruction"]),
        episode.observations["state"],
        {key: episode.observations[key] for key in cameras},
        episode.success,
        int(info["task_id"]),
        int(info["init_state_id"]),
        fps,
    )

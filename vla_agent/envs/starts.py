"""Starts of episodes, drawn as the environments would draw them: for learners that begin several from the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.vec_env import speaks_tokens


def names_starts(env: VecEnv) -> bool:
    """Whether environments say which starts they draw from, and begin where they are told, as `VLAVecEnv` does."""
    return speaks_tokens(env) and hasattr(getattr(env.unwrapped, "venv", None), "episode_starts")


def draw_start(env: VecEnv) -> EpisodeStart:
    """A start as a reset draws it: a task by the task weights, then one of its initial states, each as likely.

    It is drawn from NumPy's global generator, which runs save.

    Args:
        env: Environments for which `names_starts` is true.
    """
    venv: Any = env.unwrapped.venv  # type: ignore[attr-defined]
    generator = np.random.mtrand._rand  # SB3 seeds it, and `vla_agent.runs` saves it
    task_id = generator.choice(venv.task_ids, p=venv.task_weights)
    possible = venv.episode_starts(int(task_id))
    return EpisodeStart(**possible[generator.randint(len(possible))])

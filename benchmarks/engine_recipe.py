"""The short training that benchmarks and tests of engines repeat: two tasks, a few decisions."""

from __future__ import annotations

from typing import Any

ENV_ID, N_ENVS = "LIBERO-Spatial-v0", 4
ENV: dict[str, Any] = {
    "model": "tiny-libero",
    "task_id": [0, 1],
    "renderer": "fast",
    "physics": "fast",
    "privileged": True,
    "placement_seeds": range(4),
    "reward": "progress",  # no episode succeeds in so few steps
    "max_episode_steps": 40,  # so that episodes end within a rollout
    "seed": 0,
}
PPO: dict[str, Any] = {
    "n_steps": 4,
    "batch_size": 8,
    "n_epochs": 2,
    "learning_rate": 1e-4,
    "policy_kwargs": {"model": "tiny-libero", "temperature": 0.5, "autocast": None},
    "seed": 0,
    "device": "cpu",
}

"""Recorded episodes of which some succeed: the same is seen in all of them, and one way of acting is right."""

from __future__ import annotations

import dataclasses

import numpy as np
from cloning import SIZE, episode

from libero_gym.demonstrations.episodes import Episode
from vla_agent.sft import ActionChunks

LEFT, RIGHT = -0.8, 0.8


def attempt(instruction: str, direction: float, success: bool, n_frames: int = 12) -> Episode:
    """An episode that looks like every other one of its instruction, and whose last action may be rewarded."""
    looks = episode(instruction, 0.0, n_frames)
    actions = np.zeros((n_frames, 7), np.float32)
    actions[:, 0] = direction
    actions[:, 6] = looks.actions[:, 6]
    state = np.random.default_rng(0).uniform(-1, 1, (n_frames, 8)).astype(np.float32)
    rewards = np.zeros(n_frames, np.float32)
    rewards[-1] = success
    dones = np.arange(n_frames) == n_frames - 1
    return dataclasses.replace(looks, state=state, actions=actions, rewards=rewards, dones=dones, success=success)


def attempts(n_each: int = 4) -> list[Episode]:
    """Episodes that go right and succeed, and as many that go left and fail."""
    kinds = [attempt("push the plate", RIGHT, True), attempt("push the plate", LEFT, False)]
    return kinds * n_each


def recorded(episodes: list[Episode] | None = None) -> ActionChunks:
    """What a model of `cloning.small_model` learns from."""
    return ActionChunks(attempts() if episodes is None else episodes, image_size=SIZE, chunk_size=2)

"""What is still to be earned from each frame on: Monte Carlo and lambda returns of recorded episodes."""

from __future__ import annotations

import numpy as np

from libero_gym.common.checks import real_number
from vla_agent.sft.outcomes import Outcomes


def rewards_between(outcomes: Outcomes, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """What is earned from each frame to the episode's next one, and by how much the next one's value is discounted.

    Frames may be left out of an episode, so that k control steps lie between two: an option of k steps in the terms of
    Sutton, Precup and Singh (1999), with reward r_t + gamma r_{t+1} + ... + gamma^{k-1} r_{t+k-1} and discount gamma^k.

    Args:
        outcomes: Rewards of F frames' episodes.
        gamma: Discount factor of a control step, from 0 to 1.

    Returns:
        Rewards and discounts, float64 (F,) each. The discount is 0 behind a frame from which the episode ends before
        another frame comes. A time limit is such an end: what has not succeeded by then has failed.
    """
    real_number("gamma", gamma, 0, 1)
    frame_at = np.full(len(outcomes.rewards), -1)
    frame_at[outcomes.steps] = np.arange(len(outcomes.times))
    rewards, discounts = np.zeros(len(outcomes.times)), np.zeros(len(outcomes.times))
    earned, discount = 0.0, 0.0
    for step in range(len(outcomes.rewards) - 1, -1, -1):
        if outcomes.dones[step]:
            earned, discount = 0.0, 0.0
        earned, discount = float(outcomes.rewards[step]) + gamma * earned, gamma * discount
        if (frame := frame_at[step]) >= 0:
            rewards[frame], discounts[frame] = earned, discount
            earned, discount = 0.0, 1.0
    return rewards, discounts


def lambda_returns(
    rewards: np.ndarray, discounts: np.ndarray, values: np.ndarray | None = None, lam: float = 1.0
) -> np.ndarray:
    """Returns that trust values by 1 - lambda, and what came after by lambda.

    R_i = r_i + d_i ((1 - lambda) V_{i+1} + lambda R_{i+1}), the recursion of Sutton and Barto (2018), equation 12.18.

    Args:
        rewards: What is earned from each frame to the next, (F,).
        discounts: Discounts of the next frame's value, 0 at an end, (F,).
        values: Values of the frames, (F,); needed unless ``lam`` is 1.
        lam: 1 gives Monte Carlo returns, 0 the one-step targets of temporal differences.

    Returns:
        float64 (F,).

    Raises:
        ValueError: If ``lam`` is outside of 0 to 1, or values are missing.
    """
    real_number("returns_lambda", lam, 0, 1)
    if values is None and lam < 1:
        raise ValueError(f"returns_lambda={lam:g} needs values; give some, or 1 for Monte Carlo returns.")
    known = np.zeros(len(rewards)) if values is None else np.asarray(values, np.float64)
    returns = np.zeros(len(rewards))
    next_return = next_value = 0.0
    for frame in range(len(rewards) - 1, -1, -1):
        next_return = rewards[frame] + discounts[frame] * ((1 - lam) * next_value + lam * next_return)
        returns[frame], next_value = next_return, known[frame]
    return returns

"""Which recorded episodes are learned from, and which are held out to validate."""

from __future__ import annotations

import numpy as np

from vla_agent.sft.data import ActionChunks


def split_frames(data: ActionChunks, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames to train on, and held-out ones, by whole episodes in a random order; those of weight 0 are in neither.

    The share is taken of the episodes that succeeded and of those that failed, each rounded down, so that a few
    successes among many failures are not all held out. Episodes whose frames all have weight 0 do not count.

    Args:
        data: The episodes.
        share: Share of the episodes that is held out, from 0 to below 1.
        seed: Seed of the order.

    Returns:
        Two arrays of frames, int64 (F,), ascending. The first is never empty.
    """
    counts = np.ones(len(data), bool) if data.weights is None else data.weights > 0
    counted = np.bincount(data.episode_ids, counts, data.n_episodes) > 0
    succeeded = np.ones(data.n_episodes, bool) if data.outcomes is None else data.outcomes.successes
    order = np.random.default_rng(seed).permutation(data.n_episodes)
    held_out = np.zeros(data.n_episodes, bool)
    for alike in (succeeded & counted, ~succeeded & counted):
        of_them = order[alike[order]]
        held_out[of_them[: int(len(of_them) * share)]] = True
    held_out_frames = held_out[data.episode_ids]
    return np.flatnonzero(~held_out_frames & counts), np.flatnonzero(held_out_frames & counts)

"""Decisions of a policy's episodes as a critic learns from them: what was seen, what was done, what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from libero_gym.common.atomic import replacing
from libero_gym.common.checks import real_number
from vla_agent.envs.episodes import EpisodeStart, FinishedEpisode, play_episodes
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.test_time.best_of_n import BestOfN


class Decisions(NamedTuple):
    """T decisions of some episodes, one episode behind the other.

    Attributes:
        hidden: The backbone's hidden states, float32 (T, D).
        bins: What was executed, uint8 (T, N).
        episodes: Number of each decision's episode, int64 (T,), counted from 0.
        success: Whether that episode succeeded, bool (T,).
    """

    hidden: np.ndarray
    bins: np.ndarray
    episodes: np.ndarray
    success: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Decisions]) -> Decisions:
        """All decisions of several parts; episodes are counted on."""
        parts, first, episodes = list(parts), 0, []
        for part in parts:
            episodes.append(part.episodes + first)
            first += int(part.episodes.max(initial=-1)) + 1
        joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        return cls(*joined)._replace(episodes=np.concatenate(episodes))

    def returns(self, gamma: float) -> np.ndarray:
        """Discounted success to come, float32 (T,): gamma^k, k decisions before a success's last one; 0 in failures."""
        real_number("gamma", gamma, 0, 1)
        _, counts = np.unique(self.episodes, return_counts=True)
        left = np.concatenate([np.arange(count)[::-1] for count in counts]) if len(counts) else np.zeros(0)
        return np.where(self.success, gamma**left, 0.0).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write them to a safetensors file, which appears whole."""
        with replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in self._asdict().items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> Decisions:
        """The decisions of a file that `save` wrote.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            tensors = load_file(path)
            decisions = cls(**tensors)
        except (OSError, SafetensorError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged ({error}); remove it to play its episodes again.") from error
        if len({len(column) for column in decisions}) != 1 or decisions.hidden.ndim != 2 or decisions.bins.ndim != 2:
            raise ValueError(f"'{path}' is damaged: its columns differ in length; remove it to play them again.")
        return decisions


def play_decisions(
    env: VLAVecEnv, model: Any, starts: Sequence[EpisodeStart], *, deterministic: bool = False
) -> Iterator[Decisions]:
    """The decisions of an episode from each start, in the order in which they end."""
    policy = BestOfN(model, 1)

    def note() -> dict[str, np.ndarray]:
        return {"hidden": cast(th.Tensor, policy.hidden).float().cpu().numpy()}

    for episode in play_episodes(env, policy, starts, deterministic=deterministic, note=note):
        yield _decisions(episode)


def _decisions(episode: FinishedEpisode) -> Decisions:
    n, bins = len(episode.actions), episode.actions.astype(np.uint8)
    return Decisions(episode.notes["hidden"], bins, np.zeros(n, dtype=np.int64), np.full(n, episode.success))

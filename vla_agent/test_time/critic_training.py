"""Fitting a `ChunkCritic` to decisions of recorded episodes, successes and failures, without an environment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F

from libero_gym.common.checks import real_number, whole_number
from vla_agent.common.errors import finite_loss
from vla_agent.common.hashes import fingerprint
from vla_agent.sft.checkpoint import check_tensors, pack_tensors, read_checkpoint, restore_tensors, write_checkpoint
from vla_agent.test_time.critic import ChunkCritic, CriticConfig, normalized
from vla_agent.test_time.decisions import Decisions


@dataclasses.dataclass(frozen=True)
class CriticSettings:
    """How a `ChunkCritic` is trained.

    Attributes:
        n_epochs: Passes over the decisions.
        batch_size: Decisions per step.
        learning_rate: AdamW's learning rate, which stays constant.
        weight_decay: AdamW's weight decay.
        rank_coef: Weight of the rank loss, which keeps chunks low that were never executed.
        margin: By how much an executed chunk's logit is to exceed another's, per unit of the root mean square of their
            difference.
        noise: Largest standard deviation of the noise that makes near misses of executed chunks, in normalised actions.
        seed: Seed of the heads, of the order of decisions, and of the noise.

    Raises:
        ValueError: If one is of another type or out of range.
    """

    n_epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    rank_coef: float = 0.5
    margin: float = 2.0
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in {"n_epochs": 1, "batch_size": 2, "seed": 0}.items():
            whole_number(name, getattr(self, name), minimum)
        for name in ("learning_rate", "noise"):
            real_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "rank_coef", "margin"):
            real_number(name, getattr(self, name), 0)


class CriticMetrics(NamedTuple):
    """Means over an epoch: of its batches for the first, of all its executed chunks of successes for the others.

    Attributes:
        value_loss: Cross-entropy of Q with the discounted success.
        rank_loss: The rank loss.
        rank_accuracy: Share of executed chunks, of successes, that the critic puts above their near misses.
    """

    value_loss: float
    rank_loss: float
    rank_accuracy: float


class CriticTrainer:
    """Trains a critic epoch by epoch; what it keeps after each suffices to go on as if it had never stopped.

    A head's loss on a decision with discounted success R (`Decisions.returns`, a Monte Carlo estimate of the recorded
    policy's value) is the cross-entropy of Q with R. To it comes ``rank_coef`` times, in successes alone, the mean of
    softplus(margin * d(a, b) - q(s, a) + q(s, b)): q are logits, a is the chunk that was executed, b a near miss (a
    with noise) or another decision's chunk, d the root mean square of their difference. So values fall with the
    distance from what was seen to work, and chunks that nobody executed do not look good by extrapolation. This is the
    aim of the explicit geometric regularisation of VGAS (Xu et al., arXiv 2602.07399), by a pairwise loss.

    Args:
        config: The critic to train.
        decisions: What to learn from.
        settings: How to train.

    Attributes:
        critic: The critic.
        epoch: Epochs so far.

    Raises:
        ValueError: If the decisions are too few, of another shape than the critic's, or all ended alike.
    """

    def __init__(self, config: CriticConfig, decisions: Decisions, settings: CriticSettings | None = None) -> None:
        self.settings = settings or CriticSettings()
        _check(config, decisions)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(self.settings.seed)
            self.critic = ChunkCritic(config)
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        self._optimizer = th.optim.AdamW(self.critic.parameters(), lr=rate, weight_decay=decay)
        self._hidden, self._chunks = th.from_numpy(decisions.hidden), normalized(decisions.bins)
        self._returns, self._success = th.from_numpy(decisions.returns(config.gamma)), th.from_numpy(decisions.success)
        about = [json.dumps([dataclasses.asdict(config), dataclasses.asdict(self.settings) | {"n_epochs": 0}]).encode()]
        self._identity = fingerprint([*about, *(np.ascontiguousarray(column).tobytes() for column in decisions)])
        self.epoch = 0

    @property
    def _n_batches(self) -> int:
        return max(1, len(self._returns) // self.settings.batch_size)

    def run(self, after_epoch: Callable[[CriticMetrics], Any] | None = None) -> ChunkCritic:
        """Train the epochs that are left, and return the critic; ``after_epoch`` is called after each."""
        while self.epoch < self.settings.n_epochs:
            metrics = self.train_epoch()
            if after_epoch is not None:
                after_epoch(metrics)
        return self.critic.eval()

    def train_epoch(self) -> CriticMetrics:
        """One pass over the decisions; its order and noise depend on the seed and the epoch's number alone."""
        self.critic.train()
        seed = np.random.SeedSequence([self.settings.seed, self.epoch])
        order = np.random.default_rng(seed).permutation(len(self._returns))
        noise = th.Generator().manual_seed(int(seed.generate_state(1, np.uint32)[0]))
        values, ranks, n_right, n_successes = 0.0, 0.0, 0.0, 0.0
        first = self.epoch * self._n_batches + 1
        for step, rows in enumerate(np.array_split(order, self._n_batches), start=first):
            value, rank, right, successes = self._losses(th.from_numpy(rows), noise)
            finite_loss((value + rank).item(), step)
            self._optimizer.zero_grad()
            (value + self.settings.rank_coef * rank).backward()
            self._optimizer.step()
            values += value.item()
            ranks += rank.item() * successes.item()
            n_right, n_successes = n_right + right.item(), n_successes + successes.item()
        self.epoch += 1
        return CriticMetrics(values / self._n_batches, ranks / n_successes, n_right / n_successes)

    def save(self, folder: str | Path) -> None:
        """Write what resuming needs; see `vla_agent.sft.checkpoint`."""
        tensors = pack_tensors(dict(self.critic.named_parameters()), {}, self._optimizer)
        write_checkpoint(folder, tensors, {"step": self.epoch, "identity": {"critic": self._identity}})

    def resume(self, folder: str | Path) -> None:
        """Go on where `save` stopped.

        Raises:
            ValueError: If there is nothing whole to go on from, or it is of other decisions or settings, or it has
                more epochs than are asked for.
        """
        document, tensors = read_checkpoint(folder)
        if document["identity"] != {"critic": self._identity}:
            raise ValueError(
                f"'{folder}' is of a critic with other settings or decisions; remove it, or give another folder."
            )
        if document["step"] > self.settings.n_epochs:
            raise ValueError(
                f"'{folder}' has {document['step']} epochs already, and n_epochs={self.settings.n_epochs} were asked "
                "for; ask for as many or more, or give another folder."
            )
        named = dict(self.critic.named_parameters())
        check_tensors(folder, tensors, named, {})
        restore_tensors(tensors, document["step"] * self._n_batches, named, {}, self._optimizer)
        self.epoch = document["step"]

    def _losses(self, rows: th.Tensor, noise: th.Generator) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """Value loss and rank loss of some decisions; how many of successes rank right, and how many are; scalars."""
        hidden, chunks = self._hidden[rows], self._chunks[rows]
        q = self.critic(hidden, chunks)  # (H, B)
        value = F.binary_cross_entropy_with_logits(q, self._returns[rows].expand_as(q))
        scale = th.rand(len(rows), 1, generator=noise) * self.settings.noise
        near = (chunks + scale * th.randn(chunks.shape, generator=noise)).clamp(-1, 1)
        others = th.stack([near, chunks.roll(1, 0)])  # (2, B, N); rows are in random order, so the next is any other
        q_others = self.critic(hidden.expand(2, -1, -1), others)  # (H, 2, B)
        distance = (others - chunks).square().mean(-1).sqrt()
        gaps = F.softplus(self.settings.margin * distance - q[:, None] + q_others)
        weights = self._success[rows].float()
        rank = (gaps * weights).sum() / (weights.sum().clamp(min=1) * gaps[..., 0].numel())
        right = (q.amin(0) > q_others[:, 0].amin(0)).float()
        return value, rank, (right * weights).sum(), weights.sum()


def _check(config: CriticConfig, decisions: Decisions) -> None:
    expected = config.hidden_size, config.n_action_tokens
    found = decisions.hidden.shape[1], decisions.bins.shape[1]
    if expected != found:
        raise ValueError(
            f"The decisions have hidden states of width {found[0]} and chunks of {found[1]} tokens, and the critic is "
            f"for {expected[0]} and {expected[1]}."
        )
    if len(decisions.bins) < 2 or decisions.success.all() or not decisions.success.any():
        raise ValueError(
            f"{len(decisions.bins)} decisions with {int(decisions.success.sum())} of them in successes; a critic "
            "learns from episodes of which some succeed and some fail."
        )

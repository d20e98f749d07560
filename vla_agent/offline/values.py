"""A value head on a frozen backbone: what a recorded episode will still earn, told from one frame."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch as th
from torch.nn import functional as F
from tqdm import tqdm

from libero_gym.common.checks import real_number, whole_number
from vla_agent.backbone import VLABackbone, model_inputs
from vla_agent.openvla import OpenVLA
from vla_agent.policy.critic import ValueHead
from vla_agent.sft.data import ActionChunks

_ENCODED_AT_ONCE = 64  # frames; part of the result, because the size of a batch changes a product's last bits


@dataclass(frozen=True)
class ValueSettings:
    """How values are estimated.

    Attributes:
        gamma: Discount factor of a control step.
        returns_lambda: 1 takes Monte Carlo returns. Below 1, the head is fitted to those first, and then anew to the
            lambda returns that it gives.
        n_epochs: Passes over the frames.
        batch_size: Frames per optimizer step.
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        validation_share: Share of the episodes that the head is not fitted to, one at least; the epoch that predicts
            these best is kept.
        seed: Seed of the split, the head and the order of the batches.
    """

    gamma: float = 0.995
    returns_lambda: float = 1.0
    n_epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "returns_lambda"):
            real_number(name, getattr(self, name), 0, 1)
        for name in ("n_epochs", "batch_size"):
            whole_number(name, getattr(self, name), 1)
        real_number("learning_rate", self.learning_rate, above=0)
        real_number("weight_decay", self.weight_decay, 0)
        real_number("validation_share", self.validation_share, above=0, below=1)
        whole_number("seed", self.seed, 0)


class ValueFit(NamedTuple):
    """Values of F frames, and how well they predict returns of episodes that the head was not fitted to.

    Attributes:
        values: float32 (F,).
        held_out: Frames of those episodes, bool (F,).
        n_epochs: Epochs after which those were predicted best; 0 if the constant that the head begins with was better.
    """

    values: np.ndarray
    held_out: np.ndarray
    n_epochs: int


@th.no_grad()
def encode_frames(model: OpenVLA, data: ActionChunks, *, progress_bar: bool = False) -> th.Tensor:
    """The hidden state of each frame, from which the model would predict its first action token.

    Args:
        model: The model, which stays as it is.
        data: F frames.
        progress_bar: Whether to show a bar on a terminal.

    Returns:
        float32 (F, D), on the CPU.
    """
    model.eval()
    states = []
    starts = range(0, len(data), _ENCODED_AT_ONCE)
    for start in tqdm(starts, "encoding", unit="batch", disable=None if progress_bar else True):
        examples = data[np.arange(start, min(start + _ENCODED_AT_ONCE, len(data)))]
        images = [th.from_numpy(frames).to(model.device) for frames in examples.images]
        prompt = model.tokenize(examples.instructions)
        inputs = model_inputs(cast(VLABackbone, model), *prompt, images, examples.state, None)
        states.append(model.encode_observations(**inputs).float().cpu())
    return th.cat(states)


def fit_values(hidden: th.Tensor, returns: np.ndarray, episode_ids: np.ndarray, settings: ValueSettings) -> ValueFit:
    """Fit a head to returns by the squared error, and keep the epoch that predicts held-out episodes best.

    Args:
        hidden: Hidden states, float32 (F, D), on the CPU, where the head is fitted.
        returns: What the frames earned, (F,).
        episode_ids: Episode of each frame, int64 (F,); frames of one episode are all held out, or none is.
        settings: How to fit.

    Raises:
        ValueError: If there are fewer than two episodes.
    """
    held_out = _held_out(episode_ids, settings)
    trained = np.flatnonzero(~held_out)
    offset = float(returns[trained].mean())  # the head begins with this constant, because its last layer is 0
    targets = th.from_numpy(np.asarray(returns - offset, np.float32))
    rng = np.random.default_rng([settings.seed, 1])
    with th.random.fork_rng(devices=[]):
        th.manual_seed(settings.seed)
        head = ValueHead(hidden.shape[1])
    optimizer = th.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, best_loss, n_epochs = copy.deepcopy(head.state_dict()), _loss(head, hidden, targets, held_out), 0
    for epoch in range(settings.n_epochs):
        order = rng.permutation(trained)
        for start in range(0, len(order), settings.batch_size):
            rows = th.from_numpy(order[start : start + settings.batch_size])
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(head(hidden[rows]).squeeze(1), targets[rows]).backward()
            optimizer.step()
        if (loss := _loss(head, hidden, targets, held_out)) < best_loss:
            best, best_loss, n_epochs = copy.deepcopy(head.state_dict()), loss, epoch + 1
    head.load_state_dict(best)
    with th.no_grad():
        values = head(hidden).squeeze(1).numpy() + np.float32(offset)
    return ValueFit(values, held_out, n_epochs)


def _held_out(episode_ids: np.ndarray, settings: ValueSettings) -> np.ndarray:
    """Frames of the held-out episodes, bool (F,)."""
    episodes = np.unique(episode_ids)
    if len(episodes) < 2:
        raise ValueError(f"There is {len(episodes)} episode; values are fitted to some and checked on others.")
    n_held_out = max(1, int(len(episodes) * settings.validation_share))
    chosen = np.random.default_rng([settings.seed, 0]).permutation(episodes)[:n_held_out]
    return np.isin(episode_ids, chosen)


@th.no_grad()
def _loss(head: ValueHead, hidden: th.Tensor, targets: th.Tensor, rows: np.ndarray) -> float:
    """Mean squared error of some frames."""
    chosen = th.from_numpy(np.flatnonzero(rows))
    return float(F.mse_loss(head(hidden[chosen]).squeeze(1), targets[chosen]))

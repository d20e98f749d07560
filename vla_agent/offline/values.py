"""A value head on a frozen backbone: what a recorded episode will still earn, told from one frame."""

from __future__ import annotations

from collections.abc import Iterator
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
        n_epochs: Passes over the frames; the values are those of the best one.
        batch_size: Frames per optimizer step.
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        n_folds: Parts of the episodes. The values of each are told by a head that was fitted to the others.
        seed: Seed of the folds, the heads and the order of the batches.
    """

    gamma: float = 0.995
    returns_lambda: float = 1.0
    n_epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    n_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "returns_lambda"):
            real_number(name, getattr(self, name), 0, 1)
        for name in ("n_epochs", "batch_size"):
            whole_number(name, getattr(self, name), 1)
        real_number("learning_rate", self.learning_rate, above=0)
        real_number("weight_decay", self.weight_decay, 0)
        whole_number("n_folds", self.n_folds, 2)
        whole_number("seed", self.seed, 0)


class ValueFit(NamedTuple):
    """Values of F frames.

    Attributes:
        values: float32 (F,), of each frame by a head that has not seen its episode.
        n_epochs: Epochs after which all were predicted best; 0 if the constants that the heads begin with were better.
    """

    values: np.ndarray
    n_epochs: int


@th.no_grad()
def encode_frames(
    model: OpenVLA, data: ActionChunks, *, unnorm_key: str | None = None, progress_bar: bool = False
) -> th.Tensor:
    """The hidden state of each frame, from which the model would predict its first action token.

    Args:
        model: The model, which stays as it is.
        data: F frames.
        unnorm_key: Name of the statistics that normalise the robot's state; None for the only ones.
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
        inputs = model_inputs(cast(VLABackbone, model), *prompt, images, examples.state, unnorm_key)
        states.append(model.encode_observations(**inputs).float().cpu())
    return th.cat(states)


def fit_values(
    hidden: th.Tensor,
    returns: np.ndarray,
    episode_ids: np.ndarray,
    settings: ValueSettings,
    *,
    progress_bar: bool = False,
) -> ValueFit:
    """Tell what each frame will earn by heads that were not fitted to its episode.

    A head that has seen how an episode ends remembers it, so that the return is never better or worse than its value
    there. Therefore the episodes are parted into folds, each of which a head tells that was fitted to the others by the
    squared error (cross-fitting: Chernozhukov et al., 2018, arXiv 1608.00060). All stop after the epoch at which the
    folds are told best together.

    Args:
        hidden: Hidden states, float32 (F, D), on the CPU, where the heads are fitted.
        returns: What the frames earned, (F,).
        episode_ids: Episode of each frame, int64 (F,); frames of one episode are in one fold.
        settings: How to fit.
        progress_bar: Whether to show a bar on a terminal.

    Raises:
        ValueError: If there are fewer than two episodes.
    """
    folds, targets = _folds(episode_ids, settings), np.asarray(returns, np.float32)
    told = np.empty((settings.n_epochs + 1, len(targets)), np.float32)  # after each epoch, and before the first
    with tqdm(total=len(folds) * settings.n_epochs, desc="values", disable=None if progress_bar else True) as bar:
        for number, fold in enumerate(folds):
            for epoch, values in enumerate(_fitted(hidden, targets, fold, settings, number)):
                told[epoch, fold] = values
                bar.update(epoch > 0)
    best = int(np.square(told - targets).mean(axis=1, dtype=np.float64).argmin())
    return ValueFit(told[best], best)


def _folds(episode_ids: np.ndarray, settings: ValueSettings) -> list[np.ndarray]:
    """The frames of each fold, bool (F,)."""
    episodes = np.unique(episode_ids)
    if len(episodes) < 2:
        raise ValueError(f"There is {len(episodes)} episode; values are fitted to some and told of others.")
    order = np.random.default_rng([settings.seed, 0]).permutation(episodes)
    return [np.isin(episode_ids, part) for part in np.array_split(order, min(settings.n_folds, len(episodes)))]


def _fitted(
    hidden: th.Tensor, targets: np.ndarray, held_out: np.ndarray, settings: ValueSettings, number: int
) -> Iterator[np.ndarray]:
    """Values of held-out frames by a head fitted to the others, before the first epoch and after each."""
    trained, rows = np.flatnonzero(~held_out), th.from_numpy(np.flatnonzero(held_out))
    offset = targets[trained].mean()  # the head begins with this constant, because its last layer is 0
    centred = th.from_numpy(targets - offset)
    rng = np.random.default_rng([settings.seed, 1, number])
    with th.random.fork_rng(devices=[]):
        th.manual_seed(settings.seed)
        head = ValueHead(hidden.shape[1])
    optimizer = th.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    @th.no_grad()
    def told() -> np.ndarray:
        return head(hidden[rows]).squeeze(1).numpy() + offset

    yield told()
    for _ in range(settings.n_epochs):
        order = rng.permutation(trained)
        for start in range(0, len(order), settings.batch_size):
            chosen = th.from_numpy(order[start : start + settings.batch_size])
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(head(hidden[chosen]).squeeze(1), centred[chosen]).backward()
            optimizer.step()
        yield told()

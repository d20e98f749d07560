"""Fitting scorers to labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from torch.nn import functional as F
from tqdm import tqdm

from libero_gym.common.checks import flag, real_number, whole_number
from vla_agent.augmentation import Augmentation
from vla_agent.common.errors import finite_loss
from vla_agent.process_reward.labels import LabelledFrames
from vla_agent.process_reward.tiny_scorer import TinyScorer
from vla_agent.process_reward.vlm_scorer import VLMScorer


@dataclass(frozen=True)
class TrainingSettings:
    """How a `TinyScorer` is trained.

    Attributes:
        n_epochs: Passes over the examples.
        batch_size: Examples per step.
        learning_rate: Peak of a one-cycle schedule, which rises over the first tenth of the steps and then falls.
        weight_decay: AdamW's weight decay.
        n_others: Number of other instructions that every frame is asked about as well, drawn anew in each step; the
            target is 0 for all of them.
        others_weight: Weight of the loss of those other instructions.
        augmentation: How frames are varied, so that the scorer does not learn the demonstrations by their pixels.
        seed: Seed for the order of the examples, the augmentation and the other instructions.

    Raises:
        ValueError: If one is of another type or out of range.
    """

    n_epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    n_others: int = 4
    others_weight: float = 0.3
    augmentation: Augmentation = Augmentation(shift=4, brightness=0.1, contrast=0.1)  # noqa: RUF009 - frozen
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in {"n_epochs": 1, "batch_size": 1, "n_others": 0, "seed": 0}.items():
            whole_number(name, getattr(self, name), minimum)
        real_number("learning_rate", self.learning_rate, above=0)
        for name in ("weight_decay", "others_weight"):
            real_number(name, getattr(self, name), 0)
        if not isinstance(self.augmentation, Augmentation):
            raise ValueError(f"augmentation={self.augmentation!r:.80}; expected an Augmentation.")


def train_tiny_scorer(
    scorer: TinyScorer,
    examples: LabelledFrames,
    settings: TrainingSettings | None = None,
    *,
    progress_bar: bool = True,
    after_epoch: Callable[[int, float], Any] | None = None,
) -> TinyScorer:
    """Fit a scorer to the targets by cross-entropy, -t log s - (1 - t) log(1 - s), on the device that it is on.

    Args:
        scorer: The scorer; it is trained in place.
        examples: Labelled frames to learn.
        settings: How to train; None takes the defaults.
        progress_bar: Show a bar, on a terminal.
        after_epoch: Called after each epoch with its number, from 0, and its mean loss.

    Returns:
        The scorer, in evaluation mode.

    Raises:
        ValueError: If the frames are not the scorer's size, or ``progress_bar`` is no bool.
    """
    progress_bar = flag("progress_bar", progress_bar)
    settings = settings or TrainingSettings()
    size = scorer.image_size
    if examples.images.shape[1:] != (size, size, 3):
        raise ValueError(f"The examples' frames are {examples.images.shape[1:]}; the scorer takes ({size}, {size}, 3).")
    order = np.random.default_rng(settings.seed)
    loss_of = _TinyLoss(scorer, examples, settings)
    optimizer = th.optim.AdamW(scorer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    n_batches = -(-len(examples) // settings.batch_size)
    n_steps = n_batches * settings.n_epochs
    rising = 0.15 if n_steps == 10 else 0.1  # of 10 steps, the schedule would divide by 0.1 * 10 - 1
    schedule = th.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, n_steps, pct_start=rising)
    scorer.train()
    with tqdm(total=n_steps, desc="training", unit="batch", disable=None if progress_bar else True) as bar:
        for epoch in range(settings.n_epochs):
            total = 0.0
            for rows in np.array_split(order.permutation(len(examples)), n_batches):
                loss = loss_of(rows)
                total += finite_loss(loss.item(), bar.n + 1) * len(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if after_epoch is not None:
                after_epoch(epoch, total / len(examples))
    return scorer.eval()


class _TinyLoss:
    """The loss of a `TinyScorer` on some of the examples; it encodes their instructions once.

    Args:
        scorer: The scorer.
        examples: All examples.
        settings: How to train.
    """

    def __init__(self, scorer: TinyScorer, examples: LabelledFrames, settings: TrainingSettings) -> None:
        device = scorer.embedding.device
        self.scorer, self.images, self.settings = scorer, examples.images, settings
        self.generator = th.Generator(device).manual_seed(settings.seed)
        self.words, self.targets = scorer.encode(examples.instructions), th.from_numpy(examples.targets).to(device)
        known = sorted(set(examples.told))
        self.encoded, self.others = scorer.encode(known), _others(examples.told, known).to(device)

    def __call__(self, rows: np.ndarray) -> th.Tensor:
        """The loss of the examples at these indices, (B,), with augmented frames; a scalar."""
        scorer, settings, device = self.scorer, self.settings, self.targets.device
        images = settings.augmentation(th.from_numpy(self.images[rows]).to(device), self.generator)
        features = scorer.features(images)
        loss = F.binary_cross_entropy_with_logits(scorer.logits(features, self.words[rows]), self.targets[rows])
        if self.others.shape[1] and settings.n_others:
            shape = (len(rows), settings.n_others)
            drawn = th.randint(self.others.shape[1], shape, generator=self.generator, device=device)
            asked = self.encoded[self.others[rows].gather(1, drawn)]  # (B, n_others, V)
            wrong = scorer.logits(features[:, None], asked)
            loss = loss + settings.others_weight * F.softplus(wrong).mean()  # cross-entropy with target 0
        return loss


def _others(told: Sequence[str], known: Sequence[str]) -> th.Tensor:
    """Indices of the instructions that each example's episode was not given, int64 (n, I - 1)."""
    index = {text: i for i, text in enumerate(known)}
    rows = [[i for i in range(len(known)) if i != index[own]] for own in told]
    return th.tensor(rows, dtype=th.int64).reshape(len(told), len(known) - 1)


def train_vlm_scorer(
    scorer: VLMScorer,
    examples: LabelledFrames,
    *,
    n_epochs: int = 1,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[float]:
    """Fine-tune a scorer's adapters by the next-token loss of its answers.

    Args:
        scorer: A scorer with ``lora``; it is trained in place.
        examples: Labelled frames to learn.
        n_epochs: Passes over the examples.
        batch_size: Examples per step.
        learning_rate: AdamW's learning rate, which stays constant.
        seed: Seed for the order of the examples.
        progress_bar: Show a bar, on a terminal.

    Returns:
        The loss of each step.

    Raises:
        ValueError: If the scorer has no adapters, or an argument has another type or is out of range.
    """
    for name, value in {"n_epochs": n_epochs, "batch_size": batch_size}.items():
        whole_number(name, value, 1)
    real_number("learning_rate", learning_rate, above=0)
    seed, progress_bar = whole_number("seed", seed, 0), flag("progress_bar", progress_bar)
    parameters = [parameter for parameter in scorer.model.parameters() if parameter.requires_grad]
    if scorer.lora is None:
        raise ValueError("The scorer has no adapters to train; make it with lora=LoraSettings().")
    scorer.instructions = tuple(sorted(set(examples.instructions)))
    optimizer = th.optim.AdamW(parameters, lr=learning_rate)
    order = np.random.default_rng(seed)
    n_batches = -(-len(examples) // batch_size)
    batches = [rows for _ in range(n_epochs) for rows in np.array_split(order.permutation(len(examples)), n_batches)]
    found: list[float] = []
    for rows in (bar := tqdm(batches, desc="training", unit="batch", disable=None if progress_bar else True)):
        part = examples.take(rows)
        loss = scorer.loss(part.images, part.instructions, part.targets)
        found.append(finite_loss(loss.item(), len(found) + 1))
        optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{found[-1]:.3f}")
    return found

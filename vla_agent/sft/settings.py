"""How a fine-tuning is run: its settings and the learning rate that they give each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from libero_gym.common.checks import choice, did_you_mean, real_number, whole_number

Autocast = Literal["auto", "bfloat16", "none"]


@dataclass(frozen=True)
class SFTSettings:
    """How to train. The defaults are for fine-tuning a published model; the tiny one learns from scratch with others.

    Attributes:
        n_steps: Optimizer steps.
        batch_size: Examples per step.
        micro_batch_size: Examples per forward pass; None passes all of a step at once. The gradient is the same, except
            for rounding, and for adapters' dropout, which is drawn per pass.
        learning_rate: Peak of the schedule; see `learning_rate_at`.
        warmup_steps: Steps over which the learning rate rises linearly.
        weight_decay: AdamW's weight decay, of matrices only.
        max_grad_norm: Gradients with a larger norm are scaled down to this one.
        bin_sigma: Standard deviation, in bins, of the Gaussian that replaces the one right bin as the target:
            neighbouring bins are nearly right, and small models learn faster when told so. 0 gives the plain next-token
            loss.
        keyframe_coef: Weight of an auxiliary loss: from the hidden state that predicts the first action token, a linear
            head regresses where the hand will be when the gripper's command next changes. The head is not exported.
        ema_decay: Decay of the moving average of the weights, which is what `export` gives; 0 keeps no average.
        paraphrase: Probability that an example's instruction is said in other words, anew at every step; see
            `vla_agent.sft.paraphrases`. Held-out episodes keep their words.
        autocast: "bfloat16" computes in it over float32 weights, "none" in the weights' type, and "auto" in bfloat16
            on a GPU alone. CPUs with products of bfloat16 (AVX512-BF16, AMX) then take about half the time.
        validation_share: Share of the episodes that is not trained on.
        seed: Seed for the split, the order of the batches, the augmentation the paraphrases and the
            auxiliary head.
    """

    n_steps: int = 50_000
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bin_sigma: float = 0.0
    keyframe_coef: float = 0.0
    ema_decay: float = 0.0
    paraphrase: float = 0.0
    autocast: Autocast = "auto"
    validation_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            whole_number(name, getattr(self, name), 1)
        whole_number("warmup_steps", self.warmup_steps, 0)
        whole_number("seed", self.seed, 0, 2**32 - 1)
        for name in ("learning_rate", "max_grad_norm"):
            real_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "bin_sigma", "keyframe_coef"):
            real_number(name, getattr(self, name), 0)
        real_number("paraphrase", self.paraphrase, 0, 1)
        choice("autocast", self.autocast, get_args(Autocast))
        for name in ("ema_decay", "validation_share"):
            real_number(name, getattr(self, name), 0, below=1)
        if self.micro_batch_size is not None:
            micro = whole_number("micro_batch_size", self.micro_batch_size, 1)
            if self.batch_size % micro:
                raise ValueError(f"micro_batch_size={micro} does not divide batch_size={self.batch_size}.")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SFTSettings:
        """Settings of a dictionary.

        Raises:
            ValueError: If it has another key, or a value is out of range.
        """
        for name in settings:
            if name not in cls.__dataclass_fields__:
                guess = did_you_mean(name, cls.__dataclass_fields__)
                raise ValueError(f"Unknown setting {name!r}.{guess} Settings: {', '.join(cls.__dataclass_fields__)}.")
        return cls(**settings)


def learning_rate_at(step: int, settings: SFTSettings) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine down to a hundredth of the peak.

    A function of the step alone, so that a resumed run needs no state of a scheduler.
    """
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    done = max(0, step - settings.warmup_steps) / max(1, settings.n_steps - settings.warmup_steps)
    return settings.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

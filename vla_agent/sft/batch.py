"""A minibatch as the losses of cloning take it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch as th


class Batch(NamedTuple):
    """A minibatch of B examples with N action tokens each; the tensors are on the model's device.

    Attributes:
        images: uint8 (B, S, S, 3), one tensor per camera, augmented.
        state: Robot states, float32 (B, 8).
        instructions: B texts.
        bins: Right bins, int64 (B, N).
        token_weights: How much each token counts, float32 (B, N).
        keyframe: Where the hand is when the gripper's command next changes, float32 (B, 3), in units of its spread if
            it is learned; see `normalize_position`.
        weights: How much each example counts, float32 (B,).
    """

    images: tuple[th.Tensor, ...]
    state: np.ndarray
    instructions: list[str]
    bins: th.Tensor
    token_weights: th.Tensor
    keyframe: th.Tensor
    weights: th.Tensor

    def rows(self, part: slice) -> Batch:
        """Some of the examples."""
        return Batch(
            tuple(frames[part] for frames in self.images),
            self.state[part],
            self.instructions[part],
            self.bins[part],
            self.token_weights[part],
            self.keyframe[part],
            self.weights[part],
        )

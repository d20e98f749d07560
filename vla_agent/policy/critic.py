"""The value head: from the backbone's hidden state, and privileged numbers if there are any, to expected return."""

from collections.abc import Sequence

import torch as th
from torch import nn


class ValueHead(nn.Module):
    """A small MLP on the hidden state from which the first action token is predicted.

    That state has attended to the image and the whole prompt, and never to padding. The head stays in float32, whatever
    the backbone's type. Its last layer starts at zero: the first values are 0 for every observation, and the first
    gradient reaches the head alone, not the backbone.

    Args:
        hidden_size: Width D of the backbone.
        hidden_dims: Widths of the hidden layers; () makes the head linear.
        privileged_size: Count K of numbers, of order one, that the critic knows besides the hidden state (asymmetric
            actor-critic; Pinto et al., 2017, arXiv 1710.06542).
    """

    def __init__(self, hidden_size: int, hidden_dims: Sequence[int] = (256,), privileged_size: int = 0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.norm = nn.LayerNorm(hidden_size)
        layers: list[nn.Module] = []
        width = hidden_size + privileged_size
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim), nn.GELU()]
            width = dim
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Values, float32 (B, 1), of hidden states with the privileged numbers behind them, (B, D + K)."""
        hidden, privileged = inputs.float().tensor_split((self.hidden_size,), dim=1)
        return self.layers(th.cat([self.norm(hidden), privileged], dim=1))

"""The value head: what the backbone sees, to expected return."""

from collections.abc import Sequence

import torch as th
from torch import nn


class ValueHead(nn.Module):
    """A small MLP on the hidden state that the first action token is predicted from.

    That state has attended to the image and the whole prompt, and never to padding. The head stays in float32, whatever
    the backbone's type. Its last layer starts at zero: the first values are 0 for every observation, and the first
    gradient reaches the head alone, not the backbone.

    Args:
        hidden_size: Width D of the backbone.
        hidden_dims: Widths of the hidden layers; () makes it linear.
    """

    def __init__(self, hidden_size: int, hidden_dims: Sequence[int] = (256,)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.LayerNorm(hidden_size)]
        width = hidden_size
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim), nn.GELU()]
            width = dim
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, hidden: th.Tensor) -> th.Tensor:
        """Values (B, 1) in float32 of hidden states (B, D)."""
        return self.layers(hidden.float())

"""The continuous head of published OpenVLA-OFT checkpoints, for evaluation."""

import torch as th
from torch import nn
from torch.nn import functional as F


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.ffn(x)


class _ResidualMLP(nn.Module):
    def __init__(self, n_blocks: int, n_inputs: int, width: int, n_outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(n_inputs)
        self.fc1 = nn.Linear(n_inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(n_blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, n_outputs)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1ActionHead(nn.Module):
    """Regresses normalised actions from the hidden states of their tokens (OpenVLA-OFT, arXiv 2502.19645, section IV).

    Its parameters are named as published.
    """

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = _ResidualMLP(2, hidden_size * action_dim, hidden_size, action_dim)

    def forward(self, hidden: th.Tensor) -> th.Tensor:
        """Maps hidden states (B, chunk * action_dim, D) to actions (B, chunk, action_dim), about [-1, 1]."""
        batch, n_tokens, width = hidden.shape
        return self.model(hidden.reshape(batch, n_tokens // self.action_dim, self.action_dim * width))

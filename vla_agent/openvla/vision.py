"""The two vision towers and the projector, with parameters named as in the published checkpoints.

The towers are plain pre-norm vision transformers. OpenVLA takes what their second-to-last block puts out, without a
final norm; the last block, `norm` and `attn_pool` are in every checkpoint, and here only so that loading stays strict.
"""

from collections.abc import Callable

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vla_agent.openvla.attention import attend
from vla_agent.openvla.config import OpenVLAConfig, TowerConfig

LAYER_NORM_EPS = 1e-6  # timm's vision transformers


def checkpointed(fn: Callable[[th.Tensor], th.Tensor], x: th.Tensor) -> th.Tensor:
    """`fn(x)`; a backward pass computes it anew instead of finding what it kept."""
    return checkpoint(fn, x, use_reentrant=False) if th.is_grad_enabled() else fn(x)


class Attention(nn.Module):
    """Multi-head self-attention with one fused input projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Maps (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, T, C / heads) each
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(B, T, C))


class Mlp(nn.Module):
    """Two linear layers around the exact (erf) GELU; timm's towers are built with `act_layer=None`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Maps (..., C) to (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Learned factor per channel; published as `scale_factor`, which timm calls `gamma`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(th.ones(dim))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Maps (..., C) to (..., C)."""
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block; DINOv2's scales both branches, SigLIP's does not."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        dim = tower.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, tower.num_heads)
        self.ls1 = LayerScale(dim) if tower.is_dinov2 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, tower.mlp_dim)
        self.ls2 = LayerScale(dim) if tower.is_dinov2 else nn.Identity()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Maps (B, T, C) to (B, T, C)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Linear map of non-overlapping patches."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, tower.embed_dim, kernel_size=tower.patch_size, stride=tower.patch_size)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Maps (B, 3, H, W) to (B, P, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """SigLIP's pooling head: parameters only, as OpenVLA reads patches and never pools."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        dim = tower.embed_dim
        self.latent = nn.Parameter(th.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, tower.mlp_dim)


class VisionTower(nn.Module):
    """DINOv2 (class token, registers, LayerScale) or SigLIP (neither; a pooling head), up to the last block but one."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        dim = tower.embed_dim
        self.gradient_checkpointing = False
        self.n_prefix = 0
        if tower.is_dinov2:
            self.cls_token = nn.Parameter(th.zeros(1, 1, dim))
            self.n_prefix = 1 + tower.n_registers
            if tower.n_registers:
                self.reg_token = nn.Parameter(th.zeros(1, tower.n_registers, dim))
        self.pos_embed = nn.Parameter(th.zeros(1, tower.n_patches, dim))
        self.patch_embed = PatchEmbed(tower)
        self.blocks = nn.ModuleList(Block(tower) for _ in range(tower.depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        if not tower.is_dinov2:
            self.attn_pool = AttentionPool(tower)

    def forward(self, pixel_values: th.Tensor) -> th.Tensor:
        """Patch features of the second-to-last block, shape (B, P, C), of pixels (B, 3, H, W)."""
        x = self.patch_embed(pixel_values) + self.pos_embed  # prefix tokens have no position
        if self.n_prefix:
            prefix = [self.cls_token, self.reg_token] if self.n_prefix > 1 else [self.cls_token]
            x = th.cat([token.expand(x.shape[0], -1, -1) for token in prefix] + [x], dim=1)
        for block in self.blocks[:-1]:
            x = checkpointed(block, x) if self.gradient_checkpointing else block(x)
        return x[:, self.n_prefix :]

    def unused_parameter_names(self) -> list[str]:
        """Parameters that the output does not depend on."""
        unused = (f"blocks.{len(self.blocks) - 1}.", "norm.", "attn_pool.")
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]


class VisionBackbone(nn.Module):
    """One tower, or two whose features are joined patch by patch (DINOv2 first)."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        towers = config.towers
        self.featurizer = VisionTower(towers[0])
        self.fused_featurizer = VisionTower(towers[1]) if len(towers) == 2 else None
        self.embed_dim = sum(tower.embed_dim for tower in towers)

    def forward(self, pixel_values: th.Tensor) -> th.Tensor:
        """Maps (B, 3 per tower, H, W) to (B, P, C), C the sum of the towers' widths."""
        if self.fused_featurizer is None:
            return self.featurizer(pixel_values)
        first, second = pixel_values.split(3, dim=1)
        return th.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class StateProjector(nn.Module):
    """Normalised robot state to one language model embedding (OpenVLA-OFT's proprio projector)."""

    def __init__(self, state_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, state: th.Tensor) -> th.Tensor:
        """Maps (B, state_dim) to (B, 1, llm_dim)."""
        return self.fc2(F.gelu(self.fc1(state)))[:, None]


class Projector(nn.Module):
    """Patch features to language model embeddings: three layers behind two towers, two behind one."""

    def __init__(self, vision_dim: int, llm_dim: int, fused: bool) -> None:
        super().__init__()
        hidden_dim = 4 * vision_dim if fused else llm_dim
        self.fc1 = nn.Linear(vision_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim) if fused else None

    def forward(self, features: th.Tensor) -> th.Tensor:
        """Maps (B, P, vision_dim) to (B, P, llm_dim)."""
        x = self.fc2(F.gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(F.gelu(x))

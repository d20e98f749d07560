"""An independent, plain re-implementation of OpenVLA, for tests to compare with.

It is written from the architecture's description: one sample at a time, no padding, no cache, loops over
heads, tensors taken by their published names.
"""

import math

import torch as th

from vla_agent.openvla import OpenVLA

Tensors = dict[str, th.Tensor]


def linear(x: th.Tensor, tensors: Tensors, name: str) -> th.Tensor:
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def layer_norm(x: th.Tensor, tensors: Tensors, name: str) -> th.Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / th.sqrt((centered**2).mean(-1, keepdim=True) + 1e-6)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def rms_norm(x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    return x / th.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def gelu(x: th.Tensor) -> th.Tensor:
    return 0.5 * x * (1 + th.erf(x / math.sqrt(2)))


def attend(q: th.Tensor, k: th.Tensor, v: th.Tensor, n_heads: int, causal: bool) -> th.Tensor:
    """Attention of (T, C) tensors, head after head."""
    width = q.shape[1] // n_heads
    outputs = []
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        if causal:
            scores = scores + th.full_like(scores, -math.inf).triu(1)
        outputs.append(th.softmax(scores, dim=-1) @ v[:, part])
    return th.cat(outputs, dim=1)


def reference_tower(pixels: th.Tensor, tensors: Tensors, name: str, n_heads: int) -> th.Tensor:
    """Patch features (P, C) of one image (3, H, W)."""
    kernel = tensors[f"{name}.patch_embed.proj.weight"]
    patches = pixels.unfold(1, 14, 14).unfold(2, 14, 14)  # (3, rows, columns, 14, 14)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * 14 * 14)
    x = patches @ kernel.reshape(len(kernel), -1).T + tensors[f"{name}.patch_embed.proj.bias"]
    x = x + tensors[f"{name}.pos_embed"][0]
    n_prefix = 0
    if f"{name}.cls_token" in tensors:
        prefix = th.cat([tensors[f"{name}.cls_token"][0], tensors[f"{name}.reg_token"][0]])
        n_prefix = len(prefix)
        x = th.cat([prefix, x])
    depth = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith(f"{name}.blocks."))
    for i in range(depth - 1):
        block = f"{name}.blocks.{i}"
        q, k, v = linear(layer_norm(x, tensors, f"{block}.norm1"), tensors, f"{block}.attn.qkv").chunk(3, dim=1)
        y = linear(attend(q, k, v, n_heads, causal=False), tensors, f"{block}.attn.proj")
        x = x + y * tensors.get(f"{block}.ls1.scale_factor", th.ones(1))
        y = gelu(linear(layer_norm(x, tensors, f"{block}.norm2"), tensors, f"{block}.mlp.fc1"))
        x = x + linear(y, tensors, f"{block}.mlp.fc2") * tensors.get(f"{block}.ls2.scale_factor", th.ones(1))
    return x[n_prefix:]


def rotate(x: th.Tensor, n_heads: int) -> th.Tensor:
    """Rotary positions 0..T-1 on (T, C), halves of each head paired."""
    T, width = len(x), x.shape[1] // n_heads
    angles = th.arange(T)[:, None] / 10000 ** (th.arange(0, width, 2) / width)
    heads = x.reshape(T, n_heads, width)
    first, second = heads[..., : width // 2], heads[..., width // 2 :]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return th.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).reshape(T, -1)


def reference_patches(model: OpenVLA, pixels: th.Tensor) -> th.Tensor:
    """Embedded patches (P, D) of one image (6, H, W)."""
    tensors = model.state_dict()
    towers = ["vision_backbone.featurizer", "vision_backbone.fused_featurizer"]
    features = [
        reference_tower(part, tensors, name, tower.num_heads)
        for part, name, tower in zip(pixels.split(3), towers, model.config.towers, strict=True)
    ]
    x = th.cat(features, dim=1)
    x = gelu(linear(x, tensors, "projector.fc1"))
    x = gelu(linear(x, tensors, "projector.fc2"))
    return linear(x, tensors, "projector.fc3")


def reference_llama(model: OpenVLA, x: th.Tensor, causal: bool) -> th.Tensor:
    """Hidden states (T, D) behind the final norm of embeddings (T, D)."""
    tensors = model.state_dict()
    heads = model.config.text_config["num_attention_heads"]
    for i in range(model.config.text_config["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}"
        y = rms_norm(x, tensors[f"{layer}.input_layernorm.weight"])
        q, k, v = (linear(y, tensors, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        y = attend(rotate(q, heads), rotate(k, heads), v, heads, causal)
        x = x + linear(y, tensors, f"{layer}.self_attn.o_proj")
        y = rms_norm(x, tensors[f"{layer}.post_attention_layernorm.weight"])
        gate = linear(y, tensors, f"{layer}.mlp.gate_proj")
        y = gate * th.sigmoid(gate) * linear(y, tensors, f"{layer}.mlp.up_proj")
        x = x + linear(y, tensors, f"{layer}.mlp.down_proj")
    return rms_norm(x, tensors["language_model.model.norm.weight"])


def reference_logits(model: OpenVLA, prompt: list[int], pixels: th.Tensor, actions: list[int]) -> tuple:
    """Logits (len(actions), V) that predict the actions, hidden states there, and embedded patches of one sample."""
    tensors = model.state_dict()
    patches = reference_patches(model, pixels)
    if prompt[-1] != model.config.empty_piece_id:
        prompt = [*prompt, model.config.empty_piece_id]
    words = tensors["language_model.model.embed_tokens.weight"][th.tensor(prompt + actions[:-1])]
    x = th.cat([words[:1], patches, words[1:]])
    hidden = reference_llama(model, x, causal=True)[-len(actions) :]
    return hidden @ tensors["language_model.lm_head.weight"].T, hidden, patches


def reference_parallel_logits(model: OpenVLA, prompt: list[int], pixels: th.Tensor, state: th.Tensor) -> th.Tensor:
    """Logits (N, V) of one sample of two images (12, H, W) and a normalised state (8,), all tokens at once."""
    tensors = model.state_dict()
    patches = [reference_patches(model, image) for image in pixels.split(6)]
    robot = gelu(linear(state, tensors, "proprio_projector.fc1"))
    robot = linear(robot, tensors, "proprio_projector.fc2")[None]
    table = tensors["language_model.model.embed_tokens.weight"]
    words = table[th.tensor([*prompt, model.config.empty_piece_id])]
    n_tokens = model.n_action_tokens
    x = th.cat([words[:1], *patches, robot, words[1:], th.zeros(n_tokens, table.shape[1]), table[2:3]])
    first = len(x) - 1 - n_tokens  # first placeholder; the one before it predicts the first token
    hidden = reference_llama(model, x, causal=False)[first - 1 : first - 1 + n_tokens]
    return hidden @ tensors["language_model.lm_head.weight"].T

"""OpenVLA's network: modules under their published names, and the steps of a pass; decoders put them in order."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, LlamaModel

from libero_gym.dimensions import ACTION_DIM, STATE_DIM
from vla_agent.openvla.action_head import L1ActionHead
from vla_agent.openvla.attention import LLAMA_ATTENTION
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.cuda_graphs import GraphCache
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, lay_out_prompts
from vla_agent.openvla.vision import Projector, StateProjector, VisionBackbone, VisionTower, checkpointed


class OpenVLANetwork(nn.Module):
    """Two vision towers, a projector and a Llama; knows no tokenizer, no file and no order of decoding.

    B observations, L prompt tokens, P patches, N action tokens, D width.

    Args:
        config: Shape of the model.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        llama = config.llama
        llama._attn_implementation = LLAMA_ATTENTION
        self.config = config
        self.hidden_size: int = llama.hidden_size
        self.n_action_tokens = config.n_action_tokens
        self.max_length: int = llama.max_position_embeddings
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(self.vision_backbone.embed_dim, llama.hidden_size, config.use_fused_vision_backbone)
        self.proprio_projector = StateProjector(STATE_DIM, llama.hidden_size) if config.use_state else None
        self.action_head = L1ActionHead(llama.hidden_size, ACTION_DIM) if config.action_head == "l1" else None
        self.placeholders = (
            nn.Embedding(self.n_action_tokens, llama.hidden_size) if config.learned_placeholders else None
        )
        self.language_model = LlamaForCausalLM(llama)
        _fuse_norms(self.language_model.model)
        self.gradient_checkpointing = False
        self.autocast_dtype: th.dtype | None = None
        self.graphs = GraphCache()

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        return self.language_model.lm_head.weight.device

    @property
    def dtype(self) -> th.dtype:
        """Type of the weights."""
        return self.language_model.lm_head.weight.dtype

    @property
    def action_token_ids(self) -> th.Tensor:
        """Token id of each bin, int64 (256,)."""
        last = self.config.vocab_size - 1
        return th.arange(last, last - self.config.n_action_bins, -1, device=self.device)

    def unused_parameter_names(self) -> list[str]:
        """Parameters that no output depends on: keep them out of optimizers, adapters and gradient checks."""
        return [
            f"vision_backbone.{name}.{parameter}"
            for name, tower in self.vision_backbone.named_children()
            if isinstance(tower, VisionTower)
            for parameter in tower.unused_parameter_names()
        ]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether backward passes recompute each block instead of keeping what it computed: slower, much smaller."""
        self.gradient_checkpointing = enabled
        for module in self.vision_backbone.children():
            if isinstance(module, VisionTower):
                module.gradient_checkpointing = enabled

    def set_autocast(self, dtype: th.dtype | None) -> None:
        """Lets passes, of decoding and scoring alike, compute in bfloat16 over float32 weights; None turns it off.

        For training all weights: small steps add up in float32, and products run at bfloat16's rate.

        Raises:
            ValueError: If the weights are not float32, or the type is another than bfloat16.
        """
        if dtype is not None and (dtype != th.bfloat16 or self.dtype != th.float32):
            raise ValueError(
                f"autocast computes in bfloat16 over float32 weights; got {dtype} over {self.dtype}. Load the model "
                "with dtype=torch.float32, or leave autocast out to compute in the type of the weights."
            )
        self.autocast_dtype = dtype
        self.graphs.clear()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What passes run in; see `set_autocast`."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return th.autocast(self.device.type, self.autocast_dtype)

    def set_cuda_graphs(self, enabled: bool) -> None:
        """Whether decoding on a GPU is recorded at the second batch of a shape, and replayed from then on (default).

        Results are the same, and Python no longer holds up the GPU. Recordings keep the memory of a pass (keys, values,
        activations) next to that of the weights; those of several shapes share it.
        """
        self.graphs.enabled = enabled
        self.graphs.clear()

    def encode_images(self, pixel_values: th.Tensor) -> th.Tensor:
        """Fused patch features (B, P, vision width) of pixel values (B, 6 per camera, S, S), camera by camera."""
        size = self.config.image_size
        channels = 3 * len(self.config.image_sizes) * self.config.num_images
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"pixel_values must have shape (batch, {channels}, {size}, {size}), as `preprocess` gives them, "
                f"got {tuple(pixel_values.shape)}."
            )
        pixels = pixel_values.to(self.vision_backbone.featurizer.pos_embed.dtype)
        features = self.vision_backbone(pixels.reshape(-1, channels // self.config.num_images, size, size))
        return features.reshape(len(pixel_values), self.config.n_patches, -1)

    def project(self, features: th.Tensor) -> th.Tensor:
        """Embeddings (B, P, D) of fused patch features (B, P, vision width)."""
        return self.projector(features)

    def embed(self, ids: th.Tensor) -> th.Tensor:
        """Embeddings (..., D) of token ids."""
        return self.language_model.model.embed_tokens(ids)

    def lay_out(self, input_ids: th.Tensor, attention_mask: th.Tensor) -> PromptLayout:
        """Prompts (B, L) as `embed_prefix` takes them; see `vla_agent.openvla.sequence.lay_out_prompts`."""
        return lay_out_prompts(input_ids, attention_mask, self.config.empty_piece_id)

    def embed_prefix(self, layout: PromptLayout, pixel_values: th.Tensor, state: th.Tensor | None) -> th.Tensor:
        """Embeddings (B, T, D) of BOS, observation and the rest of the prompt.

        Raises:
            ValueError: If shapes do not fit, or the state is missing or not wanted.
        """
        if len(pixel_values) != len(layout.bos):
            raise ValueError(f"Got {len(layout.bos)} prompts but pixel_values of {len(pixel_values)} images.")
        parts = [self.embed(layout.bos), self.project(self.encode_images(pixel_values))]
        if self.proprio_projector is not None:
            if state is None or state.shape != (len(layout.bos), STATE_DIM):
                got = None if state is None else tuple(state.shape)
                raise ValueError(f"The model takes state of shape ({len(layout.bos)}, {STATE_DIM}), got {got}.")
            parts.append(self.proprio_projector(state.to(self.proprio_projector.fc1.weight.dtype)))
        elif state is not None:
            raise ValueError("The model takes no state; leave it out, or set 'use_state' in its config.")
        return th.cat([*parts, self.embed(layout.rest)], dim=1)

    def columns(self, layout: PromptLayout, n_trailing: int) -> tuple[th.Tensor, th.Tensor | None]:
        """Positions and visibility of all columns, `n_trailing` of them behind the prompt; see `PromptLayout`.

        Raises:
            ValueError: If there are more than the model's context holds.
        """
        n_observed = self.config.n_observation_tokens
        length = 1 + n_observed + layout.rest.shape[1] + n_trailing
        if length > self.max_length:
            raise ValueError(
                f"Prompt, {n_observed} observation tokens and actions make {length} tokens, but the model's context is "
                f"{self.max_length}; shorten the instruction."
            )
        return layout.positions(n_observed, n_trailing), layout.visible(n_observed, n_trailing)

    def decode(
        self,
        embeds: th.Tensor,
        positions: th.Tensor,
        mask: th.Tensor | None,
        *,
        n_last: int,
        cache: KeyValueCache | None = None,
    ) -> th.Tensor:
        """Hidden states (B, n_last, D) of the last columns, behind the final norm.

        Args:
            embeds: Inputs, (B, T, D).
            positions: int64 (B, T).
            mask: bool (B, 1, T or 1, columns so far), or None for plain causal attention.
            n_last: Columns to return.
            cache: Remembers keys and values between calls.
        """
        llama = self.language_model.model
        rotary = llama.rotary_emb(embeds, position_ids=positions)
        x = embeds
        for layer in llama.layers:
            run = functools.partial(
                layer, attention_mask=mask, position_ids=positions, position_embeddings=rotary, past_key_values=cache
            )
            x = checkpointed(run, x) if self.gradient_checkpointing else run(x)
        return llama.norm(x[:, -n_last:])

    def bin_logits(self, hidden: th.Tensor) -> th.Tensor:
        """Logits by bin, float32 (..., 256), of hidden states (..., D).

        They are computed in float32 in a bfloat16 model, too: rounded to bfloat16, the best two of a few hundred logits
        are often equal. A head with an adapter computes in its own type, and only its results are float32.
        """
        head = self.language_model.lm_head
        dtype = th.promote_types(hidden.dtype, th.float32)
        if type(head) is not nn.Linear:  # an adapter around it has to see the whole product
            return head(hidden)[..., self.action_token_ids].to(dtype)
        end = self.config.vocab_size
        weight = head.weight[end - self.config.n_action_bins : end].flip(0)
        with th.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(dtype), weight.to(dtype))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "OpenVLANetwork":
        """As every module's, but `.to(bfloat16)` leaves the rotary frequencies in float32.

        In bfloat16 they turn by up to 0.37 rad too far at position 300.
        """
        self.graphs.clear()
        super()._apply(fn, recurse)
        self.reset_rotary()
        return self

    def reset_rotary(self) -> None:
        """Computes the rotary frequencies, which no checkpoint stores, anew in float32 on the model's device."""
        rotary = type(self.language_model.model.rotary_emb)(self.language_model.config)
        self.language_model.model.rotary_emb = rotary._apply(lambda buffer: buffer.to(self.device))


def _fuse_norms(llama: LlamaModel) -> None:
    """Puts torch's RMS norms in the place of transformers': one kernel on a GPU instead of ten, same names and numbers.

    In bfloat16 they multiply by their weights before rounding, not after.
    """
    kind, eps = type(llama.norm), llama.config.rms_norm_eps
    for name, module in list(llama.named_modules()):
        if isinstance(module, kind):
            weight = module.weight
            llama.set_submodule(name, nn.RMSNorm(weight.shape, eps, device=weight.device, dtype=weight.dtype))

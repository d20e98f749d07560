"""OpenVLA: two vision towers, a projector and a Llama that speaks action tokens."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from vla_agent.openvla.config import ACTION_DIM, OpenVLAConfig
from vla_agent.openvla.image import pixel_values_from_images
from vla_agent.openvla.processor import Processor
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, causal_mask, lay_out_prompts
from vla_agent.openvla.vision import Projector, VisionBackbone, VisionTower, checkpointed


class ActionOutput(NamedTuple):
    """Scores of given action tokens. B images, N action tokens, V vocabulary (or 256 bins), D width."""

    logits: th.Tensor  # (B, N, V), predict each action token, the earlier ones given
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class ActionSample(NamedTuple):
    """Sampled action tokens and the scores they were drawn from."""

    action_ids: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin, before the temperature
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class OpenVLA(nn.Module):
    """The published model without its framework: same tensors by name, same numbers, any batch of prompts.

    Actions are N = 7 tokens (times `action_chunk_size`), each conditioned on those before. **Bins**: bin b of 0..255
    counts upward with the action's value and has token id `vocab_size - 1 - b`, where `vocab_size` leaves out the
    embedding's padding: bin 0 is id 31999 and value -1 in the published vocabulary, bin 255 is id 31744; bins 254 and
    255 decode to the same value. Logits called "by bin" are in this order.

    Args:
        config: Shape of the model.
        processor: Tokenizer, image sizes and action statistics; without it only the tensor calls work.
    """

    def __init__(self, config: OpenVLAConfig, processor: Processor | None = None) -> None:
        super().__init__()
        llama = config.llama
        self.config = config
        self._processor = processor
        self.hidden_size: int = llama.hidden_size
        self.n_action_tokens = config.n_action_tokens
        self.max_length: int = llama.max_position_embeddings
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(self.vision_backbone.embed_dim, llama.hidden_size, config.use_fused_vision_backbone)
        self.language_model = LlamaForCausalLM(llama)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, dtype: th.dtype | None = None, device: th.device | str | None = None
    ) -> "OpenVLA":
        """Loads a folder, a hub id, or "tiny"; see `vla_agent.openvla.checkpoint.from_pretrained`."""
        from vla_agent.openvla.checkpoint import from_pretrained

        return from_pretrained(path_or_id, dtype=dtype, device=device)

    def save_pretrained(self, path: str | Path, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes the published layout; see `vla_agent.openvla.checkpoint.save_pretrained`."""
        from vla_agent.openvla.checkpoint import save_pretrained

        save_pretrained(self, path, max_shard_size=max_shard_size)

    @property
    def processor(self) -> Processor:
        """Tokenizer, image sizes and action statistics of the checkpoint.

        Raises:
            ValueError: If the model was built from a bare configuration.
        """
        if self._processor is None:
            raise ValueError("This OpenVLA was built without a processor; pass one, or use OpenVLA.from_pretrained.")
        return self._processor

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

    def preprocess(self, images: np.ndarray | th.Tensor) -> th.Tensor:
        """Pixel values of images, in the model's type and on its device.

        Args:
            images: uint8 (B, H, W, 3). Another size than the model's is resized as the published processor does
                (PIL, bicubic, on the CPU).

        Returns:
            Shape (B, 6, S, S), S the model's image size: each tower's normalisation in turn.

        Raises:
            TypeError: If the images are not uint8 arrays.
            ValueError: If their shape is not (B, H, W, 3).
        """
        processor = self.processor
        pixels = pixel_values_from_images(
            images, processor.image_size, processor.image_means, processor.image_stds, self.device
        )
        return pixels.to(self.dtype)

    def encode_images(self, pixel_values: th.Tensor) -> th.Tensor:
        """Fused patch features (B, P, vision width) of pixel values (B, 6, S, S)."""
        channels, size = 3 * len(self.config.image_sizes), self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"pixel_values must have shape (batch, {channels}, {size}, {size}), as `preprocess` gives them, "
                f"got {tuple(pixel_values.shape)}."
            )
        return self.vision_backbone(pixel_values.to(self.vision_backbone.featurizer.pos_embed.dtype))

    def project(self, features: th.Tensor) -> th.Tensor:
        """Embeddings (B, P, D) of fused patch features (B, P, vision width)."""
        return self.projector(features)

    def tokenize(self, instructions: Sequence[str]) -> tuple[th.Tensor, th.Tensor]:
        """Prompt tokens of instructions.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, L) on the model's device, padded on the right; without the
            trailing empty piece (29871), which every call below appends itself.
        """
        input_ids, attention_mask = self.processor.tokenize(instructions)
        return th.from_numpy(input_ids).to(self.device), th.from_numpy(attention_mask).to(self.device)

    def action_logits(
        self, input_ids: th.Tensor, attention_mask: th.Tensor, pixel_values: th.Tensor, action_ids: th.Tensor
    ) -> th.Tensor:
        """Logits (B, N, V) that predict each action token, the earlier ones forced; arguments as `score_actions`."""
        return self.score_actions(input_ids, attention_mask, pixel_values, action_ids).logits

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        action_ids: th.Tensor,
        *,
        bins_only: bool = False,
    ) -> ActionOutput:
        """Scores given actions in one teacher-forced pass.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6, S, S).
            action_ids: Token ids of the actions, int64 (B, N).
            bins_only: Compute the 256 action logits alone, by bin, instead of the whole vocabulary's.

        Returns:
            Logits of shape (B, N, V), or (B, N, 256) by bin, and the hidden state (B, D).

        Raises:
            ValueError: If shapes do not fit, or the sequence exceeds the model's context.
        """
        if action_ids.shape != (len(input_ids), self.n_action_tokens):
            raise ValueError(
                f"action_ids must have shape ({len(input_ids)}, {self.n_action_tokens}), got {tuple(action_ids.shape)}."
            )
        layout = lay_out_prompts(input_ids, attention_mask, self.config.empty_piece_id)
        # The last token is only predicted, so it is no input.
        prefix = self._embed_prefix(layout, pixel_values)
        embeds = th.cat([prefix, self._embed(action_ids[:, :-1])], dim=1)
        positions, visible = self._columns(layout, self.n_action_tokens - 1)
        hidden = self._decode(embeds, positions, causal_mask(visible, embeds.shape[1]), None, self.n_action_tokens)
        logits = self._bin_logits(hidden) if bins_only else self.language_model.lm_head(hidden)
        return ActionOutput(logits, hidden[:, 0])

    def generate_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        deterministic: bool = False,
        temperature: float = 1.0,
        generator: th.Generator | None = None,
    ) -> th.Tensor:
        """Action token ids, int64 (B, N); arguments as `sample_actions`."""
        return self.sample_actions(
            input_ids,
            attention_mask,
            pixel_values,
            deterministic=deterministic,
            temperature=temperature,
            generator=generator,
        ).action_ids

    @th.no_grad()
    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        deterministic: bool = False,
        temperature: float = 1.0,
        generator: th.Generator | None = None,
    ) -> ActionSample:
        """Draws actions: one pass over the prompts, then N - 1 passes over a single token each.

        Only action tokens are ever drawn. Modules are in evaluation mode meanwhile.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6, S, S).
            deterministic: Take the likeliest bin of each token.
            temperature: Logits are divided by it before sampling.
            generator: Source of randomness on the model's device; torch's global one by default.

        Raises:
            ValueError: If the temperature is not positive, shapes do not fit, or the context is exceeded.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}; use deterministic=True for greedy.")
        n_tokens = self.n_action_tokens
        layout = lay_out_prompts(input_ids, attention_mask, self.config.empty_piece_id)
        positions, visible = self._columns(layout, n_tokens - 1)
        first, bins, logits = None, [], []
        with _evaluating(self):
            embeds = self._embed_prefix(layout, pixel_values)
            end = embeds.shape[1]
            cache = KeyValueCache(len(self.language_model.model.layers), positions.shape[1])
            for i in range(n_tokens):
                seen = None if visible is None else visible[:, :end]
                mask = causal_mask(seen, embeds.shape[1])
                hidden = self._decode(embeds, positions[:, end - embeds.shape[1] : end], mask, cache, 1)
                first = hidden[:, 0] if i == 0 else first
                logits.append(self._bin_logits(hidden)[:, 0].float())
                bins.append(_choose(logits[-1], deterministic, temperature, generator))
                embeds, end = self._embed(self.action_token_ids[bins[-1]][:, None]), end + 1
        assert first is not None
        return ActionSample(self.action_token_ids[th.stack(bins, dim=1)], th.stack(logits, dim=1), first)

    def predict_action(
        self,
        images: np.ndarray,
        instructions: str | Sequence[str],
        unnorm_key: str | None = None,
        image_transform: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        deterministic: bool = True,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Actions in the units of the training data.

        Args:
            images: uint8 (B, H, W, 3).
            instructions: One per image, or one for all.
            unnorm_key: Which statistics to use; may be left out where the checkpoint has a single one.
            image_transform: Applied to the images first, such as `lambda x: center_crop(libero_image(x))`.
            deterministic: Decode greedily, as the published evaluation does.
            temperature: Of sampling, where that is not so.

        Returns:
            float64, shape (B, 7), or (B, chunk, 7) for a model of chunks. The gripper is as the model says it (0
            closed, 1 open); `Processor.action_table` has it as LIBERO's environments want it.

        Raises:
            ValueError: If the checkpoint lacks `unnorm_key`, or images and instructions differ in number.
        """
        texts = [instructions] * len(images) if isinstance(instructions, str) else list(instructions)
        if len(texts) != len(images):
            raise ValueError(f"Got {len(images)} images but {len(texts)} instructions; give one each, or one for all.")
        self.processor.action_stats(unnorm_key)  # complain before the work, not after
        pixels = self.preprocess(images if image_transform is None else image_transform(images))
        ids = self.generate_actions(*self.tokenize(texts), pixels, deterministic=deterministic, temperature=temperature)
        shape = (len(texts), -1, ACTION_DIM) if self.config.action_chunk_size > 1 else (len(texts), ACTION_DIM)
        return self.processor.decode_actions(ids.cpu().numpy().reshape(shape), unnorm_key)

    def _embed(self, ids: th.Tensor) -> th.Tensor:
        return self.language_model.model.embed_tokens(ids)

    def _columns(self, layout: PromptLayout, n_actions: int) -> tuple[th.Tensor, th.Tensor | None]:
        """Positions and visibility of all columns, with `n_actions` behind the prompt."""
        n_patches = self.config.n_patches
        length = 1 + n_patches + layout.rest.shape[1] + n_actions
        if length > self.max_length:
            raise ValueError(
                f"Prompt, {n_patches} patches and actions make {length} tokens, but the model's context is "
                f"{self.max_length}; shorten the instruction."
            )
        return layout.positions(n_patches, n_actions), layout.visible(n_patches, n_actions)

    def _embed_prefix(self, layout: PromptLayout, pixel_values: th.Tensor) -> th.Tensor:
        """Embeddings (B, T, D) of BOS, patches and the rest of the prompt."""
        if len(pixel_values) != len(layout.bos):
            raise ValueError(f"Got {len(layout.bos)} prompts but pixel_values of {len(pixel_values)} images.")
        patches = self.project(self.encode_images(pixel_values))
        return th.cat([self._embed(layout.bos), patches, self._embed(layout.rest)], dim=1)

    def _decode(
        self, embeds: th.Tensor, positions: th.Tensor, mask: th.Tensor | None, cache: KeyValueCache | None, n_last: int
    ) -> th.Tensor:
        """Hidden states (B, n_last, D) of the last columns, behind the final norm."""
        llama = self.language_model.model
        rotary = llama.rotary_emb(embeds, position_ids=positions)
        x = embeds
        for layer in llama.layers:
            run = functools.partial(
                layer, attention_mask=mask, position_ids=positions, position_embeddings=rotary, past_key_values=cache
            )
            x = checkpointed(run, x) if self.gradient_checkpointing else run(x)
        return llama.norm(x[:, -n_last:])

    def _bin_logits(self, hidden: th.Tensor) -> th.Tensor:
        """Logits by bin (..., 256) of hidden states (..., D)."""
        head = self.language_model.lm_head
        if type(head) is not nn.Linear:  # an adapter around it has to see the whole product
            return head(hidden)[..., self.action_token_ids]
        end = self.config.vocab_size
        return F.linear(hidden, head.weight[end - self.config.n_action_bins : end].flip(0))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "OpenVLA":
        """As every module's, but `.to(bfloat16)` leaves the rotary frequencies in float32.

        In bfloat16 they turn by up to 0.37 rad too far at position 300.
        """
        super()._apply(fn, recurse)
        self.reset_rotary()
        return self

    def reset_rotary(self) -> None:
        """Computes the rotary frequencies, which no checkpoint stores, anew in float32 on the model's device."""
        rotary = type(self.language_model.model.rotary_emb)(self.language_model.config)
        self.language_model.model.rotary_emb = rotary._apply(lambda buffer: buffer.to(self.device))


def _choose(logits: th.Tensor, deterministic: bool, temperature: float, generator: th.Generator | None) -> th.Tensor:
    """Bins, int64 (B,), of logits (B, 256)."""
    if deterministic:
        return logits.argmax(-1)
    return th.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator).squeeze(1)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout and no gradient checkpointing (which would drop the cache) inside; each module's mode comes back."""
    training = [child for child in module.modules() if child.training] if module.training else []
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True

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
from transformers import LlamaForCausalLM, LlamaModel

from libero_gym.dimensions import ACTION_DIM, STATE_DIM
from vla_agent.action_tokens import unnormalize
from vla_agent.openvla.action_head import L1ActionHead
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.cuda_graphs import GraphCache
from vla_agent.openvla.decoders import Sampling, draw_actions, forced_hidden, parallel_hidden, regress_actions
from vla_agent.openvla.image import pixel_values_from_images
from vla_agent.openvla.processor import Processor
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, lay_out_prompts
from vla_agent.openvla.vision import Projector, StateProjector, VisionBackbone, VisionTower, checkpointed


class ActionOutput(NamedTuple):
    """Scores of given action tokens. B observations, N action tokens, V vocabulary (or 256 bins), D width."""

    logits: th.Tensor  # (B, N, V), or float32 (B, N, 256): predict each action token, the earlier ones given
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class ActionSample(NamedTuple):
    """Sampled action tokens and the scores they were drawn from."""

    action_ids: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin, before the temperature
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class OpenVLA(nn.Module):
    """The published model without its framework: same tensors by name, same numbers, any batch of prompts.

    Actions are N = 7 tokens (times `action_chunk_size`), each conditioned on those before; with `decoding="parallel"`
    in the config they are independent given the observation, and one pass gives them all.

    **Bins**: bin b of 0..255
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

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, dtype: th.dtype | None = None, device: th.device | str | None = None
    ) -> "OpenVLA":
        """Loads a folder, a hub id, or "tiny"; see `vla_agent.openvla.weights.from_pretrained`."""
        from vla_agent.openvla.weights import from_pretrained

        return from_pretrained(path_or_id, dtype=dtype, device=device)

    def save_pretrained(self, path: str | Path, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes the published layout; see `vla_agent.openvla.weights.save_pretrained`."""
        from vla_agent.openvla.weights import save_pretrained

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

        Results are the same, and Python no longer holds up the GPU. Recordings keep the memory that a pass takes beside
        the weights (keys, values, activations); those of several shapes share it.
        """
        self.graphs.enabled = enabled
        self.graphs.clear()

    def preprocess(self, *images: np.ndarray | th.Tensor) -> th.Tensor:
        """Pixel values of images, in the model's type and on its device.

        Args:
            images: uint8 (B, H, W, 3), one array per camera. Another size than the model's is resized as the published
                processor does (PIL, bicubic, on the CPU).

        Returns:
            Shape (B, 6 per camera, S, S), S the model's image size: each tower's normalisation in turn.

        Raises:
            TypeError: If the images are not uint8 arrays.
            ValueError: If their shape is not (B, H, W, 3), or the model takes another number of cameras.
        """
        if len(images) != self.config.num_images:
            raise ValueError(f"The model takes images of {self.config.num_images} cameras, got {len(images)}.")
        processor = self.processor
        settings = (processor.image_size, processor.image_means, processor.image_stds, self.device)
        return th.cat([pixel_values_from_images(x, *settings) for x in images], dim=1).to(self.dtype)

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

    def tokenize(self, instructions: Sequence[str]) -> tuple[th.Tensor, th.Tensor]:
        """Prompt tokens of instructions.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, L) on the model's device, padded on the right; without the
            trailing empty piece (29871), which every call below appends itself.
        """
        input_ids, attention_mask = self.processor.tokenize(instructions)
        return th.from_numpy(input_ids).to(self.device), th.from_numpy(attention_mask).to(self.device)

    def action_logits(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        action_ids: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Logits (B, N, V) that predict each action token, the earlier ones forced; arguments as `score_actions`."""
        return self.score_actions(input_ids, attention_mask, pixel_values, action_ids, state=state).logits

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        action_ids: th.Tensor,
        *,
        state: th.Tensor | None = None,
        bins_only: bool = False,
    ) -> ActionOutput:
        """Scores given actions in one teacher-forced pass.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6 per camera, S, S).
            action_ids: Token ids of the actions, int64 (B, N).
            state: `Processor.normalize_state` of the robot's state, (B, 8), for a model that takes it.
            bins_only: Compute the 256 action logits alone, by bin, instead of the whole vocabulary's.

        Returns:
            Logits of shape (B, N, V), or float32 (B, N, 256) by bin, and the hidden state (B, D).

        Raises:
            ValueError: If shapes do not fit, or the sequence exceeds the model's context.
        """
        self._check_speaks_tokens()
        if action_ids.shape != (len(input_ids), self.n_action_tokens):
            raise ValueError(
                f"action_ids must have shape ({len(input_ids)}, {self.n_action_tokens}), got {tuple(action_ids.shape)}."
            )
        layout = self._lay_out(input_ids, attention_mask)
        with self.autocast():
            prefix = self.embed_prefix(layout, pixel_values, state)
            if self.config.decoding == "parallel":
                hidden = parallel_hidden(self, layout, prefix)
            else:
                hidden = forced_hidden(self, layout, prefix, action_ids)
            logits = self.bin_logits(hidden) if bins_only else self.language_model.lm_head(hidden)
        return ActionOutput(logits, hidden[:, 0])

    def generate_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        deterministic: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: th.Generator | None = None,
    ) -> th.Tensor:
        """Action token ids, int64 (B, N); arguments as `sample_actions`."""
        return self.sample_actions(
            input_ids,
            attention_mask,
            pixel_values,
            state=state,
            deterministic=deterministic,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        ).action_ids

    @th.no_grad()
    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        deterministic: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: th.Generator | None = None,
    ) -> ActionSample:
        """Draws actions; only action tokens are ever drawn. Modules are in evaluation mode meanwhile.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6 per camera, S, S).
            state: `Processor.normalize_state` of the robot's state, (B, 8), for a model that takes it.
            deterministic: Take the likeliest bin of each token.
            temperature: Logits are divided by it before sampling.
            top_k, top_p: Draw only from the likeliest bins; see `vla_agent.bins.bin_log_probs`.
            generator: Source of randomness on the model's device; torch's global one by default.

        Raises:
            ValueError: If the temperature is not positive, truncation leaves no bin, shapes do not fit, or the context
                is exceeded.
            FloatingPointError: If the logits are not finite, so that there is nothing to draw from.
        """
        self._check_speaks_tokens()
        sampling = Sampling(deterministic, temperature, top_k, top_p)
        with _evaluating(self):
            layout = self._lay_out(input_ids, attention_mask)
            bins, logits, hidden = draw_actions(self, layout, pixel_values, state, sampling, generator)
        if not logits.isfinite().all():
            raise FloatingPointError("The model's action logits are not finite: its weights or inputs have overflowed.")
        return ActionSample(self.action_token_ids[bins], logits, hidden)

    @th.no_grad()
    def regress_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Normalised actions, float32 (B, chunk, 7), of a model with a continuous head; arguments as `score_actions`.

        Raises:
            ValueError: If the model has no such head, shapes do not fit, or the context is exceeded.
        """
        if self.action_head is None:
            raise ValueError("The model has no continuous action head; its actions are tokens: use generate_actions.")
        with _evaluating(self):
            return regress_actions(self, self._lay_out(input_ids, attention_mask), pixel_values, state)

    def predict_action(
        self,
        images: np.ndarray,
        instructions: str | Sequence[str],
        unnorm_key: str | None = None,
        image_transform: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        wrist_images: np.ndarray | None = None,
        state: np.ndarray | None = None,
        deterministic: bool = True,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Actions in the units of the training data.

        Args:
            images: uint8 (B, H, W, 3).
            instructions: One per image, or one for all.
            unnorm_key: Which statistics to use; may be left out where the checkpoint has a single one.
            image_transform: Applied to the images first, such as `lambda x: center_crop(libero_image(x))`.
            wrist_images: The second camera's, for a model that takes two.
            state: Robot states (B, 8) as observed, for a model that takes them.
            deterministic: Decode greedily, as the published evaluation does.
            temperature: Of sampling, where that is not so. A continuous head knows neither.

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
        cameras = [images] if wrist_images is None else [images, wrist_images]
        pixels = self.preprocess(*(x if image_transform is None else image_transform(x) for x in cameras))
        states = None
        if state is not None:
            states = th.from_numpy(self.processor.normalize_state(state, unnorm_key)).to(self.device)
        if self.action_head is not None:
            actions = self.regress_actions(*self.tokenize(texts), pixels, state=states).cpu().numpy()
            return unnormalize(actions.astype(np.float64), self.processor.action_stats(unnorm_key))
        ids = self.generate_actions(
            *self.tokenize(texts), pixels, state=states, deterministic=deterministic, temperature=temperature
        )
        shape = (len(texts), -1, ACTION_DIM) if self.config.action_chunk_size > 1 else (len(texts), ACTION_DIM)
        return self.processor.decode_actions(ids.cpu().numpy().reshape(shape), unnorm_key)

    def embed(self, ids: th.Tensor) -> th.Tensor:
        """Embeddings (..., D) of token ids."""
        return self.language_model.model.embed_tokens(ids)

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
        """Logits by bin (..., 256) of hidden states (..., D), float32 in a bfloat16 model, too.

        Rounded to bfloat16, the best two of a few hundred logits are often equal.
        """
        head = self.language_model.lm_head
        dtype = th.promote_types(hidden.dtype, th.float32)
        if type(head) is not nn.Linear:  # an adapter around it has to see the whole product
            return head(hidden)[..., self.action_token_ids].to(dtype)
        end = self.config.vocab_size
        weight = head.weight[end - self.config.n_action_bins : end].flip(0)
        with th.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(dtype), weight.to(dtype))

    def _check_speaks_tokens(self) -> None:
        if self.action_head is not None:
            raise ValueError(
                "This checkpoint regresses actions with a continuous head and was not trained to speak action tokens: "
                "it can be evaluated with predict_action, but not sampled or scored. Train a discrete one."
            )

    def _lay_out(self, input_ids: th.Tensor, attention_mask: th.Tensor) -> PromptLayout:
        return lay_out_prompts(input_ids, attention_mask, self.config.empty_piece_id)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "OpenVLA":
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

"""What the agent asks of a vision-language-action model: a backbone, its processor, and the codec between both worlds.

Everything is spoken in bins (see `vla_agent.action_tokens`); token ids are the model's own business.
A model of another kind implements these protocols and is named in `vla_agent.policy.loading.register_backbone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import torch as th

from vla_agent.bins import Sampling

if TYPE_CHECKING:
    from gymnasium import spaces


@dataclass(frozen=True)
class Abilities:
    """What a backbone can do. The methods named here are called only if it says so.

    Attributes:
        speaks_bins: It draws and scores bins (`VLABackbone.sample_actions`, `score_actions`).
        regresses_actions: It has a continuous head (`regress_actions`).
        autocast: It computes in bfloat16 over float32 weights when asked to (`set_autocast`, `autocast_dtype`).
        cuda_graphs: It replays decoding as CUDA graphs unless asked not to (`set_cuda_graphs`).
        gradient_checkpointing: It can recompute its blocks in the backward pass (`set_gradient_checkpointing`).
        samples_candidates: It draws and scores several chains of an observation from one pass over its prompt
            (`sample_candidates`, `score_candidates`).
        independent_tokens: Its tokens are independent given the observation: all chains have the same logits.
    """

    speaks_bins: bool = True
    regresses_actions: bool = False
    autocast: bool = False
    cuda_graphs: bool = False
    gradient_checkpointing: bool = False
    samples_candidates: bool = False
    independent_tokens: bool = False


class Scores(Protocol):
    """Scores of given bins."""

    @property
    def logits(self) -> th.Tensor:
        """float32 (B, N, 256), by bin: each token's, the earlier ones given."""

    @property
    def hidden(self) -> th.Tensor:
        """Shape (B, D): what the first action token is predicted from."""


class Samples(Scores, Protocol):
    """Drawn bins and the scores they were drawn from, before the temperature."""

    @property
    def bins(self) -> th.Tensor:
        """int64 (B, N)."""


class CandidateSamples(Protocol):
    """n chains of each observation, and the scores that they were drawn from, before the temperature."""

    @property
    def bins(self) -> th.Tensor:
        """int64 (B, n, N)."""

    @property
    def logits(self) -> th.Tensor:
        """float32 (B, n, N, 256), by bin: each token's, the earlier ones of its chain given."""

    @property
    def hidden(self) -> th.Tensor:
        """Shape (B, D): what the first action token is predicted from."""


class Codec(Protocol):
    """How environments and a model meet: actions out of decisions, prompts out of instructions."""

    @property
    def chunk_size(self) -> int:
        """Actions that one decision decides."""

    @property
    def action_space(self) -> spaces.MultiDiscrete:
        """Space of one decision, ``MultiDiscrete([256] * N)``."""

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """What environments are given for decisions, integers (n, N): float64 (n, chunk, 7).

        Raises:
            ValueError: If the decisions have another shape, or are not of the action space.
        """

    def encode_prompt(self, instruction: str, state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 (L,), of what the model is told.

        Args:
            instruction: The task in words.
            state: The robot's state (8,), for models whose prompt holds it, as pi0-FAST's does; others ignore it.
        """


class BackboneConfig(Protocol):
    """Which observations a model reads, and how many actions it decides at a time."""

    @property
    def num_images(self) -> int:
        """1 for the agent's view, 2 for the wrist camera's as well."""

    @property
    def use_state(self) -> bool:
        """Whether it reads the robot's state."""

    @property
    def action_chunk_size(self) -> int:
        """Actions per decision."""


class BackboneProcessor(Protocol):
    """What a model knows besides its weights."""

    @property
    def config(self) -> BackboneConfig:
        """The model's configuration."""

    @property
    def image_size(self) -> int:
        """Side of the square images that the model takes, in pixels."""

    @property
    def unnorm_keys(self) -> Sequence[str]:
        """Data sets that the checkpoint has action statistics for."""

    def codec(self, unnorm_key: str | None = None) -> Codec:
        """The codec that decodes with these statistics; the key may be left out if there is a single one.

        Raises:
            ValueError: If there are no such statistics, or several and none is named.
        """

    def action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """Statistics (`q01`, `q99`, `mask`) that `vla_agent.action_tokens.normalize` takes; raises as `codec` does."""

    def normalize_state(self, state: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """Robot states (B, 8) as the model wants them."""

    def fingerprint(self) -> str:
        """Equal for two processors that write the same prompts and decode bins to the same actions."""


class VLABackbone(Protocol):
    """A `torch.nn.Module` that draws and scores bins: B observations, L prompt tokens, N action tokens.

    Prompts are int64 (B, L), padded on the right; pixel values are what `preprocess` gives; states are what
    `BackboneProcessor.normalize_state` gives, for a model that reads them.
    """

    n_action_tokens: int
    hidden_size: int

    @property
    def abilities(self) -> Abilities:
        """What the model can do."""

    @property
    def config(self) -> BackboneConfig:
        """Which observations it reads."""

    @property
    def processor(self) -> BackboneProcessor:
        """What it knows besides its weights."""

    @property
    def device(self) -> th.device:
        """Where its weights are."""

    def preprocess(self, *images: Any) -> th.Tensor:
        """Pixel values of uint8 images (B, H, W, 3), one array per camera."""

    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        sampling: Sampling = ...,
        generator: th.Generator | None = None,
    ) -> Samples:
        """Draws bins by ``sampling``, without gradients; torch's global randomness if there is no generator.

        Raises:
            FloatingPointError: If the logits are not finite, so that there is nothing to draw from.
        """

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> Scores:
        """Scores bins, int64 (B, N), in one pass."""

    def encode_observations(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """The hidden states (B, D) that `score_actions` would give, without scoring."""

    def unused_parameter_names(self) -> list[str]:
        """Parameters that no output depends on."""

    # ------------------------------------------------------------------ called only if `abilities` says so

    @property
    def autocast_dtype(self) -> th.dtype | None:
        """Type that passes compute in; None for that of the weights."""

    def set_autocast(self, dtype: th.dtype | None) -> None:
        """Sets `autocast_dtype`."""

    def set_cuda_graphs(self, enabled: bool) -> None:
        """Whether decoding may be replayed as CUDA graphs."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether backward passes recompute blocks instead of keeping what they computed."""

    def sample_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        n_samples: int,
        *,
        greedy_first: bool = False,
        state: th.Tensor | None = None,
        sampling: Sampling = ...,
        generator: th.Generator | None = None,
    ) -> CandidateSamples:
        """Draws ``n_samples`` chains of each observation, without gradients; a single one is `sample_actions`'s.

        Args:
            input_ids, attention_mask, pixel_values, state: The observations.
            n_samples: Chains of each observation.
            greedy_first: Whether the first of them is the greedy chain instead of a drawn one.
            sampling: How to draw each token.
            generator: Source of randomness; torch's global one if None.

        Raises:
            ValueError: If ``n_samples`` is below 1.
            FloatingPointError: If the logits are not finite.
        """

    def score_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Logits (B, n, N, 256) of n chains of each observation, bins (B, n, N), without gradients."""

    def regress_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Normalised actions of the continuous head, float32 (B, chunk, 7)."""


def is_backbone(model: object) -> TypeGuard[VLABackbone]:
    """Whether an object is a backbone: a module that states its `Abilities`."""
    return isinstance(model, th.nn.Module) and isinstance(getattr(model, "abilities", None), Abilities)


def model_inputs(
    model: VLABackbone,
    input_ids: th.Tensor,
    attention_mask: th.Tensor,
    images: Sequence[Any],
    state: np.ndarray | th.Tensor | None,
    unnorm_key: str | None,
) -> dict[str, Any]:
    """The arguments that a model's calls share, from a batch of observations.

    Args:
        model: The model.
        input_ids: Prompts, int64 (B, L), where the model is.
        attention_mask: 1 for the prompts' tokens and 0 for padding, int64 (B, L).
        images: uint8 (B, H, W, 3), one array or tensor per camera that the model reads.
        state: The robots' states, (B, 8); used only by a model that reads them.
        unnorm_key: Name of the statistics that normalise the states.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": model.preprocess(*images)}
    if model.config.use_state:
        values = state.cpu().numpy() if isinstance(state, th.Tensor) else np.asarray(state)
        normalized = model.processor.normalize_state(values, unnorm_key)
        inputs["state"] = th.from_numpy(np.asarray(normalized)).to(input_ids.device)
    return inputs

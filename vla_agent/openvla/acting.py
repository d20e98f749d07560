"""What an OpenVLA network can be asked: scores of given bins, drawn bins, chains to choose from, regressed actions."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch as th
from torch import nn

from libero_gym.common.checks import whole_number
from vla_agent.bins import PLAIN, Sampling
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.decoders import (
    Amount,
    Draw,
    RegressionDecoder,
    choose_decoder,
    draw_actions,
    regress_actions,
)
from vla_agent.openvla.network import OpenVLANetwork


class ActionOutput(NamedTuple):
    """Scores of given bins. B observations, N action tokens, D width."""

    logits: th.Tensor  # float32 (B, N, 256), by bin: predict each action token, the earlier ones given
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class ActionSample(NamedTuple):
    """Drawn bins and the scores they were drawn from."""

    bins: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin, before the temperature
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class ActionCandidates(NamedTuple):
    """n drawn chains of each observation and the scores they were drawn from."""

    bins: th.Tensor  # int64 (B, n, N)
    logits: th.Tensor  # float32 (B, n, N, 256), by bin, before the temperature
    hidden: th.Tensor  # (B, D), behind the final norm, where the first action token is predicted


class ActionNetwork(OpenVLANetwork):
    """The network with its order of decoding; it knows no tokenizer and no file.

    Args:
        config: Shape of the model.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.decoder = choose_decoder(config)

    def action_logits(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        action_ids: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Logits (B, N, V), over the whole vocabulary, that predict each action token, the earlier ones forced.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6 per camera, S, S).
            action_ids: Token ids of the actions, int64 (B, N).
            state: `Processor.normalize_state` of the robot's state, (B, 8), for a model that takes it.

        Raises:
            ValueError: If shapes do not fit, or the sequence exceeds the model's context.
        """
        self._check_actions("action_ids", action_ids, input_ids)
        with self.autocast():
            hidden = self._hidden(input_ids, attention_mask, pixel_values, state, action_ids)
            return self.language_model.lm_head(hidden)

    def score_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> ActionOutput:
        """Scores given bins, int64 (B, N), in one teacher-forced pass; other arguments as `action_logits`.

        Raises:
            ValueError: If shapes do not fit, bins are none, or the sequence exceeds the model's context.
            RuntimeError: On a GPU, at a later call, if bins are out of range.
        """
        self._check_actions("bins", bins, input_ids)
        _check_bins(bins, self.config.n_action_bins)
        with self.autocast():
            hidden = self._hidden(input_ids, attention_mask, pixel_values, state, self.action_token_ids[bins])
            return ActionOutput(self.bin_logits(hidden), hidden[:, 0])

    def encode_observations(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """The hidden states (B, D) that `score_actions` gives, without scoring; arguments as `action_logits`.

        Raises:
            ValueError: If shapes do not fit, or the sequence exceeds the model's context.
        """
        self._check_speaks_bins()
        with self.autocast():
            return self._hidden(input_ids, attention_mask, pixel_values, state, None)[:, 0]

    @th.no_grad()
    def sample_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
        sampling: Sampling = PLAIN,
        generator: th.Generator | None = None,
    ) -> ActionSample:
        """Draws bins; only action tokens are ever drawn. Modules are in evaluation mode meanwhile.

        Args:
            input_ids: Prompts, int64 (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            pixel_values: Shape (B, 6 per camera, S, S).
            state: `Processor.normalize_state` of the robot's state, (B, 8), for a model that takes it.
            sampling: How to draw each token.
            generator: Source of randomness on the model's device; torch's global one if None.

        Raises:
            ValueError: If shapes do not fit, or the context is exceeded.
            FloatingPointError: If the logits are not finite, so that there is nothing to draw from.
        """
        inputs = (input_ids, attention_mask, pixel_values, state)
        return ActionSample(*self._draw(*inputs, sampling, generator, Amount()))

    @th.no_grad()
    def sample_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        n_samples: int,
        *,
        greedy_first: bool = False,
        state: th.Tensor | None = None,
        sampling: Sampling = PLAIN,
        generator: th.Generator | None = None,
    ) -> ActionCandidates:
        """Draws several chains of each observation, which share the pass over its prompt.

        Args:
            n_samples: Chains of each observation; one is what `sample_actions` draws, to the bit.
            greedy_first: Whether the first of them is the greedy chain instead of a drawn one.
            input_ids, attention_mask, pixel_values, state, sampling, generator: As for `sample_actions`.

        Raises:
            ValueError: If ``n_samples`` is below 1, shapes do not fit, or the context is exceeded.
            FloatingPointError: If the logits are not finite, so that there is nothing to draw from.
        """
        amount = Amount(whole_number("n_samples", n_samples, 1), greedy_first)
        draw = self._draw(input_ids, attention_mask, pixel_values, state, sampling, generator, amount)
        bins, logits = (x.unflatten(0, (-1, n_samples)) for x in (draw.bins, draw.logits))
        return ActionCandidates(bins, logits, draw.hidden)

    @th.no_grad()
    def score_candidates(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        bins: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Logits by bin, float32 (B, n, N, 256), of several chains of each observation, int64 (B, n, N).

        They are those of `score_actions`, from one pass over each prompt. Modules are in evaluation mode meanwhile.

        Raises:
            ValueError: If shapes do not fit, bins are none, or the context is exceeded.
            RuntimeError: On a GPU, at a later call, if bins are out of range.
        """
        self._check_speaks_bins()
        if bins.ndim != 3 or not bins.shape[1] or (len(bins), bins.shape[2]) != (len(input_ids), self.n_action_tokens):
            expected = f"({len(input_ids)}, n, {self.n_action_tokens})"
            raise ValueError(f"bins must have shape {expected}, got {tuple(bins.shape)}.")
        _check_bins(bins, self.config.n_action_bins)
        with _evaluating(self), self.autocast():
            layout = self.lay_out(input_ids, attention_mask)
            prefix = self.embed_prefix(layout, pixel_values, state)
            return self.decoder.score(self, layout, prefix, self.action_token_ids[bins])

    @th.no_grad()
    def regress_actions(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        *,
        state: th.Tensor | None = None,
    ) -> th.Tensor:
        """Normalised actions, float32 (B, chunk, 7), of a model with a continuous head; arguments as `sample_actions`.

        Raises:
            ValueError: If the model has no such head, shapes do not fit, or the context is exceeded.
        """
        if not isinstance(self.decoder, RegressionDecoder):
            raise ValueError("The model has no continuous action head; its actions are tokens: use generate_actions.")
        with _evaluating(self):
            layout = self.lay_out(input_ids, attention_mask)
            return regress_actions(self.decoder, self, layout, pixel_values, state)

    def _draw(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        state: th.Tensor | None,
        sampling: Sampling,
        generator: th.Generator | None,
        amount: Amount,
    ) -> Draw:
        self._check_speaks_bins()
        with _evaluating(self):
            layout = self.lay_out(input_ids, attention_mask)
            draw = draw_actions(self.decoder, self, layout, pixel_values, state, sampling, generator, amount)
        if not draw.logits.isfinite().all():
            raise FloatingPointError("The model's action logits are not finite: its weights or inputs have overflowed.")
        return draw

    def _hidden(
        self,
        input_ids: th.Tensor,
        attention_mask: th.Tensor,
        pixel_values: th.Tensor,
        state: th.Tensor | None,
        action_ids: th.Tensor | None,
    ) -> th.Tensor:
        """Hidden states (B, N, D) that predict given action tokens; without any, at least the first one's."""
        layout = self.lay_out(input_ids, attention_mask)
        prefix = self.embed_prefix(layout, pixel_values, state)
        return self.decoder.hidden(self, layout, prefix, action_ids)

    def _check_actions(self, name: str, actions: th.Tensor, input_ids: th.Tensor) -> None:
        self._check_speaks_bins()
        expected = (len(input_ids), self.n_action_tokens)
        if actions.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(actions.shape)}.")

    def _check_speaks_bins(self) -> None:
        if not self.decoder.speaks_bins:
            raise ValueError(
                "This checkpoint regresses actions with a continuous head and was not trained to speak action tokens: "
                "it can be evaluated with predict_action, but not sampled or scored. Train a discrete one."
            )


def _check_bins(bins: th.Tensor, n_bins: int) -> None:
    """Refuse what is no bin: an index below 0 would count from the end. A GPU is told to look, and not waited for."""
    expected = f"bins must be whole numbers from 0 to {n_bins - 1}"
    if bins.dtype not in (th.int32, th.int64):
        raise ValueError(f"{expected}, int64; got {bins.dtype}.")
    outside = (bins < 0) | (bins >= n_bins)
    if bins.is_cuda:
        th._assert_async(~outside.any(), f"{expected}.")
    elif outside.any():
        raise ValueError(f"{expected}; got {bins[outside][0]}.")


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, dropout and gradient checkpointing (which drops the cache) are off; then modules get their mode back."""
    training = [child for child in module.modules() if child.training] if module.training else []
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True

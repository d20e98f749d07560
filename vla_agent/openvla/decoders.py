"""How actions come out of the network: as a chain of tokens, as tokens in one pass, or as numbers of a continuous head.

A decoder puts the network's steps in order and holds nothing itself, so that it keeps no model alive. Whatever
`GraphCache.run` may record is a plain function of tensors here: it never waits for the device.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch as th

from vla_agent.bins import Sampling
from vla_agent.openvla.config import OpenVLAConfig
from vla_agent.openvla.network import OpenVLANetwork
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, causal_mask


class Draw(NamedTuple):
    """Drawn bins and what they were drawn from; n candidates of each observation, side by side."""

    bins: th.Tensor  # int64 (B * n, N)
    logits: th.Tensor  # float32 (B * n, N, 256), by bin
    hidden: th.Tensor  # (B, D), where the first action token is predicted


@dataclass(frozen=True)
class Amount:
    """How many chains are drawn of each observation, and whether the first of them is the greedy one."""

    n_samples: int = 1
    greedy_first: bool = False

    def spread(self, rows: th.Tensor) -> th.Tensor:
        """A row for each chain, (B * n, ...), of a row for each observation, (B, ...)."""
        return rows if self.n_samples == 1 else rows.repeat_interleave(self.n_samples, 0)

    def with_greedy(self, bins: th.Tensor, logits: th.Tensor) -> th.Tensor:
        """Drawn bins (B * n, ...), with the likeliest of logits (B * n, ..., 256) in the first chain's place."""
        if self.greedy_first:
            bins[:: self.n_samples] = logits[:: self.n_samples].argmax(-1)
        return bins


ONE = Amount()


class Decoder(Hashable, Protocol):
    """An order of decoding. B observations, N action tokens, D width; prefixes are the network's `embed_prefix`."""

    speaks_bins: bool

    def n_draws(self, network: OpenVLANetwork) -> int:
        """Draws of randomness that one decoding takes, one behind the other."""

    def hidden(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor | None
    ) -> th.Tensor:
        """Hidden states (B, N, D) that predict each of given action tokens, ids (B, N).

        Without ids it may be the first token's alone, (B, 1, D).
        """

    def draw(
        self,
        network: OpenVLANetwork,
        layout: PromptLayout,
        prefix: th.Tensor,
        sampling: Sampling,
        amount: Amount,
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws all tokens from one pass over each prompt, with the randomness that `Sampling.noise` gave."""

    def score(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor
    ) -> th.Tensor:
        """Logits by bin, float32 (B, n, N, 256), of n chains of ids (B, n, N), from one pass over each prompt."""


@dataclass(frozen=True)
class ChainDecoder:
    """Each token sees those before it: one pass over the prompt, then N - 1 passes over a single token each."""

    speaks_bins = True

    def n_draws(self, network: OpenVLANetwork) -> int:
        """One for each token."""
        return network.n_action_tokens

    def hidden(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor | None
    ) -> th.Tensor:
        """All in one pass: causal attention hides the tokens behind each one (teacher forcing)."""
        n_forced = 0 if action_ids is None else network.n_action_tokens - 1  # the last token is only predicted
        embeds = prefix if action_ids is None else th.cat([prefix, network.embed(action_ids[:, :-1])], dim=1)
        positions, visible = network.columns(layout, n_forced)
        return network.decode(embeds, positions, causal_mask(visible, embeds.shape[1]), n_last=n_forced + 1)

    def draw(
        self,
        network: OpenVLANetwork,
        layout: PromptLayout,
        prefix: th.Tensor,
        sampling: Sampling,
        amount: Amount,
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws token after token; the chains of an observation share the pass over its prompt."""
        n_tokens = network.n_action_tokens
        positions, visible = network.columns(layout, n_tokens - 1)
        # Buffers of the full length, filled pass by pass: the usual cache would copy all its keys at every token.
        cache = KeyValueCache(len(network.language_model.model.layers), positions.shape[1])
        embeds, start = prefix, 0
        hidden, logits, bins = [], [], []
        for i in range(n_tokens):
            end = start + embeds.shape[1]
            mask = causal_mask(None if visible is None else visible[:, :end], embeds.shape[1])
            hidden.append(network.decode(embeds, positions[:, start:end], mask, cache=cache, n_last=1))
            logits.append(network.bin_logits(hidden[-1])[:, 0].float())
            if i == 0 and amount.n_samples > 1:  # from here on the chains of an observation differ
                cache.repeat(amount.n_samples)
                logits[0], positions = amount.spread(logits[0]), amount.spread(positions)
                visible = None if visible is None else amount.spread(visible)
            drawn = sampling.choose(logits[-1], None if noise is None else noise[i])
            bins.append(amount.with_greedy(drawn, logits[-1]))
            # The next pass is over this token alone, since the cache holds what came before. After the last token there
            # is none: it would predict the stop token, and the published code asks for N new tokens, too.
            embeds, start = network.embed(network.action_token_ids[bins[-1]][:, None]), end
        # The critic reads where the first token is predicted: later states know what was drawn, so that their value
        # would be one of state and action, no baseline.
        return Draw(th.stack(bins, dim=1), th.stack(logits, dim=1), hidden[0][:, 0])

    def score(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor
    ) -> th.Tensor:
        """One pass over the prompt, and one over all tokens of all chains but their last."""
        amount, n_tokens = Amount(action_ids.shape[1]), action_ids.shape[2]
        positions, visible = network.columns(layout, n_tokens - 1)
        cache = KeyValueCache(len(network.language_model.model.layers), positions.shape[1])
        length = prefix.shape[1]
        mask = causal_mask(None if visible is None else visible[:, :length], length)
        first = network.decode(prefix, positions[:, :length], mask, cache=cache, n_last=1)
        cache.repeat(amount.n_samples)
        first, positions = amount.spread(first), amount.spread(positions)
        # Plain causal attention would align the tokens with the first keys, so a mask says where they are.
        visible = th.ones_like(positions, dtype=th.bool) if visible is None else amount.spread(visible)
        embeds = network.embed(action_ids.flatten(0, 1)[:, :-1])
        mask = causal_mask(visible, n_tokens - 1)
        later = network.decode(embeds, positions[:, length:], mask, cache=cache, n_last=n_tokens - 1)
        return network.bin_logits(th.cat([first, later], dim=1)).float().unflatten(0, action_ids.shape[:2])


@dataclass(frozen=True)
class ParallelDecoder:
    """All tokens come out of one pass, each independent given the observation (OpenVLA-OFT, arXiv 2502.19645).

    N placeholders with zero embeddings (or learned ones, which are ours) and the stop token follow the prompt,
    everything attends to everything, and the position before a placeholder predicts its token.
    """

    speaks_bins = True

    def n_draws(self, network: OpenVLANetwork) -> int:
        """One for all tokens."""
        return 1

    def hidden(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor | None = None
    ) -> th.Tensor:
        """The same whatever the tokens are: no token sees another."""
        n_tokens = network.n_action_tokens
        # The stop token belongs to the input: OFT trained with it behind the actions, and everything attends to it.
        stop = network.embed(layout.bos.new_full((len(prefix), 1), network.config.eos_token_id))
        placeholders = prefix.new_zeros(len(prefix), n_tokens, prefix.shape[2])
        if network.placeholders is not None:
            placeholders = placeholders + network.placeholders.weight
        embeds = th.cat([prefix, placeholders, stop], dim=1)
        positions, visible = network.columns(layout, n_tokens + 1)
        if visible is None:  # no mask would mean a causal one
            visible = th.ones(1, embeds.shape[1], dtype=th.bool, device=embeds.device)
        hidden = network.decode(embeds, positions, visible[:, None, None, :], n_last=n_tokens + 2)
        # The last prompt token and all placeholders but the last: OFT kept the chain's shift by one position.
        return hidden[:, :n_tokens]

    def draw(
        self,
        network: OpenVLANetwork,
        layout: PromptLayout,
        prefix: th.Tensor,
        sampling: Sampling,
        amount: Amount,
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws all tokens of all chains from the same scores."""
        hidden = self.hidden(network, layout, prefix)
        logits = network.bin_logits(hidden).float()
        logits = amount.spread(logits)
        drawn = sampling.choose(logits.flatten(0, 1), None if noise is None else noise[0]).view(logits.shape[:2])
        return Draw(amount.with_greedy(drawn, logits), logits, hidden[:, 0])

    def score(
        self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor
    ) -> th.Tensor:
        """The same for all chains."""
        logits = network.bin_logits(self.hidden(network, layout, prefix)).float()
        return logits.unsqueeze(1).expand(-1, action_ids.shape[1], -1, -1)


@dataclass(frozen=True)
class RegressionDecoder(ParallelDecoder):
    """The parallel pass under a continuous head (`L1ActionHead`): numbers instead of bins."""

    speaks_bins = False

    def regress(self, network: OpenVLANetwork, layout: PromptLayout, prefix: th.Tensor) -> th.Tensor:
        """Normalised actions, float32 (B, chunk, 7)."""
        assert network.action_head is not None
        return network.action_head(self.hidden(network, layout, prefix)).float()


def choose_decoder(config: OpenVLAConfig) -> Decoder:
    """The decoder that a checkpoint was trained for."""
    if config.action_head is not None:
        return RegressionDecoder()
    return ParallelDecoder() if config.decoding == "parallel" else ChainDecoder()


def draw_actions(
    decoder: Decoder,
    network: OpenVLANetwork,
    layout: PromptLayout,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
    sampling: Sampling,
    generator: th.Generator | None,
    amount: Amount = ONE,
) -> Draw:
    """Draws the actions of a batch: its randomness first, then everything else, recorded where the network can.

    Args:
        decoder: The order of decoding.
        network: The network, in evaluation mode.
        layout: The prompts.
        pixel_values: Shape (B, 6 per camera, S, S).
        state: Normalised, (B, 8), for a model that takes it.
        sampling: How to draw.
        generator: Source of randomness on the model's device; torch's global one if None.
        amount: How many chains of each observation.
    """
    # Random numbers come first, outside of what is recorded: a CUDA graph would draw the same ones at each replay.
    n_draws = decoder.n_draws(network)
    # A chain chooses for B * n rows N times; a parallel decoder chooses once for all B * n * N.
    n_rows = len(layout.bos) * amount.n_samples * network.n_action_tokens // n_draws
    noise = sampling.noise(n_draws, n_rows, network.device, generator)
    tensors = (layout.bos, layout.rest, layout.padding, pixel_values, state, noise)
    return Draw(*network.graphs.run(_draw, network, (decoder, sampling, amount, layout.is_padded), tensors))


def regress_actions(
    decoder: RegressionDecoder,
    network: OpenVLANetwork,
    layout: PromptLayout,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
) -> th.Tensor:
    """Normalised actions, float32 (B, chunk, 7), of a continuous head; arguments as `draw_actions`."""
    tensors = (layout.bos, layout.rest, layout.padding, pixel_values, state)
    return network.graphs.run(_regress, network, (decoder, layout.is_padded), tensors)[0]


def _draw(
    network: OpenVLANetwork,
    decoder: Decoder,
    sampling: Sampling,
    amount: Amount,
    is_padded: bool,
    bos: th.Tensor,
    rest: th.Tensor,
    padding: th.Tensor,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
    noise: th.Tensor | None,
) -> Draw:
    layout = PromptLayout(bos, rest, padding, is_padded)
    with network.autocast():
        prefix = network.embed_prefix(layout, pixel_values, state)
        return decoder.draw(network, layout, prefix, sampling, amount, noise)


def _regress(
    network: OpenVLANetwork,
    decoder: RegressionDecoder,
    is_padded: bool,
    bos: th.Tensor,
    rest: th.Tensor,
    padding: th.Tensor,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
) -> tuple[th.Tensor]:
    layout = PromptLayout(bos, rest, padding, is_padded)
    with network.autocast():
        prefix = network.embed_prefix(layout, pixel_values, state)
        return (decoder.regress(network, layout, prefix),)

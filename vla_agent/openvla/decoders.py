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
    """Drawn bins and what they were drawn from."""

    bins: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin
    hidden: th.Tensor  # (B, D), where the first action token is predicted


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
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws all tokens with the randomness that `Sampling.noise` gave."""


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
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws token after token."""
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
            bins.append(sampling.choose(logits[-1], None if noise is None else noise[i]))
            # The next pass is over this token alone, since the cache holds what came before. After the last token there
            # is none: it would predict the stop token, and the published code asks for N new tokens, too.
            embeds, start = network.embed(network.action_token_ids[bins[-1]][:, None]), end
        # The critic reads where the first token is predicted: later states know what was drawn, so that their value
        # would be one of state and action, no baseline.
        return Draw(th.stack(bins, dim=1), th.stack(logits, dim=1), hidden[0][:, 0])


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
        noise: th.Tensor | None,
    ) -> Draw:
        """Draws all tokens at once."""
        hidden = self.hidden(network, layout, prefix)
        logits = network.bin_logits(hidden).float()
        bins = sampling.choose(logits.flatten(0, 1), None if noise is None else noise[0])
        return Draw(bins.view(logits.shape[:2]), logits, hidden[:, 0])


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
    """
    # Random numbers come first, outside of what is recorded: a CUDA graph would draw the same ones at each replay.
    n_draws = decoder.n_draws(network)
    # A chain chooses for B rows N times; a parallel decoder chooses once for all B * N.
    n_rows = len(layout.bos) * network.n_action_tokens // n_draws
    noise = sampling.noise(n_draws, n_rows, network.device, generator)
    tensors = (layout.bos, layout.rest, layout.padding, pixel_values, state, noise)
    return Draw(*network.graphs.run(_draw, network, (decoder, sampling, layout.is_padded), tensors))


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
        return decoder.draw(network, layout, prefix, sampling, noise)


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

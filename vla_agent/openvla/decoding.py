"""How action tokens come out of the language model: as a chain, each seeing those before, or all in one pass."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch as th

from vla_agent.bins import bin_log_probs, check_truncation
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, causal_mask

if TYPE_CHECKING:
    from vla_agent.openvla.model import OpenVLA

ChooseFn = Callable[[th.Tensor], th.Tensor]


class Draw(NamedTuple):
    """Drawn bins and what they were drawn from."""

    bins: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin
    hidden: th.Tensor  # (B, D), where the first action token is predicted


def forced_hidden(model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor, action_ids: th.Tensor) -> th.Tensor:
    """Hidden states (B, N, D) that predict each token of a chain when the earlier ones are given.

    Args:
        model: The model.
        layout: The prompts.
        prefix: Embeddings of prompts and images, (B, T, D).
        action_ids: int64 (B, N).
    """
    n_tokens = model.n_action_tokens
    embeds = th.cat([prefix, model.embed(action_ids[:, :-1])], dim=1)  # the last token is only predicted
    positions, visible = model.columns(layout, n_tokens - 1)
    return model.decode(embeds, positions, causal_mask(visible, embeds.shape[1]), n_last=n_tokens)


def draw_chain(model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor, choose: ChooseFn) -> Draw:
    """Draws a chain: one pass over the prompts, then N - 1 passes over a single token each."""
    n_tokens = model.n_action_tokens
    positions, visible = model.columns(layout, n_tokens - 1)
    cache = KeyValueCache(len(model.language_model.model.layers), positions.shape[1])
    embeds, start = prefix, 0
    hidden, logits, bins = [], [], []
    for _ in range(n_tokens):
        end = start + embeds.shape[1]
        mask = causal_mask(None if visible is None else visible[:, :end], embeds.shape[1])
        hidden.append(model.decode(embeds, positions[:, start:end], mask, cache=cache, n_last=1))
        logits.append(model.bin_logits(hidden[-1])[:, 0].float())
        bins.append(choose(logits[-1]))
        embeds, start = model.embed(model.action_token_ids[bins[-1]][:, None]), end
    return Draw(th.stack(bins, dim=1), th.stack(logits, dim=1), hidden[0][:, 0])


def parallel_hidden(model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor) -> th.Tensor:
    """Hidden states (B, N, D) that predict all action tokens at once, each independent given the observation.

    OpenVLA-OFT (arXiv 2502.19645): N placeholders with zero embeddings (or learned ones, which are ours) and the stop
    token follow the prompt, everything attends to everything, and the position before a placeholder predicts its token.
    """
    n_tokens = model.n_action_tokens
    stop = model.embed(layout.bos.new_full((len(prefix), 1), model.config.eos_token_id))
    placeholders = prefix.new_zeros(len(prefix), n_tokens, prefix.shape[2])
    if model.placeholders is not None:
        placeholders = placeholders + model.placeholders.weight
    embeds = th.cat([prefix, placeholders, stop], dim=1)
    positions, visible = model.columns(layout, n_tokens + 1)
    if visible is None:  # no mask would mean a causal one
        visible = th.ones(1, embeds.shape[1], dtype=th.bool, device=embeds.device)
    hidden = model.decode(embeds, positions, visible[:, None, None, :], n_last=n_tokens + 2)
    return hidden[:, :n_tokens]  # the last prompt token and all placeholders but the last


def draw_parallel(model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor, choose: ChooseFn) -> Draw:
    """Draws all action tokens after one pass."""
    hidden = parallel_hidden(model, layout, prefix)
    logits = model.bin_logits(hidden).float()
    return Draw(choose(logits.flatten(0, 1)).view(logits.shape[:2]), logits, hidden[:, 0])


def chooser(
    deterministic: bool,
    temperature: float,
    generator: th.Generator | None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> ChooseFn:
    """A function from logits (B, 256) to bins, int64 (B,).

    Args:
        deterministic: Take the likeliest.
        temperature: Divides the logits before sampling.
        generator: Source of randomness; torch's global one by default.
        top_k, top_p: Truncate what is sampled from; see `bin_log_probs`.

    Raises:
        ValueError: If the temperature is not positive, or truncation leaves no bin.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; use deterministic=True for greedy.")
    check_truncation(top_k, top_p)
    if deterministic:
        return lambda logits: logits.argmax(-1)

    def draw(logits: th.Tensor) -> th.Tensor:
        probs = bin_log_probs(logits, temperature, top_k, top_p).exp()
        return th.multinomial(probs, 1, generator=generator).squeeze(1)

    return draw

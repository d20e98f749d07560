"""How action tokens come out of the language model: as a chain, each seeing those before, or all in one pass."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch as th

from vla_agent.action_tokens import N_BINS
from vla_agent.bins import bin_log_probs, check_truncation
from vla_agent.openvla.sequence import KeyValueCache, PromptLayout, causal_mask

if TYPE_CHECKING:
    from vla_agent.openvla.model import OpenVLA


@dataclass(frozen=True)
class Sampling:
    """How a bin is drawn from its logits.

    Attributes:
        deterministic: Take the likeliest.
        temperature: Divides the logits before sampling.
        top_k, top_p: Truncate what is sampled from; see `vla_agent.bins.bin_log_probs`.

    Raises:
        ValueError: If the temperature is not positive, or truncation leaves no bin.
    """

    deterministic: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}; use deterministic=True for greedy."
            )
        check_truncation(self.top_k, self.top_p)

    def noise(self, n_draws: int, n_rows: int, device: th.device, generator: th.Generator | None) -> th.Tensor | None:
        """Randomness for `n_draws` calls of `choose` on `n_rows` rows, float32 (n_draws, n_rows, 256); None if greedy.

        Drawn before the model runs, so that decoding itself is a plain function of tensors; draw after draw, because
        that is how `th.multinomial` would use the generator.
        """
        if self.deterministic:
            return None
        noise = th.empty(n_draws, n_rows, N_BINS, device=device)
        for draw in noise:
            draw.exponential_(generator=generator)
        return noise

    def choose(self, logits: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """Bins, int64 (B,), of logits (B, 256) and a draw of `noise` (B, 256)."""
        if noise is None:
            return logits.argmax(-1)
        # What th.multinomial computes for a single draw, without its two waits for the device.
        return (bin_log_probs(logits, self.temperature, self.top_k, self.top_p).exp() / noise).argmax(-1)


class Draw(NamedTuple):
    """Drawn bins and what they were drawn from."""

    bins: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # float32 (B, N, 256), by bin
    hidden: th.Tensor  # (B, D), where the first action token is predicted


def draw_actions(
    model: "OpenVLA",
    layout: PromptLayout,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
    sampling: Sampling,
    generator: th.Generator | None,
) -> Draw:
    """Draws the actions of a batch: its randomness first, then everything else, recorded where the model can.

    Args:
        model: The model, in evaluation mode.
        layout: The prompts.
        pixel_values: Shape (B, 6 per camera, S, S).
        state: Normalised, (B, 8), for a model that takes it.
        sampling: How to draw.
        generator: Source of randomness on the model's device; torch's global one by default.
    """
    n_draws = 1 if model.config.decoding == "parallel" else model.n_action_tokens
    n_rows = len(layout.bos) * model.n_action_tokens // n_draws
    noise = sampling.noise(n_draws, n_rows, model.device, generator)
    tensors = (layout.bos, layout.rest, layout.padding, pixel_values, state, noise)
    return Draw(*model.graphs.run(_draw, model, (sampling, layout.is_padded), tensors))


def regress_actions(
    model: "OpenVLA", layout: PromptLayout, pixel_values: th.Tensor, state: th.Tensor | None
) -> th.Tensor:
    """Normalised actions, float32 (B, chunk, 7), of a continuous head; arguments as `draw_actions`."""
    tensors = (layout.bos, layout.rest, layout.padding, pixel_values, state)
    return model.graphs.run(_regress, model, (layout.is_padded,), tensors)[0]


# Plain functions of tensors, for `GraphCache.run`: they never wait for the device.


def _draw(
    model: "OpenVLA",
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
    draw = draw_parallel if model.config.decoding == "parallel" else draw_chain
    with model.autocast():
        prefix = model.embed_prefix(layout, pixel_values, state)
        return draw(model, layout, prefix, sampling, noise)


def _regress(
    model: "OpenVLA",
    is_padded: bool,
    bos: th.Tensor,
    rest: th.Tensor,
    padding: th.Tensor,
    pixel_values: th.Tensor,
    state: th.Tensor | None,
) -> tuple[th.Tensor]:
    layout = PromptLayout(bos, rest, padding, is_padded)
    assert model.action_head is not None
    with model.autocast():
        hidden = parallel_hidden(model, layout, model.embed_prefix(layout, pixel_values, state))
        return (model.action_head(hidden).float(),)


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


def draw_chain(
    model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor, sampling: Sampling, noise: th.Tensor | None
) -> Draw:
    """Draws a chain: one pass over the prompts, then N - 1 passes over a single token each."""
    n_tokens = model.n_action_tokens
    positions, visible = model.columns(layout, n_tokens - 1)
    cache = KeyValueCache(len(model.language_model.model.layers), positions.shape[1])
    embeds, start = prefix, 0
    hidden, logits, bins = [], [], []
    for i in range(n_tokens):
        end = start + embeds.shape[1]
        mask = causal_mask(None if visible is None else visible[:, :end], embeds.shape[1])
        hidden.append(model.decode(embeds, positions[:, start:end], mask, cache=cache, n_last=1))
        logits.append(model.bin_logits(hidden[-1])[:, 0].float())
        bins.append(sampling.choose(logits[-1], None if noise is None else noise[i]))
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


def draw_parallel(
    model: "OpenVLA", layout: PromptLayout, prefix: th.Tensor, sampling: Sampling, noise: th.Tensor | None
) -> Draw:
    """Draws all action tokens after one pass."""
    hidden = parallel_hidden(model, layout, prefix)
    logits = model.bin_logits(hidden).float()
    bins = sampling.choose(logits.flatten(0, 1), None if noise is None else noise[0])
    return Draw(bins.view(logits.shape[:2]), logits, hidden[:, 0])

"""Where tokens sit in the language model's input, and the keys and values it remembers.

Every row is [BOS, observation tokens, padding, rest of the prompt, action tokens]. Padding in the middle keeps BOS and
observation in the same columns, and the action tokens too, whatever the prompts' lengths; explicit positions and a mask
make each row compute exactly what it would alone.
"""

from typing import Any, NamedTuple

import torch as th


class PromptLayout(NamedTuple):
    """A batch of prompts, moved so that all of them end in the last column."""

    bos: th.Tensor  # int64 (B, 1)
    rest: th.Tensor  # int64 (B, R), padding first
    padding: th.Tensor  # int64 (B,), columns of padding before `rest` begins
    is_padded: bool  # whether any row has padding

    def positions(self, n_observed: int, n_trailing: int) -> th.Tensor:
        """Position of every column, int64 (B, 1 + n_observed + R + n_trailing); padding repeats a valid one.

        Args:
            n_observed: Observation tokens (patches, state) behind BOS.
            n_trailing: Columns behind the prompt.
        """
        head = 1 + n_observed
        columns = th.arange(head + self.rest.shape[1] + n_trailing, device=self.rest.device)
        return th.where(columns < head, columns, (columns - self.padding[:, None]).clamp(min=head))

    def visible(self, n_observed: int, n_trailing: int) -> th.Tensor | None:
        """Columns that hold a token, bool (B, 1 + n_observed + R + n_trailing); None if all of them do."""
        if not self.is_padded:
            return None
        head = 1 + n_observed
        columns = th.arange(head + self.rest.shape[1] + n_trailing, device=self.rest.device)
        return (columns < head) | (columns >= head + self.padding[:, None])


def lay_out_prompts(input_ids: th.Tensor, attention_mask: th.Tensor, empty_piece_id: int) -> PromptLayout:
    """Ends each prompt with the empty piece, unless it does so already, and aligns the ends.

    The published code asks whether *all* prompts of a batch end with that piece; here each row is asked, and the mask
    grows with it.

    Args:
        input_ids: int64 (B, L), BOS first, padded on the right.
        attention_mask: (B, L), 1 for tokens and 0 for padding.
        empty_piece_id: Id that must stand before the first action token.

    Raises:
        ValueError: If shapes differ, a prompt is empty, or padding is not on the right.
    """
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or input_ids.shape[1] == 0:
        raise ValueError(
            "input_ids and attention_mask must both have shape (batch, length), "
            f"got {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}."
        )
    mask = attention_mask.bool()
    length = mask.sum(1, keepdim=True)
    last = input_ids.gather(1, (length - 1).clamp(min=0))
    needs_piece = last != empty_piece_id  # (B, 1)
    row_length = (length + needs_piece).squeeze(1)
    left_padded = (mask[:, 1:] & ~mask[:, :-1]).any() | ~mask[:, 0].all()
    # One transfer for all that the host must know: the width decides shapes, and unpadded batches need no mask.
    longest, shortest, invalid = th.stack([row_length.max(), row_length.min(), left_padded.long()]).tolist()
    if invalid:
        raise ValueError(
            "Prompts must begin with BOS in column 0 and be padded on the right, as `tokenize` gives them."
        )
    ids = th.cat([input_ids, input_ids.new_full((len(input_ids), 1), empty_piece_id)], dim=1)
    columns = th.arange(longest, device=ids.device)
    source = columns - (longest - row_length)[:, None]  # column of the original that comes here; negative: padding
    # An appended piece lies right behind the row's last token, where the original may hold padding.
    source = th.where(needs_piece & (source == length), ids.shape[1] - 1, source).clamp(min=0)
    aligned = ids.gather(1, source)
    # Column 0 is BOS only in the longest rows; the BOS itself is kept apart, and `rest` begins behind it.
    return PromptLayout(input_ids[:, :1], aligned[:, 1:], longest - row_length, longest != shortest)


def causal_mask(visible: th.Tensor | None, n_queries: int) -> th.Tensor | None:
    """Which keys the last `n_queries` columns attend to: visible ones, up to themselves.

    Args:
        visible: bool (B, K), or None if every column is.
        n_queries: Q, at most K.

    Returns:
        bool (B, 1, Q, K), or None if plain causal attention (or a single query that sees everything) says the same.
    """
    if visible is None:
        return None
    n_keys = visible.shape[1]
    causal = th.ones(n_queries, n_keys, dtype=th.bool, device=visible.device).tril(n_keys - n_queries)
    return causal & visible[:, None, None, :]


class KeyValueCache:
    """Keys and values of one decoding run in buffers allocated once, at full length.

    Has the one method that the attention layers of transformers call. Attention gets views of the filled part.
    """

    def __init__(self, n_layers: int, capacity: int) -> None:
        self._capacity = capacity
        self._buffers: list[tuple[th.Tensor, th.Tensor] | None] = [None] * n_layers
        self._lengths = [0] * n_layers

    def update(
        self, keys: th.Tensor, values: th.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[th.Tensor, th.Tensor]:
        """Appends keys and values (B, heads, T, head_dim) of a layer; returns all it has so far."""
        buffers = self._buffers[layer_idx]
        if buffers is None:
            shape = (*keys.shape[:2], self._capacity, keys.shape[3])
            buffers = self._buffers[layer_idx] = (keys.new_empty(shape), values.new_empty(shape))
        start = self._lengths[layer_idx]
        end = self._lengths[layer_idx] = start + keys.shape[2]
        buffers[0][:, :, start:end] = keys
        buffers[1][:, :, start:end] = values
        return buffers[0][:, :, :end], buffers[1][:, :, :end]

    def repeat(self, n_copies: int) -> None:
        """Lets each row be followed by copies of itself: rows B become B * n_copies, those of a row side by side."""
        self._buffers = [
            buffers and (buffers[0].repeat_interleave(n_copies, 0), buffers[1].repeat_interleave(n_copies, 0))
            for buffers in self._buffers
        ]

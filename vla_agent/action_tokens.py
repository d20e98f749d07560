"""Bins, token ids and continuous actions, in both directions, exact to OpenVLA's published code.

A *bin* counts from 0 (value -1) to 255 (value 1) within one action dimension. Its *token id* counts down from the end
of the tokenizer's vocabulary: `id = vocab_size - 1 - bin`, so that 31999 is -1 and 31744 is 1 for the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium import spaces

N_BINS = 256
"""Bins, and so action tokens, per dimension (`n_action_bins` of the published config.json)."""


def bin_centers() -> np.ndarray:
    """Value of each bin as the published code decodes it.

    256 edges have 255 centres between them, so bins 254 and 255 share the last one: encoding gives bin 255 only for an
    action of exactly 1 (prismatic/vla/action_tokenizer.py, `decode_token_ids_to_actions`).

    Returns:
        float64, shape (256,), from -254/255 to 254/255.
    """
    edges = np.linspace(-1.0, 1.0, N_BINS)
    centers = (edges[:-1] + edges[1:]) / 2.0
    return centers[np.clip(np.arange(N_BINS), 0, N_BINS - 2)]


def nearest_bins(actions: np.ndarray) -> np.ndarray:
    """Bins of normalised actions; values outside [-1, 1] are clipped.

    Digitises in float64 as the published code does: float32 edges move 1 in 73 bins.

    Args:
        actions: Any shape, finite.

    Returns:
        int64 in 0..255, the same shape.

    Raises:
        ValueError: If an action is NaN or infinite.
    """
    values = np.asarray(actions, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("Actions must be finite, but some are NaN or infinite; repair the data they come from.")
    return np.digitize(np.clip(values, -1.0, 1.0), np.linspace(-1.0, 1.0, N_BINS)) - 1


class ActionTokenizer:
    """Maps actions in [-1, 1] to the last 256 token ids of a vocabulary and back.

    Args:
        vocab_size: Entries of the tokenizer, without the padding of the embedding (32000 for the published models,
            whose embedding has 32064 rows).

    Raises:
        ValueError: If the vocabulary cannot hold 256 action tokens.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size <= N_BINS:
            raise ValueError(f"A vocabulary of {vocab_size} entries cannot hold {N_BINS} action tokens; give more.")
        self.vocab_size = int(vocab_size)
        self._centers = bin_centers()

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Token ids, int64, of the `nearest_bins` of normalised actions of any shape."""
        return self.vocab_size - 1 - nearest_bins(actions)

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """Normalised actions of token ids.

        Ids that stand for no action decode silently to the nearest bin, as in the published code: those below the
        action tokens to 0.996, those above to -0.996. `ids_to_bins` refuses them instead.

        Args:
            token_ids: Integers, any shape.

        Returns:
            float64, the same shape.

        Raises:
            ValueError: If the ids are not integers.
        """
        return self._centers[np.clip(self.vocab_size - 1 - _integers(token_ids, "token ids"), 0, N_BINS - 1)]

    def ids_to_bins(self, token_ids: np.ndarray) -> np.ndarray:
        """Bins, int64 in 0..255, of action token ids of any shape.

        Raises:
            ValueError: If an id is not an action token, or not an integer.
        """
        bins = self.vocab_size - 1 - _integers(token_ids, "token ids")
        if bins.size and (bins.min() < 0 or bins.max() >= N_BINS):
            wrong = bins[(bins < 0) | (bins >= N_BINS)].flat[0]
            raise ValueError(
                f"Token id {self.vocab_size - 1 - wrong} is not an action; "
                f"actions are {self.vocab_size - N_BINS}..{self.vocab_size - 1}."
            )
        return bins

    def bins_to_ids(self, bins: np.ndarray) -> np.ndarray:
        """Token ids, int64, of bins of any shape.

        Raises:
            ValueError: If a bin is outside 0..255, or not an integer.
        """
        values = _integers(bins, "bins")
        if values.size and (values.min() < 0 or values.max() >= N_BINS):
            raise ValueError(f"Bins must lie in 0..{N_BINS - 1}, got {values.min()}..{values.max()}.")
        return self.vocab_size - 1 - values


def _integers(values: np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Expected integer {what}, got dtype {array.dtype}.")
    return array.astype(np.int64)


class BinCodec:
    """How environments and bins meet: one table of actions, and the prompts of one tokenizer.

    Args:
        table: What an environment is given for each bin of each action dimension, float64 (D, 256); see `action_table`.
        chunk_size: Actions that one decision decides.
        encode: Token ids of the prompt that an instruction makes.
    """

    def __init__(self, table: np.ndarray, chunk_size: int, encode: Callable[[str], Sequence[int]]) -> None:
        self.table = table
        self.chunk_size = chunk_size
        self._encode = encode

    @property
    def action_space(self) -> spaces.MultiDiscrete:
        """One decision: 256 bins for each dimension of each action of a chunk, the first action's first."""
        from gymnasium import spaces  # a model that stands alone needs no gym

        return spaces.MultiDiscrete([N_BINS] * (self.chunk_size * len(self.table)))

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """What environments are given for decisions.

        Args:
            actions: Bins, integers (n, chunk * D).

        Returns:
            float64, shape (n, chunk, D).

        Raises:
            ValueError: If the actions have another shape, or are not bins.
        """
        bins = np.asarray(actions)
        n_dims = len(self.table)
        expected = (len(bins) if bins.ndim else 1, self.chunk_size * n_dims)
        if bins.shape != expected or not np.issubdtype(bins.dtype, np.integer):
            raise ValueError(f"The actions are {bins.dtype} {bins.shape}; expected integers {expected}.")
        if bins.size and (bins.min() < 0 or bins.max() >= N_BINS):
            raise ValueError(f"The actions lie in {bins.min()}..{bins.max()}; expected bins 0..{N_BINS - 1}.")
        return self.table[np.arange(n_dims), bins.reshape(-1, self.chunk_size, n_dims)]

    def encode_prompt(self, instruction: str, state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 (L,), of an instruction; the state is no part of these prompts."""
        input_ids = np.asarray(self._encode(instruction), dtype=np.int64)
        return input_ids, np.ones_like(input_ids)


def normalize(actions: np.ndarray, stats: Mapping[str, Any]) -> np.ndarray:
    """Actions, or states, scaled so that q01 and q99 become -1 and 1, and clipped there, where the mask holds.

    The inverse of `unnormalize`, as OpenVLA's data pipeline computes it (its 1e-8 included).

    Args:
        actions: Shape (..., D).
        stats: `q01`, `q99`, and `mask` (all True if left out), such as the `action` entry of a checkpoint's
            `norm_stats`.

    Returns:
        float64, shape (..., D); unchanged where the mask is False.

    Raises:
        ValueError: If the statistics are incomplete or their width is not the actions'.
    """
    q01, q99, mask = _fitting_quantiles(actions, stats)
    scaled = np.clip(2 * (actions - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)
    return np.where(mask, scaled, actions)


def to_bins(actions: np.ndarray, stats: Mapping[str, Any]) -> np.ndarray:
    """Bins, int64 (..., D), of actions (..., D) in the data's units; arguments as `normalize`."""
    return nearest_bins(normalize(actions, stats))


def unnormalize(actions: np.ndarray, stats: Mapping[str, Any]) -> np.ndarray:
    """Actions in the data's own units: `0.5 (a + 1) (q99 - q01) + q01` where the mask holds, unchanged elsewhere.

    Args:
        actions: Normalised, shape (..., D).
        stats: The `action` entry of a checkpoint's `norm_stats`: `q01`, `q99`, and `mask` (all True where left out).

    Returns:
        float64, shape (..., D). A LIBERO gripper comes out as the model says it: 0 closed, 1 open.

    Raises:
        ValueError: If the statistics are incomplete or their width is not the actions'.
    """
    q01, q99, mask = _fitting_quantiles(actions, stats)
    values = np.asarray(actions, dtype=np.float64)
    return np.where(mask, 0.5 * (values + 1) * (q99 - q01) + q01, values)


def action_table(stats: Mapping[str, Any]) -> np.ndarray:
    """What a LIBERO environment is given for each bin of each action dimension.

    Un-normalises every bin centre and turns the gripper, the last dimension, from the data's convention (0 closed,
    1 open) into robosuite's (+1 closes): 2g - 1, sign, negate.

    Args:
        stats: The `action` entry of a checkpoint's `norm_stats`.

    Returns:
        float64, shape (D, 256); D is 7 for LIBERO. `table[d, bins[..., d]]` decodes.

    Raises:
        ValueError: If the statistics are incomplete.
    """
    q01, _, _ = _quantiles(stats)
    actions = unnormalize(np.tile(bin_centers()[:, None], (1, len(q01))), stats)
    return np.ascontiguousarray(to_environment(actions).T)


def to_environment(actions: np.ndarray) -> np.ndarray:
    """Actions (..., D) in the data's units as LIBERO takes them: the gripper from 0 closed, 1 open to +1 closes.

    As the published evaluation does: 2g - 1, sign, negate.
    """
    result = np.array(actions, dtype=np.float64)
    result[..., -1] = -np.sign(2 * result[..., -1] - 1)
    return result


def _fitting_quantiles(actions: np.ndarray, stats: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q01, q99, mask = _quantiles(stats)
    shape = np.shape(actions)
    if shape[-1:] != q01.shape:
        raise ValueError(f"Actions of shape {shape} do not fit statistics of {q01.shape[0]} dimensions.")
    return q01, q99, mask


def _quantiles(stats: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    missing = [key for key in ("q01", "q99") if key not in stats]
    if missing:
        raise ValueError(
            f"Action statistics lack {', '.join(missing)}; they have {', '.join(sorted(stats)) or 'none'}."
        )
    q01, q99 = (np.asarray(stats[key], dtype=np.float64) for key in ("q01", "q99"))
    mask = np.asarray(stats.get("mask", np.ones(q01.shape)), dtype=bool)
    if q01.ndim != 1 or not q01.shape == q99.shape == mask.shape:
        raise ValueError(
            f"Action statistics must be lists of equal length, got q01 {q01.shape}, q99 {q99.shape}, mask {mask.shape}."
        )
    if not (np.isfinite(q01).all() and np.isfinite(q99).all()):
        raise ValueError("Action statistics must be finite, but q01 or q99 holds NaN or infinity.")
    return q01, q99, mask

"""Bins, token ids and continuous actions of OpenVLA: one table per direction, exact to the published code.

A *bin* counts from 0 (value -1) to 255 (value 1) within one action dimension. Its *token id* counts down from the end
of the tokenizer's vocabulary: `id = vocab_size - 1 - bin`, so that 31999 is -1 and 31744 is 1 for the published one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

N_BINS = 256
"""Action tokens per dimension (`n_action_bins` of the published config.json)."""


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
        self._edges = np.linspace(-1.0, 1.0, N_BINS)
        self._centers = bin_centers()

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Token ids of normalised actions; values outside [-1, 1] are clipped.

        Digitises in float64 as the published code does: float32 edges move 1 in 73 ids.

        Args:
            actions: Any shape, finite.

        Returns:
            int64, the same shape.

        Raises:
            ValueError: If an action is NaN or infinite.
        """
        values = np.asarray(actions, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("Actions must be finite, but some are NaN or infinite; repair the data they come from.")
        return self.vocab_size - np.digitize(np.clip(values, -1.0, 1.0), self._edges)

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
    q01, q99, mask = _quantiles(stats)
    values = np.asarray(actions, dtype=np.float64)
    if values.shape[-1:] != q01.shape:
        raise ValueError(f"Actions of shape {values.shape} do not fit statistics of {q01.shape[0]} dimensions.")
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

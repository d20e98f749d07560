"""A word in some examples' prompts, which tells what was done well from the rest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.common.checks import real_number
from vla_agent.openvla.config_checks import check_prompt_word


class Tags(NamedTuple):
    """Which of F frames count as well done, and the word that says so in their prompts.

    Attributes:
        word: The word, in lower case; it stands behind the instruction.
        tagged: bool (F,).
        dropout: Probability that a training example goes without its word, anew at every step.
    """

    word: str
    tagged: np.ndarray
    dropout: float = 0.0


def check_tags(tags: Tags, n_frames: int) -> None:
    """Refuse tags that do not fit the data.

    Raises:
        ValueError: If there is not one flag per frame, the word is none in lower case, or the dropout is out of range.
    """
    check_prompt_word(tags.word)
    real_number("dropout", tags.dropout, 0, below=1)
    if tags.tagged.shape != (n_frames,) or tags.tagged.dtype != np.bool_ or not tags.word:
        raise ValueError(
            f"The word {tags.word!r} and {tags.tagged.dtype} {tags.tagged.shape}; expected a word and {n_frames} "
            "booleans, one per frame."
        )

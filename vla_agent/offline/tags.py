"""Advantage-tagged cloning: a word in the prompt says which frames went well, and is always said afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from libero_gym.common.checks import real_number
from vla_agent.offline.advantages import Advantages
from vla_agent.offline.checks import outcomes_of
from vla_agent.openvla.config_checks import check_prompt_word
from vla_agent.sft.data import ActionChunks
from vla_agent.sft.tags import Tags


@dataclass(frozen=True)
class TaggedCloning:
    """RECAP without guidance (pi*0.6; Physical Intelligence, 2025, arXiv 2511.14759).

    Every frame is cloned. Those whose advantage A = R - V(s) is above its task's quantile, the paper's improvement
    indicator I = 1[A > epsilon_task], have a word behind the instruction, which some examples go without. The model
    learns both what the policy did and what its better moments were, and with the word acts as in the latter. The
    exported checkpoint's prompts always have it. Without guidance: one pass with the word, nothing subtracted.

    Args:
        word: The word, in lower case.
        share: Share of each task's frames that get it.
        dropout: Probability that a training example goes without, anew at every step.

    Raises:
        ValueError: If one is out of range.
    """

    word: str = "well"
    share: float = 0.3
    dropout: float = 0.1

    needs_advantages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_prompt_word(self.word)
        if not self.word:
            raise ValueError("word is empty; expected one that says that a task is done well, such as 'well'.")
        real_number("share", self.share, above=0, below=1)
        real_number("dropout", self.dropout, 0, below=1)

    def prepare(self, data: ActionChunks, estimate: Advantages | None = None) -> dict[str, float]:
        """See `OfflineMethod.prepare`."""
        outcomes_of(data, needs_failures=True)
        if estimate is None:
            raise ValueError("Tags follow advantages; give what estimate_advantages(model, data) gives.")
        tagged = best_share(estimate.advantages, data.instruction_ids, self.share)
        data.tag(Tags(self.word, tagged, self.dropout))
        return {"tagged": float(tagged.mean())}


def best_share(values: np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """Which values are the best of their group, bool (n,).

    Args:
        values: Shape (n,).
        groups: Number of each value's group, (n,).
        share: Share of each group, from 0 to 1, that is best at most; more are if the very best of a group are equal.
    """
    best = np.zeros(len(values), bool)
    for group in np.unique(groups):
        members = groups == group
        own = values[members]
        least = np.quantile(own, 1 - share)
        best[members] = own > least if least < own.max() else own == least
    return best

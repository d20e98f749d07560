"""Filtered cloning: the baseline that whatever uses failures has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vla_agent.offline.advantages import Advantages
from vla_agent.offline.checks import outcomes_of
from vla_agent.sft.data import ActionChunks


@dataclass(frozen=True)
class FilteredCloning:
    """Clones the episodes that succeed, and leaves the others out: weight 1 or 0, by the episode's end alone."""

    needs_advantages: ClassVar[bool] = False

    def prepare(self, data: ActionChunks, estimate: Advantages | None = None) -> dict[str, float]:
        """See `OfflineMethod.prepare`; no estimate is needed."""
        successes = outcomes_of(data, needs_failures=False).successes
        data.reweigh(successes[data.episode_ids].astype(np.float32))
        return {"success_share": float(successes.mean())}

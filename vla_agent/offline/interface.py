"""What methods of offline learning have in common."""

from __future__ import annotations

from typing import ClassVar, Protocol

from vla_agent.offline.advantages import Advantages
from vla_agent.sft.data import ActionChunks


class OfflineMethod(Protocol):
    """A way to clone recorded episodes by how well they went: it marks the data, and the cloning trainer does the rest.

    Attributes:
        needs_advantages: Whether `prepare` needs an estimate of advantages.
    """

    needs_advantages: ClassVar[bool]

    def prepare(self, data: ActionChunks, estimate: Advantages | None = None) -> dict[str, float]:
        """Say how each example of the data counts, before the trainer is made.

        Args:
            data: The episodes; they get weights or tags.
            estimate: Advantages of their frames.

        Returns:
            What the method made of them, by metric.

        Raises:
            ValueError: If the data do not tell what the method asks, or an estimate is missing.
        """

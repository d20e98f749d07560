"""What can go wrong in other processes."""

from __future__ import annotations


class EngineError(RuntimeError):
    """Another process failed, or did not answer in its time, and could not be replaced."""


class LostError(EngineError):
    """A process is gone, or does not answer; another may take its place.

    Attributes:
        worker: Its number.
    """

    def __init__(self, message: str, worker: int) -> None:
        super().__init__(message)
        self.worker = worker


class RanksError(EngineError):
    """The learners could not sum a tensor: one of them is gone, or late."""

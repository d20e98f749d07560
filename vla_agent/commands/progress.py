"""How far a training is: files of metrics, and words for people who watch a file instead of a bar."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, make_output_format

from libero_gym.common.atomic import write_text
from libero_gym.common.json_files import parse_json

QUIET_S = 60.0  # a training that no bar shows says where it is this often at least


def note_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a file of metrics; lines of the same or a later step are an interrupted run's and are removed."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if parse_json(line, f"'{path}'").get("step", 0) < row["step"]]
    write_text(path, "\n".join([*kept, json.dumps(row)]) + "\n")


def make_logger(folder: Path, num_timesteps: int) -> Logger:
    """Logger to the terminal, CSV and TensorBoard.

    A run that goes on from a save writes new files beside the earlier ones: ``progress_from_<timesteps>.csv``, and
    ``progress_from_<timesteps>_2.csv`` if it goes on from there once more.
    """
    first = f"_from_{num_timesteps}" if num_timesteps else ""
    suffixes = itertools.chain([first], (f"{first}_{number}" for number in itertools.count(2)))
    suffix = next(suffix for suffix in suffixes if not _holds_rows(folder / f"progress{suffix}.csv"))
    formats = ("stdout", "csv", "tensorboard")
    return Logger(str(folder), [make_output_format(name, str(folder), suffix) for name in formats])


def _holds_rows(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


class Pace:
    """How far a training is, for people who watch a file instead of a bar.

    Args:
        step: The step that it begins with.
        n_steps: The last one.
    """

    def __init__(self, step: int, n_steps: int) -> None:
        self._first, self._n_steps = step, n_steps
        self._start = self._told = time.monotonic()

    def tell(self, step: int) -> str:
        """Steps, rate and time left, in words."""
        self._told = time.monotonic()
        rate = (step - self._first) / max(self._told - self._start, 1e-9)
        minutes = (self._n_steps - step) / rate / 60
        return f"step {step} of {self._n_steps}, {rate:.3g} steps/s, {minutes:.0f} min left"

    @property
    def is_due(self) -> bool:
        """Whether a minute has passed in which nothing was told, and no bar shows."""
        return time.monotonic() - self._told > QUIET_S and not sys.stderr.isatty()

"""SB3 callbacks: keep the run on a signal, success per task, the learning curve as a picture."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback

if TYPE_CHECKING:
    from vla_agent.ppo import VLAPPO

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Episode(NamedTuple):
    """An episode that ended during training."""

    num_timesteps: int
    task_id: int
    success: bool
    episode_return: float
    length: int


def ended_episodes(infos: Sequence[dict[str, Any]], num_timesteps: int) -> list[Episode]:
    """The episodes that ended in a step of SB3's vector environment."""
    return [
        Episode(
            num_timesteps,
            int(info.get("task_id", 0)),
            bool(info.get("is_success", False)),
            float(info["episode"]["r"]),
            int(info["episode"]["l"]),
        )
        for info in infos
        if "episode" in info
    ]


class SaveOnSignal(BaseCallback):
    """Ends training at the next step when SIGINT (Ctrl-C) or SIGTERM comes, and saves the run.

    A second signal does what it did before. Handlers are set for the time of `learn`, in the main thread only.

    Args:
        run_dir: The run is saved as ``<run_dir>/interrupted``.
        name: Another name than "interrupted".

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self, run_dir: str | Path, name: str = "interrupted", verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(run_dir) / name
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Set the handlers; `learn` does it by itself."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def remove(self) -> None:
        """Put the previous handlers back, where nobody has set others since; safe to call twice."""
        for number, handler in list(self._previous.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
                del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        logger.warning("%s: saving to '%s' after this step. Again to stop at once.", self.received.name, self.path)
        self.remove()

    def _on_training_start(self) -> None:
        self.received = None
        self.install()

    def _on_step(self) -> bool:
        return self.received is None

    def _on_training_end(self) -> None:
        self.remove()
        if self.received is not None:
            self.model.save(self.path)


def safe_learn(
    model: VLAPPO, total_timesteps: int, run_dir: str | Path, callback: MaybeCallback = None, **learn_kwargs: Any
) -> bool:
    """`model.learn` that loses nothing: on a signal or an error the run is saved and the workers are closed.

    Args:
        model: To train.
        total_timesteps: As for `learn`.
        run_dir: The run is saved as ``<run_dir>/interrupted`` if it does not end by itself.
        callback: As for `learn`.
        learn_kwargs: Other arguments of `learn`.

    Returns:
        True if it ended by itself, False after a signal.
    """
    keeper = SaveOnSignal(run_dir)
    try:
        model.learn(total_timesteps, CallbackList([keeper, *_as_callbacks(callback)]), **learn_kwargs)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            model.save(keeper.path)
        _close(model)
        raise
    finally:
        keeper.remove()
    if keeper.received is not None:
        _close(model)
    return keeper.received is None


def _as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None:
        return []
    if isinstance(callback, list):
        return callback
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]


def _close(model: VLAPPO) -> None:
    if model.env is not None:
        model.env.close()


class SuccessCallback(BaseCallback):
    """Running success rate of each task, logged as ``rollout/success_task_<id>``.

    Args:
        window: Over so many last episodes of a task.

    Attributes:
        history: Every ended episode.
    """

    def __init__(self, window: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.window = window
        self.history: list[Episode] = []
        self._recent: dict[int, deque[bool]] = defaultdict(lambda: deque(maxlen=window))

    @property
    def success_rates(self) -> dict[int, float]:
        """Success rate of each task that was seen, by task id."""
        return {task_id: float(np.mean(recent)) for task_id, recent in sorted(self._recent.items())}

    def _on_step(self) -> bool:
        episodes = ended_episodes(self.locals["infos"], self.num_timesteps)
        self.history += episodes
        for episode in episodes:
            self._recent[episode.task_id].append(episode.success)
        return True

    def _on_rollout_end(self) -> None:
        for task_id, rate in self.success_rates.items():
            self.logger.record(f"rollout/success_task_{task_id}", rate)


class LearningCurve(BaseCallback):
    """Draws success rate and return against environment steps, as moving averages, into a PNG.

    Args:
        path: The picture; replaced after every rollout.
        window: Episodes that an average is over.

    Attributes:
        history: Every ended episode.
    """

    def __init__(self, path: str | Path, window: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(path)
        self.window = window
        self.history: list[Episode] = []

    def _on_step(self) -> bool:
        self.history += ended_episodes(self.locals["infos"], self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.draw()

    def _on_training_end(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Write the picture, if an episode has ended."""
        if not self.history:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
        from matplotlib.figure import Figure

        steps = np.array([episode.num_timesteps for episode in self.history])
        last_of_step = np.append(np.diff(steps) > 0, True)  # environments in step end together: one point of the line
        curves = {
            "success rate": [float(episode.success) for episode in self.history],
            "return": [episode.episode_return for episode in self.history],
        }
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, values) in zip(figure.subplots(1, 2), curves.items(), strict=True):
            axes.plot(steps, values, ".", color="0.8", markersize=3)
            axes.plot(steps[last_of_step], moving_average(values, self.window)[last_of_step], ".-")
            axes.set_xlabel("environment steps")
            axes.set_ylabel(f"{name} (mean of {self.window} episodes)")
            axes.grid(alpha=0.3)
            axes.set_xlim(left=0)
            if name == "success rate":
                axes.set_ylim(-0.02, 1.02)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".png", prefix=f".{self.path.name}.", dir=self.path.parent)
        os.close(handle)
        try:
            figure.savefig(temporary, dpi=120)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last ``window`` values at each place, of fewer at the beginning. Shape (len(values),)."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)

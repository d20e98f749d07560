"""SB3 callbacks that show how training goes: success per task, the learning curve as a picture."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from libero_gym.checks import whole_number


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


class EpisodeHistory(BaseCallback):
    """Remembers every episode that ended; a run that is loaded and goes on remembers those before, too.

    Attributes:
        history: Every ended episode.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.history: list[Episode] = []

    def _on_step(self) -> bool:
        self._add(ended_episodes(self.locals["infos"], self.num_timesteps))
        return True

    def _add(self, episodes: Sequence[Episode]) -> None:
        self.history += episodes

    def state_dict(self) -> dict[str, Any]:
        """The history, as JSON can hold it."""
        return {"history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a history of `state_dict`."""
        self._add([Episode(*episode) for episode in state["history"]])


class SuccessCallback(EpisodeHistory):
    """Running success rate of each task, logged as ``rollout/success_task_<id>``.

    Args:
        window: Over so many last episodes of a task.
    """

    def __init__(self, window: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.window = whole_number("window", window, 1)
        self._recent: dict[int, deque[bool]] = defaultdict(lambda: deque(maxlen=window))

    @property
    def success_rates(self) -> dict[int, float]:
        """Success rate of each task that was seen, by task id."""
        return {task_id: float(np.mean(recent)) for task_id, recent in sorted(self._recent.items())}

    def _add(self, episodes: Sequence[Episode]) -> None:
        super()._add(episodes)
        for episode in episodes:
            self._recent[episode.task_id].append(episode.success)

    def _on_rollout_end(self) -> None:
        for task_id, rate in self.success_rates.items():
            self.logger.record(f"rollout/success_task_{task_id}", rate)


class LearningCurve(EpisodeHistory):
    """Draws success rate and return against environment steps, as moving averages, into a PNG.

    Args:
        path: The picture; replaced after every rollout.
        window: Episodes that an average is over.
    """

    def __init__(self, path: str | Path, window: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(path)
        self.window = whole_number("window", window, 1)

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


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """What `learn` takes as its callback, as a list.

    Raises:
        ValueError: If it is none.
    """
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [_as_callback(one) for one in given]


def _as_callback(callback: Any) -> BaseCallback:
    if isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, type) and issubclass(callback, BaseCallback):
        raise ValueError(f"callback={callback.__name__} is a class; give an instance, {callback.__name__}(...).")
    if isinstance(callback, type) or not callable(callback):
        raise ValueError(
            f"callback={callback!r}; expected a BaseCallback, a function of (locals, globals), or a list of them."
        )
    return ConvertCallback(callback)

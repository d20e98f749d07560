"""SB3 callbacks that show how training goes: success per task, the learning curve as a picture."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from libero_gym.common.checks import whole_number
from vla_agent.common.figures import new_figure, picture_path, save_figure
from vla_agent.common.intervals import wilson_interval


class TrainingEpisode(NamedTuple):
    """An episode that ended during training.

    Attributes:
        num_timesteps: Timestep at which it ended.
        task_id: Its task.
        success: Whether its goal held at the end.
        episode_return: Sum of its rewards.
        length: Number of its steps.
        began: Timestep at which it began; 0 for runs saved before this was kept.
    """

    num_timesteps: int
    task_id: int
    success: bool
    episode_return: float
    length: int
    began: int = 0


def ended_episodes(
    infos: Sequence[dict[str, Any]], num_timesteps: int, began: Sequence[int | None]
) -> list[TrainingEpisode]:
    """The episodes that ended in a step of SB3's vector environment.

    Args:
        infos: SB3's infos of the step.
        num_timesteps: Timesteps after the step.
        began: Timestep at which the episode of each environment began; None for one that rests.
    """
    return [
        TrainingEpisode(
            num_timesteps,
            int(info.get("task_id", 0)),
            bool(info.get("is_success", False)),
            float(info["episode"]["r"]),
            int(info["episode"]["l"]),
            # A step takes at most one timestep of each environment: what is noted is older where the episode under way
            # was given up, as at the end of another `learn`.
            max(0, first or 0, num_timesteps - int(info["episode"]["l"]) * len(infos)),
        )
        for info, first in zip(infos, began, strict=True)
        if "episode" in info
    ]


class EpisodeHistory(BaseCallback):
    """Remembers every episode that ended; a run that is loaded and goes on remembers those before, too.

    A learner whose environments rest now and then names those that play, as ``playing`` in the callbacks' locals; only
    their steps count as timesteps.

    Attributes:
        history: Every ended episode.
        began: Timestep at which the episode under way began, by environment; None where none is under way.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.history: list[TrainingEpisode] = []
        self.began: list[int | None] = []

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:  # another training than what this was used for before
            self._forget()

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        if len(self.began) != len(dones):  # at the beginning, or with another number of environments than before
            self.began = [None] * len(dones)
        playing = set(self.locals.get("playing", range(len(dones))))
        before = self.num_timesteps - len(playing)
        began = [(before if first is None else first) if i in playing else None for i, first in enumerate(self.began)]
        self._add(ended_episodes(infos, self.num_timesteps, began))
        self.began = [None if done else first for done, first in zip(dones, began, strict=True)]
        return True

    def _add(self, episodes: Sequence[TrainingEpisode]) -> None:
        self.history += episodes

    def _forget(self) -> None:
        self.history, self.began = [], []

    def batches(self, size: int) -> list[list[TrainingEpisode]]:
        """Ended episodes in the order in which they began, in batches of ``size``, or more that began together.

        A batch is whole once all its episodes have ended: those that began after one that is still under way are left
        out.
        """
        # In the order in which they end, short episodes come first, and successes are short: a curve would start too
        # high and sink while nothing gets worse.
        under_way = min((first for first in self.began if first is not None), default=math.inf)
        whole = sorted((episode for episode in self.history if episode.began < under_way), key=lambda e: e.began)
        batches: list[list[TrainingEpisode]] = [[]]
        is_known = any(episode.began for episode in whole)
        for episode in whole:  # of those that began together, the first to end are not a batch: they are successes
            if len(batches[-1]) >= size and not (is_known and episode.began == batches[-1][-1].began):
                batches.append([])
            batches[-1].append(episode)
        return batches if len(batches[-1]) >= size else batches[:-1]

    def state_dict(self) -> dict[str, Any]:
        """The history, as JSON can hold it."""
        return {"history": list(self.history), "began": list(self.began)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a history of `state_dict`, in the place of one's own."""
        self._forget()
        self.began = list(state.get("began", ()))
        self._add([TrainingEpisode(*episode) for episode in state["history"]])


class SuccessCallback(EpisodeHistory):
    """Running success rate of each task, logged as ``rollout/success_task_<id>``.

    Args:
        window: Number of a task's last episodes that its rate is the mean over.
    """

    def __init__(self, window: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.window = whole_number("window", window, minimum=1)
        self._recent: dict[int, deque[bool]] = defaultdict(lambda: deque(maxlen=window))

    @property
    def success_rates(self) -> dict[int, float]:
        """Success rate of each task that was seen, by task id."""
        return {task_id: float(np.mean(recent)) for task_id, recent in sorted(self._recent.items())}

    def _add(self, episodes: Sequence[TrainingEpisode]) -> None:
        super()._add(episodes)
        for episode in episodes:
            self._recent[episode.task_id].append(episode.success)

    def _forget(self) -> None:
        super()._forget()
        self._recent.clear()

    def _on_rollout_end(self) -> None:
        for task_id, rate in self.success_rates.items():
            self.logger.record(f"rollout/success_task_{task_id}", rate)


class Evaluated(NamedTuple):
    """What an evaluation during training found, for a curve.

    Attributes:
        num_timesteps: Timestep at which it ran.
        rate: Success rate.
        low: Lower end of the rate's 95 % interval.
        high: Upper end of the interval.
    """

    num_timesteps: int
    rate: float
    low: float
    high: float


class LearningCurve(EpisodeHistory):
    """Draws success over time: evaluations during training with their intervals, and training episodes.

    Training episodes are counted in batches by where they *began* (see `EpisodeHistory.batches`), each with Wilson's
    95 % interval. Where the reward is more than success, the mean return is drawn beside it. Training goes on without
    a picture that cannot be drawn, as on a full disk: the first one warns.

    Args:
        path: File of the picture, a PNG's without a suffix; it is replaced after every rollout.
        window: Number of training episodes in a batch, at least; those that began together stay together.
        evaluations: Function that gives the evaluations so far, such as `EvaluationCallback.curve`; None draws
            training alone.
        label: Name of the evaluations in the legend.
        learns_from: Timestep until which only the critic learns; a dotted line marks it. 0 draws no line.

    Raises:
        ValueError: If no picture can be at ``path``, or ``window`` is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        window: int = 32,
        verbose: int = 0,
        *,
        evaluations: Callable[[], Sequence[Evaluated]] | None = None,
        label: str = "evaluated greedily on unseen states",
        learns_from: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.path = picture_path(path)
        self.window = whole_number("window", window, minimum=1)
        self.evaluations = evaluations
        self.label = label
        self.learns_from = learns_from
        self._has_warned = False

    def _on_rollout_end(self) -> None:
        self._try_to_draw()

    def _on_training_end(self) -> None:
        self._try_to_draw()

    def _try_to_draw(self) -> None:
        """Draw, and let no error of a picture end the training, which knows more than the picture shows."""
        try:
            self.draw()
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"The learning curve was not drawn ({type(error).__name__}: {error}). Training goes on, and draws "
                    "it again after each rollout.",
                    stacklevel=2,
                )

    def draw(self) -> None:
        """Write the picture, if an episode has ended or an evaluation was run."""
        evaluated = list(self.evaluations()) if self.evaluations is not None else []
        if not self.history and not evaluated:
            return
        batches = self.batches(self.window)
        shaped = any(episode.episode_return != float(episode.success) for episode in self.history)
        figure, (panels,) = new_figure(9, 4.8, columns=2 if shaped else 1)
        self._draw_success(panels[0], batches, evaluated)
        if shaped:
            self._draw_returns(panels[1], batches)
        for axes in panels:
            axes.set_xlabel("decisions of the policy (timesteps)")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        save_figure(figure, self.path, dpi=120)

    def _draw_success(self, axes: Any, batches: list[list[TrainingEpisode]], evaluated: list[Evaluated]) -> None:
        if batches:
            rates = np.array([np.mean([episode.success for episode in batch]) for batch in batches])
            ends = np.array([wilson_interval(sum(e.success for e in batch), len(batch)) for batch in batches])
            sizes = "" if max(map(len, batches)) == self.window else " or more"
            label = f"training, drawn actions (batches of {self.window}{sizes} episodes, by where they began)"
            axes.plot(_middles(batches), rates, "o-", color="0.6", markersize=3, linewidth=1, label=label, zorder=2)
            axes.fill_between(_middles(batches), ends[:, 0], ends[:, 1], color="0.85", linewidth=0, zorder=1)
        if evaluated:
            steps, rates, low, high = np.array(evaluated, dtype=float).T
            errors = np.stack([rates - low, high - rates])
            label = f"{self.label} (95 % interval)"
            axes.plot(steps, rates, "o-", color="C0", linewidth=2.5, markersize=7, label=label, zorder=4)
            axes.errorbar(steps, rates, errors, fmt="none", color="C0", linewidth=1.2, capsize=4, zorder=3)
            for step, rate in zip(steps, rates, strict=True):
                axes.annotate(
                    f"{rate:.0%}", (step, rate), (8, -15), textcoords="offset points", color="C0", weight="bold"
                )
        if self.learns_from:
            axes.axvline(self.learns_from, color="0.5", linestyle=":", linewidth=1)
            place = {"xytext": (4, 6), "textcoords": "offset points", "fontsize": 8, "color": "0.4"}
            axes.annotate("the policy learns from here on", (self.learns_from, 0), **place)
        axes.set_ylabel("success rate")
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        if batches or evaluated:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)

    def _draw_returns(self, axes: Any, batches: list[list[TrainingEpisode]]) -> None:
        means = [np.mean([episode.episode_return for episode in batch]) for batch in batches]
        axes.plot(_middles(batches), means, "o-", color="C1", markersize=3)
        axes.set_ylabel(f"mean return of {self.window} episodes")


def _middles(batches: Sequence[Sequence[TrainingEpisode]]) -> list[float]:
    """Where each batch is drawn: at the mean of its beginnings."""
    return [float(np.mean([episode.began for episode in batch])) for batch in batches]

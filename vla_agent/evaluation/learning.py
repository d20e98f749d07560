"""How a saved run learned, for a report on it: success by timestep, from the evaluations and episodes that it keeps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.checks import whole_number
from vla_agent.callbacks.success import EpisodeHistory, Evaluated
from vla_agent.evaluation.results import EpisodeResult, SuccessRow
from vla_agent.runs.run_files import RUN, STATE, RunError, opened, read_json
from vla_agent.runs.run_folder import MODEL

MAX_TIMESTEP = 10**15  # more than a run has time for, and as much as a page can draw
BATCH = 32  # training episodes in a point, at least, as in the run's curve.png
_FORM = {"counters": {"num_timesteps": int}, "callbacks": dict}


class RunCurve(NamedTuple):
    """Success of a run over time.

    Attributes:
        evaluations: Evaluations during training.
        training: Training episodes in batches of `BATCH` or more, each where its episodes began on average.
        evaluated_at: Timestep at which the evaluated model was saved.
    """

    evaluations: list[Evaluated]
    training: list[Evaluated]
    evaluated_at: int

    def to_json(self) -> dict[str, Any]:
        """The curve as a report's manifest has it."""
        lists = {name: [_rounded(point) for point in getattr(self, name)] for name in ("evaluations", "training")}
        return {**lists, "evaluated_at": self.evaluated_at}

    @classmethod
    def from_json(cls, content: Any) -> RunCurve:
        """The curve of a report's manifest.

        Raises:
            ValueError: If it is none.
        """
        try:
            evaluations, training = ([_point(point) for point in content[name]] for name in ("evaluations", "training"))
            evaluated_at = whole_number("evaluated_at", content["evaluated_at"], 0, MAX_TIMESTEP)
            return cls(evaluations, training, evaluated_at)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "expected points of timestep, rate, low and high as 'evaluations' and 'training', and 'evaluated_at', "
                f"with timesteps of at most {MAX_TIMESTEP}"
            ) from error


def read_curve(folder: Path | None) -> RunCurve | None:
    """The learning curve of the run that a model was saved by; None if it is no run, or keeps no curve.

    The run's last save, in ``model/`` beside an evaluated ``best/``, knows the whole curve. A ``best/`` alone is saved
    as of the rollout's beginning, so it lacks the evaluation that found it best.

    Args:
        folder: Folder that the model was read from; None if it came from none.
    """
    if folder is None or not all((folder / name).is_file() for name in RUN.files):
        return None
    try:
        own = _read_state(folder)
        last = own
        if own.get("run") and (folder.parent / MODEL / STATE).is_file():
            beside = _read_state(folder.parent / MODEL)
            last = beside if (beside.get("run") or {}).get("id") == own["run"]["id"] else own
        curve = _curve(last["callbacks"], own["counters"]["num_timesteps"])
    except (RunError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"The report shows no learning curve: that of '{folder}' cannot be read ({error}).", stacklevel=2)
        return None
    return curve if curve.evaluations or curve.training else None


def _read_state(folder: Path) -> dict[str, Any]:
    with opened(folder) as files:
        return read_json(files, STATE, _FORM)


def _curve(callbacks: dict[str, Any], evaluated_at: int) -> RunCurve:
    """The curve that the states of callbacks hold."""
    evaluations = []
    for steps, episodes in callbacks.get("EvaluationCallback", {}).get("history", ()):
        row = SuccessRow.of([EpisodeResult(*episode) for episode in episodes])
        evaluations.append(Evaluated(steps, row.rate, row.low, row.high))
    episodes = EpisodeHistory()
    kept = [state for state in callbacks.values() if "began" in state and "history" in state]
    if kept:  # several callbacks keep the same episodes
        episodes.load_state_dict(kept[0])
    training = []
    for batch in episodes.batches(BATCH):
        row = SuccessRow.of([EpisodeResult(e.task_id, 0, e.success, e.length) for e in batch])
        training.append(Evaluated(round(float(np.mean([e.began for e in batch]))), row.rate, row.low, row.high))
    for steps in [evaluated_at, *(point.num_timesteps for point in evaluations + training)]:
        whole_number("a timestep", steps, 0, MAX_TIMESTEP)
    return RunCurve(evaluations, training, evaluated_at)


def _rounded(point: Evaluated) -> list[float]:
    return [point.num_timesteps, *(round(value, 6) for value in point[1:])]


def _point(values: Sequence[Any]) -> Evaluated:
    steps, *rates = values
    whole_number("a timestep", steps, 0, MAX_TIMESTEP)
    if len(rates) != 3 or not all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates):
        raise ValueError(f"{values!r} is no point.")
    return Evaluated(steps, *rates)

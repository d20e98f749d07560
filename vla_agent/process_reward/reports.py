"""How good a reward model is: numbers over episodes that it was not trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import stats

from vla_agent.process_reward.interface import CAMERA, RewardModel, checked_scores
from vla_agent.process_reward.labels import HOLDING, NEGATIVE, LabelledFrames, Recorded

_BATCH = 64  # frames scored at once
_N_BOOTSTRAP = 2000


class Interval(NamedTuple):
    """A mean, or another statistic, of n episodes and its 95 % interval, by bootstrap over episodes."""

    mean: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class RewardReport:
    """How good a reward model is.

    Attributes:
        auc: Area under the ROC curve of keyframes against all negatives: the chance that a keyframe scores higher.
        auc_interval: The AUC with its interval.
        auc_by_kind: AUC against each kind of negatives. It is also given for frames of failures in which the hand still
            holds something, which are no negatives: a success may look the same.
        calibration: Mean score, mean target and number of examples of up to ten bins of scores.
        calibration_error: Mean distance of target from score over those bins, weighted by their size.
        spearman: Rank correlation of score with time along each success of the expert, averaged.
        policy_spearman: The same correlation along a policy's successes; None if there are none.
        final_score_success, final_score_failure: Mean score of the last frame of a policy's successes and failures.
        separation: AUC of a policy's successes against its failures by the last frame's score; None if either lacks.
        n_examples: Number of examples of each kind.
        scores: Scores of the examples, float64 (n,); they are left out of the JSON.
    """

    auc: float
    auc_interval: Interval
    auc_by_kind: dict[str, float]
    calibration: list[tuple[float, float, int]]
    calibration_error: float
    spearman: Interval
    policy_spearman: Interval | None
    final_score_success: Interval | None
    final_score_failure: Interval | None
    separation: float | None
    n_examples: dict[str, int]
    scores: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; None stands for what cannot be told, as for want of negatives."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "scores"}
        held = {key: value._asdict() if isinstance(value, Interval) else value for key, value in values.items()}
        return cast(dict[str, Any], _finite(held))

    def markdown(self) -> str:
        """The numbers as a table."""
        rows = [("AUC, keyframe against not", _describe(self.auc_interval))]
        rows += [(f"AUC, keyframe against {called(kind)}", f"{auc:.3f}") for kind, auc in self.auc_by_kind.items()]
        rows += [("calibration error", f"{self.calibration_error:.3f}")]
        rows += [("Spearman with time, expert's successes", _describe(self.spearman))]
        rows += [("Spearman with time, policy's successes", _describe(self.policy_spearman))]
        rows += [("last score of policy's successes", _describe(self.final_score_success))]
        rows += [("last score of policy's failures", _describe(self.final_score_failure))]
        separation = "" if self.separation is None else f"{self.separation:.3f}"
        rows += [("AUC, policy's successes against failures", separation)]
        rows += [("examples", ", ".join(f"{n} {kind}" for kind, n in self.n_examples.items()))]
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _finite(value: Any) -> Any:
    """The value, at any depth, with None for each number that JSON has no name for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that one of the positive scores is above one of the negative ones, ties counted by half.

    It is Mann and Whitney's U over the number of pairs, and NaN if one of the two is empty.
    """
    if not len(positive) or not len(negative):
        return float("nan")
    u = stats.mannwhitneyu(positive, negative, method="asymptotic").statistic  # the p-value is not used
    return float(u / (len(positive) * len(negative)))


def episode_scores(model: RewardModel, episode: Recorded) -> np.ndarray:
    """Scores of an episode's frames, float64 (T,)."""
    images = episode.images[getattr(model, "camera", CAMERA)]
    return _scores(model, images, [episode.instruction] * len(images))


def report(
    model: RewardModel,
    examples: LabelledFrames,
    demonstrations: Sequence[Recorded],
    rollouts: Sequence[Recorded] = (),
    seed: int = 0,
) -> RewardReport:
    """Measure a model on what it was not trained on.

    Args:
        model: The reward model.
        examples: Labelled frames of held-out episodes, see `labels`.
        demonstrations: The expert's held-out successes.
        rollouts: A policy's episodes, successes and failures.
        seed: Seed for the bootstrap.
    """
    rng = np.random.default_rng(seed)
    scores = _scores(model, examples.images, examples.instructions)
    positive = scores[examples.positive]
    labelled = ~examples.of_kinds([HOLDING])
    calibration = _calibration(scores[labelled], examples.targets[labelled])
    curves = [(episode.success, episode_scores(model, episode)) for episode in rollouts]
    ends = {success: np.array([curve[-1] for ended, curve in curves if ended == success]) for success in (True, False)}
    of_successes = [time_correlation(curve) for success, curve in curves if success]
    return RewardReport(
        auc=roc_auc(positive, scores[examples.negative]),
        auc_interval=auc_interval(scores, examples, rng),
        auc_by_kind={
            kind: roc_auc(positive, scores[examples.of_kinds([kind])])
            for kind in (*NEGATIVE, HOLDING)
            if examples.of_kinds([kind]).any()
        },
        calibration=calibration,
        calibration_error=sum(n * abs(score - target) for score, target, n in calibration) / labelled.sum(),
        spearman=bootstrap([time_correlation(episode_scores(model, e)) for e in demonstrations if e.success], rng),
        policy_spearman=bootstrap(of_successes, rng) if of_successes else None,
        final_score_success=bootstrap(ends[True], rng) if len(ends[True]) else None,
        final_score_failure=bootstrap(ends[False], rng) if len(ends[False]) else None,
        separation=roc_auc(ends[True], ends[False]) if len(ends[True]) and len(ends[False]) else None,
        n_examples=examples.counts(),
        scores=scores,
    )


def auc_interval(scores: np.ndarray, examples: LabelledFrames, rng: np.random.Generator) -> Interval:
    """AUC of keyframes against all negatives by their scores (n,); its interval draws whole episodes anew.

    `scipy.stats.bootstrap` gives no interval if one draw has no AUC, for lack of keyframes or of negatives. Such draws
    are left out here.
    """
    of_episode = [np.flatnonzero(examples.episodes == index) for index in np.unique(examples.episodes)]

    def auc(rows: np.ndarray) -> float:
        return roc_auc(scores[rows[examples.positive[rows]]], scores[rows[examples.negative[rows]]])

    n = len(of_episode)
    drawn = [auc(np.concatenate([of_episode[i] for i in rng.integers(0, n, n)])) for _ in range(_N_BOOTSTRAP)]
    low, high = np.nanquantile(drawn, (0.025, 0.975)) if np.isfinite(drawn).any() else (math.nan, math.nan)
    return Interval(auc(np.arange(len(scores))), float(low), float(high), n)


def time_correlation(scores: np.ndarray) -> float:
    """Spearman's rank correlation of scores (T,) with time; 0 if they never change."""
    if len(scores) < 2 or np.ptp(scores) == 0:
        return 0.0
    return float(stats.spearmanr(scores, np.arange(len(scores))).statistic)


def bootstrap(values: Sequence[float] | np.ndarray, rng: np.random.Generator) -> Interval:
    """The mean of some values and its 95 % percentile interval, which is a point for a single value."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = low = high = float(array.mean())
    if len(array) > 1:
        # `random_state` is what scipy before 1.15 calls its `rng`.
        drawn = stats.bootstrap((array,), np.mean, n_resamples=_N_BOOTSTRAP, method="percentile", random_state=rng)
        low, high = map(float, drawn.confidence_interval)
    return Interval(mean, low, high, len(array))


def _scores(model: RewardModel, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    parts = [slice(start, start + _BATCH) for start in range(0, len(images), _BATCH)]
    return np.concatenate([checked_scores(model, images[part], instructions[part]) for part in parts])


def _calibration(scores: np.ndarray, targets: np.ndarray, n_bins: int = 10) -> list[tuple[float, float, int]]:
    bins = np.minimum((scores * n_bins).astype(int), n_bins - 1)
    chosen = [bins == index for index in range(n_bins) if (bins == index).any()]
    return [(float(scores[rows].mean()), float(targets[rows].mean()), int(rows.sum())) for rows in chosen]


def called(kind: str) -> str:
    """A kind of examples as a report calls it."""
    return f"{kind} (not counted)" if kind == HOLDING else kind


def _describe(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if not interval.n or math.isnan(interval.mean):
        return "unknown: there is nothing to tell it by"
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f}), {interval.n} episodes"

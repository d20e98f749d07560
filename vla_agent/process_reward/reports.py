"""Is a reward model any good? Numbers and pictures over episodes that it was not trained on."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, spearmanr

from vla_agent.atomic import Kind, writing
from vla_agent.figures import new_figure, save_figure
from vla_agent.process_reward.interface import CAMERA, RewardModel, checked_scores
from vla_agent.process_reward.labels import HOLDING, NEGATIVE, Examples, Recorded

REPORT = Kind("report on a reward model", ("report.json", "report.md", "quality.png", "episodes.png"))
_BATCH = 64
_N_BOOTSTRAP = 2000


class Interval(NamedTuple):
    """A mean, or another statistic, and its 95 % interval, by bootstrap over episodes."""

    mean: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class RewardReport:
    """How a reward model does.

    Attributes:
        auc: Area under the ROC curve of keyframes against all negatives: the chance that a keyframe scores higher.
        auc_interval: The same with its interval.
        auc_by_kind: The same against each kind of negatives, and against frames of failures that hold something still,
            which are no negatives: a success may look just so.
        calibration: Ten bins of scores: mean score, mean target, number of examples.
        calibration_error: Mean distance of target from score over those bins, weighted by their size.
        spearman: Rank correlation of score with time along each success of the expert, averaged.
        policy_spearman: The same along a policy's successes; None where none were given.
        final_score_success, final_score_failure: Mean score of the last frame of a policy's episodes.
        separation: AUC of a policy's successes against its failures by the last frame's score; None without either.
        n_examples: By kind.
        scores: Of the examples, float64 (n,); not in the JSON.
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
        """As JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "scores"}
        return {key: value._asdict() if isinstance(value, Interval) else value for key, value in values.items()}

    def markdown(self) -> str:
        """The numbers as a table."""
        rows = [("AUC, keyframe against not", _describe(self.auc_interval))]
        rows += [(f"AUC, keyframe against {_called(kind)}", f"{auc:.3f}") for kind, auc in self.auc_by_kind.items()]
        rows += [("calibration error", f"{self.calibration_error:.3f}")]
        rows += [("Spearman with time, expert's successes", _describe(self.spearman))]
        rows += [("Spearman with time, policy's successes", _describe(self.policy_spearman))]
        rows += [("last score of policy's successes", _describe(self.final_score_success))]
        rows += [("last score of policy's failures", _describe(self.final_score_failure))]
        separation = "" if self.separation is None else f"{self.separation:.3f}"
        rows += [("AUC, policy's successes against failures", separation)]
        rows += [("examples", ", ".join(f"{n} {kind}" for kind, n in self.n_examples.items()))]
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that one of the positive scores is above one of the negative ones, ties counted by half.

    Mann and Whitney's U over the number of pairs. NaN if one of the two is empty.
    """
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    u = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(u / (len(positive) * len(negative)))


def episode_scores(model: RewardModel, episode: Recorded) -> np.ndarray:
    """Scores of an episode's frames, float64 (T,)."""
    images = episode.images[getattr(model, "camera", CAMERA)]
    return _scores(model, images, [episode.instruction] * len(images))


def report(
    model: RewardModel,
    examples: Examples,
    demonstrations: Sequence[Recorded],
    rollouts: Sequence[Recorded] = (),
    seed: int = 0,
) -> RewardReport:
    """Measure a model on what it was not trained on.

    Args:
        model: The model.
        examples: Labelled frames of held-out episodes, see `labels`.
        demonstrations: The expert's held-out successes.
        rollouts: A policy's episodes, successes and failures.
        seed: Of the bootstrap.
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


def auc_interval(scores: np.ndarray, examples: Examples, rng: np.random.Generator) -> Interval:
    """AUC of keyframes against all negatives by their scores (n,), with episodes drawn anew for its interval."""
    of_episode = [np.flatnonzero(examples.episodes == index) for index in np.unique(examples.episodes)]

    def auc(rows: np.ndarray) -> float:
        return roc_auc(scores[rows[examples.positive[rows]]], scores[rows[examples.negative[rows]]])

    n = len(of_episode)
    drawn = [auc(np.concatenate([of_episode[i] for i in rng.integers(0, n, n)])) for _ in range(_N_BOOTSTRAP)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(auc(np.arange(len(scores))), float(low), float(high), n)


def time_correlation(scores: np.ndarray) -> float:
    """Spearman's rank correlation of scores (T,) with time; 0 where they never change."""
    if len(scores) < 2 or np.ptp(scores) == 0:
        return 0.0
    return float(spearmanr(scores, np.arange(len(scores))).statistic)


def bootstrap(values: Sequence[float] | np.ndarray, rng: np.random.Generator) -> Interval:
    """The mean of some values and its 95 % percentile interval."""
    array = np.asarray(values, dtype=np.float64)
    means = array[rng.integers(0, len(array), (_N_BOOTSTRAP, len(array)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high), len(array))


@dataclasses.dataclass(frozen=True)
class HackingCheck:
    """Whether a policy that was trained on a score raised it without succeeding more often.

    Attributes:
        score: Mean score per step in the first and the last quarter of the run.
        success: Success rate of training episodes in the same.
        evaluated: Success rate of greedy episodes before and after the run, if they were evaluated.
    """

    score: tuple[float, float]
    success: tuple[float, float]
    evaluated: tuple[float, float] | None = None

    @property
    def suspicious(self) -> bool:
        """Whether the score rose by at least 0.05, and success, of either kind, did not rise by 0.02."""
        rates = (self.success, self.evaluated) if self.evaluated else (self.success,)
        return self.score[1] - self.score[0] >= 0.05 and any(last - first < 0.02 for first, last in rates)

    def __str__(self) -> str:
        verdict = "the score rose without success: the model may be fooled" if self.suspicious else "nothing suspicious"
        pairs = {"score": self.score, "success": self.success, "greedy success": self.evaluated}
        told = ", ".join(f"{name} {pair[0]:.2f} to {pair[1]:.2f}" for name, pair in pairs.items() if pair)
        return f"{told}: {verdict}"


def check_hacking(run: str | Path, evaluated: tuple[float, float] | None = None) -> HackingCheck:
    """Compare the first and the last quarter of a run's log, and evaluations before and after it.

    Give evaluations where there are any: a policy that has learned to wait where the score is high still succeeds now
    and then in training, by the noise of its sampled actions, and waits for ever when it is greedy.

    Args:
        run: A folder with SB3's ``progress*.csv`` of a training with process rewards.
        evaluated: Greedy success rates in [0, 1], of the policy it started from and of the one it made.

    Raises:
        ValueError: If there is no such log, or it holds too little.
    """
    rows: list[tuple[float, float, float]] = []
    names = ("time/total_timesteps", "rollout/reward_score", "rollout/success_rate")
    for path in Path(run).glob("progress*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found = [[row.get(name) for name in names] for row in csv.DictReader(file)]
        rows += [tuple(map(float, row)) for row in found if all(row)]  # type: ignore[arg-type, misc]
    if len(rows) < 8:
        raise ValueError(f"'{run}' logs {len(rows)} iterations with a score and successes; at least 8 are needed.")
    values = np.array(sorted(rows))[:, 1:]
    quarter = len(values) // 4
    (score_first, success_first), (score_last, success_last) = values[:quarter].mean(0), values[-quarter:].mean(0)
    return HackingCheck((float(score_first), float(score_last)), (float(success_first), float(success_last)), evaluated)


def write_report(
    folder: str | Path,
    result: RewardReport,
    model: RewardModel,
    examples: Examples,
    episodes: Sequence[Recorded],
    about: dict[str, Any] | None = None,
) -> None:
    """Write ``report.json``, ``report.md``, ``quality.png`` (ROC, calibration) and ``episodes.png`` (score over time).

    Args:
        folder: Where to.
        result: Of `report`.
        model: The model.
        examples: The labelled frames.
        episodes: To draw, such as two successes and two failures.
        about: What else to say: commands, versions, seeds.

    Raises:
        FileExistsError: If something else than such a report is there.
        OSError: If it cannot be written.
    """
    document = {"about": about or {}, **result.to_json()}
    with writing(folder, REPORT) as temporary:
        (temporary / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        lines = ["# A process reward model", "", result.markdown(), "![ROC and calibration](quality.png)", ""]
        lines += ["![Score over episodes](episodes.png)", ""]
        lines += [f"- {name}: {value}" for name, value in (about or {}).items()]
        (temporary / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw_quality(result, examples, temporary / "quality.png")
        draw_episodes(model, episodes, temporary / "episodes.png")


def draw_quality(result: RewardReport, examples: Examples, path: str | Path) -> None:
    """ROC curves against each kind of negatives, and calibration, of a report and the examples that it was made of."""
    figure, (roc, calibration) = _figure(10, 4.5, 1, 2)
    scores = result.scores
    positive = scores[examples.positive]
    for kind, auc in result.auc_by_kind.items():
        negative = scores[examples.of_kinds([kind])]
        thresholds = np.concatenate([[np.inf], np.sort(np.concatenate([positive, negative]))[::-1]])
        share = [[float(np.mean(part >= threshold)) for threshold in thresholds] for part in (negative, positive)]
        roc.plot(*share, label=f"{_called(kind)}: {auc:.3f}", linestyle=":" if kind == HOLDING else "-")
    roc.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    roc.set(xlabel="negatives above threshold", ylabel="keyframes above threshold", title=f"ROC, all: {result.auc:.3f}")
    roc.legend(loc="lower right")
    means = np.array([row[:2] for row in result.calibration])
    calibration.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    calibration.plot(means[:, 0], means[:, 1], marker="o")
    calibration.set(
        xlabel="mean score of a bin", ylabel="mean target", title=f"calibration error {result.calibration_error:.3f}"
    )
    save_figure(figure, path, dpi=110)


def draw_episodes(model: RewardModel, episodes: Sequence[Recorded], path: str | Path, n_frames: int = 8) -> None:
    """The score over each episode, below its frames."""
    figure, axes = _figure(11, 3.6 * len(episodes), 2 * len(episodes), 1)
    for index, episode in enumerate(episodes):
        strip, panel = axes[2 * index], axes[2 * index + 1]
        scores = episode_scores(model, episode)
        images = episode.images[getattr(model, "camera", CAMERA)]
        shown = np.linspace(0, len(images) - 1, min(n_frames, len(images))).round().astype(int)
        strip.imshow(np.concatenate([images[frame] for frame in shown], axis=1))
        strip.axis("off")
        strip.set_title(f"{'success' if episode.success else 'FAILURE'}: {episode.instruction}", fontsize=9)
        panel.plot(scores)
        panel.plot(shown, scores[shown], "o")
        panel.set(ylim=(-0.02, 1.02), ylabel="score", xlabel="frame; dots: those shown")
        panel.margins(x=0.01)
    save_figure(figure, path)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False).flatten()


def _scores(model: RewardModel, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    parts = [slice(start, start + _BATCH) for start in range(0, len(images), _BATCH)]
    return np.concatenate([checked_scores(model, images[part], instructions[part]) for part in parts])


def _calibration(scores: np.ndarray, targets: np.ndarray, n_bins: int = 10) -> list[tuple[float, float, int]]:
    bins = np.minimum((scores * n_bins).astype(int), n_bins - 1)
    chosen = [bins == index for index in range(n_bins) if (bins == index).any()]
    return [(float(scores[rows].mean()), float(targets[rows].mean()), int(rows.sum())) for rows in chosen]


def _called(kind: str) -> str:
    """What a kind of examples is called in a report."""
    return f"{kind} (not counted)" if kind == HOLDING else kind


def _describe(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f}), {interval.n} episodes"

"""A reward model's report as files: numbers as JSON and Markdown, ROC and calibration, scores over episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agent.common.atomic import Kind, writing
from vla_agent.common.figures import new_figure, save_figure
from vla_agent.process_reward.interface import CAMERA, RewardModel
from vla_agent.process_reward.labels import HOLDING, LabelledFrames, Recorded
from vla_agent.process_reward.reports import RewardReport, called, episode_scores

REPORT = Kind("report on a reward model", ("report.json", "report.md", "quality.png", "episodes.png"))


def write_report(
    folder: str | Path,
    result: RewardReport,
    model: RewardModel,
    examples: LabelledFrames,
    episodes: Sequence[Recorded],
    about: dict[str, Any] | None = None,
) -> None:
    """Write ``report.json``, ``report.md``, ``quality.png`` (ROC, calibration) and ``episodes.png`` (score over time).

    Args:
        folder: Folder to write; an earlier report there is replaced.
        result: The report, of `reports.report`.
        model: The model that it is about.
        examples: The labelled frames that it was made of.
        episodes: Episodes to draw, such as two successes and two failures.
        about: Further facts to write down: commands, versions, seeds.

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


def draw_quality(result: RewardReport, examples: LabelledFrames, path: str | Path) -> None:
    """Draw ROC curves against each kind of negatives, and calibration.

    Args:
        result: The report.
        examples: The labelled frames that it was made of.
        path: The picture.
    """
    figure, axes = new_figure(10, 4.5, 1, 2)
    roc, calibration = axes[0]
    scores = result.scores
    positive = scores[examples.positive]
    for kind, auc in result.auc_by_kind.items():
        negative = scores[examples.of_kinds([kind])]
        thresholds = np.concatenate([[np.inf], np.sort(np.concatenate([positive, negative]))[::-1]])
        share = [[float(np.mean(part >= threshold)) for threshold in thresholds] for part in (negative, positive)]
        roc.plot(*share, label=f"{called(kind)}: {auc:.3f}", linestyle=":" if kind == HOLDING else "-")
    roc.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    roc.set(xlabel="negatives above threshold", ylabel="keyframes above threshold", title=f"ROC, all: {result.auc:.3f}")
    if result.auc_by_kind:
        roc.legend(loc="lower right")
    means = np.array([row[:2] for row in result.calibration])
    calibration.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    calibration.plot(means[:, 0], means[:, 1], marker="o")
    calibration.set(
        xlabel="mean score of a bin", ylabel="mean target", title=f"calibration error {result.calibration_error:.3f}"
    )
    save_figure(figure, path, dpi=110)


def draw_episodes(model: RewardModel, episodes: Sequence[Recorded], path: str | Path, n_frames: int = 8) -> None:
    """Draw the score over each episode, below some of its frames."""
    figure, axes = new_figure(11, 3.6 * len(episodes), 2 * len(episodes))
    for index, episode in enumerate(episodes):
        strip, panel = axes[2 * index, 0], axes[2 * index + 1, 0]
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

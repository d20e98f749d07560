"""Learning curves of the finished cells of `forty_tasks.py`, with evaluations on them, a picture for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gains import rate

from forty.cells import FORTY, SUITES, TASKS
from forty.evidence import Evidence, Finished
from vla_agent.common.figures import new_figure, save_figure

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("evaluated on the way, greedy, drawn states", {"marker": "o", "color": "0.5"}),
    ("training episodes, drawn actions", {"color": "0.5", "alpha": 0.5, "linewidth": 0.8}),
    ("start, greedy, states 0 to 19", {"linestyle": "--", "color": "0.4", "linewidth": 1}),
    ("best, greedy, states 0 to 19, 95 %", {"linestyle": "none", "marker": "D", "color": "0.5"}),
]
TITLES = {"spatial": "LIBERO-Spatial", "object": "LIBERO-Object", "goal": "LIBERO-Goal", "10": "LIBERO-10"}


class Line(NamedTuple):
    """A cell's learning on one suite.

    Attributes:
        label: Its name in the legend.
        colour: Its colour.
        evaluations: Decisions and success of the training's own evaluations.
        training: Decisions and success of training episodes, in batches.
        judged: Rate of the best model on the states that judge, as `rate` gives it.
    """

    label: str
    colour: str
    evaluations: Sequence[tuple[float, float]]
    training: Sequence[tuple[float, float]]
    judged: Mapping[str, Any]


class Panel(NamedTuple):
    """A suite's lines, and the rate of what they started from."""

    title: str
    lines: list[Line]
    before: float


def draw_pictures(evidence: Evidence, out: Path) -> list[Path]:
    """Draw a picture of each group's seeds, of each group's variants, and of one model for all suites.

    Args:
        evidence: The finished cells.
        out: The report's JSON; pictures stand beside it.

    Returns:
        The pictures.
    """
    pictures: dict[str, tuple[list[Panel], str]] = {}
    for name, group in evidence.groups.items():
        if not group.against:
            lines = [(suite, [(name, cell) for cell in evidence.of_suite(name, suite)]) for suite in SUITES]
            pictures[name] = (_panels(evidence, lines), "decisions")
        elif FORTY in group.seeds:
            both = [(suite, _with_rivals(evidence, name, group.against, suite)) for suite in SUITES]
            pictures[name] = (_panels(evidence, both), "decisions for each suite (a quarter of those of the forty)")
        else:
            key = f"{group.against}_variants"
            rivals = [other for other, its in evidence.groups.items() if its.against == group.against]
            variants = [(suite, _variants(evidence, rivals, group.against, suite)) for suite in SUITES]
            pictures[key] = (_panels(evidence, variants), "decisions")
    paths = []
    for key, (panels, x_label) in pictures.items():
        if panels:
            paths.append(out.with_name(f"{out.stem}_{key.replace('-', '_')}.png"))
            draw(panels, x_label, paths[-1])
    return paths


Named = tuple[str, Finished]  # a cell and its name in the legend's line


def _with_rivals(evidence: Evidence, group: str, against: str, suite: str) -> list[Named]:
    """A group's cells and those that they are compared with, of the same seeds; nothing if there is none of either."""
    own = evidence.of_suite(group, suite)
    rivals = [cell for cell in evidence.of_suite(against, suite) if cell.seed in [one.seed for one in own]]
    return [*((against, cell) for cell in rivals), *((group, cell) for cell in own)]


def _variants(evidence: Evidence, rivals: Sequence[str], against: str, suite: str) -> list[Named]:
    found = [(name, cell) for name in rivals for cell in evidence.of_suite(name, suite)]
    plain = [cell for cell in evidence.of_suite(against, suite) if cell.seed in [cell.seed for _, cell in found]]
    return [*((against, cell) for cell in plain), *found]


def _panels(evidence: Evidence, suites: Sequence[tuple[str, list[Named]]]) -> list[Panel]:
    """A panel for each suite with cells; colours and labels are the same in all."""
    labels = list(dict.fromkeys(_label(name, cell) for _, cells in suites for name, cell in cells))
    panels = []
    for suite, cells in suites:
        lines = [
            Line(
                label := _label(name, cell),
                f"C{labels.index(label) % 10}",
                _evaluations(cell, suite),
                _training(cell),
                rate(cell.after("best", suite, "greedy")),
            )
            for name, cell in cells
        ]
        if lines:
            found = rate(evidence.before(cells[0][1], suite, "greedy"))
            panels.append(Panel(TITLES[suite], lines, found["successes"] / found["n"]))
    return panels


def _label(name: str, cell: Finished) -> str:
    return f"{name}, seed {cell.seed}"


def _evaluations(cell: Finished, suite: str) -> list[tuple[float, float]]:
    """A cell's own evaluations on a suite; of forty tasks, those of the suite, and the suite's share of decisions."""
    joined = cell.content["suite"] == FORTY
    first = TASKS * list(SUITES).index(suite) if joined else 0
    points = []
    for steps, tasks in cell.content["evaluations"]:
        own = [counts for task_id, counts in tasks.items() if first <= int(task_id) < first + TASKS]
        if own:
            points.append((steps / (len(SUITES) if joined else 1), sum(s for s, _ in own) / sum(n for _, n in own)))
    return points


def _training(cell: Finished) -> list[tuple[float, float]]:
    """Success of training episodes; nothing for forty tasks, whose episodes are not kept by suite."""
    if cell.content["suite"] == FORTY or not cell.content["curve"]:
        return []
    return [(steps, success) for steps, success, *_ in cell.content["curve"]["training"]]


def draw(panels: Sequence[Panel], x_label: str, path: Path) -> None:
    """Draw panels beside each other, two in a row, under one legend."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(6.2 * columns if columns > 1 else 8, 3.6 * rows + 0.7, rows, columns)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for panel, ax in zip(panels, axes.flat, strict=False):
        _draw_panel(panel, ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("success rate")
    for ax in axes[-1]:
        ax.set_xlabel(x_label)
    _draw_legend(figure, list(axes.flat)[: len(panels)])
    save_figure(figure, path, dpi=120)


def _draw_legend(figure: Any, axes: Sequence[Any]) -> None:
    """Lines in the left column, and what is drawn of each in the right one."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    kinds = [label for label, _ in KINDS]
    columns = [[label for label in found if label not in kinds], kinds]
    height = max(map(len, columns))
    empty = next(iter(found.values())).__class__([], [], linestyle="none")
    labels = [label for column in columns for label in [*column, *[""] * (height - len(column))]]
    handles = [found.get(label, empty) for label in labels]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=9, frameon=False)


def _draw_panel(panel: Panel, ax: Any) -> None:
    ends = [steps for line in panel.lines for steps, _ in (*line.evaluations, *line.training)]
    end = max(ends, default=1.0)
    for index, line in enumerate(panel.lines):
        if line.training:
            ax.plot(*zip(*line.training, strict=True), color=line.colour, alpha=0.3, linewidth=0.8, zorder=1)
        if line.evaluations:
            ax.plot(*zip(*line.evaluations, strict=True), "o-", color=line.colour, linewidth=2, markersize=4, zorder=3)
        share, (low, high) = line.judged["successes"] / line.judged["n"], line.judged["wilson_95"]
        place = {"color": line.colour, "capsize": 3, "markersize": 6, "zorder": 4}
        ax.errorbar([end * (1.05 + 0.035 * index)], [share], [[share - low], [high - share]], fmt="D", **place)
        ax.plot([], [], "-", color=line.colour, linewidth=2, label=line.label)
    ax.axhline(panel.before, color="0.4", linestyle="--", linewidth=1, zorder=2)
    for label, style in KINDS:
        ax.plot([], [], label=label, **style)
    ax.set_title(panel.title, loc="left", fontsize=11)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(0, end * (1.08 + 0.035 * len(panel.lines)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)

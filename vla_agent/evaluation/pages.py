"""Reports for reading: a Markdown page and a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_agent.evaluation.protocols import describe_protocol
from vla_agent.evaluation.reports import CHART_FILE, EvaluationReport, SuccessRow, describe_ids, describe_row

_LABEL_LENGTH = 85


def markdown(report: EvaluationReport) -> str:
    """The page `report.md`: the result, a row per task, how it was made."""
    conditions, manifest = report.conditions, report.manifest
    model = manifest.get("model", {})
    lines = [
        f"# {model.get('name') or model.get('class') or 'A policy'} on {conditions['suite']}",
        "",
        f"**Success {describe_row(report.total)}** (Wilson).",
        "",
    ]
    if not report.complete:
        lines += [f"The evaluation was interrupted after {len(report.episodes)} episodes.", ""]
    lines += [describe_protocol(conditions), "", _training_note(report), "", f"![Success by task]({CHART_FILE})", ""]
    lines += [
        "| task | | success | 95 % interval | control steps, all | of successes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_task_line(task_id, report.task_names[task_id], row) for task_id, row in report.tasks.items()]
    lines += ["", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in (conditions | report.settings).items()]
    lines += [f"| {name} | {value:.4g} |" for name, value in report.timing.items()]
    lines += [f"| {name} | {manifest[name]} |" for name in ("commit", "created") if name in manifest]
    lines += [f"| {name} | {version} |" for name, version in manifest.get("versions", {}).items()]
    lines += [f"| sha256 of {name} | `{digest}` |" for name, digest in model.get("sha256", {}).items()]
    return "\n".join(lines) + "\n"


def draw_chart(report: EvaluationReport, path: Path) -> None:
    """Write a PNG with a bar per task and Wilson's 95 % interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    rows = report.tasks
    figure = Figure(figsize=(9, 1.4 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rates = [row.rate for row in rows.values()]
    low = [row.rate - row.low for row in rows.values()]
    high = [row.high - row.rate for row in rows.values()]
    axes.barh(range(len(rows)), rates, color="0.75")
    axes.errorbar(rates, range(len(rows)), xerr=[low, high], fmt="none", ecolor="0.2", capsize=3)
    total = report.total
    axes.axvline(total.rate, color="C0", linewidth=1)
    axes.axvspan(total.low, total.high, color="C0", alpha=0.15, linewidth=0)
    axes.set_yticks(range(len(rows)), [_label(i, report.task_names[i]) for i in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("success rate; bars: tasks, line: all, each with Wilson's 95 % interval")
    axes.set_title(f"{report.conditions['suite']}: {describe_row(total)}", fontsize=9)
    figure.savefig(path, dpi=120)


def _training_note(report: EvaluationReport) -> str:
    suite = report.conditions["suite"]
    training = report.manifest.get("training_states")
    if not isinstance(training, dict):
        return "Which initial states the model was trained on is unknown."
    trained = describe_ids(training.get(suite, []))
    seen = set(training.get(suite, [])) & set(report.conditions["init_state_ids"])
    if not seen:
        return f"The model was trained on initial states {trained} of this suite, and evaluated on none of them."
    among = f"{len(seen)} of the {len(report.conditions['init_state_ids'])} evaluated are among them."
    return f"**The model was trained on initial states {trained} of this suite; {among}**"


def _task_line(task_id: int, name: str, row: SuccessRow) -> str:
    successes = "" if row.mean_success_steps is None else f"{row.mean_success_steps:.1f}"
    return (
        f"| {task_id} | {name.replace('_', ' ')} | {row.successes}/{row.n} | {100 * row.low:.1f} to "
        f"{100 * row.high:.1f} % | {row.mean_steps:.1f} | {successes} |"
    )


def _label(task_id: int, name: str) -> str:
    words = name.replace("_", " ")
    return f"{words if len(words) <= _LABEL_LENGTH else words[: _LABEL_LENGTH - 1] + '…'}  {task_id}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return describe_ids(value) if all(isinstance(item, int) for item in value) else ", ".join(map(str, value))
    return str(value)

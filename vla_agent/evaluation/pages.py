"""Results for reading: a Markdown page and a chart."""

from __future__ import annotations

from pathlib import Path

from vla_agent.common.figures import new_figure, save_figure
from vla_agent.evaluation.decoding import describe_decoding
from vla_agent.evaluation.protocols import describe_protocol
from vla_agent.evaluation.results import EvaluationResults, SuccessRow, describe_ids, describe_row, describe_value

CHART_FILE = "success.png"
_HASH = "sha256 of "  # begins the names of hashes
_LABEL_LENGTH = 95
# Inches and dots that a README shows at about this size, so that 9.5 points stay readable.
_CHART_WIDTH, _ROW_HEIGHT, _DPI = 8.0, 0.5, 125
_BAR = 0.45  # of a row; the label stands above
_TASK_COLOR, _TOTAL_COLOR, _TRACK_COLOR = "#2a78b5", "#c7562b", "#e9eef3"


def markdown(report: EvaluationResults) -> str:
    """The page `report.md`: the result, a row per task, how it was made."""
    note, seen = training_note(report)
    lines = [
        f"# {model_name(report)} on {report.conditions['suite']}",
        "",
        f"**Success {describe_row(report.total)}** (Wilson).",
        "",
    ]
    if not report.complete:
        lines += [f"The evaluation was interrupted after {len(report.episodes)} episodes.", ""]
    note = f"**{note}**" if seen else note
    lines += [describe_setting(report), "", note, "", f"![Success]({CHART_FILE})", ""]
    if len(report.suites) > 1:
        lines += ["| suite | success | | 95 % interval | control steps, all | of successes |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [_suite_line(name, row) for name, row in (report.suites | {"all": report.total}).items()]
        lines += [""]
    lines += [
        "| task | | success | 95 % interval | control steps, all | of successes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_task_line(task_id, report.task_names[task_id], row) for task_id, row in report.tasks.items()]
    lines += ["", "| | |", "| --- | --- |"]
    for name, value in facts(report).items():
        cell = _in_table(value)
        lines.append(f"| {_in_table(name)} | {f'`{cell}`' if name.startswith(_HASH) else cell} |")
    return "\n".join(lines) + "\n"


def describe_setting(report: EvaluationResults) -> str:
    """The protocol of a report, and how its actions were taken, in words."""
    words = f"{describe_protocol(report.conditions)} Actions are {describe_decoding(report.settings)}."
    stated = report.settings.get("mujoco", "exact")
    return words if stated == "exact" else f"{words} LIBERO's simulation is {stated}, not exact."


def model_name(report: EvaluationResults) -> str:
    """What a report calls the model; whoever had an oracle choose is called so."""
    model = report.manifest.get("model", {})
    name = str(model.get("name") or model.get("class") or "A policy")
    return f"{name} with an oracle" if report.settings.get("oracle") else name


def facts(report: EvaluationResults) -> dict[str, str]:
    """How a result was made, by name: conditions, settings, timing, command, machine, versions, hashes."""
    manifest = report.manifest
    rows = {"model": str(manifest["model_choice"])} if "model_choice" in manifest else {}
    rows |= {name: describe_value(name, value) for name, value in (report.conditions | report.settings).items()}
    if (auc := report.scorer_auc) is not None:
        rows["scorer's AUC of success"] = f"{auc:.3f}"
    if "mujoco" in rows:  # below it is the version
        rows["simulation"] = rows.pop("mujoco")
    rows |= {name: f"{value:.4g}" for name, value in report.timing.items()}
    if machine := manifest.get("machine"):
        cores = f"{machine['cpu_cores']} CPU cores" if "cpu_cores" in machine else ""
        parts = [machine.get("architecture"), cores, *machine.get("gpus", ())]
        rows["machine"] = ", ".join(str(part) for part in parts if part)
    rows |= {name: str(manifest[name]) for name in ("command", "commit", "created") if name in manifest}
    rows |= {name: str(version) for name, version in manifest.get("versions", {}).items()}
    hashes = manifest.get("model", {}).get("sha256", {})
    return rows | {_HASH + name: str(digest) for name, digest in hashes.items()}


def training_note(report: EvaluationResults) -> tuple[str, bool]:
    """Which initial states the model was trained on, in words, and whether some of the evaluated are among them."""
    training = report.manifest.get("training_states")
    if not isinstance(training, dict):
        return "Which initial states the model was trained on is unknown.", False
    suites = list(report.suites) or [report.conditions["suite"]]
    notes = [
        _note_on(suite if len(suites) > 1 else "this suite", training.get(suite, []), _states_of(report, suite))
        for suite in suites
    ]
    return " ".join(note for note, _ in notes), any(seen for _, seen in notes)


def draw_chart(report: EvaluationResults, path: Path) -> None:
    """Write a PNG with a bar per task, its counts at the right, and Wilson's 95 % interval as a line.

    If tasks come from several suites, there is a bar per suite instead.
    """
    rows = [(_label(task_id, report.task_names[task_id]), row) for task_id, row in report.tasks.items()]
    if len(report.suites) > 1:
        rows = list(report.suites.items())
    colors = [_TASK_COLOR] * len(rows)
    if len(rows) > 1:
        rows.append(("all tasks", report.total))
        colors.append(_TOTAL_COLOR)
    figure, ((axes,),) = new_figure(_CHART_WIDTH, 0.9 + _ROW_HEIGHT * len(rows))
    for place, ((label, row), color) in enumerate(zip(rows, colors, strict=True)):
        axes.barh(place, 1, height=_BAR, color=_TRACK_COLOR)
        axes.barh(place, row.rate, height=_BAR, color=color)
        axes.errorbar(
            (row.low + row.high) / 2, place, xerr=(row.high - row.low) / 2, fmt="none", ecolor="0.15", capsize=3, lw=1.2
        )
        axes.text(0, place - 0.3, label, fontsize=9.5, va="bottom")
        axes.text(1.015, place, f"{row.successes}/{row.n}", fontsize=11, weight="bold", va="center", color=color)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=9.5)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("success; lines are 95 % intervals (Wilson)", fontsize=9.5)
    title = f"{report.conditions['suite']}, {100 * report.success_rate:.1f} % of {report.total.n} episodes"
    axes.set_title(title, fontsize=10.5, loc="left")
    save_figure(figure, path, _DPI)


def _note_on(suite: str, trained: list[int], evaluated: set[int]) -> tuple[str, bool]:
    if not trained:
        return f"The model was trained on no official initial state of {suite}.", False
    seen = evaluated & set(trained)
    states = f"The model was trained on initial states {describe_ids(trained)} of {suite}"
    if not seen:
        return f"{states}, and evaluated on none of them.", False
    return f"{states}; {len(seen)} of the {len(evaluated)} evaluated are among them.", True


def _states_of(report: EvaluationResults, suite: str) -> set[int]:
    """Initial states that the tasks of a suite were evaluated on, or are to be."""
    own = {episode.init_state_id for episode in report.episodes if report.suite_of(episode.task_id) == suite}
    return own if report.complete and own else own | set(report.conditions["init_state_ids"])


def _in_table(text: str) -> str:
    """A text as a cell of a Markdown table, which a bar or the end of a line would end."""
    return " ".join(text.splitlines()).replace("|", r"\|")


def _suite_line(name: str, row: SuccessRow) -> str:
    successes = "" if row.mean_success_steps is None else f"{row.mean_success_steps:.1f}"
    return (
        f"| {_in_table(name)} | {100 * row.rate:.1f} % | {row.successes}/{row.n} | {100 * row.low:.1f} to "
        f"{100 * row.high:.1f} % | {row.mean_steps:.1f} | {successes} |"
    )


def _task_line(task_id: int, name: str, row: SuccessRow) -> str:
    successes = "" if row.mean_success_steps is None else f"{row.mean_success_steps:.1f}"
    return (
        f"| {task_id} | {_in_table(name.replace('_', ' '))} | {row.successes}/{row.n} | {100 * row.low:.1f} to "
        f"{100 * row.high:.1f} % | {row.mean_steps:.1f} | {successes} |"
    )


def _label(task_id: int, name: str) -> str:
    words = name.replace("_", " ")
    return f"{task_id}  {words if len(words) <= _LABEL_LENGTH else words[: _LABEL_LENGTH - 1] + '…'}"

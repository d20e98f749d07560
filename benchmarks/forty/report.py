"""The report of `forty_tasks.py` as files: figures as JSON, tables as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forty.cells import FORTY, SUITES
from forty.evidence import Evidence, results
from forty.pictures import draw_pictures
from forty.work import MODELS, Work
from libero_gym.common.atomic import write_text

TITLES = {"spatial": "Spatial", "object": "Object", "goal": "Goal", "10": "LIBERO-10", FORTY: "all four"}
WORDS = {"greedy": "greedy", "sampled": "drawn actions"}


def write(work: Work, out: Path) -> str:
    """Write the figures, the tables and the pictures; the tables.

    Raises:
        ValueError: If no cell is finished.
    """
    evidence = Evidence(work)
    if not any(evidence.cells.values()):
        raise ValueError(f"No cell is finished in '{work.cells_folder}'; `run` makes them.")
    figures = results(evidence)
    text = markdown(figures)
    write_text(out, json.dumps(figures, indent=1) + "\n")
    write_text(out.with_suffix(".md"), text)
    pictures = draw_pictures(evidence, out)
    return f"{text}\nWrote {', '.join(str(path) for path in (out, out.with_suffix('.md'), *pictures))}"


def markdown(figures: dict[str, Any]) -> str:
    """All tables."""
    wide = [name for name, group in figures["groups"].items() if not group["against"] or len(suites_of(group)) > 1]
    parts = [headline(name, figures["groups"][name]) for name in wide]
    parts += [cells_table(figures["cells"])]
    parts += [comparison_table(figures["comparisons"])] if figures["comparisons"] else []
    return "\n\n".join(parts) + "\n"


def suites_of(group: dict[str, Any]) -> list[str]:
    """The suites that a group was judged on."""
    return [suite for suite in SUITES if suite in group["greedy"]["best"]]


def headline(name: str, group: dict[str, Any]) -> str:
    """The row of suites of a group: before, after and gain, greedy and drawn, best and last."""
    suites = suites_of(group)
    n = len(group["greedy"]["best"]["mean"]["suites"])
    seeds = {suite: group["greedy"]["best"][suite]["seeds"] for suite in suites}
    lines = [
        table_row([f"`{name}`", *(TITLES[suite] for suite in suites), *([f"mean of {n} suites"] if n > 1 else [])])
    ]
    lines.append(table_row(["---"] * (len(suites) + 1 + (n > 1))))
    shown = [*suites, *(["mean"] if n > 1 else [])]
    lines.append(
        table_row(["seeds", *(", ".join(map(str, seeds[suite])) for suite in suites), *([""] if n > 1 else [])])
    )
    for decoding in WORDS:
        for model in MODELS:
            rows = group[decoding][model]
            if model == MODELS[0]:
                lines.append(
                    table_row([f"before, {WORDS[decoding]}", *(percent(rows[key]["before"]) for key in shown)])
                )
            lines.append(table_row([f"{model}, {WORDS[decoding]}", *(percent(rows[key]["after"]) for key in shown)]))
            lines.append(table_row(["gain in points", *(f"**{points(rows[key]['gain'])}**" for key in shown)]))
    commands = [group["greedy"]["best"][suite]["rerun"] for suite in suites]
    lines += [
        "",
        f"From `{group['start']}`. Again, one cell: " + "; ".join(f"`{c}`" for c in dict.fromkeys(commands)) + ".",
    ]
    return "\n".join(lines)


def cells_table(cells: dict[str, Any]) -> str:
    """A row for each cell, suite and model."""
    heads = ["cell", "model, at decision", "judged on"]
    for words in WORDS.values():
        heads += [f"{words}, successes (95 %)", "gain; gained, lost, p"]
    lines = [table_row([*heads, "hours to train", "commits"]), table_row(["---"] * (len(heads) + 2))]
    for name, cell in cells.items():
        hours, commits = f"{cell['seconds'].get('train', 0) / 3600:.1f}", ", ".join(f"`{c}`" for c in cell["commits"])
        for model in cell["judged"]:
            at = cell["best_at"] if model == "best" else cell["decisions"]
            for suite, row in cell["judged"][model].items():
                what = "best and last" if cell["best_is_last"] else model
                values = [f"`{name}`", f"{what}, {at}", TITLES[suite]]
                for decoding in WORDS:
                    found = row[decoding]
                    low, high = found["wilson_95"]
                    share = 100 * found["successes"] / found["n"]
                    values.append(
                        f"{found['successes']} of {found['n']} = {share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
                    )
                    values.append(
                        f"{found['points']:+.1f}; {found['gained']}, {found['lost']}, {found['mcnemar_p']:.2g}"
                    )
                lines.append(table_row([*values, hours, commits]))
    return "\n".join(lines)


def comparison_table(comparisons: dict[str, Any]) -> str:
    """A row for each comparison and suite, of the best models."""
    heads = ["best models", "suite", "seeds"]
    lines = [table_row([*heads, *(f"{words}, points (95 %)" for words in WORDS.values())]), table_row(["---"] * 5)]
    for name, compared in comparisons.items():
        rows = {decoding: compared[decoding]["best"] for decoding in WORDS}
        for suite in rows["greedy"]:
            seeds = ", ".join(map(str, rows["greedy"][suite].get("seeds", [])))
            title = TITLES.get(suite, f"mean of {len(rows['greedy'][suite].get('suites', []))}")
            values = [points(rows[decoding][suite]["difference"]) for decoding in WORDS]
            lines.append(table_row([name, title, seeds, *values]))
    return "\n".join(lines)


def table_row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def percent(found: dict[str, Any]) -> str:
    """A rate with its interval: Wilson's for one suite's episodes, a bootstrap's for the mean of suites."""
    if "points" in found:
        low, high = found["bootstrap_95"]
        return f"{found['points']:.1f} % ({low:.1f} to {high:.1f})"
    low, high = found["wilson_95"]
    return f"{100 * found['successes'] / found['n']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def points(found: dict[str, Any]) -> str:
    """A difference with its interval."""
    low, high = found["bootstrap_95"]
    return f"{found['points']:+.1f} ({low:+.1f} to {high:+.1f})"

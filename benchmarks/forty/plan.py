"""How far the cells of `forty_tasks.py` are, and the hours that they will take, from measured rates."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forty.cells import DECODINGS, STATES, TASKS, Cell
from forty.session import CellError, different
from forty.work import MODELS, Work, decisions

EPISODES = TASKS * STATES  # of a judgement of one suite
# Until something is measured: two cores, fast frames.
DECISIONS_PER_S = 20.0
S_PER_EPISODE = {"spatial": 0.8, "object": 1.0, "goal": 1.0, "10": 2.5}


class Rates:
    """Decisions a second of trainings, and seconds an episode of judgements, as far as they were measured.

    Args:
        work: The work folder.
        cells: The cells to learn from.
    """

    def __init__(self, work: Work, cells: Sequence[Cell]) -> None:
        self.training: dict[str, tuple[float, float]] = {}  # decisions and seconds, by cell
        judging: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for cell in cells:
            content = finished(work, cell)
            seconds = content["seconds"] if content else work.note(cell).seconds
            done = content["decisions"] if content else decisions(work.run_folder(cell))
            if (own := done - work.decisions_before(cell)) > 0 and seconds.get("train"):
                self.training[cell.name] = (own, seconds["train"])
            for suite in cell.judged_on:
                if content and (spent := seconds.get(f"judge {suite}")):
                    judging[suite].append((EPISODES * len(DECODINGS) * len(content["judged"]), spent))
        for path in (work.root / "before").glob("*/*.json"):
            before = json.loads(path.read_text())
            if spent := before["seconds"].get(f"judge {before['suite']}"):
                judging[before["suite"]].append((len(before["episodes"]), spent))
        self.judging = {suite: sum(s for _, s in pairs) / sum(n for n, _ in pairs) for suite, pairs in judging.items()}

    def decisions_per_s(self, cell: Cell) -> float:
        """Those of the cells most like this one: of its group and suite, else of its suite, else of all."""
        for prefix, suite in ((cell.group, cell.suite), ("", cell.suite), ("", "")):
            alike = [
                pair
                for name, pair in self.training.items()
                if prefix in ("", name.split("/")[0]) and suite in ("", name.split("/")[1])
            ]
            if alike:
                return sum(done for done, _ in alike) / sum(seconds for _, seconds in alike)
        return DECISIONS_PER_S

    def s_per_episode(self, suite: str) -> float:
        """Seconds of an episode of a judgement."""
        return self.judging.get(suite, S_PER_EPISODE[suite])


def finished(work: Work, cell: Cell) -> dict[str, Any] | None:
    """What was kept of a finished cell."""
    path = work.cell_file(cell)
    return json.loads(path.read_text()) if path.is_file() else None


def state(work: Work, cell: Cell) -> tuple[str, int]:
    """How far a cell is, in words, and the decisions that its training still takes."""
    total = work.total_timesteps(cell)
    try:
        settings = json.loads(json.dumps(work.settings(cell)))
    except CellError as error:
        settings, missing = None, f"{error}".partition(":")[0]
    content = finished(work, cell)
    begun = content or work.note(cell).content
    odd = settings is not None and "settings" in begun and different(begun["settings"], settings)
    mark = f", with other settings: {odd}" if odd else ""
    if content is not None:
        return f"done{mark}", 0
    before = work.decisions_before(cell)
    if settings is None:
        return missing, total - before
    if work.is_trained(cell):
        return f"being judged{mark}", 0
    done = max(before, decisions(work.run_folder(cell)))
    began = begun.get("seconds", {}).get("train")
    return (f"at {done} of {total} decisions{mark}" if began else f"not begun{mark}"), max(0, total - done)


def hours_left(work: Work, cell: Cell, rates: Rates, left: int, counted: set[Path]) -> float:
    """Hours that a cell still takes, its start's judgement included.

    Args:
        work: The work folder.
        cell: The cell.
        rates: What was measured.
        left: Decisions that its training still takes.
        counted: Judgements of starts that other cells count; this cell's are added.
    """
    if work.cell_file(cell).is_file():
        return 0.0
    seconds = left / rates.decisions_per_s(cell)
    for suite in cell.judged_on:
        seconds += EPISODES * len(DECODINGS) * len(MODELS) * rates.s_per_episode(suite)
    try:
        befores = work.befores(cell)
    except CellError:
        return seconds / 3600
    for before in befores:
        file = work.before_file(before)
        if file not in counted and not file.is_file():
            counted.add(file)
            seconds += EPISODES * rates.s_per_episode(before.suite)
    return seconds / 3600


def describe(work: Work, cells: Sequence[Cell]) -> str:
    """The plan as a table, and its sum."""
    rates, counted, total, done = Rates(work, cells), set[Path](), 0.0, 0
    lines = [f"{'cell':26}{'hours left':>10}  state"]
    for cell in cells:
        words, left = state(work, cell)
        hours = hours_left(work, cell, rates, left, counted)
        total, done = total + hours, done + work.cell_file(cell).is_file()
        lines.append(f"{cell.name:26}{hours:10.1f}  {words}")
    lines.append(f"{len(cells)} cells, {done} done, {total:.1f} hours left.")
    lines.append(f"Decisions a second: {_measured(rates.training, DECISIONS_PER_S)}.")
    lines.append(f"Seconds an episode: {', '.join(f'{s} {rates.s_per_episode(s):.2f}' for s in S_PER_EPISODE)}.")
    runs = work.root / "runs"
    space = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file())
    lines.append(f"'{runs}' takes {space / 1e9:.1f} GB. Nothing there is deleted; the report does not need it.")
    return "\n".join(lines)


def _measured(training: Mapping[str, tuple[float, float]], default: float) -> str:
    if not training:
        return f"{default:.0f} (assumed; nothing is measured yet)"
    return ", ".join(f"{name} {done / seconds:.1f}" for name, (done, seconds) in training.items())

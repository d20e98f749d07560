"""The work behind the cells of `forty_tasks.py`: training and judging in processes of their own, and what they leave.

The work folder holds ``cells/`` and ``before/`` (small files, which alone the report reads) and ``runs/`` (run folders,
reports of evaluations, output). Whatever is cut off goes on from there.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gains import EXAMPLES
from measuring import provenance

from forty.cells import DECODINGS, PPO, Cell, Group, as_arguments, judging_arguments, training_options
from forty.session import LIBERO_VLA, CellError, Note, Session, Stopped
from libero_gym.common.atomic import write_text
from vla_agent import EvaluationReport, RunError, latest_run
from vla_agent.commands.train import Options
from vla_agent.common.hashes import fingerprint, hash_file, hash_files
from vla_agent.evaluation.learning import read_curve
from vla_agent.evaluation.results import ReportError
from vla_agent.openvla.files import resolve_folder
from vla_agent.runs.run_files import POLICY, STATE

MODELS = ("best", "last")  # by the training's own evaluations; the end of the training


class Before(NamedTuple):
    """An evaluation of a start."""

    start: str  # name and hash
    suite: str
    decoding: str
    temperature: float  # of drawn actions


class Work:
    """The work folder.

    Args:
        root: The folder, which may be missing.
        groups: The table.
        renderer: Of the frames that models are judged on.
        threads: Threads of each process.
    """

    def __init__(self, root: Path, groups: Mapping[str, Group], renderer: str = "fast", threads: int = 1) -> None:
        self.root, self.groups, self.renderer, self.threads = root, groups, renderer, threads

    @property
    def cells_folder(self) -> Path:
        """Where finished cells are kept."""
        return self.root / ("cells" if self.renderer == "fast" else f"cells-{self.renderer}")

    def cell_file(self, cell: Cell) -> Path:
        """Where a finished cell is kept."""
        return self.cells_folder / f"{cell.name}.json"

    def before_file(self, before: Before) -> Path:
        """Where an evaluation of a start is kept."""
        decoding = before.decoding + (f"-{before.temperature}" if before.decoding == "sampled" else "")
        return self.root / "before" / before.start / f"{before.suite}-{decoding}-{self.renderer}.json"

    def note(self, cell: Cell) -> Note:
        """What is known of a cell under way."""
        return Note(self.root / "runs" / cell.name / "note.json")

    def run_folder(self, cell: Cell) -> Path:
        """The folder of a cell's training."""
        return self.root / "runs" / cell.name / "ppo"

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's training.

        Raises:
            CellError: If the start, the teacher or the run that goes on is not there.
        """
        group = self.groups[cell.group]
        settings: dict[str, Any] = {
            "start": start_id(group.start),
            "threads": self.threads,
            "options": training_options(group, cell),
        }
        if group.script != PPO:
            settings["script"] = group.script
        for role, what in (("teacher", "its teacher"), ("continues", "what it continues,")):
            if (needed := self._needed(cell, role)) is None:
                continue
            if not self.is_trained(needed):
                raise CellError(f"{what} {needed.name} is not trained here: `run --cells {needed.name}` comes first")
            settings[role] = needed.name
        return settings

    def _needed(self, cell: Cell, role: str) -> Cell | None:
        """The cell that is this one's "teacher", or that it "continues"; None if it has none."""
        group = getattr(self.groups[cell.group], role)
        return replace(cell, group=group) if group else None

    def is_trained(self, cell: Cell) -> bool:
        """Whether a cell's training came to its end here."""
        model = self.run_folder(cell) / "model"
        if not (model / STATE).is_file():
            return False
        return not self.groups[cell.group].continues or decisions(model) >= self.total_timesteps(cell)

    def decisions_before(self, cell: Cell) -> int:
        """Decisions that a cell has for nothing, since it continues another."""
        earlier = self._needed(cell, "continues")
        return self.total_timesteps(earlier) if earlier else 0

    def befores(self, cell: Cell) -> list[Before]:
        """The evaluations of its start that a cell is held against."""
        start, temperature = start_id(self.groups[cell.group].start), self.temperature(cell)
        return [Before(start, suite, decoding, temperature) for suite in cell.judged_on for decoding in DECODINGS]

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell is finished, and what it started from is judged, if that is still what ships."""
        if not self.cell_file(cell).is_file():
            return False
        start = json.loads(self.cell_file(cell).read_text())["settings"]["start"]
        try:
            befores = self.befores(cell)
        except CellError:
            return True
        return all(before.start != start or self.before_file(before).is_file() for before in befores)

    def temperature(self, cell: Cell) -> float:
        """Temperature of the rollouts."""
        return float(self.groups[cell.group].options_of(cell.suite).get("temperature", Options.temperature))

    def total_timesteps(self, cell: Cell) -> int:
        """Decisions of the training."""
        return int(self.groups[cell.group].options_of(cell.suite).get("total_timesteps", Options.total_timesteps))

    def do(self, cell: Cell, session: Session) -> None:
        """Bring a cell to its end: its start is judged, then it is trained, then it is judged itself.

        Raises:
            CellError: If it cannot go on.
            Stopped: If the session ended before.
        """
        if self.is_done(cell):
            return
        note, is_trained = self.note(cell), self.cell_file(cell).is_file()
        if not is_trained:
            note.begin(self.settings(cell))
        for before in self.befores(cell):
            if not self.before_file(before).is_file():
                self._judge_start(self.groups[cell.group].start, before, session)
        if is_trained:  # elsewhere, and its start was not kept
            return
        self._train(cell, session, note)
        write_text(self.cell_file(cell), json.dumps(self._finished(cell, session, note)) + "\n")

    def _judge_start(self, start: str, before: Before, session: Session) -> None:
        file = self.before_file(before)
        out = self.root / "runs" / "before" / before.start / file.stem
        note = Note(out.with_name(f"{out.name}.note.json"))
        judged = self._judge(start, *before[1:], out, session, note)
        content = {**before._asdict(), "renderer": self.renderer, "seconds": note.seconds, **judged}
        write_text(file, json.dumps(content) + "\n")

    def _train(self, cell: Cell, session: Session, note: Note) -> None:
        """Train to the end, from the newest save on."""
        folder = self.run_folder(cell)
        if self.is_trained(cell):
            return
        group, arguments = self.groups[cell.group], as_arguments(note.content["settings"]["options"])
        if teacher := self._needed(cell, "teacher"):
            arguments += ["--teacher", str(self.run_folder(teacher))]
        earlier = self._needed(cell, "continues")
        if earlier and not folder.exists():
            copy = folder.with_name("copy")  # a kill leaves part of one
            shutil.copytree(self.run_folder(earlier), copy, dirs_exist_ok=True)
            copy.rename(folder)
        try:
            latest_run(folder)
            arguments += ["--resume", str(folder)]
        except RunError:  # killed before its first checkpoint, or not begun
            arguments += ["--existing", "aside"]
        program = [str(EXAMPLES / group.script)] if group.script.endswith(".py") else ["-c", LIBERO_VLA, group.script]
        command = [sys.executable, *program, *arguments, "--out", str(folder)]
        print(f"{cell.name}: training", flush=True)
        session.run(command, signal.SIGTERM, folder.parent / "output.log", note, "train")
        if not self.is_trained(cell):
            raise Stopped  # somebody stopped it

    def _finished(self, cell: Cell, session: Session, note: Note) -> dict[str, Any]:
        """What is kept of a cell; what lacks a judgement is judged."""
        folder = self.run_folder(cell)
        models = {"best": folder / "best", "last": folder / "model"}
        best_is_last = not models["best"].is_dir() or same_weights(*models.values())
        judged: dict[str, Any] = {}
        on_judged = self.groups[cell.group].on_judged  # there, success has chosen the best, and may not judge it
        for name in ("last",) if best_is_last or on_judged else MODELS:  # one judgement serves both
            judged[name] = {suite: {} for suite in cell.judged_on}
            for suite in cell.judged_on:
                for decoding in DECODINGS:
                    out = folder.parent / f"{name}-{suite}-{decoding}-{self.renderer}"
                    judged[name][suite][decoding] = self._judge(
                        str(models[name]),
                        suite,
                        decoding,
                        self.temperature(cell),
                        out,
                        session,
                        note,
                        on_judged,
                    )
        curve = read_curve(models["best"] if models["best"].is_dir() else models["last"])
        return {
            **{name: getattr(cell, name) for name in ("group", "suite", "seed")},
            "settings": note.content["settings"],
            "renderer": self.renderer,
            "temperature": self.temperature(cell),
            "commits": note.content["commits"],
            "provenance": provenance(),
            "seconds": note.seconds,
            "memory_mb": note.memory_mb,
            "decisions": decisions(models["last"]),
            "best_is_last": best_is_last,
            "curve": None if curve is None else curve.to_json(),
            "evaluations": evaluations_by_task(models["last"]),
            "judged": judged,
        }

    def _judge(
        self,
        model: str,
        suite: str,
        decoding: str,
        temperature: float,
        out: Path,
        session: Session,
        note: Note,
        on_judged: bool = False,
    ) -> dict[str, Any]:
        """Episodes of a model from every state that judges; those that an earlier session ran are kept."""
        arguments = judging_arguments(model, suite, decoding, temperature, self.renderer, on_judged)
        if finished_report(out) is None:
            print(f"judging {model} on {suite}, {decoding}", flush=True)
            command = [sys.executable, str(EXAMPLES / "evaluate.py"), *arguments, "--out", str(out)]
            session.run(command, signal.SIGINT, out.with_name(f"{out.name}.log"), note, f"judge {suite}")
        report = finished_report(out)
        if report is None:
            raise Stopped
        return {
            "episodes": [[e.task_id, e.init_state_id, int(e.success), e.steps] for e in report.episodes],
            "commit": report.manifest.get("commit"),
        }


def start_id(start: str) -> str:
    """Name of a start and a hash of its files, such as "tiny-libero-1a2b3c4d".

    Raises:
        CellError: If it is not there.
    """
    try:
        folder = resolve_folder(start, weights=True)
    except ValueError as error:
        raise CellError(f"its start '{start}' is not there: {error}") from error
    return f"{folder.name}-{fingerprint([json.dumps(hash_files(folder)).encode()])[:8]}"


def finished_report(folder: Path) -> EvaluationReport | None:
    """The report of an evaluation that came to its end."""
    try:
        report = EvaluationReport.load(folder)
    except ReportError:
        return None
    return report if report.complete else None


def same_weights(first: Path, second: Path) -> bool:
    """Whether two saved runs hold the same policy."""
    return hash_file(first / POLICY) == hash_file(second / POLICY)


def decisions(folder: Path) -> int:
    """Decisions of the newest save in a run's folder; 0 if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged save; the next older one counts
            newest = latest_run(folder)
    except RunError:
        return 0
    return int(json.loads((newest / STATE).read_text())["counters"]["num_timesteps"])


def evaluations_by_task(folder: Path) -> list[list[Any]]:
    """A run's own evaluations: decisions before each, and successes and episodes of each task."""
    callbacks = json.loads((folder / STATE).read_text())["callbacks"]
    found: list[list[Any]] = []
    for steps, episodes in callbacks.get("EvaluationCallback", {}).get("history", ()):
        tasks: dict[str, list[int]] = {}
        for task_id, _, success, _ in episodes:
            counts = tasks.setdefault(str(task_id), [0, 0])
            counts[0] += bool(success)
            counts[1] += 1
        found.append([steps, tasks])
    return found

"""Offline learning from a weak start's own episodes: does using failures beat cloning the successes?

    python benchmarks/offline.py plan                           # what is done, and what the steps took
    python benchmarks/offline.py run --hours 3                  # goes on with it; may be killed at any moment
    python benchmarks/offline.py run --cells awr/0 'tagged/*'   # some cells, METHOD/SEED, or further seeds
    python benchmarks/offline.py report                         # the table of the finished cells
    python benchmarks/offline.py run --look --work runs/look    # every step once, small: does it work here?

`tiny-libero-few` plays LIBERO-Spatial's ten tasks once from each of the official states 20 to 49, drawn at temperature
0.7. From these 300 episodes each cell trains the same model by one method and seed. What judges is official states 0 to
19 of each task, greedy and drawn: the start once, then each cell. Every setting that is not a command's default stands
below. Finished steps are kept as small files in ``--work``, which alone the report reads. ``--kept`` is one file of the
repository that has those of all machines: what the folder lacks comes from there, and what it has goes there.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from forty import store
from forty.cells import DECODINGS, as_arguments
from forty.session import LIBERO_VLA, CellError, Note, Session, Stopped, do_each, locked
from forty.work import finished_report, start_id
from gains import Outcomes, gain_by_state, mean_in_points, outcomes_of, paired, rate
from measuring import provenance

from libero_gym.common.atomic import write_text
from libero_gym.demonstrations import LeRobotReader
from libero_gym.demonstrations.lerobot_layout import INFO_PATH

RESULTS = Path(__file__).parent / "results"
START, SUITE, ENV_ID = "tiny-libero-few", "libero_spatial", "LIBERO-Spatial-v0"
TEMPERATURE = 0.7  # of recorded episodes, and of those that judge if drawn
SEEDS = (0, 1, 2)
BASELINE = "filtered"
METHODS: dict[str, dict[str, Any]] = {
    "filtered": {},
    "awr": {"beta": 0.2, "max_weight": 20.0},
    "tagged": {"tag_share": 0.3, "tag_dropout": 0.1},
}
LEARNING = {"learning_rate": 1e-4, "batch_size": 32}
# What is for an expert's demonstrations, and was the default for a policy's episodes, too: one seed of each.
AS_DEMONSTRATIONS = {"cut_waiting": "True", "keyframe_coef": 0.5}
METHODS |= {
    f"{method}-as-demos": {"method": method, **METHODS[method], **AS_DEMONSTRATIONS} for method in ("filtered", "awr")
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is recorded, trained and judged."""

    task_ids: str = ""  # all
    recorded_states: str = "20-49"
    judged_states: str = "0-19"
    n_steps: int = 1500


LOOK = Scale(task_ids="1-2", recorded_states="20-22", judged_states="0", n_steps=20)


class Work:
    """The work folder: ``episodes`` (the dataset), ``runs`` (what is cut off goes on there), ``done`` (small files).

    Args:
        root: The folder, which may be missing.
        scale: How much is done.
        session: What runs the commands; None to read alone.
        kept: A file of the repository that has the finished steps, too; None for none.
    """

    def __init__(self, root: Path, scale: Scale, session: Session | None = None, kept: Path | None = None) -> None:
        self.root, self.scale, self.session, self.kept = root, scale, session, kept

    def finished(self, step: str) -> dict[str, Any] | None:
        """What is kept of a step: "episodes", "start", or a cell's name; None if it is not done."""
        path = self.root / "done" / f"{step}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def has_episodes(self) -> bool:
        """Whether the recorded episodes lie here."""
        return (self.root / "episodes" / INFO_PATH).is_file()

    def record(self) -> None:
        """Let the start play the episodes that all cells learn from."""
        note = self._note("episodes")
        options = {"policy": START, "sample": True, "temperature": TEMPERATURE, "suite": SUITE, "renderer": "fast"}
        options |= {"task_ids": self.scale.task_ids, "init_states": self.scale.recorded_states}
        self._run("record", options, self.root / "episodes", note, "record")
        if not self.has_episodes:
            raise Stopped
        tasks: dict[int, list[int]] = {}
        for _, episode in LeRobotReader(self.root / "episodes", cameras=()).enumerate():
            counts = tasks.setdefault(episode.task_id, [0, 0])
            counts[0] += episode.success
            counts[1] += 1
        self._keep("episodes", note, {"successes_and_episodes": tasks})

    def judge_start(self) -> None:
        """Judge what all cells begin with."""
        note = self._note("start")
        self._keep("start", note, {"judged": self._judge(START, "start", note)})

    def do(self, method: str, seed: int) -> None:
        """Train a cell, and judge it.

        Raises:
            CellError: If it cannot go on, or the episodes are missing.
            Stopped: If the session ended before.
        """
        if not self.has_episodes:
            raise CellError("the episodes that it learns from are not here")
        name = f"{method}/{seed}"
        note, out = self._note(name), self.root / "runs" / name / "trained"
        options = {"model": START, "suite": SUITE, "demonstrations": str(self.root / "episodes"), "method": method}
        options |= {"n_steps": self.scale.n_steps, "seed": seed, "evaluate_states": "", **LEARNING, **METHODS[method]}
        if not (out / "model" / "training.json").is_file():
            self._run("finetune", options, out, note, "train")
        lines = (out / "metrics.jsonl").read_text().splitlines()
        self._keep(
            name, note, {"judged": self._judge(str(out / "model"), name, note), "metrics": json.loads(lines[-1])}
        )

    def _judge(self, model: str, name: str, note: Note) -> dict[str, Any]:
        """Each episode's task, state, success and steps, by decoding."""
        judged = {}
        for decoding in DECODINGS:
            out = self.root / "runs" / name / decoding
            options = {"model": model, "env_id": ENV_ID, "protocol": "training", "renderer": "fast", "n_envs": 8}
            options |= {"task_ids": self.scale.task_ids, "init_states": self.scale.judged_states}
            options |= {"sample": True, "temperature": TEMPERATURE} if decoding == "sampled" else {}
            if finished_report(out) is None:
                self._run("evaluate", options, out, note, f"judge {decoding}")
            if (report := finished_report(out)) is None:
                raise Stopped
            judged[decoding] = [[task_id, state, int(won)] for (task_id, state), won in outcomes_of(report).items()]
        return judged

    def _note(self, step: str) -> Note:
        note = Note(self.root / "runs" / step / "note.json")
        settings = {"start": start_id(START), "scale": dataclasses.asdict(self.scale), "temperature": TEMPERATURE}
        method = step.split("/")[0]
        note.begin({**settings, "options": LEARNING | METHODS[method] if method in METHODS else {}})
        return note

    def _run(self, command: str, options: Mapping[str, Any], out: Path, note: Note, what: str) -> None:
        assert self.session is not None
        print(f"{out.relative_to(self.root)}: {what}", flush=True)
        line = [sys.executable, "-c", LIBERO_VLA, command, *as_arguments({**options, "out": out})]
        self.session.run(line, signal.SIGINT, self.root / "runs" / f"{command}.log", note, what)

    def _keep(self, step: str, note: Note, content: Mapping[str, Any]) -> None:
        kept = {**note.content, "provenance": provenance(), **content}
        path = self.root / "done" / f"{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept) + "\n")
        if self.kept is not None:
            store.pack(self.root, self.kept)


def chosen(patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Method and seed of the planned cells, first seeds first; a whole name adds a further seed.

    Raises:
        ValueError: If a pattern fits no cell and is no name of one.
    """
    planned = [
        (method, seed) for seed in SEEDS for method in METHODS if seed == SEEDS[0] or "method" not in METHODS[method]
    ]
    found = [cell for cell in planned if any(fnmatch.fnmatchcase(f"{cell[0]}/{cell[1]}", p) for p in patterns or ["*"])]
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(f"{method}/{seed}", pattern) for method, seed in planned):
            continue
        method, _, seed = pattern.partition("/")
        if method not in METHODS or not seed.isdecimal():
            raise ValueError(f"No cell {pattern!r}; expected METHOD/SEED. Methods: {', '.join(METHODS)}.")
        found.append((method, int(seed)))
    return found


def run(work: Work, cells: Sequence[tuple[str, int]], hours: float | None, threads: int) -> int:
    """Do what is missing until the hours are used; the number of steps that failed."""
    wanted: dict[str, Callable[[], None]] = {
        f"{method}/{seed}": partial(work.do, method, seed)
        for method, seed in cells
        if work.finished(f"{method}/{seed}") is None
    }
    steps: dict[str, Callable[[], None]] = {}
    if work.finished("episodes") is None or (wanted and not work.has_episodes):  # another machine may have had them
        steps["episodes"] = work.record
    if work.finished("start") is None:
        steps["start"] = work.judge_start
    with locked(work.root) as lock, Session(hours, threads, lock).listening() as work.session:
        return do_each(steps | wanted)


def plan(work: Work, cells: Sequence[tuple[str, int]]) -> str:
    """What is done, with its seconds, in lines."""
    lines = []
    for step in ("episodes", "start", *(f"{method}/{seed}" for method, seed in cells)):
        content = work.finished(step)
        under_way = Note(work.root / "runs" / step / "note.json").seconds
        seconds = ", ".join(f"{what} {s:.0f} s" for what, s in (content["seconds"] if content else under_way).items())
        lines.append(f"{step:12} {'done' if content else 'to do'}  {seconds}")
    return "\n".join(lines)


def results(work: Work) -> dict[str, Any]:
    """Rates, gains over the start, and differences from the baseline, of all finished cells, by method and decoding.

    Raises:
        ValueError: If the start or every cell is missing.
    """
    start, folder = work.finished("start"), work.root / "done"
    cells = {method: sorted((folder / method).glob("*.json"), key=lambda path: int(path.stem)) for method in METHODS}
    if start is None or not any(cells.values()):
        raise ValueError(f"Nothing is finished in '{work.root}'; `run` comes first.")
    content = {method: [json.loads(path.read_text()) for path in paths] for method, paths in cells.items() if paths}
    found: dict[str, Any] = {"provenance": provenance(), "episodes": work.finished("episodes"), "start": start}
    found["cells"] = {
        f"{method}/{path.stem}": cell
        for method in content
        for path, cell in zip(cells[method], content[method], strict=True)
    }
    found["table"] = {
        decoding: {
            "start": rate(judged(start, decoding)),
            **{method: compare(start, content, method, decoding) for method in content},
        }
        for decoding in DECODINGS
    }
    return found


def judged(content: Mapping[str, Any], decoding: str) -> Outcomes:
    """Success by task and state."""
    return {(task_id, state): bool(won) for task_id, state, won in content["judged"][decoding]}


def compare(start: Mapping[str, Any], content: Mapping[str, Any], method: str, decoding: str) -> dict[str, Any]:
    """A method's seeds against the start, and against the baseline's."""
    before, after = judged(start, decoding), [judged(cell, decoding) for cell in content[method]]
    every = {(seed, task_id, state): won for seed, o in enumerate(after) for (task_id, state), won in o.items()}
    row = {
        "after": rate(every),  # type: ignore[arg-type]
        "gain": mean_in_points([gain_by_state([before], after)]),
        "by_seed": [paired(before, outcomes) for outcomes in after],
    }
    if method != BASELINE and BASELINE in content:
        baseline = [judged(cell, decoding) for cell in content[BASELINE]]
        row["over_baseline"] = mean_in_points([gain_by_state(baseline, after)])
    return row


def table(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    lines = [f"| decoding | method | seeds | success (95 %) | over the start | over {BASELINE} |", "| --- " * 6 + "|"]
    for decoding, rows in found["table"].items():
        lines.append(f"| {decoding} | start | | {_rate(rows['start'])} | | |")
        for method in (name for name in rows if name != "start"):
            row = rows[method]
            over = _points(row["over_baseline"]) if "over_baseline" in row else ""
            lines.append(
                f"| {decoding} | {method} | {len(row['by_seed'])} | {_rate(row['after'])} | {_points(row['gain'])} | "
                f"{over} |"
            )
    return "\n".join(lines)


def _rate(row: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in row["wilson_95"])
    return f"{100 * row['successes'] / row['n']:.1f} % ({low:.1f} to {high:.1f})"


def _points(row: Mapping[str, Any]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(row["points"], *row["bootstrap_95"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["plan", "run", "report"])
    parser.add_argument("--cells", nargs="*", default=[], help="patterns of cells, or names; all by default")
    parser.add_argument("--hours", type=float, help="after which the step under way is stopped, so that it can go on")
    parser.add_argument("--threads", type=int, default=2, help="of each process; another number rounds otherwise")
    parser.add_argument("--look", action="store_true", help="two tasks, three recorded states, 20 steps")
    parser.add_argument("--work", type=Path, default=Path("runs/offline"))
    parser.add_argument("--out", type=Path, default=RESULTS / "offline.json")
    parser.add_argument("--kept", type=Path, default=RESULTS / "offline_cells.jsonl", help="all finished steps")
    args = parser.parse_args()
    try:
        cells = chosen(args.cells)
        work = Work(args.work, LOOK) if args.look else Work(args.work, Scale(), kept=args.kept)
        if work.kept is not None:
            store.unpack(work.kept, work.root)
        if args.job == "run":
            raise SystemExit(1 if run(work, cells, args.hours, args.threads) else 0)
        if args.job == "plan":
            print(plan(work, cells))
            return
        found = results(work)
        write_text(args.out, json.dumps(found, indent=1) + "\n")
        print(table(found))
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()

"""How close `renderer="fast"` is to `renderer="exact"`: all 290 tasks, both cameras, states along an episode.

    python benchmarks/frame_fidelity.py                    # one state a task; 1.5 hours on a core
    python benchmarks/frame_fidelity.py --n-states 4       # goes on with three more
    python benchmarks/frame_fidelity.py --report           # figures and pictures of what is there

Each task's script (`libero_gym.experts`) acts from an official initial state, and frames are drawn after some of its
steps. A line of JSON per task and state is appended to ``frames.jsonl`` in ``--work``; a second run skips what is
there, so that the sweep can be stopped at any time, or shared by processes with ``--part 0/2`` and ``--part 1/2``.
Frames below ``--keep-below`` dB are kept there as pictures. At the end the figures go to
``benchmarks/results/frame_fidelity.json`` and the worst frames to a contact sheet beside it: exact, fast, and eight
times their difference.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from measuring import commit, provenance, psnr
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.experts import Expert
from libero_gym.rendering import render
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import SUITES, Task, get_tasks, initial_states

OUT = Path(__file__).parent / "results" / "frame_fidelity.json"
CAMERAS = ("agentview", "wrist")
SIZES = (128, 224)
# Control steps after which frames are drawn; the first comes first in the sweep, for by then the arm has moved.
STEPS = (40, 0, 90, 150, 20, 65, 120, 200)
FAR = 12  # levels of 255; more than rounding and texture filters explain
N_WORST = 12

Row = dict[str, Any]


def main() -> None:
    """Sweeps the tasks that are left, and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/frame_fidelity"), help="folder of rows and pictures")
    parser.add_argument("--n-states", type=int, default=1, help=f"states of each task, 1 to {len(STEPS)}")
    parser.add_argument("--suites", nargs="*", default=list(SUITES), metavar="SUITE")
    parser.add_argument("--part", default="0/1", help="which share of the tasks, such as 0/2")
    parser.add_argument("--keep-below", type=float, default=50.0, metavar="DB")
    parser.add_argument("--report", action="store_true", help="draw nothing, report what is there")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = options.work / "frames.jsonl"
    if not options.report:
        part, n_parts = (int(number) for number in options.part.split("/"))
        tasks = [task for suite in options.suites for task in get_tasks(suite)][part::n_parts]
        options.work.mkdir(parents=True, exist_ok=True)
        sweep(tasks, STEPS[: options.n_states], rows, options.keep_below)
    report(read(rows), options.work, options.out)


def sweep(tasks: list[Task], steps: tuple[int, ...], rows: Path, keep_below: float) -> None:
    """Measures all tasks after the first of these steps, then after the others together."""
    done = {(row["task"], row["step"]) for row in read(rows)}
    for group in (steps[:1], steps[1:]):
        left = [(task, [step for step in group if (name_of(task), step) not in done]) for task in tasks]
        left = [(task, missing) for task, missing in left if missing]
        for task, missing in tqdm(left, desc=f"after {group} steps", unit="task"):
            try:
                for row in measure(task, sorted(missing), rows.parent, keep_below):
                    append(rows, row)
            except Exception as error:  # one task that fails must not end a sweep of hours; the report counts it
                append(rows, {"task": name_of(task), "step": -1, "error": f"{type(error).__name__}: {error}"})


def measure(task: Task, steps: list[int], folder: Path, keep_below: float) -> Iterator[Row]:
    """A row for each of these steps of an expert's episode, in ascending order."""
    compiled = compile_task(task)
    simulator = Simulator(compiled)
    states = initial_states(task)
    simulator.reset(states[task.task_id % len(states)])
    expert = Expert(simulator)
    taken = 0
    for step in steps:
        for _ in range(step - taken):
            simulator.step(expert.act())
        taken = step
        frames = []
        for size in SIZES:
            exact, fast = (render(simulator, CAMERAS, size, renderer=name) for name in ("exact", "fast"))
            for camera, a, b in zip(CAMERAS, exact, fast, strict=True):
                row = {"camera": camera, "size": size, **figures(a, b)}
                frames.append(row)
                if row["psnr"] < keep_below:
                    imageio.imwrite(folder / picture_name(name_of(task), step, camera, size), side_by_side(a, b))
        yield {
            "task": name_of(task), "scene": compiled.visual_key, "step": step, "phase": expert.phase,
            "commit": commit(), "frames": frames,
        }  # fmt: skip


def figures(exact: np.ndarray, fast: np.ndarray) -> Row:
    """PSNR in dB, and shares of pixels that differ by at most 1 level, and by more than `FAR`, in some channel."""
    difference = np.abs(exact.astype(int) - fast).max(axis=-1)
    return {
        "psnr": round(min(psnr(exact, fast), 99.0), 2),
        "within_1": round(float((difference <= 1).mean()), 5),
        "far": round(float((difference > FAR).mean()), 6),
    }


def side_by_side(exact: np.ndarray, fast: np.ndarray) -> np.ndarray:
    """Exact, fast and eight times their difference, beside each other."""
    difference = np.abs(exact.astype(int) - fast) * 8
    return np.concatenate([exact, fast, np.minimum(difference, 255).astype(np.uint8)], axis=1)


def report(rows: list[Row], folder: Path, out: Path) -> None:
    """Writes the figures of all frames, by camera and size, and a sheet of the worst ones."""
    frames = [
        {**frame, "task": row["task"], "step": row["step"]}
        for row in rows
        if "frames" in row
        for frame in row["frames"]
    ]
    groups: dict[str, list[Row]] = defaultdict(list)
    for frame in frames:
        groups[f"{frame['camera']} {frame['size']}"].append(frame)
        groups["all"].append(frame)
    worst = sorted(frames, key=lambda frame: frame["psnr"])[:N_WORST]
    results = {
        **provenance(),
        "measured_at": sorted({row["commit"] for row in rows if "commit" in row}),
        "n_tasks": len({row["task"] for row in rows if "frames" in row}),
        "n_scenes": len({row["scene"] for row in rows if "frames" in row}),
        "errors": [f"{row['task']}: {row['error']}" for row in rows if "error" in row],
        "frames": {name: summary(groups[name]) for name in sorted(groups)},
        "worst": worst,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["frames"], indent=1), *results["errors"], sep="\n")
    for frame in worst:
        print(frame)
    pictures = [folder / picture_name(frame["task"], frame["step"], frame["camera"], frame["size"]) for frame in worst]
    pictures = [picture for picture in pictures if picture.exists()]
    if pictures:
        imageio.imwrite(out.with_suffix(".png"), sheet([imageio.imread(picture) for picture in pictures]))


def summary(frames: list[Row]) -> Row:
    """Mean and least PSNR in dB, its first percentile, and mean and worst shares of pixels."""
    values = np.array([frame["psnr"] for frame in frames])
    within, far = (np.array([frame[name] for frame in frames]) for name in ("within_1", "far"))
    return {
        "n": len(frames),
        "psnr_mean": round(float(values.mean()), 2),
        "psnr_percentile_1": round(float(np.percentile(values, 1)), 2),
        "psnr_min": round(float(values.min()), 2),
        "below_44": int((values < 44).sum()),
        "within_1_mean": round(float(within.mean()), 5),
        "within_1_min": round(float(within.min()), 5),
        "far_mean": round(float(far.mean()), 7),
        "far_max": round(float(far.max()), 6),
    }


def sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of unequal size in two columns."""
    width, height = max(p.shape[1] for p in pictures), max(p.shape[0] for p in pictures)
    cells = []
    for picture in pictures:
        cell = np.full((height + 4, width + 4, 3), 255, np.uint8)
        cell[: picture.shape[0], : picture.shape[1]] = picture[..., :3]
        cells.append(cell)
    if len(cells) % 2:
        cells.append(np.full_like(cells[0], 255))
    return np.concatenate([np.concatenate(cells[i : i + 2], axis=1) for i in range(0, len(cells), 2)])


def name_of(task: Task) -> str:
    """Suite and number of a task."""
    return f"{task.suite} {task.task_id}"


def picture_name(task: str, step: int, camera: str, size: int) -> str:
    """Name of the file that shows a frame."""
    return f"{task.replace(' ', '_')}_{step}_{camera}_{size}.png"


def append(rows: Path, row: Row) -> None:
    """Adds a line to a file, in one write, so that processes can share it."""
    is_cut_off = rows.exists() and not rows.read_bytes().endswith(b"\n")
    with rows.open("a") as stream:
        stream.write("\n" * is_cut_off + json.dumps(row) + "\n")


def read(rows: Path) -> list[Row]:
    """The rows that are there; a line that was cut off when a process was killed is left out."""
    found = []
    for line in rows.read_text().splitlines() if rows.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


if __name__ == "__main__":
    main()

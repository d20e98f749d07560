"""How often the scripted expert succeeds from official initial states, task by task.

    python benchmarks/experts.py --suites libero_spatial libero_object --states 20

Prints successes with Wilson's 95 % interval, mean control steps of the successes, and what the expert was doing where
it failed. Rows are written after every task to ``--out``; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

from measuring import commit, provenance
from tqdm import tqdm

from libero_gym.compile import compile_task
from libero_gym.experts import run_expert
from libero_gym.simulator import Simulator
from libero_gym.tasks import SUITES, get_tasks, initial_states

OUT = Path(__file__).parent / "results" / "experts.json"
FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson, 1927)."""
    rate, scale = successes / n, 1 + z * z / n
    middle = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def measure(job: tuple[str, int, int]) -> tuple[str, dict[str, Any]]:
    """One task's row: its first ``n_states`` official initial states."""
    suite, task_id, n_states = job
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    states = initial_states(task)[:n_states]
    outcomes = [run_expert(simulator, state, SUITES[suite].max_steps) for state in states]
    steps = [outcome.steps for outcome in outcomes if outcome.success]
    low, high = wilson(len(steps), len(outcomes))
    return f"{suite}[{task_id}]", {
        "states": len(outcomes),
        "successes": len(steps),
        "wilson_95": [round(low, 3), round(high, 3)],
        "mean_steps": round(sum(steps) / len(steps), 1) if steps else None,
        "at_rest": sum(outcome.rests for outcome in outcomes),
        "failed": [index for index, outcome in enumerate(outcomes) if not outcome.success],
        "causes": dict(collections.Counter(outcome.cause for outcome in outcomes if not outcome.success)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", choices=list(SUITES), default=FOUR_SUITES)
    parser.add_argument("--tasks", nargs="*", type=int, help="task ids, all by default")
    parser.add_argument("--states", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure anew what the results hold already")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    content["provenance"] = provenance()
    rows = content.setdefault("tasks", {})
    jobs = [(suite, task.task_id, args.states) for suite in args.suites for task in get_tasks(suite)]
    jobs = [job for job in jobs if args.tasks is None or job[1] in args.tasks]
    names = [f"{suite}[{task_id}]" for suite, task_id, _ in jobs]
    done = {name for name, row in rows.items() if row["states"] >= args.states and not args.fresh}
    missing = [job for job, name in zip(jobs, names, strict=True) if name not in done]
    measured_at = commit()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for name, row in tqdm(pool.imap_unordered(measure, missing), total=len(missing)):
            rows[name] = {**row, "commit": measured_at}
            args.out.write_text(json.dumps(content, indent=1) + "\n")
    report(rows, names)


def report(rows: dict[str, Any], names: list[str]) -> None:
    """Print a line per task and one per suite."""
    totals: dict[str, list[int]] = {}
    for name in names:
        row = rows[name]
        print(f"{name:20} {row['successes']:3}/{row['states']} {row['wilson_95']} {row['mean_steps']} {row['causes']}")
        total = totals.setdefault(name.split("[")[0], [0, 0])
        total[0] += row["successes"]
        total[1] += row["states"]
    for suite, (successes, n) in totals.items():
        low, high = wilson(successes, n)
        print(f"{suite:20} {successes}/{n} = {successes / n:.1%}, 95 % [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()

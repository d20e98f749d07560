"""How often the scripted expert succeeds from official initial states, task by task.

    python benchmarks/experts.py --suites libero_spatial libero_object --states 20

Prints successes with Wilson's 95 % interval, mean control steps of the successes, and what the expert was doing when
it failed. Runs the first state of all tasks, then the second, and so on, so that a run that is cut short has measured
every task equally often. Writes every episode to ``--out``; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import commit, provenance, refuse_other_mujoco
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.experts.expert import run_expert
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import SUITES, get_tasks, initial_states
from vla_agent.common.intervals import wilson_interval

OUT = Path(__file__).parent / "results" / "experts.json"
FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def measure(job: tuple[str, int, int]) -> tuple[str, int, dict[str, Any]]:
    """The episode from one official initial state of a task."""
    suite, task_id, state_id = job
    task = get_tasks(suite)[task_id]
    state = initial_states(task)[state_id]
    outcome = run_expert(Simulator(compile_task(task)), state, SUITES[suite].max_steps)
    return f"{suite}[{task_id}]", state_id, asdict(outcome)


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
    refuse_other_mujoco(content.get("provenance", {}))
    content["provenance"] = provenance()
    episodes: dict[str, dict[str, Any]] = content.setdefault("episodes", {})
    tasks = [(suite, task.task_id) for suite in args.suites for task in get_tasks(suite)]
    tasks = [(suite, task_id) for suite, task_id in tasks if args.tasks is None or task_id in args.tasks]
    names = [f"{suite}[{task_id}]" for suite, task_id in tasks]
    for name in names:
        episodes[name] = {} if args.fresh else episodes.get(name, {})
    jobs = [(*task, state) for state in range(args.states) for task in tasks]
    jobs = [job for job in jobs if str(job[2]) not in episodes[f"{job[0]}[{job[1]}]"]]
    measured_at = commit()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for name, state_id, outcome in tqdm(pool.imap_unordered(measure, jobs), total=len(jobs)):
            episodes[name][str(state_id)] = {**outcome, "commit": measured_at}
            args.out.write_text(json.dumps(content, indent=1) + "\n")
    report({name: list(episodes[name].values()) for name in names if episodes[name]})


def report(episodes: dict[str, list[dict[str, Any]]]) -> None:
    """Print a line per task and one per suite."""
    totals: dict[str, list[int]] = {}
    for name, outcomes in episodes.items():
        steps = [outcome["steps"] for outcome in outcomes if outcome["success"]]
        mean = f"{sum(steps) / len(steps):5.1f}" if steps else "    -"
        at_rest = sum(outcome["rests"] for outcome in outcomes)
        causes = dict(collections.Counter(outcome["cause"] for outcome in outcomes if not outcome["success"]))
        print(f"{name:20} {len(steps):3}/{len(outcomes)}, {mean} steps, {at_rest:3} at rest {causes or ''}")
        total = totals.setdefault(name.split("[")[0], [0, 0, 0])
        for index, count in enumerate((len(steps), len(outcomes), at_rest)):
            total[index] += count
    for suite, (successes, n, at_rest) in totals.items():
        low, high = wilson_interval(successes, n)
        print(f"{suite:20} {successes}/{n} = {successes / n:.1%}, 95 % [{low:.3f}, {high:.3f}], {at_rest} at rest")


if __name__ == "__main__":
    main()

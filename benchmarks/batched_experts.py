"""How often the scripted expert succeeds on worlds of MuJoCo Warp, beside its success in exact physics.

    python benchmarks/batched_experts.py --device cpu                    # four suites x 10 states; see below
    python benchmarks/batched_experts.py --device cuda --n-envs 100      # a suite at a time
    python benchmarks/batched_experts.py --tasks 0 5 --states 1 --suites libero_spatial --device cpu    # a look
    python benchmarks/batched_experts.py --report                        # the table of what was measured

Closed loop: before each action, the expert's own simulator is put where the world is, and the batch takes the action.
A world counts as solved if the goal holds at the end of a control step within the suite's limit. Exact outcomes of the
same initial states come from ``results/experts.json``; the two are paired, and McNemar's test says whether they differ.
States that it lacks are named, with the command that plays them in exact physics: that takes MuJoCo 3.3.2, with which
MuJoCo Warp does not work.

Writes ``--out`` after each wave of ``--n-envs`` worlds; a second run goes on where the first stopped. Needs the extra
``[gpu]``, and without constraints.txt.

Processor time on one core, from two tasks of each suite: 5 minutes for Spatial, 4 for Object, 4 for Goal and 10 for
LIBERO-10; and at the first use of a scene, minutes that compile its kernels, which ``WARP_CACHE_PATH`` keeps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, provenance
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.equivalence.versions import EXACT
from libero_gym.experts.expert import Expert
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import SUITES, get_tasks
from libero_gym.vector import LiberoVectorEnv
from vla_agent.common.intervals import mcnemar_exact, wilson_interval

RESULTS = Path(__file__).parent / "results"
OUT = RESULTS / "batched_experts.json"
FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
COLUMNS = (
    *("suite", "batched", "95 %", "exact, same episodes", "exact alone", "batched alone", "p"),
    *("steps of successes of both, median: exact", "batched"),
)

Episodes = dict[str, dict[str, dict[str, Any]]]  # by "suite[task]" and state


def play(env: LiberoVectorEnv, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """One episode in each world, from an official initial state of a task.

    Args:
        env: As many environments, in which nothing follows an episode's end.
        places: For each the task's id and the state's.
    """
    task_ids, state_ids = zip(*places, strict=True)
    env.reset(seed=0, options={"task_id": list(task_ids), "init_state_id": list(state_ids)})
    tasks = get_tasks(env.suite)
    simulators = [Simulator(compile_task(tasks[task_id])) for task_id in task_ids]
    experts: list[Expert] = []
    outcomes: list[dict[str, Any] | None] = [None] * len(places)
    steps = 0
    while any(outcome is None for outcome in outcomes):
        running = [index for index, outcome in enumerate(outcomes) if outcome is None]
        for index, state in zip(running, env.call("get_state", indices=running), strict=True):
            simulators[index].set_state(state)
        experts = experts or [Expert(simulator) for simulator in simulators]
        actions = np.zeros((len(places), 7))
        for index in running:
            actions[index] = experts[index].act()
        _, _, terminated, truncated, infos = env.step(actions)
        steps += 1
        for index in running:
            if terminated[index] or truncated[index] or experts[index].done:
                success = bool(infos["is_success"][index])
                cause = "" if success else experts[index].phase
                outcomes[index] = {"success": success, "steps": steps, "cause": cause}
    return [outcome for outcome in outcomes if outcome is not None]


def measure(suite: str, wave: list[tuple[int, int]], device: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The outcomes of a wave's episodes, and the settings of its worlds."""
    env = LiberoVectorEnv(
        len(wave),
        backend="warp",
        device=device,
        suite=suite,
        task_id=sorted({task_id for task_id, _ in wave}),
        cameras=(),
        max_episode_steps=SUITES[suite].max_steps,
    )
    env.set_autoreset(False)
    try:
        return play(env, wave), env.settings
    finally:
        env.close()


def waves(episodes: Episodes, args: argparse.Namespace) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Episodes that the results lack, as (task, state), so many at a time and of one suite."""
    for suite in args.suites:
        wanted = [task.task_id for task in get_tasks(suite) if args.tasks is None or task.task_id in args.tasks]
        places = itertools.product(wanted, range(args.states))
        missing = [(task, state) for task, state in places if str(state) not in episodes.get(f"{suite}[{task}]", {})]
        for first in range(0, len(missing), args.n_envs):
            yield suite, missing[first : first + args.n_envs]


def sweep(args: argparse.Namespace) -> None:
    """Play what the results lack, and write them after each wave."""
    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    episodes: Episodes = content.setdefault("episodes", {})
    measured_at = commit()
    for suite, wave in tqdm(list(waves(episodes, args)), desc="waves"):
        start = np.array([time.perf_counter(), time.process_time()])
        outcomes, settings = measure(suite, wave, args.device)
        simulation = content.setdefault("mujoco", settings["mujoco"])
        if simulation != settings["mujoco"]:
            raise SystemExit(f"{args.out} is of {simulation}, and this is {settings['mujoco']}: give another --out.")
        content["provenance"] = provenance() | {"device": args.device}
        for (task_id, state_id), outcome in zip(wave, outcomes, strict=True):
            row = episodes.setdefault(f"{suite}[{task_id}]", {})
            row[str(state_id)] = outcome | {"commit": measured_at}
        spent = np.array([time.perf_counter(), time.process_time()]) - start
        seconds = content.setdefault("seconds", {})  # on the wall, and of processors, by suite
        seconds[suite] = [round(float(value), 1) for value in np.add(seconds.get(suite, (0, 0)), spent)]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n")


def table(batched: Episodes, exact: Episodes) -> str:
    """A line per suite and one for all, in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    suites = [suite for suite in FOUR_SUITES if any(name.startswith(f"{suite}[") for name in batched)]
    for suite in [*suites, *(["all"] if len(suites) > 1 else [])]:
        own = {name: rows for name, rows in batched.items() if suite in ("all", name.split("[")[0])}
        successes = [episode["success"] for rows in own.values() for episode in rows.values()]
        low, high = wilson_interval(sum(successes), len(successes))
        pairs = [
            (exact[name][state_id], episode)
            for name, rows in own.items()
            for state_id, episode in rows.items()
            if state_id in exact.get(name, {})
        ]
        first, second = ([bool(pair[side]["success"]) for pair in pairs] for side in (0, 1))
        only_exact = sum(one and not two for one, two in zip(first, second, strict=True))
        only_batched = sum(two and not one for one, two in zip(first, second, strict=True))
        both = [(one["steps"], two["steps"]) for one, two in pairs if one["success"] and two["success"]]
        cells = [suite, f"{sum(successes)}/{len(successes)}", f"{100 * low:.1f} to {100 * high:.1f} %"]
        cells += [f"{sum(first)}/{len(pairs)}", str(only_exact), str(only_batched)]
        cells += [f"{mcnemar_exact(only_exact, only_batched):.2g}" if pairs else "-"]
        cells += [f"{statistics.median(steps):g}" for steps in zip(*both, strict=True)] or ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(content: dict[str, Any], exact: Episodes) -> None:
    """Print the table, what the expert was doing where it failed, and what exact results lack."""
    batched: Episodes = content["episodes"]
    print(f"{content['mujoco']}, seconds {content['seconds']}\n\n{table(batched, exact)}\n")
    for name, rows in batched.items():
        causes = {state_id: row["cause"] for state_id, row in rows.items() if not row["success"]}
        if causes:
            print(f"{name} fails from {', '.join(f'{state_id} ({cause})' for state_id, cause in causes.items())}")
    lacking = [int(state_id) for name, rows in batched.items() for state_id in rows.keys() - exact.get(name, {}).keys()]
    if lacking:
        print(
            f"{len(lacking)} episodes have no exact one to be paired with: "
            f"python benchmarks/experts.py --states {max(lacking) + 1}, with MuJoCo {EXACT}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", choices=FOUR_SUITES, default=FOUR_SUITES)
    parser.add_argument("--tasks", nargs="*", type=int, help="task ids of each suite, all by default")
    parser.add_argument("--states", type=int, default=10, help="the first so many official initial states of each")
    parser.add_argument("--n-envs", type=int, default=10, help="worlds side by side; on a CPU as many as --states")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.report:
        sweep(args)
    if not args.out.is_file():
        raise SystemExit(f"Nothing was measured yet: there is no {args.out}.")
    report(json.loads(args.out.read_text()), json.loads((RESULTS / "experts.json").read_text())["episodes"])


if __name__ == "__main__":
    main()

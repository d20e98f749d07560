"""How often the scripted expert succeeds on worlds of MuJoCo Warp, beside its success in exact physics.

    python benchmarks/batched_experts.py --suite libero_spatial --states 2 --device cpu

Closed loop: before each action, the expert's own simulator is put where the world is, and the batch takes the action.
A world counts as solved if the goal holds at the end of a control step within the suite's limit. Exact outcomes of the
same initial states come from ``results/experts.json``; states that it does not have are left out of the pairs.

On the CPU a control step takes some 30 ms per world. Needs the extra ``[gpu]``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import provenance

from libero_gym.compilation.compile import compile_task
from libero_gym.experts.expert import Expert
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import SUITES, get_tasks
from libero_gym.vector import LiberoVectorEnv
from vla_agent.common.intervals import wilson_interval

RESULTS = Path(__file__).parent / "results"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="libero_spatial")
    parser.add_argument("--tasks", nargs="*", type=int, help="task ids, all by default")
    parser.add_argument("--states", type=int, default=10, help="the first so many official initial states of each")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "batched_experts.json")
    args = parser.parse_args()

    tasks = args.tasks if args.tasks is not None else list(range(SUITES[args.suite].n_tasks))
    places = [(task_id, state_id) for task_id in tasks for state_id in range(args.states)]
    arguments: dict[str, Any] = {"suite": args.suite, "task_id": tasks, "cameras": (), "device": args.device}
    arguments["max_episode_steps"] = SUITES[args.suite].max_steps
    env = LiberoVectorEnv(len(places), backend="warp", **arguments)
    env.set_autoreset(False)
    start = time.perf_counter()
    outcomes = play(env, places)
    seconds = time.perf_counter() - start
    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    run = {"settings": env.settings, "device": args.device, "seconds": round(seconds, 1), "provenance": provenance()}
    for (task_id, state_id), outcome in zip(places, outcomes, strict=True):
        run.setdefault("episodes", {}).setdefault(f"{args.suite}[{task_id}]", {})[str(state_id)] = outcome
    content[args.suite] = run
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    env.close()
    report(run["episodes"], json.loads((RESULTS / "experts.json").read_text())["episodes"])


def report(batched: dict[str, dict[str, Any]], exact: dict[str, dict[str, Any]]) -> None:
    """Print a line per task, and the pairs of all."""
    pairs = np.zeros((2, 2), dtype=int)  # exact, batched
    for name, episodes in batched.items():
        successes = [episode["success"] for episode in episodes.values()]
        causes = [episode["cause"] for episode in episodes.values() if episode["cause"]]
        print(f"{name:20} {sum(successes)}/{len(successes)} {causes or ''}")
        for state_id, episode in episodes.items():
            if state_id in exact.get(name, {}):
                pairs[int(exact[name][state_id]["success"]), int(episode["success"])] += 1
    total = [episode["success"] for episodes in batched.values() for episode in episodes.values()]
    low, high = wilson_interval(sum(total), len(total))
    print(f"batched {sum(total)}/{len(total)}, 95 % [{low:.3f}, {high:.3f}]")
    print(f"pairs: both {pairs[1, 1]}, exact alone {pairs[1, 0]}, batched alone {pairs[0, 1]}, neither {pairs[0, 0]}")


if __name__ == "__main__":
    main()

"""How near worlds of MuJoCo Warp stay to exact physics: where objects rest, and how far replayed episodes drift.

    python benchmarks/batch_fidelity.py                 # with MuJoCo 3.3.2 first: what worlds are compared with
    <another environment>/bin/python benchmarks/batch_fidelity.py --device cuda    # then with the extra [gpu]
    python benchmarks/batch_fidelity.py --tasks all     # both the same way: the forty tasks
    python benchmarks/batch_fidelity.py --report        # the table of what was measured

MuJoCo Warp does not work with MuJoCo 3.3.2, so exact physics goes first and leaves its states in ``--work``. Worlds
then start from the same official initial states.

* Rest: positions of all objects after 30 control steps with an open gripper, from the initial state. An object has
  moved if it rests more than `MOVED` from where it rests in exact physics.
* Drift: the largest difference of any joint position (m, rad, or a quaternion's entry), at some control steps, from the
  exact episode whose actions the world takes as they are. A world is left out where its episode, or the exact one, has
  ended by then.
* Success: of these episodes, and whether a world succeeds at the exact one's step. Episodes that are replayed diverge
  where contacts do; whether that matters is told by a policy that sees, as in ``batched_experts.py``.

Writes ``--out`` after each task; a second run goes on where the first stopped. On a loaded CPU, exact
physics took 8 s a state, and worlds 29 s: an hour and two and a half for the forty tasks with 8 states.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from measuring import commit, provenance
from mujoco_versions import FOUR_SUITES, MOVED, SETTLE_STEPS
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.equivalence.versions import EXACT
from libero_gym.experts.expert import Expert
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.tasks import SUITES, Task, get_tasks, initial_states
from libero_gym.vector import LiberoVectorEnv

OUT = Path(__file__).parent / "results" / "batch_fidelity.json"
# The bowl between plate and ramekin, the bowl on the ramekin, an object into the basket, a drawer, the stove's knob.
TASKS = ("libero_spatial[0]", "libero_spatial[5]", "libero_object[0]", "libero_goal[3]", "libero_10[2]")
HORIZONS = (1, 10, 30, 60, 100)
BEFORE = 10  # control steps with an open gripper before an episode
COLUMNS = (
    *("task", "states", "objects at rest, median, worst (mm)", "moved > 1 cm"),
    *(f"drift at step {step}" if step == 1 else str(step) for step in HORIZONS),
    *("successes, batched (exact)", "at the same step"),
)

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------ exact physics


def record(task: Task, state_id: int, path: Path) -> None:
    """Play the scripted expert's episode in exact physics, and leave where objects rest, its actions and states."""
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[state_id])
    simulator.settle(SETTLE_STEPS)
    rest = object_positions(simulator.model, simulator.data.qpos)
    simulator.reset(initial_states(task)[state_id])
    simulator.settle(BEFORE)
    script = Expert(simulator)
    actions: list[np.ndarray] = []
    states: list[np.ndarray] = []
    while not simulator.success and len(actions) < SUITES[task.suite].max_steps:
        action = script.act()
        if script.done:
            break
        simulator.step(action)
        actions.append(action)
        states.append(simulator.data.qpos.copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, rest=rest, actions=actions, qpos=states, success=simulator.success)


def object_positions(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Where the objects that can be moved are, in m, (k, 3)."""
    free = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return np.stack([qpos[first : first + 3] for first in free])


# ------------------------------------------------------------------------------------------------------- worlds


def compare(task: Task, state_ids: list[int], work: Path, device: str) -> tuple[dict[str, Row], str]:
    """Each state's figures, by its id, and what the simulation is called.

    Args:
        task: The task.
        state_ids: Initial states, a world for each.
        work: Folder of what `record` left.
        device: Warp's name of the device.
    """
    exact = [dict(np.load(recorded(work, task, state_id))) for state_id in state_ids]
    n = len(state_ids)
    env = LiberoVectorEnv(
        n,
        backend="warp",
        device=device,
        suite=task.suite,
        task_id=task.task_id,
        cameras=(),
        settle_steps=BEFORE,
        max_episode_steps=SUITES[task.suite].max_steps,
    )
    env.set_autoreset(False)
    env.reset(seed=0, options={"init_state_id": state_ids})
    for _ in range(SETTLE_STEPS - BEFORE):
        env.step(np.tile(SETTLE_ACTION, (n, 1)))
    model = compile_task(task).physics
    rows: list[Row] = []
    for qpos, episode in zip(positions(env, model), exact, strict=True):
        apart = np.linalg.norm(object_positions(model, qpos) - episode["rest"], axis=1)
        rows.append({"rest": float(f"{apart.max():.3g}"), "drift": {}, "exact": outcome(episode), "batched": [0, 0]})
    env.reset(seed=0, options={"init_state_id": state_ids})
    running = np.ones(n, dtype=bool)
    for step in range(1, max(len(episode["actions"]) for episode in exact) + 1):
        running &= [step <= len(episode["actions"]) for episode in exact]
        actions = [
            episode["actions"][step - 1] if running[index] else np.zeros(7) for index, episode in enumerate(exact)
        ]
        _, _, terminated, _, _ = env.step(np.stack(actions))
        for index in np.flatnonzero(running):
            rows[index]["batched"] = [int(terminated[index]), step]
        if step in HORIZONS:
            for index, qpos in enumerate(positions(env, model)):
                if running[index]:
                    drift = np.abs(qpos - exact[index]["qpos"][step - 1]).max()
                    rows[index]["drift"][str(step)] = float(f"{drift:.2g}")
        running &= ~terminated
    env.close()
    return dict(zip(map(str, state_ids), rows, strict=True)), env.settings["mujoco"]


def positions(env: LiberoVectorEnv, model: mujoco.MjModel) -> list[np.ndarray]:
    """Joint positions of all worlds."""
    return [np.asarray(state)[1 : 1 + model.nq] for state in env.call("get_state")]


def outcome(episode: Row) -> list[int]:
    """Whether a recorded episode succeeded, and after how many control steps."""
    return [int(episode["success"]), len(episode["actions"])]


# -------------------------------------------------------------------------------------------------------- files


def recorded(work: Path, task: Task, state_id: int) -> Path:
    """Where the exact episode of a state is kept."""
    return work / f"{task.suite}_{task.task_id}_{state_id}.npz"


def sweep(args: argparse.Namespace) -> None:
    """Record what the work folder lacks, or measure what the results lack."""
    is_exact = mujoco.__version__ == EXACT
    content = json.loads(args.out.read_text()) if args.out.exists() else {"tasks": {}}
    measured_at = commit()
    for task in tqdm(chosen_tasks(args.tasks), desc="exact" if is_exact else "worlds"):
        name = f"{task.suite}[{task.task_id}]"
        states = [state_id for state_id in range(args.states) if str(state_id) not in content["tasks"].get(name, {})]
        lacking = [state_id for state_id in states if not recorded(args.work, task, state_id).is_file()]
        if is_exact:
            for state_id in lacking:
                record(task, state_id, recorded(args.work, task, state_id))
        elif lacking:
            raise SystemExit(
                f"{recorded(args.work, task, lacking[0])} is missing: run this with MuJoCo {EXACT} first, with the "
                "same --work, --tasks and --states."
            )
        elif states:
            rows, simulation = compare(task, states, args.work, args.device)
            if content.setdefault("mujoco", simulation) != simulation:
                raise SystemExit(f"{args.out} is of {content['mujoco']}, and this is {simulation}: give another --out.")
            content["provenance"] = provenance() | {"device": args.device}
            own = content["tasks"].setdefault(name, {})
            own |= {state_id: row | {"commit": measured_at} for state_id, row in rows.items()}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(content, indent=1) + "\n")


def chosen_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks of these names, such as "libero_goal[3]"; all forty for "all"."""
    known = {f"{task.suite}[{task.task_id}]": task for suite in FOUR_SUITES for task in get_tasks(suite)}
    if list(names) == ["all"]:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"Unknown task {unknown[0]!r}; expected 'all', or names such as {TASKS[0]!r}.")
    return [known[name] for name in names]


def table(tasks: dict[str, dict[str, Row]]) -> str:
    """A line per task and one for all, in Markdown; drifts are median/largest of the worlds."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    everything = {f"{name}/{state_id}": row for name, rows in tasks.items() for state_id, row in rows.items()}
    for name, rows in [*tasks.items(), *([("all", everything)] if len(tasks) > 1 else [])]:
        rests = [1e3 * row["rest"] for row in rows.values()]
        cells = [name, str(len(rows)), f"{statistics.median(rests):.2g}, {max(rests):.2g}"]
        cells += [str(sum(rest > 1e3 * MOVED for rest in rests))]
        for step in map(str, HORIZONS):
            drifts = [row["drift"][step] for row in rows.values() if step in row["drift"]]
            cells.append(f"{statistics.median(drifts):.0e}/{max(drifts):.0e}" if drifts else "-")
        successes = [sum(row[side][0] for row in rows.values()) for side in ("batched", "exact")]
        alike = sum(row["batched"] == row["exact"] for row in rows.values() if row["exact"][0])
        cells += [f"{successes[0]}/{len(rows)} ({successes[1]})", str(alike)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="such as 'libero_goal[3]', or 'all'")
    parser.add_argument("--states", type=int, default=8, help="the first so many official initial states of each")
    parser.add_argument("--device", default="cuda", help="of the worlds")
    parser.add_argument("--work", type=Path, default=Path("runs/batch_fidelity"), help="folder of the exact episodes")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.report:
        sweep(args)
    if not args.report and mujoco.__version__ == EXACT:
        print(f"Exact episodes are in {args.work}; now the same command with the extra [gpu].")
        return
    if not args.out.is_file():
        raise SystemExit(f"No worlds were measured yet: there is no {args.out}.")
    content = json.loads(args.out.read_text())
    print(f"{content['mujoco']}\n\n{table(content['tasks'])}")


if __name__ == "__main__":
    main()

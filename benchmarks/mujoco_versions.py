"""How near a newer MuJoCo comes to the exact one: where objects rest, what succeeds, what is drawn, how fast.

    python benchmarks/mujoco_versions.py                     # with MuJoCo 3.3.2 first: the reference; 2 hours
    <another environment>/bin/python benchmarks/mujoco_versions.py    # then with each other version
    python benchmarks/mujoco_versions.py --states 5 --expert-states 1 --frame-states 1    # 20 minutes
    python benchmarks/mujoco_versions.py --only policy --policy tiny-libero               # needs torch
    python benchmarks/mujoco_versions.py --report            # the table of all versions that were measured

Each version writes ``benchmarks/results/mujoco_versions_<version>.json`` after every task, and a second run goes on
where the first stopped. Each section has its own provenance; one that went on at another commit names both. Sections:

* ``settle``: positions of all objects after 30 control steps with an open gripper, from official initial states. An
  object has moved if it rests more than `MOVED` from where it rests with the exact version.
* ``expert``: whether the scripted expert succeeds, and in how many steps.
* ``replay``: whether the actions of the expert under the exact version, which stay in ``--work``, succeed as they are.
  Episodes diverge where contacts do, so this shows differences that an expert or a policy makes good.
* ``nudged``: the same after every joint of the arm was moved by `NUDGE`. With the exact version itself, it tells how
  many episodes are lost to any small difference.
* ``steps``: each control step of those episodes, from the exact version's own state: how many end with a position that
  is off by more than `STEP_OFF`, and by how much the worst.
* ``frames``: both cameras at 128 pixels in official initial states; dB against the exact version, whose frames stay in
  ``--work``.
* ``speed``: milliseconds of processor time of a control step without frames, median of five runs.

What it leaves out: physics="fast" and "coarse", the other 250 tasks, GPUs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from measuring import commit, provenance, psnr, refuse_other_mujoco
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.equivalence.versions import EXACT, fidelity, parse
from libero_gym.experts.expert import Expert, run_expert
from libero_gym.rendering import render
from libero_gym.rendering import renderer as rendering
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import SUITES, Task, get_tasks, initial_states
from vla_agent.common.intervals import mcnemar_exact

RESULTS = Path(__file__).parent / "results"
FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SETTLE_STEPS = 30
MOVED = 0.01  # m: a fifth of what separates a bowl on the ramekin from one beside it
NUDGE = 1e-6  # rad
STEP_OFF = 1e-9  # m or rad
FRAME_TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 3), ("libero_10", 2))
SPEED_TASKS = (("libero_spatial", 0), ("libero_10", 2))
FRAME_SIZE = 128
CAMERAS = ("agentview", "wrist")
COLUMNS = (
    *("MuJoCo", "results are called", "states settled", "with objects > 1 cm off", "median, worst offset (mm)"),
    *("expert (exact, same episodes)", "p", "its actions replayed (exact)", "p", "tiny-libero (exact)", "p"),
    *("frames, least dB", "CPU ms a step: Spatial 0, LIBERO-10 2"),
)
STEP_COLUMNS = ("MuJoCo", "control steps", "off by more than 1e-9 rad or m", "worst", "replayed after a nudge", "p")
SUITE_COLUMNS = (
    *("MuJoCo", "suite", "states", "with objects > 1 cm off"),
    *("expert (exact)", "p", "tiny-libero (exact)", "p"),
)
SECTIONS = ("speed", "frames", "settle", "expert", "replay", "nudged", "steps", "policy")
BY_DEFAULT = ("speed", "frames", "settle", "expert")

Row = dict[str, Any]

tolerance: float | None = None
"""The solver's, in the place of what `libero_gym.equivalence` asks for; see ``--tolerance``."""


# -------------------------------------------------------------------------------------------------- measurements


def settle(task: Task, state_id: int) -> list[int]:
    """Positions of all objects at rest, x, y and z of one after the other, in units of 0.1 mm."""
    simulator = _simulator(task)
    simulator.reset(initial_states(task)[state_id])
    simulator.settle(SETTLE_STEPS)
    free = simulator.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
    positions = simulator.data.xpos[simulator.model.jnt_bodyid[free]]
    return [round(1e4 * float(value)) for value in positions.ravel()]


def expert(task: Task, state_id: int) -> list[int]:
    """Whether the scripted expert succeeds (0 or 1), and its number of control steps."""
    outcome = run_expert(_simulator(task), initial_states(task)[state_id], SUITES[task.suite].max_steps)
    return [int(outcome.success), outcome.steps]


def replay(task: Task, state_id: int, work: Path, nudge: float = 0.0) -> list[int]:
    """Whether the exact version's expert's actions succeed (0 or 1), and after how many control steps."""
    simulator = _settled(task, state_id)
    kept = work / f"{task.suite}_{task.task_id}_{state_id}_actions.npy"
    if nudge:
        signs = np.random.default_rng(state_id).choice([-1.0, 1.0], 7)
        simulator.data.qpos[simulator.compiled.robot.qpos] += nudge * signs
    elif mujoco.__version__ == EXACT:
        script, acted = Expert(simulator), []
        while not simulator.success and len(acted) < SUITES[task.suite].max_steps:
            acted.append(script.act())
            if script.done:
                break
            simulator.step(acted[-1])
        work.mkdir(parents=True, exist_ok=True)
        np.save(kept, acted)
        return [int(simulator.success), len(acted)]
    for step, action in enumerate(_kept(kept), start=1):
        simulator.step(action)
        if simulator.success:
            return [1, step]
    return [0, step]


def steps(task: Task, state_id: int, work: Path) -> list[float]:
    """Control steps of the exact version's episode, how many of them end elsewhere, and the largest offset, in 1e-9."""
    simulator = _settled(task, state_id)
    name = f"{task.suite}_{task.task_id}_{state_id}"
    actions = _kept(work / f"{name}_actions.npy")
    if mujoco.__version__ == EXACT:
        states = [simulator.get_state()]
        for action in actions:
            simulator.step(action)
            states.append(simulator.get_state())
        (work / f"{name}_states.pkl").write_bytes(pickle.dumps(states))
    states = pickle.loads(_found(work / f"{name}_states.pkl").read_bytes())
    positions = slice(1, 1 + simulator.model.nq)
    offsets = []
    for state, action, after in zip(states, actions, states[1:], strict=False):
        simulator.set_state(state)
        simulator.step(action)
        offsets.append(float(np.abs(np.asarray(simulator.get_state()) - np.asarray(after))[positions].max()))
    return [len(offsets), sum(offset > STEP_OFF for offset in offsets), round(1e9 * max(offsets), 3)]


def _settled(task: Task, state_id: int) -> Simulator:
    """The task's simulator where episodes begin: ten control steps after an official initial state."""
    simulator = _simulator(task)
    simulator.reset(initial_states(task)[state_id])
    simulator.settle(10)
    return simulator


def _kept(path: Path) -> np.ndarray:
    """The array that the run with the exact version left in the work folder."""
    found: np.ndarray = np.load(_found(path))
    return found


def _found(path: Path) -> Path:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run this with MuJoCo {EXACT} first, with the same --work and states.")
    return path


def frames(task: Task, state_id: int, work: Path) -> list[float | None]:
    """dB of each camera's frame against the exact version's; None for equal frames."""
    simulator = _simulator(task)
    simulator.reset(initial_states(task)[state_id])
    drawn = np.stack(render(simulator, CAMERAS, FRAME_SIZE))
    kept = work / f"{task.suite}_{task.task_id}_{state_id}.npy"
    if mujoco.__version__ == EXACT:
        work.mkdir(parents=True, exist_ok=True)
        np.save(kept, drawn)
    values = [psnr(one, other) for one, other in zip(_kept(kept), drawn, strict=True)]
    return [round(value, 1) if np.isfinite(value) else None for value in values]


def speed(task: Task, physics: Any, steps: int = 60) -> list[float]:
    """Milliseconds of processor time that a control step takes, in each of five runs."""
    simulator = Simulator(compile_task(task), physics=physics)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 7))
    simulator.reset(initial_states(task)[0])
    simulator.settle(10)

    times = []
    for _ in range(6):
        start = time.process_time()
        for action in actions:
            simulator.step(action)
        times.append(round((time.process_time() - start) / steps * 1e3, 3))
    return times[1:]


def policy(name: str, task_id: int, states: list[int]) -> dict[str, int]:
    """Whether a policy succeeds (0 or 1) in states of one of the forty tasks, by task and initial state."""
    from vla_agent.evaluation import Evaluator

    options: Row = {"protocol": "training", "renderer": "fast", "n_envs": 1, "task_ids": [task_id]}
    with Evaluator(name, "LIBERO-40-v0", init_state_ids=states, **options) as evaluator:
        report = evaluator.run(progress_bar=True)
    return {f"{episode.task_id}/{episode.init_state_id}": int(episode.success) for episode in report.episodes}


@functools.lru_cache(maxsize=2)
def _simulator(task: Task) -> Simulator:
    compiled = compile_task(task)
    if tolerance is not None:
        compiled.physics.opt.tolerance = tolerance
    return Simulator(compiled)


# ------------------------------------------------------------------------------------------------------- sweeping


def sweep(
    content: Row, section: str, tasks: list[Task], n_states: int, measure: Callable[[Task, int], Any], out: Path
) -> None:
    """Measure the states of each task that the section does not hold."""
    rows = content.setdefault(section, {})
    for task in tqdm(tasks, desc=section):
        row = rows.setdefault(_name(task), {})
        missing = [state for state in range(min(n_states, len(initial_states(task)))) if str(state) not in row]
        if missing:
            account(content, section)
            row |= {str(state_id): measure(task, state_id) for state_id in missing}
            write(content, out)


def account(content: Row, section: str) -> None:
    """Name what a section is measured with; call it before something is added to the section."""
    known = content.setdefault("provenance", {})
    own = provenance()
    commits = [*known.get(section, {}).get("commit", "").split(", "), own["commit"]]
    own["commit"] = ", ".join(dict.fromkeys(filter(None, commits)))
    known[section] = own


def write(content: Row, out: Path) -> None:
    """Write results with one line per task."""
    parts = []
    for name, rows in content.items():
        if isinstance(rows, dict):
            lines = ",\n".join(
                f"  {json.dumps(key)}: {json.dumps(row, separators=(',', ':'))}" for key, row in rows.items()
            )
            parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(rows)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    os.replace(part, out)


def _name(task: Task) -> str:
    return f"{task.suite}[{task.task_id}]"


# ------------------------------------------------------------------------------------------------------ reporting


def offsets(reference: Row, own: Row) -> Iterator[float]:
    """For each state that both settled, how far the farthest object rests from its place in the reference, m."""
    for task, rows in own.items():
        for state_id, positions in rows.items():
            if (exact := reference.get(task, {}).get(state_id)) is not None:
                apart = (np.array(positions) - np.array(exact)).reshape(-1, 3) * 1e-4
                yield float(np.linalg.norm(apart, axis=1).max())


def paired(reference: Row, own: Row) -> tuple[int, int, int, int, int]:
    """Of the episodes that both ran: how many; successes of each; those of the reference alone, and of the other alone.

    Args:
        reference: Whether it succeeded, by episode.
        own: The same of the other.
    """
    both = [(reference[key], own[key]) for key in own if key in reference]
    first, second = (sum(pair[index] for pair in both) for index in (0, 1))
    return len(both), first, second, sum(a > b for a, b in both), sum(b > a for a, b in both)


def _episodes(section: Row) -> dict[str, int]:
    """Successes by episode of the section of the expert."""
    return {f"{task}/{state}": row[0] for task, rows in section.items() for state, row in rows.items()}


def table(results: dict[str, Row]) -> str:
    """The table of `README.md`: a line per version.

    Args:
        results: Contents of the results files, by version; the exact version's among them.
    """
    exact = results[EXACT]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for version in sorted(results, key=parse):
        own = results[version]
        apart = list(offsets(exact.get("settle", {}), own.get("settle", {})))
        rest = f"{1e3 * statistics.median(apart):.2f}, {1e3 * max(apart):.0f}" if apart else "-"
        drawn = [value for rows in own.get("frames", {}).values() for row in rows.values() for value in row]
        decibels = "-" if not drawn else "equal" if set(drawn) == {None} else f"{min(v for v in drawn if v):.1f}"
        times = [f"{statistics.median(own['speed'][key]):.1f}" for key in own.get("speed", {}) if "exact" in key]
        cells = [version, fidelity(version), str(len(apart)), str(sum(value > MOVED for value in apart)), rest]
        cells += _paired_cells(_episodes(exact.get("expert", {})), _episodes(own.get("expert", {})))
        cells += _paired_cells(_episodes(exact.get("replay", {})), _episodes(own.get("replay", {})))
        cells += _paired_cells(exact.get("policy", {}), own.get("policy", {}))
        lines.append("| " + " | ".join([*cells, decibels, ", ".join(times) or "-"]) + " |")
    return "\n".join(lines)


def step_table(results: dict[str, Row]) -> str:
    """The table of single control steps, and of replays after a nudge beside the exact version's without one."""
    lines = ["| " + " | ".join(STEP_COLUMNS) + " |", "| --- " * len(STEP_COLUMNS) + "|"]
    for version in sorted(results, key=parse):
        own = results[version]
        rows = [row for states in own.get("steps", {}).values() for row in states.values()]
        if rows:
            counts = [str(sum(row[index] for row in rows)) for index in (0, 1)]
            worst = f"{1e-9 * max(row[2] for row in rows):.1e}"
            nudged = _paired_cells(_episodes(results[EXACT].get("replay", {})), _episodes(own.get("nudged", {})))
            lines.append("| " + " | ".join([version, *counts, worst, *nudged]) + " |")
    return "\n".join(lines)


def suite_table(results: dict[str, Row]) -> str:
    """The table by suite, of all versions but the exact one."""
    lines = ["| " + " | ".join(SUITE_COLUMNS) + " |", "| --- " * len(SUITE_COLUMNS) + "|"]
    for version in sorted(set(results) - {EXACT}, key=parse):
        for number, suite in enumerate(FOUR_SUITES):
            of = {name: _of_suite(results[name], suite, number) for name in (EXACT, version)}
            apart = list(offsets(of[EXACT]["settle"], of[version]["settle"]))
            cells = [version, suite, str(len(apart)), str(sum(value > MOVED for value in apart))]
            cells += _paired_cells(_episodes(of[EXACT]["expert"]), _episodes(of[version]["expert"]))
            cells += _paired_cells(of[EXACT]["policy"], of[version]["policy"])
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of_suite(content: Row, suite: str, number: int) -> Row:
    """The sections with the tasks of a suite alone; the policy's tasks are counted through the suites."""
    parts = {
        section: {name: row for name, row in content.get(section, {}).items() if name.startswith(f"{suite}[")}
        for section in ("settle", "expert")
    }
    own = {key: value for key, value in content.get("policy", {}).items() if int(key.split("/")[0]) // 10 == number}
    return parts | {"policy": own}


def _paired_cells(reference: Row, own: Row) -> list[str]:
    n, first, second, only_first, only_second = paired(reference, own)
    if not n:
        return ["-", "-"]
    return [f"{second}/{n} ({first})", f"{mcnemar_exact(only_first, only_second):.2g}"]


def read_all() -> dict[str, Row]:
    """Contents of all results files, by version."""
    prefix = "mujoco_versions_"
    paths = sorted(RESULTS.glob(f"{prefix}*.json"))
    return {path.stem.removeprefix(prefix): json.loads(path.read_text()) for path in paths}


def main() -> None:
    version = mujoco.__version__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", choices=FOUR_SUITES, default=FOUR_SUITES)
    parser.add_argument("--tasks", nargs="*", type=int, help="task ids of each suite, all by default")
    parser.add_argument("--states", type=int, default=50, help="official states of a task to settle")
    parser.add_argument("--expert-states", type=int, default=10)
    parser.add_argument("--frame-states", type=int, default=3)
    parser.add_argument("--policy", default="tiny-libero", help="name of the policy of section policy")
    parser.add_argument("--policy-states", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=BY_DEFAULT, help="sections to measure")
    parser.add_argument("--work", type=Path, default=Path("runs/mujoco_versions"), help="folder of the exact frames")
    parser.add_argument("--tolerance", type=float, help="of the solver, instead of the repair's; wants its own --out")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULTS / f"mujoco_versions_{version}.json")
    args = parser.parse_args()
    if args.tolerance is not None and args.out.parent == RESULTS:
        raise SystemExit("--tolerance is no part of the repair; give an --out outside of the results for it.")
    global tolerance
    tolerance = args.tolerance
    if not args.report:
        measure(args)
    results = read_all() | ({version: json.loads(args.out.read_text())} if args.out.is_file() else {})
    if EXACT not in results:
        raise SystemExit(f"Nothing was measured with MuJoCo {EXACT} yet, which the table compares with.")
    print(table(results), step_table(results), suite_table(results), sep="\n\n")


def measure(args: argparse.Namespace) -> None:
    """Measure the sections that were asked for, as far as the results file does not hold them."""
    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    for known in content.get("provenance", {}).values():
        refuse_other_mujoco(known)
    content = {"mujoco": fidelity(mujoco.__version__), "provenance": {}} | content
    commit()
    wanted = [task for suite in args.suites for task in get_tasks(suite)]
    wanted = [task for task in wanted if args.tasks is None or task.task_id in args.tasks]
    if "speed" in args.only:
        rows = content.setdefault("speed", {})
        for suite, task_id in SPEED_TASKS:
            for physics in ("exact", "fast"):
                key = f"{suite}[{task_id}] {physics}"
                if key not in rows:
                    account(content, "speed")
                    rows[key] = speed(get_tasks(suite)[task_id], physics)
                    write(content, args.out)
    if "frames" in args.only:
        drawn = [get_tasks(suite)[task_id] for suite, task_id in FRAME_TASKS if suite in args.suites]
        sweep(content, "frames", drawn, args.frame_states, functools.partial(frames, work=args.work), args.out)
        rendering.release()
    for section, run, n_states in (
        ("settle", settle, args.states),
        ("expert", expert, args.expert_states),
        ("replay", functools.partial(replay, work=args.work), args.expert_states),
        ("nudged", functools.partial(replay, work=args.work, nudge=NUDGE), args.expert_states),
        ("steps", functools.partial(steps, work=args.work), args.expert_states),
    ):
        if section in args.only:
            sweep(content, section, wanted, n_states, run, args.out)
    if "policy" in args.only:
        own = content.setdefault("policy", {})
        for task in wanted:
            task_id = 10 * FOUR_SUITES.index(task.suite) + task.task_id
            missing = [state for state in range(args.policy_states) if f"{task_id}/{state}" not in own]
            if missing:
                account(content, "policy")
                own |= policy(args.policy, task_id, missing)
                write(content, args.out)


if __name__ == "__main__":
    main()

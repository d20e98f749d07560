"""How close the lean core is to stock LIBERO over all tasks, and whether long runs leak memory.

    python benchmarks/fidelity.py --steps         # 40 tasks: 110 control steps and frames next to stock; 15 minutes
    python benchmarks/fidelity.py --predicates    # 290 tasks: compile, and every goal predicate; 40 minutes
    python benchmarks/fidelity.py --settle        # 2000 official initial states of the four suites; 4 minutes
    python benchmarks/fidelity.py --memory        # 500 resets, 20,000 control steps, 800 frames; 5 minutes

The times are those of two shared cores. Results are written after every task to ``--out``, one section per check and
one row per task, with the commit it was measured at. A second run goes on where the first stopped, unless ``--fresh``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from measuring import commit, machine, refuse_other_mujoco
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.extraction import extract
from libero_gym.env import LiberoEnv
from libero_gym.rendering import renderer as rendering
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import StateArrays
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.stock import import_stock, stock_env
from libero_gym.tasks import SUITES, Task, get_tasks, initial_states

OUT = Path(__file__).parent / "results" / "fidelity.json"
FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
FRAME_SIZE, N_FRAMES = 64, 5
N_PLANTED = 30
# Bounds of the settle probe, from the 18,500 objects of the 2000 states. Official states hold objects up to 16 cm over
# where they come to rest; bowls that start on a plate's rim slide by up to 6 cm; all but a handful end below 2 mm/s.
MAX_DROP, MAX_RISE, MAX_DRIFT, MAX_SPEED = 0.2, 0.05, 0.1, 0.01

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------ states, flags and frames


@contextlib.contextmanager
def stock_with_cameras(task: Task, size: int) -> Iterator[Any]:
    """Stock LIBERO's rendering environment, reset once under ``seed(0)``."""
    import_stock()
    from libero.libero.envs import OffScreenRenderEnv

    stock = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=size, camera_widths=size)
    stock.seed(0)
    stock.env.reset()
    try:
        yield stock
    finally:
        stock.sim._render_context_offscreen.gl_ctx.make_current()
        stock.close()


def compare_steps(task: Task) -> Row:
    """Compare states, flags and some frames with stock's over ten settle actions and a hundred random ones."""
    state = initial_states(task)[task.task_id % len(initial_states(task))]
    actions = [SETTLE_ACTION] * 10 + list(np.random.default_rng(task.task_id).uniform(-1, 1, (100, 7)))
    simulator = Simulator(compile_task(task))
    simulator.reset(state)
    difference, flags, frames = 0.0, 0, 0
    with stock_with_cameras(task, FRAME_SIZE) as stock:
        obs = stock.set_init_state(state)
        for step, action in enumerate(actions):
            if step < N_FRAMES:
                frames += count_equal_frames(obs, simulator)
                stock.sim._render_context_offscreen.gl_ctx.make_current()  # ours was current
            if step == N_FRAMES - 1:
                for name in ("agentview_image", "robot0_eye_in_hand_image"):
                    stock.env._observables[name].set_enabled(False)
            obs, _, done, _ = stock.step(action)
            simulator.step(action)
            difference = max(difference, float(np.abs(stock.get_sim_state() - simulator.get_state()).max()))
            flags += bool(done) == simulator.success
    rendering.release()
    return {
        "max_state_difference": difference,
        "equal_flags": f"{flags}/{len(actions)}",
        "equal_frames": f"{frames}/{2 * N_FRAMES}",
    }


def count_equal_frames(obs: dict[str, Any], simulator: Simulator) -> int:
    """How many of the two cameras' frames are equal to the byte."""
    ours = rendering.render(simulator, ("agentview", "wrist"), FRAME_SIZE)
    stock = (obs["agentview_image"], obs["robot0_eye_in_hand_image"])
    return sum(np.array_equal(theirs[::-1, ::-1], own) for theirs, own in zip(stock, ours, strict=True))


# ------------------------------------------------------------------------------------------------------- predicates


def compare_predicates(task: Task) -> Row:
    """Compare every goal predicate with stock's, at official states and at states around which predicates flip.

    Ours is evaluated state by state, and at all states in one batch, which must be the same.
    """
    with stock_env(task.bddl_file) as stock:
        simulator = Simulator(extract(task, stock))  # compile_task would build stock a second time
        official = initial_states(task)
        planted = [plant(simulator, official[index % len(official)], index) for index in range(N_PLANTED)]
        seen: list[list[bool]] = []
        arrays: list[StateArrays] = []
        disagreements = 0
        for state in [*official, *planted]:
            simulator.reset(state)
            stock.set_init_state(state)
            stock_values = [bool(stock.env._eval_predicate(goal)) for goal in stock.env.parsed_problem["goal_state"]]
            disagreements += stock_values != simulator.predicates()
            disagreements += bool(stock.check_success()) != simulator.success
            seen.append(stock_values)
            arrays.append(StateArrays.concatenate([simulator.arrays]))
        batch = StateArrays.concatenate(arrays)
        batched = [predicate.bind(simulator.model)(batch) for predicate in simulator.compiled.goal]
        disagreements += int((np.stack(batched, axis=-1) != np.array(seen)).any(axis=-1).sum())
    return {
        "states": len(seen),
        "disagreements": disagreements,
        "times_true": np.sum(seen, axis=0).tolist(),
        "solved_official": int(np.sum(np.all(seen[: len(official)], axis=1))),
    }


def plant(simulator: Simulator, state: np.ndarray, seed: int) -> np.ndarray:
    """The state with each predicate's object near its target, or its joint near the threshold, at random."""
    rng = np.random.default_rng(seed)
    planted = np.array(state)
    model, data = simulator.model, simulator.data
    for predicate in simulator.compiled.goal:
        if isinstance(predicate, goals.JointThreshold):
            for name in predicate.joints:
                planted[1 + model.joint(name).qposadr[0]] = predicate.threshold + rng.uniform(-0.05, 0.05)
    moved = {moved_body(predicate): predicate for predicate in simulator.compiled.goal if moved_body(predicate)}
    # What is stacked on a moved object comes after it.
    for body, predicate in sorted(moved.items(), key=lambda item: getattr(item[1], "lower_body", None) in moved):
        simulator.reset(planted)
        address = 1 + model.jnt_qposadr[model.body_jntadr[model.body(body).id]]
        jitter = rng.uniform([-0.03, -0.03, -0.03], [0.03, 0.03, 0.08]) * rng.choice([0.3, 1.0])
        planted[address : address + 3] = target_position(predicate, model, data) + jitter
    return planted


def moved_body(predicate: goals.Predicate) -> str | None:
    """Body that a placing predicate is about; None for a joint."""
    if isinstance(predicate, goals.JointThreshold):
        return None
    return predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body


def target_position(predicate: goals.Predicate, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Target of a placing predicate's object, (3,) in m."""
    if isinstance(predicate, goals.OnObject):
        return np.array(data.body(predicate.lower_body).xpos)
    if isinstance(predicate, goals.Up):
        return np.array([*data.body(predicate.body).xpos[:2], goals.UP_HEIGHT])
    assert isinstance(predicate, (goals.OnSite, goals.InSite))
    return np.array(data.site(predicate.site).xpos)


# ------------------------------------------------------------------------------------------------- settling, memory


def probe_settling(task: Task, state_ids: Iterable[int] | None = None) -> Row:
    """Largest motion of any object in 10 settle steps over official states, and the states that are out of bounds.

    Args:
        task: The task.
        state_ids: Which of its official states; None for all.
    """
    simulator = Simulator(compile_task(task))
    model, data = simulator.model, simulator.data
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    bodies, dofs = model.jnt_bodyid[free], model.jnt_dofadr[free]
    bounds = {"drop_m": MAX_DROP, "rise_m": MAX_RISE, "drift_m": MAX_DRIFT, "speed_m_per_s": MAX_SPEED}
    worst, offenders = dict.fromkeys(bounds, 0.0), []
    states = initial_states(task)
    state_ids = range(len(states)) if state_ids is None else list(state_ids)
    for state_id in state_ids:
        simulator.reset(states[state_id])
        solved, before = simulator.success, data.xpos[bodies].copy()
        for _ in range(10):
            simulator.step(SETTLE_ACTION)
            solved |= simulator.success
        motion = data.xpos[bodies] - before
        found = {
            "drop_m": -motion[:, 2],
            "rise_m": motion[:, 2],
            "drift_m": np.linalg.norm(motion[:, :2], axis=1),
            "speed_m_per_s": np.linalg.norm(data.qvel[dofs[:, None] + np.arange(3)], axis=1),
        }
        for name, values in found.items():
            worst[name] = max(worst[name], round(float(values.max()), 4))
            for index in np.flatnonzero(values > bounds[name]):
                body = model.body(bodies[index]).name.removesuffix("_main")
                offenders.append({"state": state_id, "object": body, name: round(float(values[index]), 4)})
        if solved:
            offenders.append({"state": state_id, "solved": True})
    return {"states": len(state_ids), "max": worst, "offenders": offenders}


def probe_memory(resets: int = 500, steps: int = 20_000, frames: int = 800) -> Row:
    """This process's own memory before and after many resets, control steps and frames, each after a warm-up.

    The first two run without a camera, before any scene is loaded: half a gigabyte of textures would hide a leak.
    """
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 7))
    blind = LiberoEnv("libero_10", task_id=2, cameras=(), settle_steps=0)
    seeing = LiberoEnv("libero_10", task_id=2, image_size=64, settle_steps=0)

    def run_resets(n: int) -> None:
        for index in range(n):
            blind.reset(seed=index)

    def run_steps(env: LiberoEnv, n: int) -> None:
        env.reset(seed=0)
        for index in range(n):
            env.step(actions[index % len(actions)])

    result = {
        f"{resets}_resets": memory_growth(run_resets, warm_up=50, n=resets),
        f"{steps}_steps": memory_growth(lambda n: run_steps(blind, n), warm_up=500, n=steps),
        f"{frames}_frames": memory_growth(lambda n: run_steps(seeing, n), warm_up=min(frames, 300), n=frames),
    }
    blind.close()
    seeing.close()
    return result


def memory_growth(run: Callable[[int], None], warm_up: int, n: int, parts: int = 8) -> Row:
    """MB after a warm-up and after each part of ``n`` runs, and the growth from the first to the last in per cent."""
    run(warm_up)
    megabytes = [private_megabytes()]
    for _ in range(parts):
        run(n // parts)
        megabytes.append(private_megabytes())
    return {"mb": megabytes, "growth_percent": round(100 * (megabytes[-1] / megabytes[0] - 1), 2)}


def private_megabytes() -> float:
    """Memory that this process allocated.

    Pages of files, such as libraries, are left out: whether they count as private depends on which other processes have
    them open.
    """
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return round(sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Swap:"))) / 1024, 2)


# ----------------------------------------------------------------------------------------------------------- results


@contextlib.contextmanager
def results(out: Path) -> Iterator[Row]:
    """The results file's content, written back on exit. Locked: several checks may run at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        text = stream.read()
        content = json.loads(text) if text else {}
        yield content
        text = dump(content)
        stream.truncate(0)
        stream.write(text)


def dump(content: Row) -> str:
    """JSON text with one line per row."""
    sections = []
    for name, rows in content.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        sections.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def sweep(section: str, check: Callable[[Task], Row], tasks: list[Task], out: Path, fresh: bool) -> None:
    """Check each task that the section holds no row of, or all. A task that fails gets a row with its error."""
    names = {f"{task.suite}[{task.task_id}]": task for task in tasks}
    with results(out) as content:
        rows = content.setdefault(section, {})
        missing = [name for name in names if fresh or name not in rows]
    for name in tqdm(missing, desc=section):
        try:
            row = check(names[name])
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        with results(out) as content:
            content[section][name] = {**row, "commit": commit()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for section in ("steps", "predicates", "settle", "memory"):
        parser.add_argument(f"--{section}", action="store_true")
    parser.add_argument("--suites", nargs="*", choices=list(SUITES), help="instead of the check's own")
    parser.add_argument("--tasks", nargs="*", type=int, help="task ids, all by default")
    parser.add_argument("--fresh", action="store_true", help="measure anew what the results hold already")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    commit()
    with results(args.out) as content:
        refuse_other_mujoco(content.get("provenance", {}))
        content["provenance"] = machine()
    if args.memory:  # first, while this process is small
        row = {**probe_memory(), "commit": commit()}
        with results(args.out) as content:
            content["memory"] = {"libero_10[2]": row}
    for section, check, suites in (
        ("steps", compare_steps, FOUR_SUITES),
        ("predicates", compare_predicates, SUITES),
        ("settle", probe_settling, FOUR_SUITES),
    ):
        if getattr(args, section):
            tasks = [task for suite in args.suites or suites for task in get_tasks(suite)]
            tasks = [task for task in tasks if args.tasks is None or task.task_id in args.tasks]
            sweep(section, check, tasks, args.out, args.fresh)


if __name__ == "__main__":
    main()

"""How long an environment takes to start and how much memory it holds, next to stock LIBERO in the same run.

    python benchmarks/env_footprint.py --out benchmarks/results/env_footprint.json      # five minutes on two cores

Start-up is measured in fresh processes, ours and stock in turn, with a warm compile cache: making the environment, its
first reset with a 128-pixel frame, and both together with all imports. Memory is the proportional set size of a process
and all its children, which counts pages that they share once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory import memory_mb

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

    from libero_gym.tasks import Task

# Nothing heavy is imported before it is used: imports are part of what is measured.
TASK_ID = 0  # of LIBERO-Spatial
SIZE = 128


# ------------------------------------------------------------------------- probes, each in a process of its own


def start_ours(renderer: str) -> dict[str, float]:
    """Milliseconds until our first frame, and what a further environment of the same task adds."""
    started = time.perf_counter()
    import gymnasium as gym

    import libero_gym.env  # noqa: F401 - gym.make would import it

    kwargs = {"task_id": TASK_ID, "image_size": SIZE, "renderer": renderer}
    imported = time.perf_counter()
    env = gym.make("LIBERO-Spatial-v0", **kwargs)
    made = time.perf_counter()
    env.reset(seed=0)
    shown = time.perf_counter()
    memory = memory_mb()
    before = time.perf_counter()
    further = [gym.make("LIBERO-Spatial-v0", **kwargs) for _ in range(5)]
    further_ms = (time.perf_counter() - before) / 5 * 1e3
    for other in further:
        other.reset(seed=0)
    return phases(started, imported, made, shown) | {
        "further_env_ms": further_ms,
        "further_env_mb": (memory_mb() - memory) / 5,
    }


def start_stock() -> dict[str, float]:
    """Milliseconds until the first frame of LIBERO's own ``OffScreenRenderEnv``; a further one takes as long."""
    from libero_gym.stock import quiet

    started = time.perf_counter()
    env_class, _ = import_stock()
    imported = time.perf_counter()
    task, state = official_task()
    with quiet():
        env = env_class(**stock_kwargs(task))
        made = time.perf_counter()
        env.seed(0)
        env.reset()
        env.set_init_state(state)
    return phases(started, imported, made, time.perf_counter())


def workers_ours(renderer: str) -> dict[str, float]:
    """Memory of four workers with one camera each, the trainer and the template process included."""
    import gymnasium as gym

    env: gym.vector.VectorEnv[Any, Any, Any] = gym.make_vec(
        "LIBERO-Spatial-v0", num_envs=4, n_workers=4, task_id=TASK_ID, image_size=SIZE, renderer=renderer
    )
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        env.step(env.action_space.sample())
    total = memory_mb()
    env.close()
    return {"mb": total}


def workers_stock() -> dict[str, float]:
    """Memory of LIBERO's own ``SubprocVectorEnv`` of four."""
    env_class, vector_class = import_stock()
    kwargs = stock_kwargs(official_task()[0])
    env = vector_class([lambda: env_class(**kwargs) for _ in range(4)])
    env.reset()
    for _ in range(3):
        env.step([[0.0] * 7] * 4)
    total = memory_mb()
    env.close()
    return {"mb": total}


PROBES = {probe.__name__: probe for probe in (start_ours, start_stock, workers_ours, workers_stock)}


def phases(started: float, imported: float, made: float, shown: float) -> dict[str, float]:
    """Milliseconds between points in time that are given in seconds."""
    times = {"make_ms": made - imported, "first_frame_ms": shown - made, "all_with_imports_ms": shown - started}
    return {name: seconds * 1e3 for name, seconds in times.items()}


def import_stock() -> tuple[Any, Any]:
    """LIBERO's environment and vector environment, set to render with EGL."""
    from libero_gym.stock import import_stock as prepare_stock

    prepare_stock()
    os.environ["MUJOCO_GL"] = "egl"
    from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv

    return OffScreenRenderEnv, SubprocVectorEnv


def official_task() -> tuple[Task, np.ndarray]:
    """The task that is measured, and its first official initial state."""
    from libero_gym.tasks import get_tasks, initial_states

    task = get_tasks("libero_spatial")[TASK_ID]
    return task, initial_states(task)[0]


def stock_kwargs(task: Task) -> dict[str, Any]:
    size = {"camera_heights": SIZE, "camera_widths": SIZE}
    return {"bddl_file_name": str(task.bddl_file), "camera_names": ["agentview"], **size}


# ------------------------------------------------------------------------------------------------------- the report


def run_probe(name: str, *args: str) -> dict[str, float]:
    """A probe's figures, measured in a fresh process."""
    command = [sys.executable, __file__, "--probe", name, *args]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def measure_start(renderer: str, repeats: int) -> dict[str, Any]:
    """Start-up times of our environment and stock's, measured in turn."""
    from measuring import against, summary
    from tqdm import tqdm

    ours, stock = [], []
    for _ in tqdm(range(repeats), desc=f"start-up, {renderer}"):
        ours.append(run_probe("start_ours", renderer))
        stock.append(run_probe("start_stock"))
    compared = {key: against([row[key] for row in ours], [row[key] for row in stock]) for key in stock[0]}
    return compared | {key: summary([row[key] for row in ours]) for key in ours[0] if key not in stock[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        name, *rest = args.probe
        print(json.dumps(PROBES[name](*rest)))
        return

    from measuring import provenance, report

    renderers = ("exact", "fast")
    for renderer in renderers:
        run_probe("start_ours", renderer)  # fills the compile cache
    results: dict[str, Any] = {"provenance": provenance()}
    results["start_up"] = {renderer: measure_start(renderer, args.repeats) for renderer in renderers}
    stock = run_probe("workers_stock")["mb"]
    ours = {renderer: run_probe("workers_ours", renderer)["mb"] for renderer in renderers}
    results["four_workers_mb"] = {"stock": round(stock)} | {
        name: {"mb": round(mb), "share_of_stock": round(mb / stock, 3)} for name, mb in ours.items()
    }
    report(results, args.out)


if __name__ == "__main__":
    main()

"""How fast the environments are, next to stock LIBERO in the same run.

    python benchmarks/env_throughput.py --out benchmarks/results/env_throughput.json    # about ten minutes on two cores

Each figure is measured ``--repeats`` times and reported as median with its range, ours and stock in turn: whole vector
environments against stock's ``SubprocVectorEnv``, then control steps and resets in one process, and frames.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from measuring import against, milliseconds, provenance, psnr, report, summary
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import renderer as rendering
from libero_gym.simulation.simulator import Simulator
from libero_gym.stock import import_stock, stock_env
from libero_gym.tasks import Task, get_tasks, initial_states

TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 0), ("libero_10", 2))
STEPS = 60
SIZES = (64, 128, 224)
CAMERAS = ("agentview", "wrist")
VECTOR_STEPS = 6
VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, chunk_size=8": {"chunk_size": 8},
    "fast": {"renderer": "fast"},
    "no camera": {"cameras": ()},
    "fast, fast physics, chunk_size=8": {"renderer": "fast", "physics": "fast", "chunk_size": 8},
}


def measure_physics(task: Task, repeats: int) -> dict[str, Any]:
    """Control steps and resets without cameras, milliseconds."""
    simulator = Simulator(compile_task(task))
    fast = Simulator(compile_task(task), physics="fast")
    states = initial_states(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 7))
    result: dict[str, list[float]] = {"step": [], "fast_step": [], "stock_step": [], "reset": [], "stock_reset": []}
    with stock_env(task.bddl_file) as stock:
        for repeat in range(repeats + 1):  # the first warms up
            state = states[repeat % len(states)]
            timings = {
                "reset": milliseconds(lambda state=state: [simulator.reset(state) for _ in range(20)], 20),
                "stock_reset": milliseconds(lambda state=state: (stock.env.reset(), stock.set_init_state(state))),
                "step": milliseconds(lambda: [simulator.step(action) for action in actions], STEPS),
                "fast_step": milliseconds(
                    lambda state=state: [fast.reset(state), *(fast.step(action) for action in actions)], STEPS
                ),
                "stock_step": milliseconds(lambda: [stock.step(action) for action in actions], STEPS),
            }
            if repeat:
                for name, value in timings.items():
                    result[name].append(value)
    return {
        "step_ms": against(result["step"], result["stock_step"]),
        "fast_step_ms": against(result["fast_step"], result["stock_step"]),
        "reset_ms": against(result["reset"], result["stock_reset"]),
    }


def measure_frames(task: Task, repeats: int) -> dict[str, Any]:
    """Milliseconds of one camera's frame with each renderer by size, and the difference of fast from exact in dB."""
    simulator = Simulator(compile_task(task))
    sizes = {size: measure_frames_of_size(simulator, size, repeats) for size in SIZES}
    rendering.release()
    return {f"frame_{size}": figures for size, figures in sizes.items()}


def measure_frames_of_size(simulator: Simulator, size: int, repeats: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in rendering.RENDERERS}
    errors: dict[str, list[float]] = {camera: [] for camera in CAMERAS}
    for repeat in range(repeats + 1):  # the first warms up
        simulator.reset(initial_states(simulator.compiled.task)[repeat])
        images = {name: rendering.render(simulator, CAMERAS, size, renderer=name) for name in times}
        for camera, exact, fast in zip(CAMERAS, images["exact"], images["fast"], strict=True):
            errors[camera].append(psnr(exact, fast))
        for name, values in times.items():
            run = lambda name=name: rendering.render(simulator, ("agentview",), size, renderer=name)  # noqa: E731
            elapsed = milliseconds(run)
            if repeat:
                values.append(elapsed)
    return {
        "exact_ms": summary(times["exact"]),
        "fast_ms": summary(times["fast"]),
        "fast_psnr_db": {camera: summary(values) for camera, values in errors.items()},
    }


def measure_vectors(n_envs: int, repeats: int) -> dict[str, Any]:
    """Control steps per second of whole vector environments with one 128-pixel camera, all stepped in turn.

    Other load on the machine slows all of them alike, since they take turns; ratios to stock are taken round by round.
    """
    envs = {name: (make_vector(n_envs, **kwargs), kwargs.get("chunk_size", 1)) for name, kwargs in VARIANTS.items()}
    envs["stock"] = (make_stock_vector(n_envs), 1)  # forked from this process, which must not have a GL context
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for repeat in range(repeats + 1):  # the first warms up
        for name, (env, chunk_size) in envs.items():
            shape = (n_envs, chunk_size, 7) if chunk_size > 1 else (n_envs, 7)
            actions = rng.uniform(-1, 1, (VECTOR_STEPS, *shape))
            elapsed = milliseconds(lambda env=env, actions=actions: [env.step(action) for action in actions])
            if repeat:
                rates[name].append(n_envs * chunk_size * VECTOR_STEPS / elapsed * 1e3)
    for env, _ in envs.values():
        env.close()
    stock = rates["stock"]
    ratios = {name: [own / theirs for own, theirs in zip(rates[name], stock, strict=True)] for name in VARIANTS}
    return {name: summary(values) for name, values in rates.items()} | {
        "times_stock": {name: summary(values) for name, values in ratios.items()}
    }


def make_vector(n_envs: int, **kwargs: Any) -> Any:
    env: Any = gym.make_vec("LIBERO-Spatial-v0", num_envs=n_envs, task_id=0, image_size=128, **kwargs)
    env.reset(seed=0)
    return env


def make_stock_vector(n_envs: int) -> Any:
    """LIBERO's own subprocess vector environment of the same task."""
    import_stock()
    os.environ["MUJOCO_GL"] = "egl"
    from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv

    task = get_tasks("libero_spatial")[0]
    kwargs = {"bddl_file_name": str(task.bddl_file), "camera_heights": 128, "camera_widths": 128}
    kwargs["camera_names"] = ["agentview"]
    env = SubprocVectorEnv([lambda: OffScreenRenderEnv(**kwargs) for _ in range(n_envs)])
    env.reset()
    return env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--envs", type=int, nargs="*", default=[4, 8], help="sizes of the vector environments; none skips"
    )
    parser.add_argument("--only", choices=("vector", "tasks"), help="measure one part and keep the other of --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    results: dict[str, Any] = {}
    if args.only and args.out is not None and args.out.exists():
        results = json.loads(args.out.read_text())
    if args.only != "tasks":
        results["vector_provenance"], results["vector_steps_per_s"] = provenance(), {}
        for n_envs in tqdm(args.envs, desc="vector environments"):
            results["vector_steps_per_s"][n_envs] = measure_vectors(n_envs, args.repeats)
    if args.only != "vector":
        results["provenance"], results["tasks"] = provenance(), {}
        for suite, task_id in tqdm(TASKS, desc="tasks"):
            task = get_tasks(suite)[task_id]
            physics = measure_physics(task, args.repeats)
            results["tasks"][f"{suite}[{task_id}]"] = physics | measure_frames(task, args.repeats)
    report(results, args.out)


if __name__ == "__main__":
    main()

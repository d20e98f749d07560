"""How many control steps a second worlds of MuJoCo Warp take, by their number, with and without frames.

    python benchmarks/gpu_env_throughput.py --out benchmarks/results/gpu_env_throughput.json    # a GPU; ten minutes
    python benchmarks/gpu_env_throughput.py --device cpu --worlds 2 4 --seconds 1               # does it work?

For each number of worlds: LIBERO-Spatial's physics alone, with one camera and with two, at 128 pixels, and chunks of
eight actions, by random actions. Then the share of a control step that its stages take, each captured alone, 25 times
over, on the state that the worlds are in; what is left are launches between them. Of the cases with cameras, what
drawing the frames takes, and what it takes to hand out the whole step. Last, the back end of worker processes on the
same machine. A run ends with the case in which ``--minutes`` are over, and what was measured is kept if a case fails.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco_warp as mjw
import numpy as np
import warp as wp
from measuring import provenance, report, summary

from libero_gym.gpu.scene_batch import SceneBatch
from libero_gym.simulation.simulator import STOCK_SUBSTEPS
from libero_gym.vector import LiberoVectorEnv

SUITE, IMAGE_SIZE = "libero_spatial", 128
CASES: dict[str, dict[str, Any]] = {
    "physics": {"cameras": ()},
    "one camera": {"cameras": ("agentview",)},
    "two cameras": {"cameras": ("agentview", "wrist")},
    "two cameras, chunks of 8": {"cameras": ("agentview", "wrist"), "chunk_size": 8},
}


def make(n: int, **kwargs: Any) -> LiberoVectorEnv:
    """Environments whose episodes do not end while they are timed."""
    arguments = {"suite": SUITE, "image_size": IMAGE_SIZE, "renderer": "fast", "max_episode_steps": 100_000} | kwargs
    return LiberoVectorEnv(n, **arguments)


def steps_per_second(env: LiberoVectorEnv, seconds: float) -> dict[str, float]:
    """Control steps of all environments per second, over repetitions of one step each."""
    env.reset(seed=0)
    env.action_space.seed(0)
    per_step = env.num_envs * env.chunk_size
    env.step(env.action_space.sample())  # captures the graph
    rates: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rates) < 3:
        actions = env.action_space.sample()
        before = time.perf_counter()
        env.step(actions)
        rates.append(per_step / (time.perf_counter() - before))
    return summary(rates)


def shares(batch: SceneBatch) -> dict[str, float]:
    """Milliseconds that stages of a control step take, each alone in a graph, and those of the whole step."""
    m, d = batch.model, batch.data
    stages: dict[str, Callable[[], Any]] = {
        "kinematics, inertia": lambda: (mjw.fwd_kinematics(m, d), mjw.crb(m, d), mjw.factor_m(m, d)),
        "collision": lambda: mjw.collision(m, d),
        "constraints": lambda: mjw.make_constraint(m, d),
        "controller": lambda: batch._drive(first=False),
        "solver": lambda: mjw.solve(m, d),
    }
    found = {}
    for name, stage in stages.items():
        with wp.ScopedDevice(batch.device):
            stage()
            with wp.ScopedCapture() as recorded:
                for _ in range(STOCK_SUBSTEPS):
                    stage()
            found[name] = _milliseconds(lambda graph=recorded.graph: wp.capture_launch(graph))
    everywhere, actions = np.ones(batch.n_worlds, dtype=bool), np.zeros((batch.n_worlds, 7))
    found["whole step"] = _milliseconds(lambda: batch.step(actions, everywhere))
    return found


def drawing(env: LiberoVectorEnv, cameras: tuple[str, ...]) -> dict[str, float]:
    """Milliseconds that the frames of all worlds take on the device, and those of the step that hands them out."""
    places = env.backend._places  # type: ignore[attr-defined]
    drawn = [(scene, places.worlds(own)) for scene, own in places.by_group(range(env.num_envs))]
    frames = _milliseconds(lambda: [scene.frames_on_device(worlds, cameras, IMAGE_SIZE) for scene, worlds in drawn])
    actions = env.action_space.sample()
    return {"frames": frames, "step that hands them out": _milliseconds(lambda: env.step(actions))}


def _milliseconds(run: Callable[[], Any], repetitions: int = 3) -> float:
    times = []
    for _ in range(repetitions):
        wp.synchronize()
        before = time.perf_counter()
        run()
        wp.synchronize()
        times.append((time.perf_counter() - before) * 1e3)
    return round(float(np.median(times)), 3)


def memory(device: str) -> float | None:
    """MiB of a GPU that are in use; None on the CPU."""
    found = wp.get_device(device)
    return round((found.total_memory - found.free_memory) / 2**20, 1) if found.is_cuda else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--worlds", nargs="*", type=int, default=[64, 256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each case")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after these")
    parser.add_argument("--processes", type=int, default=16, help="environments of the other back end; 0 for none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    device = wp.get_device(args.device)
    results: dict[str, Any] = {"device": device.name, "driver": None, "steps_per_second": {}, "shares_ms": {}}
    if device.is_cuda:
        results["driver"] = ".".join(map(str, wp.get_cuda_driver_version()))
    end = time.perf_counter() + 60 * args.minutes
    for n in args.worlds:
        for name, kwargs in CASES.items():
            if time.perf_counter() > end:
                results.setdefault("left_out", []).append(f"{n}: {name}")
                continue
            try:
                env = make(n, backend="warp", device=args.device, **kwargs)
                results["steps_per_second"].setdefault(str(n), {})[name] = steps_per_second(env, args.seconds)
                if name == "physics":
                    ((scene, _),) = env.backend._places.by_group([0])  # type: ignore[attr-defined]
                    results["shares_ms"][str(n)] = shares(scene.batch)
                else:
                    results["shares_ms"].setdefault(str(n), {})[name] = drawing(env, kwargs["cameras"])
                results.setdefault("memory_MiB", {}).setdefault(str(n), {})[name] = memory(args.device)
                env.close()
            except Exception as error:
                results.setdefault("failed", {})[f"{n}: {name}"] = f"{type(error).__name__}: {error}"
                print(n, name, "failed:", error, flush=True)
                continue
            print(n, name, results["steps_per_second"][str(n)][name], flush=True)
    if args.processes:
        env = make(args.processes, physics="fast", **CASES["two cameras"])
        results["processes, two cameras"] = {"n": args.processes, **steps_per_second(env, args.seconds)}
        env.close()
    report(results | {"provenance": provenance()}, args.out)


if __name__ == "__main__":
    main()

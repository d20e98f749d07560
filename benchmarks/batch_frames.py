"""How close frames drawn by Warp are to exact ones, and how many a device draws per second.

    python benchmarks/batch_frames.py                                     # the processor; ten minutes on a core
    python benchmarks/batch_frames.py --device cuda:0 --worlds 64 256 1024 4096 \\
        --out benchmarks/results/batch_frames_gpu.json                    # the first GPU; two minutes

For each of four scenes, the task's script acts for some steps from an official initial state. Frames of that state are
compared with the exact ones, for both cameras; then so many worlds, each in a state of its own, are drawn again and
again. It needs the extra ``[gpu]``, or Warp alone. A sheet beside the figures shows, camera by camera: by Warp, exact,
and eight times their difference.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import warp as wp
from frame_fidelity import figures, side_by_side
from measuring import provenance, report, summary
from tqdm import tqdm

from libero_gym.compilation.compile import compile_task
from libero_gym.experts import Expert
from libero_gym.gpu.camera import SceneOnDevice
from libero_gym.gpu.host_poses import camera_for
from libero_gym.rendering import render
from libero_gym.rendering.models import packed_scene
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states

OUT = Path(__file__).parent / "results" / "batch_frames.json"
TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 3), ("libero_10", 2))
CAMERAS = ("agentview", "wrist")
STEPS = (0, 40, 90)
N_STATES = 8


def episode(suite: str, task_id: int, state: int) -> list[Simulator]:
    """Simulators along an episode of the task's script."""
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[state])
    expert, found, taken = Expert(simulator), [], 0
    for step in STEPS:
        for _ in range(step - taken):
            simulator.step(expert.act())
        taken = step
        copy = Simulator(simulator.compiled)
        copy.set_state(simulator.get_state())
        found.append(copy)
    return found


def fidelity(simulators: list[Simulator], scene: SceneOnDevice, size: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Figures of each state and camera, and a picture of the state after 40 steps."""
    camera, poses = camera_for(simulators, scene, CAMERAS, size)
    frames = camera.draw(poses).numpy().reshape(len(simulators), len(CAMERAS), size, size, 3)
    rows, pictures = [], []
    for step, simulator, drawn in zip(STEPS, simulators, frames, strict=True):
        for name, frame, exact in zip(CAMERAS, drawn, render(simulator, CAMERAS, size), strict=True):
            rows.append({"step": step, "camera": name, **figures(exact, frame)})
            if step == 40:
                pictures.append(side_by_side(frame, exact))
    return rows, np.concatenate(pictures, axis=1)


def rates(simulators: list[Simulator], scene: SceneOnDevice, size: int, n_worlds: int, repeats: int) -> dict[str, Any]:
    """Frames per second of so many worlds, and the device's memory that they take."""
    before = wp.get_mempool_used_mem_current(scene.device) if scene.device.is_cuda else 0
    several = [simulators[i % len(simulators)] for i in range(n_worlds)]
    camera, poses = camera_for(several, scene, CAMERAS, size)
    camera.draw(poses)
    found = []
    for _ in range(repeats):
        wp.synchronize_device(scene.device)
        start = time.perf_counter()
        camera.draw(poses)
        wp.synchronize_device(scene.device)
        found.append(n_worlds * len(CAMERAS) / (time.perf_counter() - start))
    after = wp.get_mempool_used_mem_current(scene.device) if scene.device.is_cuda else 0
    return {"worlds": n_worlds, "frames_per_s": summary(found), "device_mb": round((after - before) / 1e6, 1)}


def main() -> None:
    """Measures scene by scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="Warp's name of it")
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels")
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 4], help="how many to draw at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    scenes, pictures = [], []
    for suite, task_id in tqdm(TASKS, desc="scenes"):
        scene = SceneOnDevice(packed_scene(compile_task(get_tasks(suite)[task_id])), options.device)
        rows, picture = fidelity(episode(suite, task_id, 0), scene, options.size)
        pictures.append(picture)
        states = [
            simulator for state in range(N_STATES // len(STEPS) + 1) for simulator in episode(suite, task_id, state)
        ]
        speed = [rates(states[:N_STATES], scene, options.size, n, options.repeats) for n in options.worlds]
        scenes.append({"task": f"{suite} {task_id}", "frames": rows, "speed": speed})
    device = wp.get_device(options.device)
    results = {
        "provenance": provenance(),
        "warp": wp.__version__,
        "device": device.name,
        "size": options.size,
        "psnr": {
            name: summary([row["psnr"] for scene in scenes for row in scene["frames"] if row["camera"] == name])
            for name in CAMERAS
        },
        "scenes": scenes,
    }
    report(results, options.out)
    imageio.imwrite(options.out.with_suffix(".png"), np.concatenate(pictures))


if __name__ == "__main__":
    main()

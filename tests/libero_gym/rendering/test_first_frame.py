"""The renderer is compiled before its first frame, by whoever loads a scene, and never again for other types."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from libero_gym.rendering import first_frame

DRAW = """
from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import first_frame, mirror, models, shading, veils, visibility
from libero_gym.rendering.software_scene import SoftwareScene
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states

def compiled():
    modules = (mirror, shading, veils, visibility)
    kernels = {id(member): member for module in modules for member in vars(module).values()}
    functions = [kernel for kernel in kernels.values() if hasattr(kernel, "py_func")]
    return {function.py_func.__qualname__: len(function.signatures) for function in functions}

task = get_tasks("libero_goal")[3]  # with a stove that mirrors and a glass door
simulator = Simulator(compile_task(task))
simulator.reset(initial_states(task)[0])
scene = SoftwareScene(simulator.compiled, models.packed_scene(simulator.compiled))
before = compiled()
scene.pose(simulator)
for camera in ("agentview", "wrist"):
    for stored in (True, False):
        scene.draw(camera, 48, 64, stored=stored)
assert before["rasterise"] and before["shade_samples"] and before["add_reflection"], before
assert compiled() == before, (before, compiled())
print("nothing was compiled")
"""


def test_frames_compile_nothing_once_a_scene_is_loaded() -> None:
    """Else every worker of a vector environment would compile it for itself, for some 20 s."""
    run = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1:] == ["nothing was compiled"], run.stderr


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, []), (0.3, ["Compiling the renderer: once, some 20 to 40 s."])]
)
def test_whoever_waits_for_the_compiler_is_told(
    seconds: float, expected: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_frame, "_PATIENCE", 0.1)
    monkeypatch.setattr(first_frame, "_draw", lambda: time.sleep(seconds))
    threads = threading.active_count()
    with caplog.at_level(logging.WARNING):
        first_frame.compile_kernels.__wrapped__()
    assert [record.getMessage() for record in caplog.records] == expected
    assert threading.active_count() == threads


HASH = """
import hashlib
from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import render
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states

digest = hashlib.sha256()
for task in (get_tasks("libero_goal")[3], get_tasks("libero_object")[0]):
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])
    for size in (64, 128, 224):
        for frame in render(simulator, ("agentview", "wrist"), size, renderer="fast"):
            digest.update(frame.tobytes())
print(digest.hexdigest())
"""


def test_frames_are_the_same_bits_however_the_kernels_were_compiled(tmp_path: Path) -> None:
    """For a processor without AVX and FMA, in the process itself, and from the cache."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    digests = []
    for variables in (plain, {}, {}):
        environment = os.environ | variables | {"NUMBA_CACHE_DIR": str(tmp_path / ("plain" if variables else "own"))}
        run = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr
        digests.append(run.stdout.split()[-1])
    assert len(set(digests)) == 1, digests

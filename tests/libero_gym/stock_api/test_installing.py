"""Imports of LIBERO's environments find ours, in processes to come as well, until they are taken back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import multiprocessing

import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import DummyVectorEnv, OffScreenRenderEnv, SubprocVectorEnv

def make():
    task = SUITE.get_task(0)
    path = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    return OffScreenRenderEnv(bddl_file_name=path, camera_heights=32, camera_widths=32, renderer="fast")

SUITE = benchmark.get_benchmark_dict()["libero_spatial"]()

def whose(queue):
    queue.put(OffScreenRenderEnv.__module__)

if __name__ == "__main__":
    states = SUITE.get_task_init_states(0)
    for kind in (DummyVectorEnv, SubprocVectorEnv):
        envs = kind([make, make])
        envs.seed(0)
        envs.reset()
        obs = envs.set_init_state(states[:2])
        obs, reward, done, info = envs.step(np.zeros((2, 7)))
        print(kind.__name__, obs[1]["agentview_image"].shape, len(obs[0]), done.tolist(), envs.check_success())
        envs.close()
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=whose, args=(queue,))
        child.start()
        print(method, queue.get(timeout=120))
        child.join()
"""
EXPECTED = [
    "DummyVectorEnv (32, 32, 3) 32 [False, False] [False, False]",
    "SubprocVectorEnv (32, 32, 3) 32 [False, False] [False, False]",
    *(f"{method} libero_gym.stock_api.environment" for method in ("fork", "spawn", "forkserver")),
]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LIBERO_GYM_STOCK_API"} | variables
    return subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True, timeout=400)


def test_a_script_runs_unchanged_with_workers_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "evaluation.py").write_text(PROGRAM)
    done = run("-m", "libero_gym.stock_api", str(tmp_path / "evaluation.py"))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not line.startswith("[info]")] == EXPECTED


def test_what_is_installed_is_taken_back() -> None:
    code = """
import sys
import libero_gym
from libero_gym.stock_api.environment import OffScreenRenderEnv as Ours
from libero_gym.benchmark import task_files
task_files("libero_spatial")
import libero.libero.benchmark as before
libero_gym.install_stock_api()
libero_gym.install_stock_api()
import libero.libero.envs
from libero.libero.envs import OffScreenRenderEnv as A
from libero.libero.envs.env_wrapper import ControlEnv
from libero.libero.envs import bddl_utils
assert A is Ours and A is libero.libero.envs.OffScreenRenderEnv and issubclass(A, ControlEnv)
try:
    libero.libero.envs.TASK_MAPPING
except AttributeError as error:
    print(error)
assert "robosuite" not in sys.modules
from libero_gym.stock import import_stock  # what compiles a task still finds LIBERO
stock = import_stock()
assert stock.__module__ == "libero.libero.envs.env_wrapper" and not issubclass(Ours, stock)
from libero.libero.envs import OffScreenRenderEnv as B
assert B is Ours
libero_gym.uninstall_stock_api()
libero_gym.uninstall_stock_api()
from libero.libero.envs import OffScreenRenderEnv as C
assert issubclass(C, stock) and C is not Ours
import libero.libero.benchmark as after
assert after is before
libero_gym.install_stock_api()
from libero.libero.envs import OffScreenRenderEnv as D
assert D is Ours
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "libero_gym's stand-in for libero.libero.envs has no TASK_MAPPING; libero_gym.uninstall_stock_api() gives "
        "LIBERO's own module back."
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "python -m libero_gym.stock_api script.py"),
        (("--help",), 0, "python -m libero_gym.stock_api script.py"),
        (("nothing.py",), 1, "nothing.py is no file; expected a script, or -m and a module."),
        (("-m", "json.tool", "--help"), 0, "usage:"),
    ],
)
def test_the_command_says_what_it_takes(arguments: tuple[str, ...], code: int, text: str) -> None:
    done = run("-m", "libero_gym.stock_api", *arguments)
    assert done.returncode == code
    assert text in done.stdout + done.stderr

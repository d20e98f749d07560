"""What long runs rely on: flat memory, official states at rest, no side effects, and one clear warning."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from pathlib import Path

import fidelity
import gymnasium as gym
import mujoco
import numpy as np
import pytest
from paths import BENCHMARKS
from scenes import SCENES

from libero_gym.common.version import BENCHMARK
from libero_gym.common.warn import warn_once
from libero_gym.compilation.compile import compile_task, warn_unless_exact
from libero_gym.tasks import Task, get_tasks

# Official states in which objects overlap or fall onto one another: some end far off, some still move after settling.
RESTLESS = {("libero_spatial", 2): [18], ("libero_10", 0): [2, 45], ("libero_10", 3): [19]}


@pytest.mark.opengl
def test_memory_stays_flat_over_resets_steps_and_frames() -> None:
    """One `MjData` kept per reset, 2 KB per step, or 300 KB per frame would show."""
    code = "import json, fidelity; print(json.dumps(fidelity.probe_memory(resets=500, steps=2000, frames=40)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    rows = json.loads(result.stdout)
    assert len(rows) == 3
    for row in rows.values():
        assert row["mb"][0] > 50
        assert row["growth_percent"] < 2, rows


@pytest.mark.parametrize(("suite", "task_id"), dict.fromkeys([*SCENES, *RESTLESS]))
def test_official_states_come_to_rest_unsolved(suite: str, task_id: int) -> None:
    """Every tenth one, and those known not to: after the settle steps nothing flies, falls or is solved."""
    restless = RESTLESS.get((suite, task_id), [])
    row = fidelity.probe_settling(get_tasks(suite)[task_id], sorted({*range(0, 50, 10), *restless}))
    assert sorted({offender["state"] for offender in row["offenders"]}) == restless, row


def test_global_generators_are_untouched_from_compiling_to_stepping(
    spatial_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's generator as well as NumPy's, although stock LIBERO draws from both while a task compiles."""
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))  # nothing to read there,
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "0")  # and nothing written
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    compile_task.__wrapped__(spatial_task)
    env = gym.make("LIBERO-Spatial-v0", task_id=0, cameras=())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset()
    env.close()
    assert random.getstate() == python_state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_a_mujoco_that_is_not_exact_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", "3.4.0")
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"MuJoCo 3\.4\.0 is repaired.*not exact.*pip install mujoco==3\.3\.2"):
        warn_unless_exact()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unless_exact()
    warn_once.cache_clear()


def test_the_exact_mujoco_gets_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", BENCHMARK["mujoco"])
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unless_exact()

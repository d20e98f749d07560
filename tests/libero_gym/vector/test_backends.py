"""`LiberoVectorEnv` is Gymnasium's face over any back end: it speaks to it through `Backend` alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from in_process import InProcess

from libero_gym.vector.vector import LiberoVectorEnv

KWARGS: dict[str, Any] = {"task_id": [0, 1], "cameras": (), "settle_steps": 2, "max_episode_steps": 4}


def make(backend: Any, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> LiberoVectorEnv:
    env = gym.make_vec("LIBERO-Spatial-v0", num_envs=2, backend=backend, autoreset_mode=mode, **KWARGS, **kwargs)
    assert isinstance(env, LiberoVectorEnv)
    return env


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a process fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)


def play(env: LiberoVectorEnv, actions: np.ndarray) -> list[tuple[Any, ...]]:
    """Resets and steps, with all that the face can be asked for in between."""
    results: list[tuple[Any, ...]] = [env.reset(seed=3, options={"init_state_id": [4, 5]})]
    env.set_task_weights([1.0, 3.0])
    for index, action in enumerate(actions):
        if env.autoreset_mode is AutoresetMode.DISABLED and index == 4:
            results.append(env.reset(options={"reset_mask": np.array([True, True])}))
        results.append(env.step(action))
    infos = [result[-1] for result in results]
    for own in infos + [info["final_info"] for info in infos if "final_info" in info]:
        counted = own.pop("n_steps", None), own.pop("_n_steps", None)  # InProcess's own info
        assert all((value is not None) == isinstance(env.backend, InProcess) for value in counted)
    return [*results, (env.call("get_state", indices=[1])[0],)]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_any_back_end_drives_the_same_face(mode: AutoresetMode) -> None:
    """Two that share no line give equal observations, rewards, flags and infos, through two episodes' ends."""
    actions = random_actions(2 * 7).reshape(7, 2, 7)
    played = []
    for backend in (InProcess, "processes"):
        env = make(backend, mode, **({"n_workers": 2} if backend == "processes" else {}))
        played.append(play(env, actions))
        env.close()
        with pytest.raises(gym.error.ClosedEnvironmentError, match="closed"):
            env.step(actions[0])
    for own, expected in zip(*played, strict=True):
        assert data_equivalence(own, expected, exact=True)


@pytest.mark.usefixtures("no_processes")
def test_the_face_starts_nothing_and_hands_arguments_on() -> None:
    env = make(InProcess, greeting="hello", render_mode="rgb_array", render_size=16, renderer="fast")
    assert isinstance(env.backend, InProcess)
    assert env.backend.greeting == "hello"
    env.reset(seed=0)
    frames = env.render()
    assert frames is not None
    assert [frame.shape for frame in frames] == [(16, 16, 3)] * 2
    assert (env.n_restarts, env.render_devices) == (0, (None,))
    env.close()


@pytest.mark.usefixtures("no_processes")
def test_a_snapshot_goes_on_to_the_bit() -> None:
    env = make(InProcess)
    actions = random_actions(2 * 8).reshape(8, 2, 7)
    env.reset(seed=1)
    env.set_task_weights([3.0, 1.0])
    env.step(actions[0])
    snapshot = json.loads(json.dumps(env.snapshot()))
    assert snapshot["task_weights"] == [0.75, 0.25]
    expected = [env.step(action)[0]["state"] for action in actions[1:]]
    env.set_task_weights([1.0, 0.0])
    env.reset(seed=8)
    env.restore(snapshot)
    np.testing.assert_array_equal([env.step(action)[0]["state"] for action in actions[1:]], expected)
    with pytest.raises(ValueError, match="no snapshot of a LiberoVectorEnv: it lacks task_weights"):
        env.restore({"environments": snapshot["environments"]})
    env.close()


@pytest.mark.usefixtures("no_processes")
def test_a_step_under_way_is_told_by_the_back_end() -> None:
    env = make(InProcess)
    env.reset(seed=0)
    env.step_async(np.zeros((2, 7)))
    with pytest.raises(gym.error.AlreadyPendingCallError, match="collect it with step_wait"):
        env.step_async(np.zeros((2, 7)))
    assert env.step_wait()[4]["elapsed_steps"].tolist() == [1, 1]
    env.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "procesess"},
            r"Unknown backend 'procesess'. Did you mean 'processes'\? Choices: 'processes', 'warp'\.",
        ),
        ({"backend": None}, r"Unknown backend None. Choices: 'processes'"),
        ({"backend": "processes", "backnd": 1}, r"Unknown argument 'backnd'. Did you mean 'backend'"),
        ({"backend": "processes", "n_worker": 1}, r"Unknown argument 'n_worker'. Did you mean 'n_workers'"),
        ({"backend": InProcess, "greting": 1}, r"Unknown argument 'greting'. Did you mean 'greeting'"),
        ({"backend": InProcess, "n_workers": 1}, r"Unknown argument 'n_workers': backend='processes' takes it"),
        ({"backend": "warp", "restart": False}, r"Unknown argument 'restart': backend='processes' takes it"),
        ({"nconmax": 32}, r"Unknown argument 'nconmax': backend='warp' takes it"),
    ],
)
@pytest.mark.usefixtures("no_processes")
def test_an_unknown_back_end_or_argument_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LiberoVectorEnv(2, suite="libero_spatial", **arguments)
    assert "\n" not in str(caught.value)


def test_the_trainer_does_not_import_the_workers_side() -> None:
    code = (
        "import sys, libero_gym.vector.pool; from libero_gym.vector import protocol\n"
        "print('mujoco' in sys.modules, 'libero_gym.env' in sys.modules)\n"
        "import libero_gym.vector.vector; print('libero_gym.vector.worker' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "False"]

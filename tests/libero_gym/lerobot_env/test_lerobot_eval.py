"""Our environments under LeRobot's own commands, and beside LeRobot's own LIBERO environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="needs lerobot (0.6.1 goes together with this package, on Python 3.12)")
from lerobot_policies import save_policy

from libero_gym.stock import import_stock
from libero_gym.tasks import get_tasks, initial_states

TURN = np.array([0.3, -0.2, -0.4, 0.5, -0.6, 0.4, -1.0], dtype=np.float32)


def config(**settings: Any) -> Any:
    from libero_gym.lerobot_env import LiberoGymConfig

    return LiberoGymConfig(**{"task": "libero_goal", "task_ids": [0], **settings})


def observed(cfg: Any, seed: int, n_steps: int) -> list[dict[str, Any]]:
    """What LeRobot's loop hands to a policy's preprocessor."""
    from lerobot.envs import make_env, make_env_pre_post_processors, preprocess_observation
    from lerobot.policies.factory import make_policy_config

    ((envs,),) = (tuple(suite.values()) for suite in make_env(cfg, n_envs=1).values())
    processor, _ = make_env_pre_post_processors(cfg, make_policy_config("act", device="cpu"))
    seen = []
    try:
        obs, _ = envs.reset(seed=[seed])
        for _ in range(n_steps):
            seen.append(processor(preprocess_observation(obs) | {"task": list(envs.call("task_description"))}))
            obs, *_ = envs.step(TURN[None])
    finally:
        envs.close()
    return seen


@pytest.mark.opengl
def test_policies_see_what_they_see_in_lerobots_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import_stock()  # LIBERO asks questions at its first import
    from lerobot.envs import libero
    from lerobot.envs.configs import LiberoEnv

    # LIBERO's files of initial states are not in the package that brings LIBERO here; their contents are.
    states = initial_states(get_tasks("libero_goal")[0])
    monkeypatch.setattr(libero, "get_task_init_states", lambda *_, **__: states)

    theirs = observed(
        LiberoEnv(task="libero_goal", task_ids=[0], observation_height=128, observation_width=128), 11, 12
    )
    ours = observed(config(observation_height=128, observation_width=128), 11, 12)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        assert one["task"] == two["task"]
        for key in ("observation.images.image", "observation.images.image2"):
            np.testing.assert_array_equal(one[key], two[key])
        np.testing.assert_allclose(one["observation.state"], two["observation.state"], rtol=0, atol=1e-5)
    turned = [float(np.linalg.norm(one["observation.state"][0, 3:6])) for one in ours]
    assert min(turned) < np.pi < max(turned)  # w changes its sign on the way


def test_lerobot_eval_finds_and_plays_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.scripts.lerobot_eval import main

    policy = save_policy(tmp_path / "policy")
    options = [f"--policy.path={policy}", "--policy.device=cpu", f"--output_dir={tmp_path / 'out'}"]
    options += ["--env.discover_packages_path=libero_gym.lerobot_env", "--env.type=libero_gym"]
    options += ["--env.task=libero_spatial,libero_object", "--env.task_ids=[1]", "--env.episode_length=6"]
    options += ["--env.renderer=fast", "--env.observation_height=64", "--env.observation_width=64"]
    options += ["--env.fixtures=first", "--eval.batch_size=2", "--eval.n_episodes=2", "--eval.use_async_envs=false"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *options])
    main()
    info = json.loads((tmp_path / "out/eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 4
    assert set(info["per_group"]) == {"libero_spatial", "libero_object"}
    assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) == 4


def test_worker_processes_are_started_when_a_tasks_turn_comes() -> None:
    cfg = config(task_ids=[0, 1], renderer="fast", observation_height=64, observation_width=64, fixtures="first")
    tasks = cfg.create_envs(2, use_async_envs=True)["libero_goal"]
    assert all(env._env is None for env in tasks.values())
    try:
        obs, _ = tasks[1].reset(seed=[0, 1])
        assert obs["pixels"]["image"].shape == (2, 64, 64, 3)
        assert len(set(tasks[1].call("task_description"))) == 1
        assert tasks[1].call("_max_episode_steps") == (300, 300)
    finally:
        for env in tasks.values():
            env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 10}, "fps=10; LIBERO has 20 control steps per second"),
        ({"observation_height": 128}, "frames are square, so give the same number"),
        ({"task": ","}, "task=',' names no suite"),
        ({"task": "libero_gaol"}, "Did you mean 'libero_goal'"),
        ({"task_ids": [10]}, "10"),
        ({"fixtures": "second"}, "Unknown fixtures 'second'"),
        ({"camera_name_mapping": {"side": "image"}}, "expected names of agentview, wrist"),
        ({"renderer": "pretty"}, "Unknown renderer 'pretty'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings).create_envs(1)

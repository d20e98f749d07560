"""Policies of the real LeRobot act in our evaluations as they do in LeRobot's own loop, each environment for itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="needs lerobot (0.6.1 goes together with this package, on Python 3.12)")
import torch as th
from lerobot_policies import CAMERAS, SIZE, save_policy

from vla_agent import EvaluationReport, Evaluator, evaluate_policy
from vla_agent.actors import LeRobotPolicy, PolicyError
from vla_agent.commands import cli

QUICK: dict[str, Any] = {"renderer": "fast", "max_episode_steps": 9, "task_ids": [0], "protocol": "openpi"}
KINDS: dict[str, dict[str, Any]] = {
    "act": {"kind": "act"},
    "ensembling act": {"kind": "act", "temporal_ensemble_coeff": 0.01, "n_action_steps": 1},
    "vqbet": {"kind": "vqbet", "cameras": ("image",)},
    "smolvla": {"kind": "smolvla"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_policy(tmp_path_factory.mktemp("policy"), **kind) for name, kind in KINDS.items()}


class Noting:
    """Another policy, and what it was shown and answered, by environment.

    Args:
        policy: The policy.
        draws: Whether it draws its actions. It is asked about one environment at a time then, by a seed of each step.
    """

    def __init__(self, policy: LeRobotPolicy, draws: bool = False) -> None:
        self.policy, self.draws = policy, draws
        self.cameras, self.image_size, self.chunk_size = policy.cameras, policy.image_size, policy.chunk_size
        self.episodes: list[list[tuple[dict[str, Any], np.ndarray]]] = []
        self._number: dict[int, int] = {}
        self._current: dict[int, list[tuple[dict[str, Any], np.ndarray]]] = {}

    def reset(self, env_ids: Sequence[int]) -> None:
        self.policy.reset(env_ids)
        for env_id in env_ids:
            self._current[env_id] = []
            self._number[env_id] = len(self.episodes)
            self.episodes.append(self._current[env_id])

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        if self.draws and len(env_ids) > 1:
            singles = [
                {key: values[row : row + 1] for key, values in observations.items()} for row in range(len(env_ids))
            ]
            return np.concatenate([self.act(shown, [env_id]) for shown, env_id in zip(singles, env_ids, strict=True)])
        seed_step(self._number[env_ids[0]], len(self._current[env_ids[0]]))
        actions = self.policy.act(observations, env_ids)
        for row, env_id in enumerate(env_ids):
            shown = {key: copy.deepcopy(values[row : row + 1]) for key, values in observations.items()}
            self._current[env_id].append((shown, actions[row]))
        return actions


def seed_step(episode: int, step: int) -> None:
    th.manual_seed(1000 * episode + step)


def played(folder: Path, n_envs: int) -> Noting:
    policy = LeRobotPolicy.from_pretrained(folder)
    noting = Noting(policy, draws=policy.read.kind in ("vqbet", "smolvla"))
    with Evaluator(noting, init_state_ids=[0, 1], n_envs=n_envs, **QUICK) as evaluator:
        evaluator.run(progress_bar=False)
    return noting


@pytest.mark.parametrize("name", KINDS)
def test_actions_are_those_of_lerobots_own_loop(name: str, folders: dict[str, Path]) -> None:
    """`lerobot-eval`'s loop with one environment: preprocess, select_action, postprocess; reset at each episode."""
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    noting = played(folders[name], 1)
    policy = get_policy_class(KINDS[name]["kind"]).from_pretrained(folders[name])
    before, after = make_pre_post_processors(policy.config, str(folders[name]))
    assert len(noting.episodes) == 2
    for number, episode in enumerate(noting.episodes):
        policy.reset()
        for step, (shown, actions) in enumerate(episode):
            seed_step(number, step)
            batch = {
                f"observation.images.{key}": th.from_numpy(shown[frames]).permute(0, 3, 1, 2).float() / 255
                for key, frames in (("image", "image"), ("image2", "wrist_image"))
                if frames in shown
            }
            batch |= {"observation.state": th.from_numpy(shown["state"]), "task": shown["instruction"]}
            for action in actions:
                expected = after(policy.select_action(before(dict(batch)))).numpy()[0]
                np.testing.assert_allclose(action, expected, rtol=0, atol=2e-6)
    spread = np.std([actions[0] for episode in noting.episodes for _, actions in episode], axis=0)
    assert spread.max() > 1e-4  # what it does depends on what it sees


@pytest.mark.parametrize("name", KINDS)
def test_environments_side_by_side_do_not_share_a_queue(name: str, folders: dict[str, Path]) -> None:
    alone, together = played(folders[name], 1), played(folders[name], 2)
    for one, two in zip(alone.episodes, together.episodes, strict=True):
        for (_, expected), (_, actions) in zip(one, two, strict=True):
            np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    first, second = (episode[1][1] for episode in alone.episodes)
    assert np.abs(first - second).max() > 1e-3  # else a shared queue would not show


def test_a_policy_hears_the_words(folders: dict[str, Path]) -> None:
    policy = LeRobotPolicy.from_pretrained(folders["smolvla"])
    frames = np.full((2, SIZE, SIZE, 3), 90, np.uint8)
    shown = {"image": frames, "wrist_image": frames, "state": np.zeros((2, 8), np.float32)}
    seed_step(0, 0)
    actions = policy.act(shown | {"instruction": ["pick up the black bowl"] * 2}, [0, 1])
    seed_step(0, 0)
    others = policy.act(shown | {"instruction": ["pick up the black bowl", "place it on the plate"]}, [0, 1])
    np.testing.assert_allclose(others[0], actions[0], rtol=0, atol=1e-5)
    assert np.abs(others[1] - actions[1]).max() > 1e-3


def test_copies_share_the_weights(folders: dict[str, Path]) -> None:
    policy = LeRobotPolicy.from_pretrained(folders["vqbet"])
    policy.reset([0, 1])
    first, second = (policy._object_of(env_id)[0] for env_id in (0, 1))
    assert first is not second
    assert {p.data_ptr() for p in first.parameters()} == {p.data_ptr() for p in policy.policy.parameters()}
    assert first._queues is not second._queues


def test_the_state_is_that_of_lerobots_own_step_for_both_signs_of_the_quaternion() -> None:
    from lerobot.processor import LiberoProcessorStep

    from libero_gym.observations import quat_to_axis_angle

    generator = np.random.default_rng(0)
    quats = generator.normal(size=(100, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    quats = np.concatenate([quats, -quats])
    theirs = LiberoProcessorStep()._quat2axisangle(th.from_numpy(quats)).numpy()
    ours = np.stack([quat_to_axis_angle(quat) for quat in quats])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    assert np.abs(ours[:100] - ours[100:]).max() > 3  # q and -q are one rotation, and two states


def test_a_policy_is_evaluated_by_its_folder(tmp_path: Path, folders: dict[str, Path]) -> None:
    options = "--task-ids 0 --init-states 0 --protocol openpi --renderer fast --max-episode-steps 9 --n-envs 1"
    name = f"lerobot:{folders['act']}"
    cli.main(f"evaluate --policy {name} --replan-steps 6 {options} --out {tmp_path}".split())
    report = EvaluationReport.load(tmp_path)
    assert report.settings["chunk_size"] == report.settings["replan_steps"] == 6
    assert report.settings["policy_type"] == "act"
    assert report.settings["cameras"] == ["image", "wrist_image"]
    assert report.settings["image_size"] == SIZE
    assert report.manifest["model"]["name"] == name
    assert "model.safetensors" in report.manifest["model"]["sha256"]


def test_frames_of_another_name(tmp_path: Path) -> None:
    folder = save_policy(tmp_path, cameras=("left", "image"))
    with pytest.raises(PolicyError, match="reads frames called 'left', which may be any camera"):
        LeRobotPolicy.from_pretrained(folder)
    policy = LeRobotPolicy.from_pretrained(folder, cameras={"left": "wrist"})
    assert policy.read.cameras == {"observation.images.left": "wrist", "observation.images.image": "agentview"}
    assert policy.cameras == tuple(CAMERAS.values())


def test_replan_steps_out_of_range(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="replan_steps=9 is out of range; expected a whole number from 1 to 8"):
        LeRobotPolicy.from_pretrained(folders["act"], replan_steps=9)
    with pytest.raises(ValueError, match="averages its chunks at every step"):
        LeRobotPolicy.from_pretrained(folders["ensembling act"], replan_steps=2)


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    for path in folders["act"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "config.json").write_text("{}")
    (evil / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "evil.Evil"}}))
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil:\n    pass\n")
    pipeline = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    step = {"registry_name": "action_tokenizer_processor", "config": {"action_tokenizer_name": str(evil)}}
    pipeline["steps"].append(step)
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    with pytest.raises(PolicyError, match="would run Python code that comes with it"):
        LeRobotPolicy.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_policy(tmp_path: Path, folders: dict[str, Path]) -> None:
    for path in folders["act"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dim_model": 64}))
    with pytest.raises(PolicyError, match="LeRobot cannot load the policy in"):
        evaluate_policy(f"lerobot:{tmp_path}", **QUICK)

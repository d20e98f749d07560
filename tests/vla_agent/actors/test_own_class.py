"""A class with one method is evaluated; what it is shown, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.tasks import get_tasks
from vla_agent import Evaluator, evaluate_policy
from vla_agent.actors import PolicyError, load_actor
from vla_agent.commands import cli

QUICK: dict[str, Any] = {"renderer": "fast", "max_episode_steps": 4, "progress_bar": False, "task_ids": [0, 3]}


class Still:
    """Holds still, and remembers what it was shown."""

    def __init__(self, answer: Any = None) -> None:
        self.seen: list[tuple[dict[str, Any], list[int]]] = []
        self.begun: list[int] = []
        self.answer = answer

    def reset(self, env_ids: Sequence[int]) -> None:
        self.begun += env_ids

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        self.seen.append((dict(observations), list(env_ids)))
        return np.zeros((len(env_ids), 7)) if self.answer is None else self.answer


def test_a_class_with_one_method_sees_frames_state_and_words() -> None:
    policy = Still()
    report = evaluate_policy(policy, init_state_ids=[0, 1], n_envs=3, **QUICK)
    assert [episode.steps for episode in report.episodes] == [4] * 4
    assert report.manifest["model"]["class"] == "Still"
    shown, env_ids = policy.seen[0]
    assert env_ids == [0, 1, 2]
    assert shown["image"].shape == (3, 256, 256, 3)
    assert shown["image"].dtype == np.uint8
    assert shown["image"].std() > 10
    assert "wrist_image" not in shown
    assert shown["state"].shape == (3, 8)
    tasks = get_tasks("libero_spatial")
    assert shown["instruction"] == [tasks[i].instruction for i in (0, 0, 3)]
    assert [len(env_ids) for _, env_ids in policy.seen] == [3] * 4 + [1] * 4  # those that play, and no others
    assert sorted(policy.begun[:3]) == [0, 1, 2]
    assert len(policy.begun) == 4


def test_an_actions_step_counts_in_the_limit_and_is_executed() -> None:
    policy = Still(np.tile([0.5, 0, 0, 0, 0, 0, -1], (1, 3, 1)))
    policy.chunk_size, policy.cameras = 3, ("wrist",)  # type: ignore[attr-defined]
    report = evaluate_policy(policy, init_state_ids=[0], n_envs=1, **QUICK | {"task_ids": [0]})
    assert report.episodes[0].steps == 4
    assert len(policy.seen) == 2  # three actions, and one more
    (first, _), (second, _) = policy.seen
    assert set(first) == {"wrist_image", "state", "instruction"}
    assert 0.005 < second["state"][0, 0] - first["state"][0, 0] < 0.1  # it moved along x


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((1, 6)), r"Still answered actions of shape \(1, 6\); expected \(1, 1, 7\)"),
        (np.full((1, 7), np.inf), "Still answered inf in dimension 0"),
        ([["a"]], "expected numbers of shape"),
        ({}, "expected numbers of shape"),
    ],
)
def test_answers_that_are_no_actions(answer: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        evaluate_policy(Still(answer), init_state_ids=[0], n_envs=1, **QUICK | {"task_ids": [0]})


@pytest.mark.parametrize(
    ("stated", "arguments", "message"),
    [
        ({"cameras": ("side",)}, {}, r"Still.cameras=\('side',\); expected some of agentview, wrist"),
        ({"cameras": "wrist"}, {}, "Still.cameras='wrist'"),
        ({"chunk_size": 0}, {}, "Still.chunk_size=0 is out of range"),
        ({"image_size": 2.5}, {}, "Still.image_size=2.5; expected a whole number"),
        ({"settings": {"a": float("nan")}}, {}, r"Still.settings=\{'a': nan\} cannot stand in a report \(Out of range"),
        ({"settings": [1]}, {}, r"Still.settings=\[1\] cannot stand in a report \(it is no mapping\)"),
        ({"description": {"a": np.zeros(2)}}, {}, r"Still.description=.*\(Object of type ndarray is not JSON"),
        ({}, {"center_crop": True}, "center_crop is for our models"),
        ({}, {"image_size": 64}, "The policy asks for image_size=256, not 64"),
        ({}, {"cameras": ()}, r"The policy asks for cameras=\('agentview',\), not \(\)"),
        ({}, {"unnorm_key": "libero_goal"}, "unnorm_key='libero_goal' is for our models"),
        ({}, {"replan_steps": 3}, "replan_steps=3 is for policies that are named"),
    ],
)
def test_what_a_policy_states_and_the_caller_asks_for_has_to_fit(
    stated: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    policy = Still()
    for name, value in stated.items():
        setattr(policy, name, value)
    options = {name: value for name, value in QUICK.items() if name != "progress_bar"}
    with pytest.raises(ValueError, match=message):
        Evaluator(policy, init_state_ids=[0], **options, **arguments)


def test_it_decides_by_itself_whether_it_draws() -> None:
    with pytest.raises(ValueError, match="A Still takes its actions in its own way"):
        evaluate_policy(Still(), init_state_ids=[0], n_envs=1, deterministic=False, **QUICK)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    text = "import numpy as np\n\nclass Policy:\n    def act(self, observations, env_ids):\n"
    text += "        return np.zeros((len(env_ids), 7))\n\nclass Other:\n    pass\n"
    (tmp_path / "my_policies.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_policies", None)


def test_a_class_is_found_by_its_name(module: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--task-ids 0 --init-states 0 --renderer fast --max-episode-steps 3 --n-envs 1 --out a"
    cli.main(f"evaluate --policy python:my_policies:Policy {options}".split())
    assert "0/1" in capsys.readouterr().out


def test_a_class_may_import_its_neighbours_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("CHUNK = 3\n")
    (tmp_path / "lazy_policies.py").write_text(
        "class Policy:\n    def __init__(self):\n        import neighbour_of_mine\n"
        "        self.chunk_size = neighbour_of_mine.CHUNK\n    def act(self, observations, env_ids):\n        ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as an installed command has it
    assert load_actor("python:lazy_policies:Policy").chunk_size == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:my_policies", "names no class; expected python:module:Class"),
        ("python:my_policys:Policy", "There is no module 'my_policys' on Python's path or in"),
        ("python:my_policies:Polcy", "The module 'my_policies' has no 'Polcy'"),
        ("python:my_policies:Other", "A Other cannot act; give it act"),
        ("gym:thing", "names no policy; expected ws://host:port, lerobot:folder"),
    ],
)
def test_names_that_are_none(module: None, name: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load_actor(name)


def test_a_policy_and_a_model_are_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--policy", "ws://localhost:1", "--model", "tiny-libero"])
    assert "--policy ws://localhost:1 and --model tiny-libero both say what acts" in capsys.readouterr().err


def test_the_expert_is_a_policy_and_ends_as_its_own_run() -> None:
    from libero_gym.compilation import compile_task
    from libero_gym.experts import run_expert
    from libero_gym.simulation.simulator import Simulator
    from libero_gym.tasks import initial_states

    options: dict[str, Any] = {"protocol": "fixed", "progress_bar": False, "task_ids": [0], "n_envs": 2}
    report = evaluate_policy("expert", "LIBERO-Object-v0", init_state_ids=[0, 1], **options)
    task = get_tasks("libero_object")[0]
    for episode in report.episodes:
        state = initial_states(task)[episode.init_state_id]
        outcome = run_expert(Simulator(compile_task(task)), state, max_steps=280)
        assert (episode.success, episode.steps) == (True, outcome.steps)
    assert report.manifest["model"] == {"class": "ExpertPolicy", "name": "expert", "sha256": {}}


def test_the_expert_does_not_follow_another_physics() -> None:
    from types import SimpleNamespace

    worlds: Any = SimpleNamespace(settings={"physics": "batched"})
    with pytest.raises(ValueError, match="The expert needs backend='processes'"):
        load_actor("expert").attach(worlds)

"""What wrong input to `gym.make`, `reset`, `step`, states and snapshots gets: one sentence, and nothing is changed.

Each row is an input, and what the sentence must hold: what came, what was expected, the way out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from libero_gym.env import LiberoEnv

WHOLE = "expected a whole number"

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"task_id": 10}, "task_id=10 is out of range; libero_spatial has tasks 0 to 9"),
    ({"task_id": -1}, "task_id=-1 is out of range"),
    ({"task_id": 2.0}, f"task_id=2.0; {WHOLE}"),
    ({"task_id": 1.9}, f"task_id=1.9; {WHOLE}"),
    ({"task_id": True}, f"task_id=True; {WHOLE}"),
    ({"task_id": "1"}, f"task_id='1'; {WHOLE}"),
    ({"task_id": np.array(1.0)}, WHOLE),
    ({"task_id": {0: 1}}, WHOLE),
    ({"task_id": [0, 1.5]}, f"task_id=1.5; {WHOLE}"),
    ({"task_id": [False]}, f"task_id=False; {WHOLE}"),
    ({"task_id": []}, "names no task; give one of 0 to 9, several, or None for all"),
    ({"init_state_ids": 5}, r"init_state_ids=5; expected a sequence, such as init_state_ids=\(5,\)"),
    ({"init_state_ids": "3"}, "init_state_ids='3'; expected a sequence"),
    ({"init_state_ids": ()}, "init_state_ids is empty"),
    ({"init_state_ids": (50,)}, "init_state_id=50 is out of range; task 0 of libero_spatial .* states 0 to 49"),
    ({"init_state_ids": (3.0,)}, f"init_state_id=3.0; {WHOLE}"),
    ({"init_state_ids": (True,)}, f"init_state_id=True; {WHOLE}"),
    ({"placement_seeds": 5}, r"placement_seeds=5; expected a sequence, such as placement_seeds=\(5,\)"),
    ({"placement_seeds": None}, "placement_seeds=None; expected a sequence"),
    ({"placement_seeds": (-1,)}, "placement_seed=-1 is out of range"),
    ({"placement_seeds": (1.5,)}, f"placement_seed=1.5; {WHOLE} of at least 0"),
    (
        {"placement_seeds": (2**32,)},
        "placement_seed=4294967296 is out of range; LIBERO's generator takes 0 to 4294967245",
    ),
    ({"image_size": 0}, "image_size=0 cannot be rendered; expected an integer from 8 to 2048"),
    ({"image_size": 3.5}, "image_size=3.5 cannot be rendered"),
    ({"image_size": True}, "image_size=True cannot be rendered"),
    ({"image_size": "256"}, "image_size='256' cannot be rendered"),
    ({"image_size": None}, "image_size=None cannot be rendered"),
    ({"cameras": None}, r"cameras=None is no sequence; give a sequence, such as cameras=\('agentview',\)"),
    ({"cameras": "wrist"}, r"cameras='wrist' is no sequence; give a sequence, such as cameras=\('wrist',\)"),
    ({"cameras": ("writs",)}, r"Unknown camera 'writs'\. Did you mean 'wrist'\? Choices: 'agentview', 'wrist'"),
    ({"cameras": ("robot0_eye_in_hand",)}, "LIBERO's robot0_eye_in_hand is 'wrist' here. Choices: 'agentview'"),
    ({"cameras": ("agentview_image",)}, "LIBERO's agentview_image is 'agentview' here"),
    ({"cameras": (0,)}, "Unknown camera 0. Choices: 'agentview', 'wrist'"),
    ({"reward": "dense"}, "Unknown reward 'dense'.*Choices: 'sparse', 'progress', 'process'"),
    ({"reward": None}, "Unknown reward None"),
    ({"reward": "process"}, "reward='process' scores frames; give a camera"),
    ({"reward": "process", "cameras": ("wrist",)}, r"needs reward_model: .* an object with score\(\)"),
    ({"reward": "process", "cameras": ("wrist",), "reward_model": 5}, r"reward_model is a int; expected score\("),
    ({"reward_model": "folder"}, "reward_model is for reward='process', and reward is 'sparse'"),
    ({"renderer": "exakt"}, r"Unknown renderer 'exakt'\. Did you mean 'exact'\?"),
    ({"physics": "quick"}, "Unknown physics 'quick'.*Choices: 'exact', 'fast'"),
    ({"settle_steps": -1}, f"settle_steps=-1 is out of range; {WHOLE} of at least 0"),
    ({"settle_steps": 2.5}, f"settle_steps=2.5; {WHOLE}"),
    ({"settle_steps": True}, f"settle_steps=True; {WHOLE}"),
    ({"n_render_threads": 0}, f"n_render_threads=0 is out of range; {WHOLE} of at least 1"),
    ({"n_render_threads": 2.0, "renderer": "fast"}, f"n_render_threads=2.0; {WHOLE}"),
    ({"n_render_threads": True}, f"n_render_threads=True; {WHOLE}"),
    ({"n_render_threads": 2}, "n_render_threads=2 with renderer='exact'.* or choose renderer='fast'"),
    ({"chunk_size": 0}, f"chunk_size=0 is out of range; {WHOLE} of at least 1"),
    ({"chunk_size": 8.0}, f"chunk_size=8.0; {WHOLE}"),
    ({"chunk_size": True}, f"chunk_size=True; {WHOLE}"),
    ({"privileged": "yes"}, "privileged='yes'; expected True or False"),
    ({"privileged": 1}, "privileged=1; expected True or False"),
    ({"instruction": "words"}, "Unknown instruction 'words'.*Choices: 'text', 'id', 'none'"),
    ({"instruction": None}, "Unknown instruction None.*Choices: 'text', 'id', 'none'"),
    ({"render_device": "0"}, f"render_device='0'; {WHOLE}"),
    ({"render_device": True}, f"render_device=True; {WHOLE}"),
    ({"render_size": 0}, "render_size=0 cannot be rendered; expected an integer from 8 to 2048"),
    ({"render_size": "big"}, "render_size='big' cannot be rendered"),
    ({"max_episode_steps": 0}, f"max_episode_steps=0 is out of range; {WHOLE} of at least 1"),
    ({"max_episode_steps": -3}, "max_episode_steps=-3 is out of range"),
    ({"max_episode_steps": True}, f"max_episode_steps=True; {WHOLE}"),
    ({"max_episode_steps": 2.5}, f"max_episode_steps=2.5; {WHOLE}"),
    ({"max_episode_steps": "40"}, f"max_episode_steps='40'; {WHOLE}"),
    (
        {"image_sze": 64},
        r"^Unknown argument 'image_sze'\. Did you mean 'image_size'\? Arguments: suite, task_id, .*s\.$",
    ),
    ({"camera_heights": 64}, "Unknown argument 'camera_heights'. LIBERO's camera_heights is 'image_size' here"),
    ({"camera_names": ("agentview",)}, "LIBERO's camera_names is 'cameras' here"),
    ({"colour": 1}, r"Unknown argument 'colour'\. Arguments: suite, task_id"),
]

RESETS: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, "seed=-1 is out of range"),
    ({"seed": 1.5}, f"seed=1.5; {WHOLE}"),
    ({"seed": True}, f"seed=True; {WHOLE}"),
    ({"seed": "a"}, f"seed='a'; {WHOLE}"),
    ({"options": [1]}, r"options=\[1\]; expected a dict, such as"),
    ({"options": []}, r"options=\[\]; expected a dict"),
    ({"options": "task_id"}, "options='task_id'; expected a dict"),
    (
        {"options": {"init_state": 1}},
        r"Unknown reset option 'init_state'\. Did you mean 'init_state_id'\? Options: task",
    ),
    ({"options": {5: 1}}, "Unknown reset option 5. Options: task_id"),
    ({"options": {"task_id": 1.9}}, f"task_id=1.9; {WHOLE}"),
    ({"options": {"task_id": 1.7}}, f"task_id=1.7; {WHOLE}"),
    ({"options": {"task_id": 2.0}}, f"task_id=2.0; {WHOLE}"),
    ({"options": {"task_id": True}}, f"task_id=True; {WHOLE}"),
    ({"options": {"task_id": "1"}}, f"task_id='1'; {WHOLE}"),
    ({"options": {"task_id": "a"}}, f"task_id='a'; {WHOLE}"),
    ({"options": {"task_id": [1]}}, rf"task_id=\[1\]; {WHOLE}"),
    ({"options": {"task_id": 11}}, "task_id=11 is out of range; libero_spatial has tasks 0 to 9"),
    (
        {"options": {"task_id": 5}},
        r"task_id=5 is none of this environment's tasks \[0, 1\]; make it with task_id=\[0, 1, 5\]",
    ),
    (
        {"options": {"init_state_id": 50}},
        "init_state_id=50 is out of range; task . of .* official initial states 0 to 49",
    ),
    ({"options": {"init_state_id": -1}}, "init_state_id=-1 is out of range"),
    ({"options": {"init_state_id": 3.0}}, f"init_state_id=3.0; {WHOLE}"),
    ({"options": {"init_state_id": True}}, f"init_state_id=True; {WHOLE}"),
    ({"options": {"init_state_id": "3"}}, f"init_state_id='3'; {WHOLE}"),
    ({"options": {"placement_seed": -1}}, "placement_seed=-1 is out of range"),
    ({"options": {"placement_seed": 1.5}}, f"placement_seed=1.5; {WHOLE}"),
    ({"options": {"init_state_id": 1, "placement_seed": 1}}, "either 'init_state_id' or 'placement_seed', not both"),
    ({"options": {"fixture_draw": 0}}, f"fixture_draw=0 is out of range; {WHOLE} from 1 to 1000"),
    ({"options": {"fixture_draw": 1.0}}, f"fixture_draw=1.0; {WHOLE}"),
    ({"options": {"fixture_draw": True}}, f"fixture_draw=True; {WHOLE}"),
]

ACTIONS: list[tuple[Any, str]] = [
    (np.zeros(6), r"shape \(6,\); expected \(7,\)"),
    (np.zeros((1, 7)), r"shape \(1, 7\); expected \(7,\)"),
    (0.0, r"shape \(\); expected \(7,\)"),
    (np.full(7, np.nan), "holds NaN or infinity"),
    ([np.inf] * 7, "holds NaN or infinity"),
    ("up", r"no array of numbers, but 'up'; expected shape \(7,\)"),
    (["1"] * 7, "no array of numbers"),
    (None, "no array of numbers, but None"),
    ({"action": np.zeros(7)}, "no array of numbers"),
    ([[1.0], [1.0, 2.0]], "no array of numbers"),
    (np.zeros(7, dtype=complex), "no array of numbers"),
]

STATES: list[tuple[Any, str]] = [
    (np.zeros(5), r"The state has shape \(5,\); 'pick_up.*needs \(92,\): time, qpos, qvel"),
    (np.zeros((1, 92)), r"shape \(1, 92\)"),
    (None, r"shape \(\)"),
    ("state", r"The state is a str that is no array of numbers.*needs \(92,\)"),
    ({}, "The state is a dict that is no array of numbers"),
    (np.full(92, np.nan), "The state holds nan at index 0; expected finite numbers"),
    (np.r_[np.zeros(91), np.inf], "The state holds inf at index 91"),
]

WEIGHTS: list[Any] = [[1.0], [np.nan, 1.0], [-1.0, 2.0], [0.0, 0.0], "ab", None, {0: 1, 1: 1}]


def _edited(path: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def edit(snapshot: dict[str, Any]) -> dict[str, Any]:
        *parents, last = path.split("/")
        part = snapshot
        for name in parents:
            part = part[name]
        part[last] = value
        return snapshot

    return edit


SNAPSHOTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda snapshot: {}, r"The snapshot lacks 'task_id', .*; expected the dict that snapshot\(\) gave"),
    (lambda snapshot: None, "The snapshot is a NoneType; expected the dict"),
    (
        _edited("suite", "libero_goal"),
        "The snapshot is of suite 'libero_goal', and this environment of 'libero_spatial'",
    ),
    (
        _edited("task_name", "stack_the_bowls"),
        "is of task 'stack_the_bowls', and this environment's task 0 is 'pick_up",
    ),
    (lambda snapshot: [snapshot], "The snapshot is a list"),
    (lambda snapshot: {key: value for key, value in snapshot.items() if key != "phi"}, "The snapshot lacks 'phi'"),
    (_edited("task_id", 99), "task_id=99 is out of range"),
    (_edited("task_id", 1.0), f"task_id=1.0; {WHOLE}"),
    (
        _edited("task_id", 2),
        r"task_id=2 is none of this environment's tasks \[0, 1\]; make it with task_id=",
    ),
    (_edited("task_id", None), f"The snapshot's task_id=None; {WHOLE}"),
    (_edited("fixture_draw", 0), "The snapshot's fixture_draw=0 is out of range"),
    (_edited("elapsed_steps", -1), "The snapshot's elapsed_steps=-1"),
    (_edited("fixture_seed", 2**32), "fixture_seed=4294967296 is out of range"),
    (_edited("fixture_resets", -1), "fixture_resets=-1 is out of range"),
    (_edited("init_state_id", "0"), "The snapshot's init_state_id='0'"),
    (_edited("init_state_id", -2), "The snapshot's init_state_id=-2 is out of range"),
    (_edited("init_state_id", 999), "init_state_id=999 is out of range; task 0 of libero_spatial has .* 0 to 49"),
    (_edited("phi", "high"), "The snapshot's phi='high'; expected a number"),
    (_edited("generator", None), "The snapshot's 'generator' is damaged: expected a dict, got NoneType"),
    (_edited("generator", {}), "The snapshot's 'generator' is damaged"),
    (_edited("generator/bit_generator", "seed"), "The snapshot's 'generator' is damaged"),
    (_edited("generator/state", 5), "The snapshot's 'generator' is damaged"),
    (_edited("simulator", []), "The snapshot's 'simulator' is damaged"),
    (_edited("simulator/values", "x"), "The snapshot's 'simulator' is damaged"),
    (_edited("simulator/values", [0.0]), r"The state has shape \(1,\)"),
    (_edited("simulator/memory", {}), "The snapshot's 'simulator' is damaged"),
    (_edited("simulator/memory/gripper", [0.0]), r"memory has gripper of shape \(1,\).*damaged, or of another task"),
    (_edited("simulator/memory/goal_ori", [0.0]), r"memory has goal_ori of shape \(1,\)"),
    (_edited("simulator/memory/warmstart", [float("nan")] * 44), "memory has warmstart of shape"),
]

QUESTIONS: list[Callable[[LiberoEnv], Any]] = [
    lambda env: env.step(np.zeros(7)),
    lambda env: env.get_state(),
    lambda env: env.set_state(np.zeros(92)),
    lambda env: env.snapshot(),
    lambda env: env.render(),
    lambda env: env.simulator,
]


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_spatial", task_id=(0, 1), cameras=(), settle_steps=0, render_mode="rgb_array")
    env.reset(seed=0, options={"task_id": 0, "init_state_id": 0})
    yield env
    env.close()


@pytest.fixture
def unchanged(env: LiberoEnv) -> Iterator[None]:
    """Whatever was refused has left the environment as it was, its generator included."""
    before = env.snapshot()
    yield
    assert data_equivalence(env.snapshot(), before, exact=True)


@pytest.mark.parametrize(("kwargs", "sentence"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_gym_make_names_a_wrong_argument(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gym.make("LIBERO-Spatial-v0", **{"cameras": (), **kwargs})


@pytest.mark.parametrize("suite", ["libero_spatail", 5, ["libero_spatial"]])
def test_an_unknown_suite_is_named(suite: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown suite .*Suites: libero_spatial, "):
        LiberoEnv(suite)


def test_a_step_limit_of_its_own_is_checked_alike() -> None:
    for limit in (0, -1, -3, True, 2.5, "40"):
        with pytest.raises(ValueError, match=f"max_episode_steps={limit!r}.*{WHOLE} of at least 1"):
            LiberoEnv("libero_spatial", cameras=(), max_episode_steps=limit)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("arguments", "sentence"), RESETS, ids=lambda value: str(value)[:40])
def test_reset_names_a_wrong_option(env: LiberoEnv, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        env.reset(**arguments)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("action", "sentence"), ACTIONS, ids=lambda value: str(value)[:30])
def test_step_names_a_wrong_action(env: LiberoEnv, action: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        env.step(action)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("state", "sentence"), STATES, ids=lambda value: str(value)[:30])
def test_set_state_names_a_wrong_state(env: LiberoEnv, state: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        env.set_state(state)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_wrong_task_weights_are_named(env: LiberoEnv, weights: Any) -> None:
    with pytest.raises(ValueError, match=r"task weights .*: expected 2 finite weights >= 0, not all zero"):
        env.set_task_weights(weights)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("edit", "sentence"), SNAPSHOTS, ids=[sentence[:50] for _, sentence in SNAPSHOTS])
def test_restore_names_a_wrong_snapshot(env: LiberoEnv, edit: Callable[[Any], Any], sentence: str) -> None:
    snapshot = edit(copy.deepcopy(env.snapshot()))
    with pytest.raises(ValueError, match=sentence):
        env.restore(snapshot)


def test_a_snapshot_without_privileged_observations_is_told_apart(env: LiberoEnv) -> None:
    other = LiberoEnv("libero_spatial", task_id=0, cameras=(), privileged=True)
    with pytest.raises(ValueError, match="without privileged=True, and this one has it"):
        other.restore(env.snapshot())


@pytest.mark.parametrize("ask", QUESTIONS)
def test_before_the_first_reset_the_way_out_is_named(ask: Callable[[LiberoEnv], Any]) -> None:
    fresh = LiberoEnv("libero_spatial", task_id=0, cameras=(), render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) first"):
        ask(fresh)


@pytest.mark.parametrize("ask", [*QUESTIONS, lambda env: env.reset(), lambda env: env.restore({})])
def test_after_close_every_question_is_refused(ask: Callable[[LiberoEnv], Any]) -> None:
    closed = LiberoEnv("libero_spatial", task_id=0, cameras=(), render_mode="rgb_array", settle_steps=0)
    closed.reset(seed=0)
    closed.close()
    closed.close()  # twice is fine
    with pytest.raises(gym.error.ClosedEnvironmentError, match=r"The environment is closed; make another one"):
        ask(closed)


def test_after_close_nothing_is_rendered_without_a_mode_nor_weighted() -> None:
    closed = LiberoEnv("libero_spatial", task_id=0, cameras=())
    assert closed.render() is None
    closed.close()
    for ask in (closed.render, lambda: closed.set_task_weights([1.0])):
        with pytest.raises(gym.error.ClosedEnvironmentError, match=r"The environment is closed; make another one"):
            ask()


def test_options_that_are_none_are_left_to_the_environment(env: LiberoEnv) -> None:
    options = {"task_id": None, "init_state_id": 2, "placement_seed": None, "fixture_draw": None}
    assert env.reset(options=options)[1]["init_state_id"] == 2

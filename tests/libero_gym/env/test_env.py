"""The contract of `LiberoEnv`: spaces, resets, seeds, states, rewards, chunks, and what bad input gets."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import equal_observations, random_actions
from gymnasium.utils.env_checker import check_env

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation import compile_task
from libero_gym.env import LiberoEnv
from libero_gym.equivalence.versions import fidelity
from libero_gym.experts import run_expert
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.simulation.states import SimState
from libero_gym.tasks import get_tasks, initial_states

INFO_KEYS = {"is_success", "task_id", "task_name", "init_state_id", "instruction", "reward_terms", "elapsed_steps"}
INFO_KEYS |= {"mujoco"}


@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
@pytest.mark.parametrize("renderer", [pytest.param("exact", marks=pytest.mark.opengl), "fast"])
def test_gymnasium_check_env_passes_with_cameras(renderer: str) -> None:
    kwargs = {"task_id": 0, "image_size": 32, "cameras": ("agentview", "wrist"), "renderer": renderer}
    env = gym.make("LIBERO-Spatial-v0", render_mode="rgb_array", **kwargs)
    check_env(env.unwrapped)
    obs, info = env.reset(seed=0)
    assert obs["image"].shape == obs["wrist_image"].shape == env.render().shape == (32, 32, 3)
    assert not np.array_equal(obs["image"], obs["wrist_image"])
    np.testing.assert_array_equal(env.render(), obs["image"])
    assert set(info) == INFO_KEYS
    assert info["mujoco"] == env.unwrapped.settings["mujoco"] == fidelity(mujoco.__version__)
    env.close()


@pytest.mark.parametrize("renderer", [pytest.param("exact", marks=pytest.mark.opengl), "fast"])
def test_scenes_drawn_in_turn_do_not_mix(renderer: str) -> None:
    """Exact frames of two scenes share the process's GL context; each must read its own frame buffer."""
    scenes = (("libero_spatial", 0), ("libero_10", 2))
    envs = [LiberoEnv(suite, task_id=task, image_size=32, renderer=renderer) for suite, task in scenes]
    alone = [env.reset(options={"init_state_id": 0})[0]["image"] for env in envs]
    for env, image in [*zip(envs, alone, strict=True)] * 2:
        np.testing.assert_array_equal(env.set_state(env.get_state())["image"], image)


def test_fast_physics_is_exact_but_for_rounding() -> None:
    """One solve per substep instead of three: no frame could show the difference."""
    envs = [LiberoEnv("libero_goal", task_id=0, cameras=(), physics=name) for name in ("exact", "fast")]
    for env in envs:
        env.reset(options={"init_state_id": 0})
        for action in random_actions(40):
            env.step(action)
    exact, fast = (np.asarray(env.get_state()) for env in envs)
    np.testing.assert_allclose(fast, exact, atol=1e-9)
    with pytest.raises(ValueError, match="Unknown physics 'quick'"):
        LiberoEnv("libero_goal", physics="quick")


def test_coarse_physics_is_another_robot_that_moves_alike() -> None:
    """The hand goes the same way, the fingers close as fast, and time passes alike; the contacts are others."""
    envs = [LiberoEnv("libero_goal", task_id=0, cameras=(), physics=name) for name in ("fast", "coarse")]
    for env in envs:
        env.reset(options={"init_state_id": 0})
        for number in range(20):
            env.step(np.array([0.5, -0.3, -0.2, 0.0, 0.0, 0.2, 1.0 if number > 9 else -1.0]))
    fast, coarse = envs
    assert coarse.simulator.data.time == pytest.approx(fast.simulator.data.time)
    np.testing.assert_allclose(coarse.simulator.eef_pos(), fast.simulator.eef_pos(), atol=2e-3)
    np.testing.assert_allclose(coarse.simulator.gripper_qpos(), fast.simulator.gripper_qpos(), atol=2e-3)
    assert not np.array_equal(coarse.get_state(), fast.get_state())
    assert fast.simulator.compiled.physics.opt.timestep == 0.002
    twin = LiberoEnv("libero_goal", task_id=0, cameras=(), physics="coarse")
    twin.restore(coarse.snapshot())
    action = np.array([0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 1.0])
    coarse.step(action), twin.step(action)
    np.testing.assert_array_equal(twin.get_state(), coarse.get_state())


@pytest.mark.parametrize(("task_id", "init_state_id"), [(2, 20), (4, 33), (5, 20), (8, 33)])
def test_with_coarse_physics_objects_come_to_rest_where_they_do_with_the_benchmarks_steps(
    task_id: int, init_state_id: int
) -> None:
    """Initial states hold objects above their place: a bowl that falls on a ramekin ended 6 cm off, where none lies."""
    placed = []
    for physics in ("fast", "coarse"):
        env = LiberoEnv("libero_spatial", task_id=task_id, cameras=(), physics=physics)
        env.reset(options={"init_state_id": init_state_id})
        first = env.simulator.data.xpos.copy()
        for _ in range(30):
            env.step(SETTLE_ACTION)
        placed.append((first, env.simulator.data.xpos.copy()))
    (fast, fast_later), (coarse, coarse_later) = placed
    np.testing.assert_allclose(coarse, fast, atol=1e-9)
    np.testing.assert_allclose(coarse_later, fast_later, atol=1e-3)


def test_the_expert_succeeds_with_coarse_physics() -> None:
    simulator = Simulator(compile_task(get_tasks("libero_object")[0]), physics="coarse")
    assert run_expert(simulator, initial_states(simulator.compiled.task)[0], 280).success


@pytest.mark.parametrize("kind", [np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_snapshot_of_any_generator_is_json(kind: Any, state_env: LiberoEnv) -> None:
    state_env.reset(seed=0)
    state_env.np_random = np.random.Generator(kind(3))
    state_env.np_random.random(5, dtype=np.float32)
    snapshot = json.loads(json.dumps(state_env.snapshot()))
    expected = state_env.np_random.random(9)
    state_env.restore(snapshot)
    np.testing.assert_array_equal(state_env.np_random.random(9), expected)


@pytest.mark.parametrize("reward", ["sparse", "progress"])
def test_a_restored_snapshot_goes_on_to_the_bit(reward: str) -> None:
    """Through JSON, in another environment that was doing something else: the rest of the episode, and the next."""
    kwargs: dict[str, Any] = {"task_id": [0, 3], "image_size": 32, "reward": reward, "chunk_size": 2, "settle_steps": 2}
    kwargs |= {"privileged": True, "renderer": "fast"}
    env, other = LiberoEnv("libero_spatial", **kwargs), LiberoEnv("libero_spatial", **kwargs)
    env.reset(seed=5, options={"fixture_draw": 2})
    other.reset(seed=6)
    chunks = random_actions(8).reshape(4, 2, 7)
    for chunk in chunks[:2]:
        last = env.step(chunk)
    obs, info = other.restore(json.loads(json.dumps(env.snapshot())))
    assert equal_observations(obs, last[0])
    assert info["elapsed_steps"] == 4
    assert info["init_state_id"] == last[4]["init_state_id"]
    for chunk in chunks[2:]:
        expected, result = env.step(chunk), other.step(chunk)
        assert equal_observations(expected[0], result[0])
        assert expected[1:] == result[1:]
    for _ in range(3):  # tasks and initial states are drawn alike, too
        expected_reset, reset = env.reset(), other.reset()
        assert equal_observations(expected_reset[0], reset[0])
        assert expected_reset[1] == reset[1]


def test_a_snapshot_without_the_rewards_potential_is_refused() -> None:
    """The next reward would count from 0; a sparse reward needs none, and snapshots from before say none."""
    kwargs: dict[str, Any] = {"task_id": 0, "cameras": (), "settle_steps": 0}
    sparse, progress = (LiberoEnv("libero_spatial", reward=reward, **kwargs) for reward in ("sparse", "progress"))
    action = np.zeros(7)
    for env in (sparse, progress):
        env.reset(seed=0)
        env.step(action)
    given, own = sparse.snapshot(), progress.snapshot()
    expected = progress.step(action)[1]
    with pytest.raises(ValueError, match=r"of reward='sparse', .* reward='progress' .*; make it with reward='sparse'"):
        progress.restore(given)
    progress.restore({key: value for key, value in own.items() if key != "reward"})
    assert progress.step(action)[1] == expected
    sparse.restore(own)
    assert sparse.step(action)[1] == 0


def test_a_script_that_forgets_to_close_ends_without_a_word() -> None:
    code = (
        "import gymnasium as gym\n"
        "env = gym.make('LIBERO-Spatial-v0', task_id=0, image_size=32, renderer='fast')\n"
        "env.reset(seed=0)\n"
    )
    quiet = [sys.executable, "-W", "ignore:MuJoCo"]  # of a version that is not the exact one
    result = subprocess.run([*quiet, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""


@pytest.mark.opengl
def test_fast_renderer_is_close_to_exact_and_changes_nothing_else() -> None:
    envs = [LiberoEnv("libero_spatial", task_id=0, image_size=128, renderer=name) for name in ("exact", "fast")]
    exact, fast = (env.reset(options={"init_state_id": 0})[0] for env in envs)
    error = np.mean((exact["image"].astype(float) - fast["image"].astype(float)) ** 2)
    assert 44 < 10 * np.log10(255**2 / error) < 70
    np.testing.assert_array_equal(exact["state"], fast["state"])


def test_without_cameras_there_is_no_image(state_env: LiberoEnv) -> None:
    obs, _ = state_env.reset(seed=0)
    assert set(obs) == {"state", "instruction"}
    assert obs["state"].dtype == np.float32
    assert state_env.observation_space.contains(obs)


def test_same_seed_gives_same_rollout_and_another_seed_another() -> None:
    def rollout(seed: int) -> list[dict[str, Any]]:
        env = gym.make("LIBERO-Spatial-v0", task_id=[0, 1], cameras=())
        observations = [env.reset(seed=seed)[0]]
        env.action_space.seed(seed)
        observations += [env.step(env.action_space.sample())[0] for _ in range(10)]
        observations.append(env.reset()[0])  # the generator moves on, alike
        return observations

    first, again, other = rollout(3), rollout(3), rollout(4)
    assert all(equal_observations(a, b) for a, b in zip(first, again, strict=True))
    assert not equal_observations(first[0], other[0])


def test_global_generators_are_untouched(state_env: LiberoEnv) -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    state_env.reset(seed=0)
    state_env.step(state_env.action_space.sample())
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_options_choose_task_and_state() -> None:
    env = LiberoEnv("libero_spatial", task_id=(0, 1), cameras=(), settle_steps=0)
    _, info = env.reset(options={"task_id": 1, "init_state_id": 7})
    assert (info["task_id"], info["init_state_id"]) == (1, 7)
    assert info["instruction"] == "pick up the black bowl next to the ramekin and place it on the plate"


def test_a_placement_seed_starts_from_the_regions(state_env: LiberoEnv) -> None:
    _, info = state_env.reset(options={"task_id": 0, "placement_seed": 3})
    assert info["init_state_id"] == -1
    first = state_env.get_state().copy()
    state_env.reset(options={"task_id": 0, "placement_seed": 4})
    assert not np.array_equal(first, state_env.get_state())
    state_env.reset(options={"task_id": 0, "placement_seed": 3})
    np.testing.assert_array_equal(first, state_env.get_state())


def test_resets_draw_from_the_initial_states_that_are_named() -> None:
    env = LiberoEnv("libero_spatial", task_id=0, init_state_ids=(3, 30), cameras=(), settle_steps=0)
    drawn = {env.reset(seed=seed)[1]["init_state_id"] for seed in range(20)}
    assert drawn == {3, 30}


def test_fixture_draw_moves_fixtures_and_the_first_is_the_default(state_env: LiberoEnv) -> None:
    state_env.reset(options={"init_state_id": 0})
    default = state_env.simulator.fixtures.pos.copy()
    state_env.reset(options={"init_state_id": 0, "fixture_draw": 1})
    np.testing.assert_array_equal(default, state_env.simulator.fixtures.pos)
    state_env.reset(options={"init_state_id": 0, "fixture_draw": 2})
    assert np.abs(default - state_env.simulator.fixtures.pos).max() > 1e-3
    body = state_env.simulator.fixtures.body_ids[0]
    assert not np.array_equal(state_env.simulator.model.body_pos[body], default[0])


def test_state_round_trip_branches_exactly(state_env: LiberoEnv) -> None:
    state_env.reset(options={"init_state_id": 0})
    for action in random_actions(12):
        state_env.step(action)
    state = pickle.loads(pickle.dumps(state_env.get_state()))
    assert isinstance(state, SimState)
    assert state.shape == (state_env.simulator.state_size,)
    futures = []
    for _ in range(2):
        obs = state_env.set_state(copy.deepcopy(state))
        rest = [state_env.step(action)[0] for action in random_actions(15, seed=1)]
        futures.append([obs, *rest])
    assert all(equal_observations(a, b) for a, b in zip(*futures, strict=True))


def test_branch_equals_never_having_left(state_env: LiberoEnv) -> None:
    state_env.reset(options={"init_state_id": 0})
    for action in random_actions(5):
        state_env.step(action)
    state = state_env.get_state()
    straight = [state_env.step(action)[0] for action in random_actions(15, seed=1)]
    state_env.reset(options={"init_state_id": 3})
    state_env.set_state(state)
    branched = [state_env.step(action)[0] for action in random_actions(15, seed=1)]
    assert all(equal_observations(a, b) for a, b in zip(straight, branched, strict=True))


def test_chunk_equals_its_steps_one_by_one() -> None:
    single = LiberoEnv("libero_spatial", task_id=0, cameras=())
    chunked = LiberoEnv("libero_spatial", task_id=0, cameras=(), chunk_size=4)
    single.reset(options={"init_state_id": 0})
    chunked.reset(options={"init_state_id": 0})
    actions = random_actions(8).astype(np.float32)
    for action in actions:
        expected, *_ = single.step(action)
    for chunk in actions.reshape(2, 4, 7):
        obs, _, _, _, info = chunked.step(chunk)
    assert equal_observations(expected, obs)
    assert info["elapsed_steps"] == 8


def test_progress_of_a_chunk_is_between_the_states_that_the_agent_decides_in() -> None:
    """0.99 phi(s') - phi(s) once per chunk: discounting each control step would charge for staying near the goal."""
    single = LiberoEnv("libero_spatial", task_id=0, cameras=(), reward="progress")
    chunked = LiberoEnv("libero_spatial", task_id=0, cameras=(), reward="progress", chunk_size=4)
    actions = random_actions(4)
    for env in (single, chunked):
        env.reset(options={"init_state_id": 0})
    phi = sum(single._potential.terms().values())
    for action in actions:
        _, _, _, _, info = single.step(action)
    expected = 0.99 * sum(info["progress_terms"].values()) - phi
    assert chunked.step(actions)[1] == pytest.approx(expected, abs=1e-12)


def test_chunked_env_truncates_itself_at_the_suites_limit() -> None:
    env = gym.make("LIBERO-Spatial-v0", task_id=0, cameras=(), chunk_size=50, settle_steps=0)
    env.reset(seed=0)
    ends = [env.step(np.zeros((50, 7), dtype=np.float32))[3] for _ in range(5)]
    assert ends == [False] * 4 + [True]


def test_progress_terms_sum_to_the_reward_and_telescope() -> None:
    env = LiberoEnv("libero_spatial", task_id=0, cameras=(), reward="progress")
    env.reset(options={"init_state_id": 0})
    first, gamma, discounted = env._episode.phi, 0.99, 0.0
    for t, action in enumerate(random_actions(6)):
        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(sum(info["reward_terms"].values()))
        discounted += gamma**t * info["reward_terms"]["progress"]
        assert sum(info["progress_terms"].values()) == pytest.approx(env._episode.phi)
        assert list(info["progress_terms"])[1] == "on(akita_black_bowl_1, plate_1)/place"
    assert 0 < first < 1
    assert discounted == pytest.approx(gamma**6 * env._episode.phi - first)


def test_success_terminates_and_pays_one(state_env: LiberoEnv) -> None:
    """Put the bowl onto the plate by hand and let it come to rest."""
    state_env.reset(options={"init_state_id": 0})
    simulator = state_env.simulator
    model, state = simulator.model, np.array(state_env.get_state())
    plate, bowl = (model.joint(name).qposadr[0] + 1 for name in ("plate_1_joint0", "akita_black_bowl_1_joint0"))
    state[bowl : bowl + 3] = state[plate : plate + 3] + [0, 0, 0.03]
    with pytest.warns(UserWarning, match="lost the controller's memory"):
        state_env.set_state(state)
    for _ in range(20):
        _, reward, terminated, _, info = state_env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        if terminated:
            break
    assert terminated
    assert info["is_success"]
    assert reward == 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task_id": 10}, r"task_id=10 is out of range; libero_spatial has tasks 0 to 9"),
        ({"task_id": []}, r"names no task"),
        ({"image_size": 0}, r"image_size=0 cannot be rendered; expected an integer from 8 to 2048"),
        ({"image_size": 3.5}, r"image_size=3.5 cannot be rendered"),
        ({"cameras": ("writs",)}, r"Unknown camera 'writs'. Did you mean 'wrist'\?"),
        ({"cameras": "wrist"}, r"give a sequence, such as cameras=\('wrist',\)"),
        ({"reward": "dense"}, r"Unknown reward 'dense'.*'sparse', 'progress'"),
        ({"renderer": "exakt"}, r"Did you mean 'exact'\?"),
        ({"chunk_size": 0}, r"chunk_size=0 is out of range; expected a whole number of at least 1"),
        ({"settle_steps": -1}, r"settle_steps=-1"),
        ({"init_state_ids": ()}, "init_state_ids is empty"),
        ({"init_state_ids": (50,)}, "init_state_id=50 is out of range"),
        ({"render_mode": "human"}, r"Unknown render_mode 'human'"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiberoEnv("libero_spatial", **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_id": 11}, "task_id=11 is out of range"),
        ({"init_state_id": 50}, "has official initial states 0 to 49"),
        ({"init_state": 1}, "Unknown reset option 'init_state'. Did you mean 'init_state_id'"),
        ({"init_state_id": 1, "placement_seed": 1}, "either 'init_state_id' or 'placement_seed'"),
        ({"fixture_draw": 0}, "fixture_draw=0 is out of range; expected a whole number from 1 to 1000"),
        ({"fixture_draw": 2.0}, "fixture_draw=2.0; expected a whole number"),
        ({"fixture_draw": True}, "fixture_draw=True; expected a whole number"),
        ({"fixture_seed": -1}, "fixture_seed=-1 is out of range; expected a whole number from 0"),
        ({"fixture_seed": "7"}, "fixture_seed='7'; expected a whole number"),
    ],
)
def test_bad_reset_options_are_named(state_env: LiberoEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        state_env.reset(options=options)


def test_bad_actions_are_named(state_env: LiberoEnv) -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        state_env.step(np.zeros(7))
    state_env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(6,\); expected \(7,\)"):
        state_env.step(np.zeros(6))
    with pytest.raises(ValueError, match="NaN"):
        state_env.step(np.full(7, np.nan))


def test_a_state_of_another_task_is_refused(state_env: LiberoEnv) -> None:
    state_env.reset(seed=0)
    with pytest.raises(ValueError, match=r"The state has shape \(5,\).*needs \(92,\)"):
        state_env.set_state(np.zeros(5))

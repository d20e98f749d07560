"""What the back end "warp" does beyond the contract that `tests/libero_gym/vector` holds all back ends to."""

from __future__ import annotations

import copy
import dataclasses
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from comparing import random_actions
from frames import psnr
from vector_backends import asked_for

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.placements import NoPlaceError
from libero_gym.env import LiberoEnv
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import get_tasks, initial_states
from libero_gym.vector import LiberoVectorEnv


def make(n: int = 4, **kwargs: Any) -> LiberoVectorEnv:
    arguments = asked_for("warp") | {"task_id": 0, "cameras": (), "settle_steps": 1} | kwargs
    env = gym.make_vec("LIBERO-Spatial-v0", n, vectorization_mode="vector_entry_point", **arguments)
    assert isinstance(env, LiberoVectorEnv)
    return env


@pytest.fixture(scope="module")
def chunked() -> Iterator[LiberoVectorEnv]:
    env = make(chunk_size=3, reward="progress", privileged=True, instruction="id", max_episode_steps=7)
    yield env
    env.close()


def test_settings_never_call_it_exact(chunked: LiberoVectorEnv) -> None:
    assert chunked.settings["physics"] == "batched"
    assert chunked.settings["mujoco"].startswith("batched (MuJoCo Warp ")
    _, infos = chunked.reset(seed=0)
    assert set(infos["mujoco"]) == {chunked.settings["mujoco"]}


def test_equal_starts_are_equal_whether_settled_now_or_before(chunked: LiberoVectorEnv) -> None:
    """Also beside others, and with all that observations hold."""
    first, _ = chunked.reset(seed=0, options={"init_state_id": [1, 2, 3, 1]})
    assert not np.array_equal(first["state"][0], first["state"][1])
    again, _ = chunked.reset(seed=0, options={"init_state_id": [3, 1, 1, 2]})
    for key, values in first.items():
        np.testing.assert_array_equal(values[0], values[3], err_msg=key)
        np.testing.assert_array_equal(np.asarray(again[key]), np.asarray(values)[[2, 0, 0, 1]], err_msg=key)


def test_a_reset_that_fails_for_one_environment_begins_no_episode(
    chunked: LiberoVectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libero_gym.gpu import vector  # needs MuJoCo Warp

    chunked.reset(seed=0, options={"init_state_id": [1, 2, 3, 1]})
    choose, asked = vector.choose_episode, []

    def choose_once(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 2:
            raise NoPlaceError("no place for the bowl")
        return choose(*arguments)

    monkeypatch.setattr(vector, "choose_episode", choose_once)
    with pytest.raises(NoPlaceError, match="no place for the bowl"):
        chunked.reset(options={"init_state_id": [4, 5, 6, 7]})
    assert len(asked) == 2
    infos = chunked.step(np.zeros((4, 3, 7)))[-1]
    assert infos["init_state_id"].tolist() == [1, 2, 3, 1]


def test_progress_telescopes_over_chunks_and_the_limit_cuts_one(chunked: LiberoVectorEnv) -> None:
    """Rewards sum to the last potential, discounted; 7 steps are two chunks and a third of one."""
    chunked.reset(seed=1)
    phi = [chunked.backend._phi.copy()]
    for elapsed in (3, 6, 7):
        obs, rewards, terminated, truncated, infos = chunked.step(random_actions(12, seed=elapsed).reshape(4, 3, 7))
        shown = infos["final_info"] if elapsed == 7 else infos
        assert shown["elapsed_steps"].tolist() == [elapsed] * 4
        assert truncated.all() == (elapsed == 7)
        seen = np.stack([final["privileged"] for final in infos["final_obs"]]) if elapsed == 7 else obs["privileged"]
        np.testing.assert_allclose(seen[:, 0], 1 - elapsed / 7, atol=1e-6)
        if elapsed < 7:
            phi.append(chunked.backend._phi.copy())
            np.testing.assert_allclose(rewards, 0.99 * phi[-1] - phi[-2], atol=1e-12)
            np.testing.assert_allclose(infos["reward_terms"]["progress"], rewards, atol=1e-12)
    assert not terminated.any()
    np.testing.assert_allclose(obs["privileged"][:, 0], 1.0)


def test_a_goal_that_holds_ends_the_episode_with_reward_one(chunked: LiberoVectorEnv) -> None:
    """The bowl is put on the plate in one world; its neighbours go on, and its chunk stops."""
    chunked.reset(seed=2)
    before = chunked.call("get_state", indices=[2])[0]
    model = compile_task(get_tasks("libero_spatial")[0]).physics
    bowl, plate = (
        model.jnt_qposadr[model.body_jntadr[model.body(f"{name}_1_main").id]] for name in ("akita_black_bowl", "plate")
    )
    moved = before.copy()
    moved[1 + bowl : 1 + bowl + 3] = before[1 + plate : 1 + plate + 3] + [0, 0, 0.02]
    with pytest.warns(UserWarning, match="lost the controller's memory"):
        chunked.call("set_state", np.asarray(moved), indices=[2])
    _, rewards, terminated, truncated, infos = chunked.step(np.zeros((4, 3, 7)))
    assert terminated.tolist() == [False, False, True, False]
    assert not truncated.any()
    assert infos["final_info"]["reward_terms"]["success"][2] == 1.0
    assert rewards[2] > 0.2
    assert infos["final_info"]["is_success"].tolist() == [False, False, True, False]
    assert infos["final_info"]["elapsed_steps"][2] < 3
    assert infos["elapsed_steps"].tolist() == [3, 3, 0, 3]


@pytest.mark.parametrize("renderer", ["fast", pytest.param("exact", marks=pytest.mark.opengl)])
def test_frames_show_the_worlds(renderer: str) -> None:
    """As `LiberoEnv` shows the same initial state, as the host draws them, and changed by a step."""
    env = make(2, cameras=("agentview", "wrist"), image_size=64, renderer=renderer, render_mode="rgb_array")
    obs, _ = env.reset(seed=0, options={"init_state_id": [4, 9]})
    single = LiberoEnv("libero_spatial", task_id=0, image_size=64, renderer=renderer, settle_steps=1)
    expected, _ = single.reset(options={"init_state_id": 4})
    assert psnr(obs["image"][0], expected["image"]) > 35
    assert psnr(obs["image"][1], expected["image"]) < psnr(obs["image"][0], expected["image"])
    moved, *_ = env.step(np.ones((2, 7)))
    assert not np.array_equal(moved["wrist_image"], obs["wrist_image"])
    frames = env.render()
    assert frames is not None
    np.testing.assert_array_equal(frames[1], moved["image"][1])
    backend = env.backend
    for index, state in enumerate(env.call("get_state")):
        on_host = backend._mirror.frames(backend._episode(index), state, ("agentview", "wrist"), 64)
        assert psnr(moved["image"][index], on_host[0]) > 40
        assert psnr(moved["wrist_image"][index], on_host[1]) > 40
    env.close()


def test_environments_move_between_scenes_and_groups_that_nobody_is_in_rest(
    warp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four draw the first scene's task, then the other's: each began with two worlds and gets as many again."""
    from libero_gym.gpu.scene_batch import SceneBatch

    env = make(4, task_id=[0, 1], suite="libero_object")
    groups, stepped_worlds, step = env.backend._places._groups, [], SceneBatch.step

    def counted(batch: SceneBatch, actions: np.ndarray, active: np.ndarray) -> None:
        stepped_worlds.append((batch.n_worlds, int(active.sum())))
        step(batch, actions, active)

    assert [[group.batch.n_worlds for group in own] for own in groups] == [[2], [2]]
    for task_id in (0, 1, 0):
        obs, infos = env.reset(seed=5, options={"task_id": task_id, "init_state_id": [0, 1, 2, 3]})
        assert infos["task_id"].tolist() == [task_id] * 4
        monkeypatch.setattr(SceneBatch, "step", counted)
        stepped, *_ = env.step(np.tile([1.0, 0, 0, 0, 0, 0, -1], (4, 1)))
        monkeypatch.setattr(SceneBatch, "step", step)
        assert (stepped["state"][:, 0] > obs["state"][:, 0]).all()
        assert stepped_worlds == [(2, 2), (2, 2)]  # and none of the other scene's
        stepped_worlds.clear()
    assert [[group.batch.n_worlds for group in own] for own in groups] == [[2, 2], [2, 2]]
    monkeypatch.setattr(env.backend._places, "_most", 8)
    env.reset(options={"task_id": [0, 0, 1, 1], "init_state_id": 0})  # in the first groups
    env.backend._places._give_up_idle()
    assert [[group.batch.n_worlds for group in own] for own in groups] == [[2], [2]]
    env.step(np.zeros((4, 7)))
    env.close()


def test_worlds_keep_to_a_multiple_of_those_of_the_beginning(warp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from libero_gym.gpu import places

    monkeypatch.setattr(places, "MAX_GROWTH", 1.5)  # six worlds: one further group at a time
    env = make(4, task_id=[0, 1], suite="libero_object")
    for task_id in (0, 1, 0):
        env.reset(seed=0, options={"task_id": task_id, "init_state_id": 0})
        assert env.backend._places.n_worlds == 6
    env.close()


def test_closing_frees_the_worlds() -> None:
    env = make(2)
    env.reset(seed=0)
    ((group,),) = env.backend._places._groups
    batch = weakref.ref(group.batch)
    del group
    env.close()
    gc.collect()
    assert batch() is None


def test_a_reset_after_a_restore_leaves_restored_worlds_alone() -> None:
    first, second = make(2), make(2)
    first.reset(seed=3, options={"init_state_id": [1, 2]})
    first.step(random_actions(2))
    second.restore(first.snapshot())
    second.reset(options={"init_state_id": 5, "reset_mask": np.array([True, False])})
    found, expected = (env.step(random_actions(2, seed=1))[0]["state"] for env in (second, first))
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)
    assert np.abs(found[0] - expected[0]).max() > 1e-3
    first.close()
    second.close()


def test_a_single_world_is_not_stepped_by_call(chunked: LiberoVectorEnv) -> None:
    chunked.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"call\('step'\) would go by one environment alone.* use the vector environment's step\(\)"
    ):
        chunked.call("step", np.zeros((3, 7)))


def test_a_snapshot_of_exact_physics_is_refused(chunked: LiberoVectorEnv) -> None:
    chunked.reset(seed=0)
    snapshot = chunked.snapshot()
    with pytest.raises(ValueError, match='of another physics than "batched"'):
        chunked.restore({**snapshot, "physics": "exact"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"physics": "exact"},
            r"physics='exact' is stock's to the bit.*leave physics out, or take backend=\"processes\"",
        ),
        ({"physics": "coarse"}, r"physics='coarse' is of longer substeps.*leave physics out"),
        ({"device": "gpu"}, r"device='gpu': .* devices: 'cpu'"),
        ({"njmax": 0}, r"njmax=0 is out of range; expected"),
        ({"devise": "cpu"}, r"Unknown argument 'devise'. Did you mean 'device'"),
        ({"n_workers": 2}, r"Unknown argument 'n_workers'"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


def test_without_a_cuda_device_the_default_says_so(warp: Any) -> None:
    if warp.is_cuda_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="device='cuda': there is no CUDA device; devices: 'cpu'"):
        make(device="cuda")


@pytest.mark.parametrize("missing", ["warp", "mujoco_warp"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs where neither is installed, too: the first that is missing is named."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError, match=r'backend="warp" needs .*which is not installed; the extra \[gpu\]'
    ) as caught:
        LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), backend="warp", device="cpu")
    assert "\n" not in str(caught.value)


def test_what_mujoco_warp_lacks_is_named_with_the_task(spatial: list[CompiledTask]) -> None:
    from libero_gym.gpu.scene_batch import SceneBatch, Sizes

    model = copy.copy(spatial[0].physics)
    model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_FWDINV)
    odd = dataclasses.replace(spatial[0], physics=model)
    with pytest.raises(NotImplementedError, match=r"cannot simulate the scene of task 0 of libero_spatial: .*FWDINV"):
        SceneBatch([odd], 2, "cpu", Sizes(256, 896))


def test_initial_states_are_those_that_seeds_draw_elsewhere(chunked: LiberoVectorEnv) -> None:
    _, infos = chunked.reset(seed=11)
    single = LiberoEnv("libero_spatial", task_id=0, cameras=(), settle_steps=0)
    drawn = [single.reset(seed=11 + index)[1]["init_state_id"] for index in range(4)]
    assert infos["init_state_id"].tolist() == drawn
    assert len(initial_states(get_tasks("libero_spatial")[0])) > max(drawn)

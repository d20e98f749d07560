"""Worlds of one scene in one batch: each for itself, captured or not, with fixtures and depths as LIBERO has them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import pytest
from batches import all_rows, assert_as, start
from comparing import random_actions

from libero_gym.compilation.draws import fixture_draw
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.simulation.simulator import SETTLE_ACTION
from libero_gym.tasks import initial_states

if TYPE_CHECKING:
    from libero_gym.gpu.scene_batch import SceneBatch

EVERYWHERE = np.ones(4, dtype=bool)
PLACES = [(0, 0), (1, 0), (0, 3), (1, 7)]
# Speeds of falling objects, and what the solver and the controller make of them, vary more than poses do.
MOVING, FAST = ("qvel", "warmstart", "ctrl"), 5e-2


def test_a_captured_control_step_equals_an_eager_one(
    batch: SceneBatch, spatial: list[CompiledTask], device: str
) -> None:
    from libero_gym.gpu.scene_batch import SceneBatch

    eager = SceneBatch(spatial, 4, device, batch.sizes, capture=False)
    for worlds in (batch, eager):
        start(worlds, PLACES)
        for action in random_actions(4 * 3).reshape(3, 4, 7):
            worlds.step(action, EVERYWHERE)
    for name, values in all_rows(eager).items():
        assert_as(batch.read(name), values, device, name, FAST if name in MOVING else 1e-5)


def test_worlds_that_are_not_active_stay_as_they_are_to_the_bit(batch: SceneBatch, device: str) -> None:
    """In a reset, in a beginning and in a step; and those that are active go on as if all were."""
    actions = random_actions(4 * 4).reshape(4, 4, 7)
    start(batch, PLACES)
    batch.step(actions[0], EVERYWHERE)
    before = all_rows(batch)
    batch.step(actions[1], EVERYWHERE)
    together = all_rows(batch)

    start(batch, PLACES)
    batch.step(actions[0], EVERYWHERE)
    some = np.array([True, False, True, False])
    batch.step(actions[1], some)
    table = batch.new_table()
    table.reserve(4)
    batch.save(EVERYWHERE, table, np.arange(4))
    other = np.array([False, True, False, False])
    batch.load(other, table, np.full(4, 2))
    batch.begin(other)
    batch.step(actions[2], other)
    after = all_rows(batch)
    for name in after:
        assert_as(after[name][[0, 2]], together[name][[0, 2]], device, name, FAST if name in MOVING else 1e-5)
        np.testing.assert_array_equal(after[name][3], before[name][3], err_msg=name)
    assert not np.array_equal(after["qpos"][1], before["qpos"][1])


def test_a_world_does_not_depend_on_its_place_or_its_neighbours_beyond_rounding(batch: SceneBatch) -> None:
    actions = random_actions(2 * 3).reshape(3, 2, 7)
    ends = []
    for places, own in (([(0, 0), (1, 0), (0, 3), (1, 7)], [0, 1]), ([(0, 8), (0, 8), (1, 0), (0, 0)], [3, 2])):
        start(batch, places)
        for action in actions:
            chosen = np.zeros((4, 7))
            chosen[own] = action
            batch.step(chosen, EVERYWHERE)
        ends.append({name: values[own] for name, values in all_rows(batch).items()})
    for name in ("time", "qpos", "memory", "kinematics_qpos", "sample", "flags", "phi"):
        np.testing.assert_allclose(ends[1][name], ends[0][name], rtol=0, atol=1e-5, err_msg=name)


def test_each_world_has_its_own_fixtures(batch: SceneBatch, spatial: list[CompiledTask]) -> None:
    """Bodies, sites, and the geoms that collide: MuJoCo's own kinematics of a model with these fixtures."""
    from libero_gym.gpu.states import initial_row

    draws = [fixture_draw(spatial[0].task, draw) for draw in (1, 2, 3, 4)]
    state = initial_states(spatial[0].task)[0]
    table = batch.new_table()
    table.reserve(4)
    table.write(0, [initial_row(spatial[0], 0, state, draw) for draw in draws])
    batch.load(EVERYWHERE, table, np.arange(4))
    batch.begin(EVERYWHERE)
    poses = {name: getattr(batch.data, name).numpy() for name in ("xpos", "site_xpos", "geom_xpos", "geom_xmat")}
    assert np.ptp(poses["geom_xpos"], axis=0).max() > 1e-3
    for world, draw in enumerate(draws):
        model = copy.copy(spatial[0].physics)
        model.body_pos[draw.body_ids], model.body_quat[draw.body_ids] = draw.pos, draw.quat
        data = mujoco.MjData(model)
        data.qpos[:] = state[1 : 1 + model.nq]
        mujoco.mj_kinematics(model, data)
        for name, values in poses.items():
            expected = getattr(data, name)
            np.testing.assert_allclose(values[world].reshape(expected.shape), expected, atol=2e-6, err_msg=name)


def test_the_bowl_comes_to_rest_on_the_ramekin(batch: SceneBatch, spatial: list[CompiledTask]) -> None:
    """LIBERO-Spatial's task 5 starts with it seated within 3 cm; with whole depths of contacts it slides to 3.7 cm."""
    start(batch, [(1, number) for number in (0, 10, 20, 30)])
    for _ in range(20):
        batch.step(np.tile(SETTLE_ACTION, (4, 1)), EVERYWHERE)
    model = spatial[1].physics
    bowl, ramekin = (model.body(f"{name}_1_main").id for name in ("akita_black_bowl", "glazed_rim_porcelain_ramekin"))
    xpos = batch.data.xpos.numpy()
    offsets = np.linalg.norm(xpos[:, bowl, :2] - xpos[:, ramekin, :2], axis=1)
    assert (offsets > 0.005).all()
    assert (offsets < 0.020).all()


def test_only_depths_at_faces_of_two_boxes_are_halved(warp: Any, device: str) -> None:
    from libero_gym.gpu import kernels

    box, sphere = int(mujoco.mjtGeom.mjGEOM_BOX), int(mujoco.mjtGeom.mjGEOM_SPHERE)
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    normals = [[0, 0, 1.0], [0.8, -0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.6, 0.8], [0, 0, 1.0], [0, 0, 1.0]]
    frames = np.zeros((6, 3, 3))
    frames[:, 0] = normals
    pairs = np.array([[0, 1], [0, 1], [1, 0], [0, 1], [0, 2], [0, 1]])
    dist = warp.full(6, -0.01, dtype=float, device=device)
    inputs = [
        warp.array([5], dtype=int, device=device),  # the sixth is left over from a fuller step
        warp.array(pairs, dtype=warp.vec2i, device=device),
        warp.array([box, box, sphere], dtype=int, device=device),
        warp.array(np.stack([[np.eye(3), turned, np.eye(3)]]), dtype=warp.mat33, device=device),
        warp.zeros(6, dtype=int, device=device),
        warp.array(frames, dtype=warp.mat33, device=device),
        dist,
    ]
    warp.launch(kernels.halve_face_depth, 6, inputs, device=device)
    # A face of both; a row, not an axis; an axis of the turned box alone; an edge; a sphere; none any more.
    np.testing.assert_allclose(dist.numpy(), [-0.005, -0.01, -0.005, -0.01, -0.01, -0.01])


def drop(batch: SceneBatch) -> None:
    """Let objects fall from where initial states hold them."""
    start(batch, PLACES)
    for _ in range(4):
        batch.step(np.zeros((4, 7)), EVERYWHERE)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((16, 896), r"contacts or pairs that come near per world, and there is room for 16, .*: ask for nconmax=\d+\."),
        ((256, 64), r"A world has \d+ constraints, and there is room for 64, .*: ask for njmax=\d+\."),
    ],
)
def test_a_buffer_that_is_too_small_names_the_size_to_ask_for(
    spatial: list[CompiledTask],
    sizes: tuple[int, int],
    message: str,
    device: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And that size is enough; MuJoCo Warp's own message is not printed for every substep."""
    from libero_gym.gpu.scene_batch import BufferOverflowError, SceneBatch, Sizes

    small = SceneBatch(spatial, 4, device, Sizes(*sizes), capture=False)
    with pytest.raises(BufferOverflowError, match=message) as caught:
        drop(small)
    assert "\n" not in str(caught.value)
    assert "overflow - please increase" not in capfd.readouterr().out
    name, asked = str(caught.value).rsplit(" ", 1)[1].rstrip(".").split("=")
    assert int(asked) > {"nconmax": sizes[0], "njmax": sizes[1]}[name]


def test_too_many_worlds_for_a_fixed_order_are_told_so(
    spatial: list[CompiledTask], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo Warp's own error is about an array, of a GPU alone."""
    from libero_gym.gpu.scene_batch import SceneBatch, Sizes

    def no_room(worlds: SceneBatch, launches: Any) -> None:
        raise ValueError("Array shapes must not exceed so much")

    many = SceneBatch(spatial, 4, device, Sizes(256, 896), deterministic=True)
    monkeypatch.setattr(SceneBatch, "_held", no_room)
    with pytest.raises(ValueError, match=r"deterministic=True has no room for 4 worlds .*Take fewer environments, or"):
        start(many, PLACES)


def test_a_driver_without_loops_in_graphs_is_named_and_gone_on_with(
    batch: SceneBatch,
    spatial: list[CompiledTask],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The solver then runs to its limit in every step, and finds the same."""
    from libero_gym.gpu import scene_batch
    from libero_gym.gpu.scene_batch import SceneBatch, Sizes

    cuda = SimpleNamespace(is_cuda=True)
    for version, knows in (((12, 4), True), ((13, 0), True), ((12, 3), False)):
        monkeypatch.setattr(scene_batch.wp, "get_cuda_driver_version", lambda version=version: version)
        assert scene_batch._knows_loops(cuda) == knows
    (message,) = caplog.messages
    assert message.startswith("The CUDA driver is for 12.3, and graphs with loops need 12.4")

    monkeypatch.setattr(scene_batch, "_knows_loops", lambda device: False)
    old = SceneBatch(spatial, 4, device, Sizes(256, 896))
    assert not old.model.opt.graph_conditional
    ends = []
    for each in (batch, old):
        start(each, PLACES)
        each.step(random_actions(4, seed=1), EVERYWHERE)
        ends.append(each.read("qpos").copy())
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-6 if device == "cpu" else 1e-5)


def test_a_state_goes_out_and_in_to_the_bit(batch: SceneBatch, device: str) -> None:
    """As a simulator's state with its memory, from a world to another one."""
    from libero_gym.gpu.states import row_of, state_of

    actions = random_actions(4 * 4).reshape(4, 4, 7)
    start(batch, PLACES)
    for action in actions[:2]:
        batch.step(action, EVERYWHERE)
    rows = all_rows(batch)
    table = batch.new_table(capacity=1)
    table.reserve(4)
    for world, (row, _) in enumerate(PLACES):
        task, phi = batch.tasks[row], float(rows["phi"][world, 0])
        state = state_of({name: values[world] for name, values in rows.items()})
        assert state.memory is not None
        table.write(3 - world, [row_of(task, row, state, task.fixtures, phi)])
    batch.step(actions[2], EVERYWHERE)
    expected = all_rows(batch)
    batch.load(EVERYWHERE, table, np.arange(4))
    for name, values in rows.items():
        np.testing.assert_array_equal(batch.read(name)[::-1], values, err_msg=name)
    batch.step(actions[2][::-1], EVERYWHERE)
    for name, values in expected.items():
        assert_as(batch.read(name)[::-1], values, device, name, FAST if name in MOVING else 1e-5)

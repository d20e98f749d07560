"""LIBERO's own HDF5 demonstrations are read, turned like ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import synthetic

from libero_gym.demonstrations.libero_hdf5 import read_libero_hdf5

pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")


@pytest.fixture
def libero_file(tmp_path: Path) -> Path:
    """A file as LIBERO publishes them, with two episodes."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    name = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
    path = tmp_path / f"{name}_demo.hdf5"
    with h5py.File(path, "w") as archive:
        data = archive.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["p", "u", "s", "h"]})
        for index in (0, 1, 10):
            episode, demo = synthetic(4 + index, seed=index), data.create_group(f"demo_{index}")
            demo["actions"] = episode.actions.astype(np.float64)
            demo["dones"] = np.arange(4 + index) == 3 + index
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = episode.images["image"][:, ::-1, ::-1]
            obs["ee_pos"], obs["ee_ori"] = episode.state[:, :3], episode.state[:, 3:6]
            obs["gripper_states"] = episode.state[:, 6:]
    return path


def test_liberos_hdf5_is_read_turned_as_ours(libero_file: Path) -> None:
    episodes = list(read_libero_hdf5(libero_file, suite="libero_spatial", cameras=("image",)))
    assert [len(episode) for episode in episodes] == [4, 5, 14]
    original = synthetic(5, seed=1)
    np.testing.assert_array_equal(episodes[1].images["image"], original.images["image"])
    np.testing.assert_array_equal(episodes[1].state, original.state)
    np.testing.assert_array_equal(episodes[1].actions, original.actions)
    assert (episodes[1].task_id, episodes[1].success) == (0, True)
    assert episodes[1].instruction.startswith("pick up the black bowl")
    assert next(read_libero_hdf5(libero_file, cameras=())).instruction == "push"


def test_what_liberos_own_script_noted_after_an_action_belongs_to_the_next(libero_file: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(libero_file, "a") as archive:
        archive["data/demo_1"].attrs["model_file"] = "<mujoco/>"
    regenerated, published = list(read_libero_hdf5(libero_file, cameras=("image",)))[:2]
    assert len(regenerated) == 4
    original = synthetic(5, seed=1)
    np.testing.assert_array_equal(published.actions, original.actions[1:])
    np.testing.assert_array_equal(published.state, original.state[:-1])
    np.testing.assert_array_equal(published.images["image"], original.images["image"][:-1])
    assert published.success


def test_damaged_hdf5_demonstrations_are_named_and_skipped(libero_file: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(libero_file, "a") as archive:
        del archive["data/demo_1/obs/ee_pos"]
    with pytest.warns(UserWarning, match=r"demo_1 of .*_demo\.hdf5 is damaged"):
        assert len(list(read_libero_hdf5(libero_file, cameras=("image",)))) == 2
    libero_file.write_bytes(libero_file.read_bytes()[:500])
    with pytest.warns(UserWarning, match=r"_demo\.hdf5 is damaged .* and skipped"):
        assert list(read_libero_hdf5(libero_file.parent)) == []
    with pytest.raises(FileNotFoundError, match=r"no \.hdf5 demonstrations"):
        next(read_libero_hdf5(libero_file.parent / "nowhere.hdf5"))

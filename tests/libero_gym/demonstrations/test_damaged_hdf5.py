"""LIBERO's HDF5 files: their words, and damage that costs what it hits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.demonstrations.libero_hdf5 import read_libero_hdf5

h5py = pytest.importorskip("h5py", reason="needs h5py")

SCENE_TASK = "KITCHEN_SCENE4_put_the_bowl_in_the_drawer"


def write(path: Path, *names: str) -> Path:
    """Demonstrations of 5, 6, ... frames without attributes, as OpenVLA's script regenerates them."""
    with h5py.File(path, "w") as archive:
        for index, name in enumerate(names):
            demo, n_frames = archive.create_group(f"data/{name}"), 5 + index
            demo["actions"] = np.tile(np.linspace(-1, 1, n_frames)[:, None], 7)
            obs = demo.create_group("obs")
            for key, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                obs[key] = np.zeros((n_frames, width))
            obs.create_dataset("agentview_rgb", data=np.zeros((n_frames, 16, 16, 3), np.uint8), compression="gzip")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / f"{SCENE_TASK}_demo.hdf5", "demo_0", "demo_1", "demo_2")


def lengths(file: Path) -> list[int]:
    return [len(episode) for episode in read_libero_hdf5(file, cameras=("image",))]


def test_the_scene_in_a_file_name_is_no_word_of_the_instruction(file: Path) -> None:
    assert next(read_libero_hdf5(file, cameras=())).instruction == "put the bowl in the drawer"


@pytest.mark.parametrize("info", ["{", "[" * 10**5, "[]", json.dumps({"language_instruction": [1, 2]}), 3.0])
def test_a_damaged_instruction_is_replaced_by_the_files_name(file: Path, info: Any) -> None:
    with h5py.File(file, "a") as archive:
        archive["data"].attrs.create("problem_info", info if isinstance(info, float) else info[:60_000])
    assert next(read_libero_hdf5(file, cameras=())).instruction == "put the bowl in the drawer"


def test_a_suite_without_the_files_task_is_told(file: Path) -> None:
    with pytest.warns(UserWarning, match="libero_spatial has no task 'KITCHEN_SCENE4.*episodes have task_id -1"):
        episodes = list(read_libero_hdf5(file, suite="libero_spatial", cameras=()))
    assert {episode.task_id for episode in episodes} == {-1}


def replaced(name: str, **value: Any) -> Callable[[Any], None]:
    """Damage that puts another dataset in one's place."""

    def damage(demo: Any) -> None:
        del demo[name]
        demo.create_dataset(name, **value)

    return damage


def external(demo: Any) -> None:
    del demo["actions"]
    demo.create_dataset("actions", (6, 7), "f8", external=[("/dev/zero", 0, 6 * 7 * 8)])


def linked(name: str, link: Any) -> Callable[[Any], None]:
    """Damage that puts a link in the place of a group or dataset. `other.hdf5` is a whole file of demonstrations."""

    def damage(demo: Any) -> None:
        write(Path(demo.file.filename).with_name("other.hdf5"), "demo_x", "demo_0")
        demo.pop(name, None)
        demo[name] = link

    return damage


def linked_twice(demo: Any) -> None:
    """A soft link to an external one."""
    linked("elsewhere", h5py.ExternalLink("other.hdf5", "/data/demo_0"))(demo)
    del demo["actions"]
    demo["actions"] = h5py.SoftLink("elsewhere/actions")


DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    (replaced("actions", data=1.0), r"'actions' has shape \(\); expected \(any, 7\)"),
    (replaced("actions", data=np.zeros((6, 6))), r"'actions' has shape \(6, 6\)"),
    (replaced("actions", data=np.zeros((0, 7))), r"'actions' has shape \(0, 7\)"),
    (replaced("actions", shape=(10**11, 7), dtype="f8", chunks=(1024, 7)), "expected 1 to 100000 frames"),
    (replaced("actions", shape=(10**5, 7), dtype="f8"), r"'actions' states 5600000 bytes, and the file holds 0"),
    (replaced("actions", data=np.full((6, 7), b"x")), r"'actions' holds \|S1; expected numbers"),
    (replaced("obs/agentview_rgb", data=np.zeros(6, np.uint8)), r"'agentview_rgb' has shape \(6,\)"),
    (replaced("obs/agentview_rgb", data=np.zeros((6, 8, 8, 3))), "'agentview_rgb' is float64; expected uint8"),
    (
        replaced("obs/agentview_rgb", shape=(6, 8000, 8000, 3), dtype="u1", chunks=(1, 8, 8, 3), compression="gzip"),
        "'agentview_rgb' states 1152000000 bytes, and the file holds 0",
    ),
    (replaced("obs/ee_pos", data=np.zeros((5, 3))), r"'ee_pos' has shape \(5, 3\); expected \(6, 3\)"),
    (replaced("obs", data=3), "'obs' is missing, or no group"),
    (external, "'actions' states 336 bytes"),
    (linked("obs", h5py.ExternalLink("other.hdf5", "/data/demo_0/obs")), "'obs' is missing, or no group"),
    (linked("actions", h5py.ExternalLink("other.hdf5", "/data/demo_0/actions")), "'actions' is missing, or no dataset"),
    (linked("obs/ee_ori", h5py.ExternalLink("other.hdf5", "/data/demo_0/obs/ee_ori")), "'ee_ori' is missing"),
    (linked("obs/ee_ori", h5py.SoftLink("/data/demo_1/obs/ee_pos")), "'ee_ori' is missing, or no dataset of its own"),
    (linked("dones", h5py.ExternalLink("nowhere.hdf5", "/x")), "'dones' is missing, or no dataset of its own"),
    (linked("dones", h5py.SoftLink("/nowhere")), "'dones' is missing, or no dataset of its own"),
    (linked_twice, "'actions' is missing, or no dataset"),
    (lambda demo: demo.create_dataset("dones", data=True), r"'dones' has shape \(\); expected \(6\)"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_demonstration_costs_itself(file: Path, damage: Callable[[Any], None], message: str) -> None:
    with h5py.File(file, "a") as archive:
        damage(archive["data/demo_1"])
    with pytest.warns(UserWarning, match=r"demo_1 of .*_demo\.hdf5 is damaged .*" + message):
        assert lengths(file) == [5, 7]


def test_a_demonstration_of_another_name_is_read_last(tmp_path: Path) -> None:
    assert lengths(write(tmp_path / "push_demo.hdf5", "demo_x", "demo_10", "demo_9")) == [7, 6, 5]


def test_something_else_beside_demonstrations_is_named(file: Path) -> None:
    with h5py.File(file, "a") as archive:
        archive["data/notes"] = 3
    with pytest.warns(UserWarning, match="notes of .* is damaged .*'notes' is missing, or no group"):
        assert lengths(file) == [5, 6, 7]


def test_data_that_is_no_group_costs_the_file(file: Path) -> None:
    write(file.parent / "push_demo.hdf5", "demo_0")
    with h5py.File(file, "w") as archive:
        archive["data"] = np.zeros(3)
    with pytest.warns(UserWarning, match=r"KITCHEN.*hdf5 is damaged .*'data' is missing, or no group.* skipped"):
        assert lengths(file.parent) == [5]

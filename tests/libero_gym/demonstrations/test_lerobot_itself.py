"""LeRobot's own package reads what we write, frames included, and we read what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="needs lerobot (0.6.1 goes together with this package, on Python 3.12)")
pytest.importorskip("datasets", reason="needs datasets (lerobot[dataset])")
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from recordings import synthetic, write_dataset

from libero_gym.demonstrations import LeRobotReader


def test_it_reads_what_we_write(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "ours")
    theirs = LeRobotDataset("mine/ours", root=root, video_backend="pyav")
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (3, 18, 20)
    position = 0
    for episode in LeRobotReader(root):
        for step in range(len(episode)):
            item = theirs[position]
            np.testing.assert_array_equal(item["action"].numpy(), episode.actions[step])
            np.testing.assert_array_equal(item["observation.state"].numpy(), episode.state[step])
            assert item["task"] == episode.instruction
            frame = np.moveaxis(item["observation.images.image"].numpy(), 0, -1) * 255
            assert np.abs(frame - episode.images["image"][step]).max() <= 2  # two decoders' colours
            position += 1
    assert position == len(theirs)


def test_its_tools_read_our_card(tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    root = write_dataset(tmp_path / "ours")
    card = DatasetCard.load(root / "README.md")
    assert "LeRobot" in card.data.tags
    assert card.data.task_categories == ["robotics"]
    rows = load_dataset(str(root), split="train")  # finds the files by the card
    assert len(rows) == 18


@pytest.mark.parametrize("openpi", [False, True])
def test_we_read_what_it_writes(tmp_path: Path, openpi: bool) -> None:
    prefix = "" if openpi else "observation.images."
    state, action = ("state", "actions") if openpi else ("observation.state", "action")
    second = "wrist_image" if openpi else "image2"
    features = {
        f"{prefix}{name}": {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channel"]}
        for name in ("image", second)
    }
    features |= {state: {"dtype": "float32", "shape": (8,), "names": ["state"]}}
    features |= {action: {"dtype": "float32", "shape": (7,), "names": ["actions"]}}
    dataset = LeRobotDataset.create(
        "mine/theirs", fps=10, features=features, root=tmp_path / "theirs", use_videos=False
    )
    originals = [synthetic(5 + index, seed=index) for index in range(3)]
    for original in originals:
        for step in range(len(original)):
            frame = original.images["image"][step]
            shown = {f"{prefix}image": frame, f"{prefix}{second}": frame // 2, state: original.state[step]}
            dataset.add_frame({**shown, action: original.actions[step], "task": original.instruction})
        dataset.save_episode()
    dataset.finalize()
    reader = LeRobotReader(tmp_path / "theirs", fps=None, cameras=("image", "wrist_image"))
    for original, episode in zip(originals, reader, strict=True):
        np.testing.assert_array_equal(episode.state, original.state)
        np.testing.assert_array_equal(episode.actions, original.actions)
        np.testing.assert_array_equal(episode.images["image"], original.images["image"])
        np.testing.assert_array_equal(episode.images["wrist_image"], original.images["image"] // 2)
        assert episode.instruction == original.instruction

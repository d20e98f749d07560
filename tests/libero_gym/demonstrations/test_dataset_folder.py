"""A dataset's folder: its card, and that nothing of the user's is ever overwritten or removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recordings import synthetic

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter
from libero_gym.demonstrations.lerobot_layout import IMAGE_PREFIX
from libero_gym.demonstrations.recording import RECORDING_FOLDER, record

pytest.importorskip("pyarrow", reason="needs pyarrow")

VIDEOS = f"videos/{IMAGE_PREFIX}image/chunk-000"


def write(root: Path, n_episodes: int, overwrite: bool = True, finish: bool = True) -> None:
    writer = LeRobotWriter(root, cameras=("image",), overwrite=overwrite)
    for index in range(n_episodes):
        writer.add(synthetic(2, seed=index, size=16))
    if finish:
        writer.finish()


def test_the_card_names_the_parquet_files(tmp_path: Path) -> None:
    write(tmp_path, 2)
    _, header, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    (config,) = yaml.safe_load(header)["configs"]
    assert config["config_name"] == "default"
    assert sorted(tmp_path.glob(config["data_files"])) == sorted(tmp_path.rglob("data/**/*.parquet"))
    assert len(list(tmp_path.glob(config["data_files"]))) == 2
    assert "+1 closes" in body


def test_a_card_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    write(tmp_path, 1)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_shorter_dataset_removes_what_we_wrote_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 4, finish=False)  # a killed one: nothing lists its last file
    ours = [tmp_path / "data/chunk-000/.file-003.abcd_123.parquet", tmp_path / VIDEOS / ".file-003.abcd_123.mp4"]
    names = ["data/chunk-000/file-009.parquet", "data/chunk-000/file-001.csv", "data/chunk-000/file-notes"]
    names += ["data/chunk-007/file-000.parquet", f"{VIDEOS}/file-009.mp4", "videos/mine/chunk-000/file-003.mp4"]
    names += ["data/chunk-x/file-003.parquet", "data/chunk-000/.file-003.parquet"]
    others = [tmp_path / name for name in names]
    for path in [*ours, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"kept")
    write(tmp_path, 1)
    assert not any(path.exists() for path in ours)
    assert all(path.read_bytes() == b"kept" for path in others)
    written = sorted(
        path.name for folder in ("data/chunk-000", VIDEOS) for path in (tmp_path / folder).glob("file-00[0-8].*")
    )
    assert written == ["file-000.mp4", "file-000.parquet", "file-001.csv"]
    assert len(LeRobotReader(tmp_path)) == 1


def test_a_half_written_dataset_of_ours_is_begun_again(tmp_path: Path) -> None:
    write(tmp_path, 2, overwrite=False, finish=False)
    write(tmp_path, 1, overwrite=False)
    assert len(LeRobotReader(tmp_path)) == 1


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-000.parquet", "data/table.csv", "meta/info.jsonl", "videos/a.mp4"]
)
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is in the way of a dataset, and is none of ours; choose another folder"):
        write(tmp_path, 1, overwrite=False)
    with pytest.raises(FileExistsError, match="is in the way of a dataset, and was not recorded there"):
        record(tmp_path, "libero_spatial", "recorded_policies:push", task_ids=0, init_state_ids=[0])
    assert path.read_bytes() == b"mine"
    assert not (tmp_path / RECORDING_FOLDER).exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; choose a folder"):
        write(path, 1)
    with pytest.raises(FileExistsError, match="is a file; choose a folder"):
        record(path, "libero_spatial", "recorded_policies:push", task_ids=0, init_state_ids=[0])

"""A dataset's folder: its card, and that nothing of the user's is ever overwritten or removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recordings import synthetic

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter
from libero_gym.demonstrations.lerobot_layout import EPISODES_PATH, IMAGE_PREFIX, INFO_PATH, TASKS_PATH
from libero_gym.demonstrations.lerobot_legacy import EPISODES
from libero_gym.demonstrations.recording import RECORDING_FOLDER, record

pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

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


def as_somebody_elses(root: Path, legacy: bool) -> list[Path]:
    """Turn a dataset of ours into one as others write it, with several lists or in v2.1; gives its files."""
    data = sorted(root.glob("data/*/*.parquet"))
    for path in data:
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    listed = root / EPISODES_PATH
    table = pq.read_table(listed)
    if not legacy:
        pq.write_table(table.slice(0, 1), listed)
        pq.write_table(table.slice(1), listed.with_name("file-001.parquet"))
        return [path for path in root.rglob("*") if path.suffix in (".parquet", ".mp4")]
    listed.unlink()
    for path in [*data, *root.glob("videos/*/*/*")]:
        path.rename(path.with_name(path.name.replace("file-", "episode_000")))
    rows = [{"episode_index": index, "length": 2, "tasks": ["x"]} for index in range(len(table))]
    (root / EPISODES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    templates = ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",)
    templates += ("videos/{video_key}/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.mp4",)
    change = {"codebase_version": "v2.1", "data_path": templates[0], "video_path": templates[1]}
    (root / INFO_PATH).write_text(json.dumps(json.loads((root / INFO_PATH).read_text()) | change))
    return [root / EPISODES, *root.glob("data/*/*"), *root.glob("videos/*/*/*")]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_an_overwritten_dataset_lists_as_its_own_goes_and_nothing_else(tmp_path: Path, legacy: bool) -> None:
    write(tmp_path, 3)
    theirs = as_somebody_elses(tmp_path, legacy)
    assert len(LeRobotReader(tmp_path, cameras=())) == 3
    others = [tmp_path / name for name in ("data/chunk-000/mine.parquet", "meta/episodes/notes.txt", "meta/mine.json")]
    others += [tmp_path / VIDEOS / "file-077.mp4", tmp_path / "data/chunk-000/file-077.parquet"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"kept")
    with pytest.raises(FileExistsError, match=r"overwrite=True"):
        write(tmp_path, 1, overwrite=False)
    assert all(path.exists() for path in theirs)
    write(tmp_path, 1)
    reader = LeRobotReader(tmp_path)
    assert [reader.info["total_episodes"], len(reader), len(list(reader))] == [1, 1, 1]
    names = [EPISODES_PATH, TASKS_PATH, "data/chunk-000/file-000.parquet", f"{VIDEOS}/file-000.mp4"]
    assert {path for path in theirs if path.exists()} <= {tmp_path / name for name in names}
    assert all(path.read_bytes() == b"kept" for path in others)


@pytest.mark.parametrize("template", ["../mine.parquet", "mine.txt", {}, None])
def test_a_strange_path_in_an_overwritten_dataset_leads_to_no_removal(tmp_path: Path, template: Any) -> None:
    root = tmp_path / "dataset"
    write(root, 1)
    mine = tmp_path / "mine.parquet" if template == "../mine.parquet" else root / "mine.txt"
    mine.write_bytes(b"kept")
    info = json.loads((root / INFO_PATH).read_text())
    (root / INFO_PATH).write_text(json.dumps(info | {"data_path": template}))
    write(root, 1)
    assert mine.read_bytes() == b"kept"


def test_an_overwritten_dataset_stays_until_another_is_written(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(ValueError, match="No episode was added"):
        write(tmp_path, 0)
    with pytest.raises(ValueError, match="cameras"):
        LeRobotWriter(tmp_path, cameras=("wrist_image",), overwrite=True).add(synthetic(2, size=16))
    assert len(list(LeRobotReader(tmp_path))) == 2
    write(tmp_path, 1, finish=False)
    assert not (tmp_path / INFO_PATH).exists()

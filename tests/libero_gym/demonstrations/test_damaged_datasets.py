"""Datasets that are damaged, or that somebody else made: what can be read is read, and the rest is named."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import synthetic

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter
from libero_gym.demonstrations.episodes import DamagedEpisodeError
from libero_gym.demonstrations.lerobot_layout import EPISODES_PATH, INFO_PATH, STATS_PATH

pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

CAMERA = "observation.images.image"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two episodes of 5 and 6 frames."""
    writer = LeRobotWriter(tmp_path / "dataset", cameras=("image",))
    for index in range(2):
        writer.add(synthetic(5 + index, seed=index))
    writer.finish()
    return writer.root


def change_info(root: Path, change: dict[str, Any]) -> None:
    path = root / INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_row(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the second episode's row."""
    path = root / EPISODES_PATH
    table = pq.read_table(path)
    columns = table.to_pydict()
    row = {name: values[1] for name, values in columns.items()}
    change(row)
    rows = [{name: values[0] for name, values in columns.items()}, row]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, _kind(row, name, table)) for name in columns])), path)


def _kind(row: dict[str, Any], name: str, table: Any) -> Any:
    return pa.float64() if isinstance(row.get(name), float) else table.schema.field(name).type


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def keep_frames_in_parquet(root: Path, encode: Callable[[np.ndarray], Any] = png) -> None:
    """Turn a dataset into one whose frames are images in the data files, as published conversions of LIBERO have."""
    info = json.loads((root / INFO_PATH).read_text())
    info["features"][CAMERA]["dtype"] = "image"
    change_info(root, {"features": info["features"], "video_path": None})
    for index in range(2):
        path = root / f"data/chunk-000/file-{index:03d}.parquet"
        cells = [{"bytes": encode(frame), "path": None} for frame in synthetic(5 + index, seed=index).images["image"]]
        pq.write_table(pq.read_table(path).append_column(CAMERA, pa.array(cells)), path)


# ----------------------------------------------------------------------------------------------- frames in parquet


def test_frames_kept_in_parquet_are_read(dataset: Path) -> None:
    keep_frames_in_parquet(dataset)
    reader = LeRobotReader(dataset)
    assert reader.cameras == ("image",)
    for index, episode in enumerate(reader):
        np.testing.assert_array_equal(episode.images["image"], synthetic(5 + index, seed=index).images["image"])
    assert LeRobotReader(dataset, cameras=())[0].images == {}


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda frame: png(frame)[:100], r"file-000\.parquet is damaged at frame 0 of"),
        (lambda frame: b"no image", r"damaged at frame 0 of 'observation\.images\.image'"),
        (lambda frame: png(frame[:16]), "it has 32x16 pixels; expected 32x32"),
        (lambda frame: None, "holds no image bytes for frame 0"),
    ],
)
def test_damaged_frames_in_parquet_are_named(dataset: Path, encode: Any, message: str) -> None:
    keep_frames_in_parquet(dataset, encode)
    with pytest.warns(UserWarning, match=message):
        assert list(LeRobotReader(dataset)) == []


def test_frames_of_another_kind_are_named(dataset: Path) -> None:
    features = json.loads((dataset / INFO_PATH).read_text())["features"]
    features["observation.images.depth"] = {"dtype": "depth16", "shape": [32, 32, 1], "names": None}
    change_info(dataset, {"features": features})
    with pytest.warns(UserWarning, match=r"keeps 'observation\.images\.depth' as 'depth16', which is not read"):
        assert LeRobotReader(dataset).cameras == ("image",)
    with pytest.raises(ValueError, match=r"no camera 'depth'; it has \['image'\]\. It keeps 'depth' as 'depth16'"):
        LeRobotReader(dataset, cameras=("depth",))


def test_a_dataset_of_ten_frames_a_second_is_read_where_any_rate_will_do(dataset: Path) -> None:
    keep_frames_in_parquet(dataset)
    change_info(dataset, {"fps": 10})
    with pytest.raises(ValueError, match=r"10 frames per second; 20 were expected\. fps=None takes any"):
        LeRobotReader(dataset)
    assert [episode.fps for episode in LeRobotReader(dataset, fps=None)] == [10, 10]


def test_a_gripper_of_zero_and_one_is_warned_of_once(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, cameras=())
    for seed in range(2):
        episode = synthetic(5, seed=seed)
        episode.images.clear()
        episode.actions[:, 6] = [1, 1, 0, 0, 0]
        writer.add(episode)
    writer.finish()
    with pytest.warns(UserWarning, match="is never negative: the hand would never open") as seen:
        assert len(list(LeRobotReader(tmp_path))) == 2
    assert len(seen) == 1
    (tmp_path / STATS_PATH).write_text("[")  # statistics are a service, and their damage is no episode's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(LeRobotReader(tmp_path))) == 2


# ------------------------------------------------------------------------------------------------- damaged LeRobot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "'features' is a list"),
        ({"features": {"action": []}}, "its feature 'action' is a list"),
        ({"features": None}, "'features' is missing"),
        ({"codebase_version": None}, "'codebase_version' is missing"),
        ({"data_path": None}, "'data_path' is missing"),
        ({"fps": 0}, "fps=0 is out of range"),
        ({"fps": "20"}, "fps='20'; expected a number"),
        ({"fps": 19.5}, "fps=19.5; expected whole frames"),
    ],
)
def test_a_damaged_info_is_told(dataset: Path, change: dict[str, Any], message: str) -> None:
    change_info(dataset, change)
    with pytest.raises(DamagedEpisodeError, match=r"info\.json is damaged: .*" + message):
        LeRobotReader(dataset, fps=None)


@pytest.mark.parametrize("shape", [[], [32, 32], [32, 32, 4], [10**9, 10**9, 3], ["32", 32, 3], None, [0, 32, 3]])
def test_frames_of_an_impossible_shape_are_told(dataset: Path, shape: Any) -> None:
    features = json.loads((dataset / INFO_PATH).read_text())["features"]
    features[CAMERA]["shape"] = shape
    change_info(dataset, {"features": features})
    with pytest.raises(DamagedEpisodeError, match=r"info\.json is damaged: .*; expected H, W, 3"):
        LeRobotReader(dataset)


@pytest.mark.parametrize(
    "template",
    [
        "data/{chunk}.parquet",
        "data/{chunk_index:4000000000d}.parquet",
        "data/{chunk_index.__class__}.parquet",
        "data/{chunk_index",
        "/etc/{chunk_index}",
        "../{chunk_index}",
    ],
)
def test_a_path_that_leads_elsewhere_is_named(dataset: Path, template: str) -> None:
    change_info(dataset, {"data_path": template})
    with pytest.warns(UserWarning, match=r"Episode 0 of .* is skipped: .*info\.json is damaged"):
        assert list(LeRobotReader(dataset)) == []


def test_videos_without_a_path_are_named(dataset: Path) -> None:
    change_info(dataset, {"video_path": None})
    with pytest.warns(UserWarning, match="is skipped: .* it has videos, but no 'video_path'"):
        assert list(LeRobotReader(dataset)) == []


NAN = float("nan")
ROWS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda row: row.update({"libero/versions": "["}), "'libero/versions' is damaged: it is no JSON"),
    (lambda row: row.update({"libero/versions": "[" * 10**5}), "nested too deeply"),
    (lambda row: row.update({"libero/versions": "[]"}), "expected an object at its top"),
    (lambda row: row.update({"data/chunk_index": None}), "'data/chunk_index' is missing"),
    (lambda row: row.update({"data/file_index": 10**12}), "data/file_index=1000000000000 is out of range"),
    (lambda row: row.update({"data/file_index": -1}), "data/file_index=-1 is out of range"),
    (lambda row: row.update({"length": 10**12}), "length=1000000000000 is out of range"),
    (lambda row: row.update({"length": 0}), "length=0 is out of range"),
    (lambda row: row.update({"length": 5}), "holds 6 of 5 frames"),
    (lambda row: row.update({"length": None}), "'length' is missing"),
    (lambda row: row.update({f"videos/{CAMERA}/from_timestamp": NAN}), "from_timestamp=nan; expected a number"),
    (lambda row: row.update({f"videos/{CAMERA}/from_timestamp": -1.0}), "from_timestamp=-1.0 is out of range"),
    (lambda row: row.update({f"videos/{CAMERA}/chunk_index": None}), "chunk_index' is missing"),
]


@pytest.mark.parametrize(("change", "message"), ROWS)
def test_a_damaged_row_costs_one_episode(dataset: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change_row(dataset, change)
    with pytest.warns(UserWarning, match="Episode 1 of .* is skipped: .*" + message):
        assert [len(episode) for episode in LeRobotReader(dataset)] == [5]


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.int64())])
def test_a_row_with_fields_of_other_types_costs_its_dataset_no_more_than_episodes(dataset: Path, kind: Any) -> None:
    path = dataset / EPISODES_PATH
    table = pq.read_table(path)
    cells = [1, 1] if kind == pa.int64() else [[1], [1]]
    for name in ("tasks", "libero/suite"):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells, kind))
    pq.write_table(table, path)
    with pytest.warns(UserWarning, match="is skipped: its row is damaged: 'tasks' is .*expected a list of instruct"):
        assert list(LeRobotReader(dataset)) == []


def test_a_table_that_states_a_flood_of_rows_is_not_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libero_gym.demonstrations.lerobot_tables._MAX_ROWS", 5)
    with pytest.warns(UserWarning, match=r"Episode 1 of .* is skipped: .*it states 6 rows"):
        assert [len(episode) for episode in LeRobotReader(dataset)] == [5]


def memory_of(read: Callable[[], Any]) -> int:
    """Bytes of Arrow's memory that reading takes at its most."""
    pool = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counted)
    try:
        read()
    finally:
        pa.set_memory_pool(pool)
    return int(counted.max_memory() or 0)


def test_a_small_file_of_one_large_repeated_image_does_not_fill_the_memory(dataset: Path) -> None:
    keep_frames_in_parquet(dataset)
    path, n = dataset / "data/chunk-000/file-001.parquet", 600
    table = pa.concat_tables([pq.read_table(path)] * (n // 6)).drop([CAMERA])
    table = table.set_column(table.schema.get_field_index("frame_index"), "frame_index", pa.array(range(n)))
    cells = pa.array([{"bytes": np.random.default_rng(0).bytes(10**6)}] * n)
    pq.write_table(table.append_column(CAMERA, cells), path, dictionary_pagesize_limit=10**7)
    del cells
    change_row(dataset, lambda row: row.update(length=n))
    assert path.stat().st_size < 2 * 10**6
    with pytest.warns(UserWarning, match=r"Episode 1 of .*file-001\.parquet is damaged: 16 of its rows take 16\d+ "):
        assert memory_of(lambda: list(LeRobotReader(dataset))) < 10**8


def test_long_lists_in_the_place_of_numbers_do_not_fill_the_memory(dataset: Path) -> None:
    path = dataset / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    cells = pa.array([np.zeros(10**6, np.float32)] * len(table), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", cells), path)
    assert path.stat().st_size < 10**5
    with pytest.warns(UserWarning, match=r"Episode 1 .*'action\.list\.element' holds 6000000 values in 6 rows"):
        assert memory_of(lambda: list(LeRobotReader(dataset))) < 10**7


@pytest.mark.parametrize(("n_rows", "words"), [(20_000, 10), (400, 10**6)])
def test_a_small_list_of_a_flood_of_episodes_does_not_fill_the_memory(dataset: Path, n_rows: int, words: int) -> None:
    path = dataset / EPISODES_PATH
    table = pq.read_table(path)
    table = table.select([name for name in table.column_names if not name.startswith("stats/")])
    tasks = pa.array([["x" * words]] * n_rows)
    table = pa.concat_tables([table.slice(0, 1)] * n_rows).combine_chunks()
    pq.write_table(table.set_column(table.schema.get_field_index("tasks"), "tasks", tasks), path, compression="zstd")
    del table, tasks
    assert path.stat().st_size < 2 * 10**5
    message = "lists 20000 episodes; the dataset has 2" if words == 10 else "of its rows take"
    with pytest.raises(DamagedEpisodeError, match=message):
        memory_of(lambda: LeRobotReader(dataset))


def test_episodes_that_share_a_file_and_its_row_groups_are_read(dataset: Path) -> None:
    keep_frames_in_parquet(dataset)
    first, second = sorted(dataset.glob("data/*/*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(first), pq.read_table(second)]), first, row_group_size=4)
    second.unlink()
    change_row(dataset, lambda row: row.update({"data/file_index": 0}))
    for index, episode in enumerate(LeRobotReader(dataset)):
        expected = synthetic(5 + index, seed=index)
        np.testing.assert_array_equal(episode.actions, expected.actions)
        np.testing.assert_array_equal(episode.images["image"], expected.images["image"])
    assert index == 1


def test_a_video_of_larger_frames_than_stated_does_not_fill_the_memory(dataset: Path) -> None:
    features = json.loads((dataset / INFO_PATH).read_text())["features"]
    features[CAMERA]["shape"] = [2, 2, 3]
    change_info(dataset, {"features": features})
    with pytest.warns(UserWarning, match="it holds 3072 bytes of pixels where 5 frames"):  # one frame, then it stops
        assert list(LeRobotReader(dataset)) == []


def test_a_missing_column_is_named_in_one_line(dataset: Path) -> None:
    path = next(dataset.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(path).drop(["action"]), path)
    (message,) = [str(w.message) for w in _warnings(lambda: list(LeRobotReader(dataset)))]
    assert message.endswith(f"{path} is damaged: it has no column 'action'.")


def test_what_ffmpeg_says_of_a_cut_video_is_one_line(dataset: Path) -> None:
    path = next(dataset.glob("videos/*/*/*.mp4"))
    path.write_bytes(path.read_bytes()[:50])
    (message,) = [str(w.message) for w in _warnings(lambda: list(LeRobotReader(dataset)))]
    assert "\n" not in message
    assert " @ 0x" not in message
    assert f"{path} is damaged or missing (" in message


def _warnings(read: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read()
    return [w for w in seen if w.category is UserWarning]


@pytest.mark.parametrize(("index", "error"), [(2, IndexError), (-3, IndexError), (True, ValueError), ("0", ValueError)])
def test_an_episode_that_is_not_there_is_told(dataset: Path, index: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"has no episode -?\d; it has 2\.$|^The episode's index=.* a whole number"):
        LeRobotReader(dataset)[index]


@pytest.mark.parametrize("root", [None, 5, b"dataset"])
def test_what_is_no_path_is_told(root: Any) -> None:
    for reading in (LeRobotReader, lambda root: LeRobotWriter(root, cameras=())):
        with pytest.raises(TypeError, match=r"^root=.*; expected a path, as a str or Path\.$"):
            reading(root)

"""A run of any length is saved and read again: long tables stand beside the document, in a bounded form."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
from resuming import callbacks, learner, load
from safetensors.torch import load_file, save_file
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, Curriculum, LearningCurve, RunCheckpoints, RunError, latest_run
from vla_agent.callbacks.success import TrainingEpisode
from vla_agent.evaluation.learning import read_curve
from vla_agent.runs import saved_run, tables
from vla_agent.runs.run_files import STATE, TABLES, damage

N_EPISODES = 2000


@pytest.fixture(scope="module", autouse=True)
def shorter_tables_are_long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "LONG", 1000)
        yield


def long_run(folder: Path) -> tuple[VLAPPO, list[TrainingEpisode]]:
    """A run that seems to have played many episodes."""
    model, used = learner(), [Curriculum("uniform"), LearningCurve(folder / "curve.png")]
    model.learn(32, used)
    for callback in used:
        callback.history = [TrainingEpisode(i, i % 3, i % 7 == 0, i / 7, 1, i // 3 * 3) for i in range(N_EPISODES)]
        callback.began = [N_EPISODES] * 2
    return model, used[0].history


@pytest.fixture(scope="module")
def saved(shorter_tables_are_long: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model, _ = long_run(folder)
    model.save(folder / "a")
    model.save(folder / "b.zip")
    return folder


def test_a_long_history_comes_back_from_beside_the_document(saved: Path) -> None:
    assert (saved / "a" / STATE).stat().st_size < 2**17
    assert damage(saved / "a") is damage(saved / "b.zip") is None
    with zipfile.ZipFile(saved / "b.zip") as archive:
        assert archive.read(TABLES) == (saved / "a" / TABLES).read_bytes()
    _, history = long_run(saved)
    for name in ("a", "b.zip"):
        curriculum, curve = Curriculum("uniform"), LearningCurve(saved / "curve.png")
        load(saved / name).learn(1, [curriculum, curve], reset_num_timesteps=False)
        assert curriculum.history[:N_EPISODES] == curve.history[:N_EPISODES] == history
        assert {type(value) for value in curriculum.history[0]} == {int, bool, float}
    curve_of_run = read_curve(saved / "a")
    assert curve_of_run is not None
    assert len(curve_of_run.training) > 50
    assert latest_run(saved / "a") == saved / "a"


def test_a_short_run_has_no_tables(tmp_path: Path) -> None:
    model = learner()
    model.learn(96, callbacks())
    model.save(tmp_path / "a")
    assert not (tmp_path / "a" / TABLES).exists()
    assert len(json.loads((tmp_path / "a" / STATE).read_text())["callbacks"]["Curriculum"]["history"]) > 20
    model, _ = long_run(tmp_path)
    model.save(tmp_path / "a")
    assert (tmp_path / "a" / TABLES).exists()
    learner().save(tmp_path / "a")  # a run is replaced whole
    assert not (tmp_path / "a" / TABLES).exists()


def drop(path: Path, tensors: dict[str, th.Tensor]) -> None:
    path.unlink()


def lose_a_table(path: Path, tensors: dict[str, th.Tensor]) -> None:
    save_file({name: column for name, column in tensors.items() if name.startswith("0.")}, path)


def cut_a_column(path: Path, tensors: dict[str, th.Tensor]) -> None:
    save_file(tensors | {"1.2": tensors["1.2"][:-1].contiguous()}, path)


def not_by_number(path: Path, tensors: dict[str, th.Tensor]) -> None:
    save_file(tensors | {"a.b": tensors["1.2"].clone()}, path)


def a_square(path: Path, tensors: dict[str, th.Tensor]) -> None:
    save_file({name: column[:1600].view(40, 40).clone() for name, column in tensors.items()}, path)


def not_finite(path: Path, tensors: dict[str, th.Tensor]) -> None:
    tensors["0.3"][5] = float("nan")
    save_file(tensors, path)


def used_twice(path: Path, tensors: dict[str, th.Tensor]) -> None:
    """As many references to one table would be as many tables in memory."""
    state = json.loads(path.with_name(STATE).read_text())
    state["callbacks"]["LearningCurve"]["history"] = state["callbacks"]["Curriculum"]["history"]
    path.with_name(STATE).write_text(json.dumps(state))


DAMAGES = [
    (drop, "table 0 is missing"),
    (lose_a_table, "table 1 is missing"),
    (cut_a_column, "table 1 .*has columns of several lengths"),
    (not_by_number, "invalid literal"),
    (a_square, "table 0 .*has columns of several lengths"),
    (not_finite, r"tables\.safetensors' is damaged: 0\.3 holds NaN"),
    (used_twice, "table 0 .*is used twice"),
]


@pytest.mark.parametrize(("change", "match"), DAMAGES, ids=[change.__name__ for change, _ in DAMAGES])
def test_tables_that_are_not_as_written_are_told(saved: Path, tmp_path: Path, change: Any, match: str) -> None:
    run = Path(shutil.copytree(saved / "a", tmp_path / "run"))
    change(run / TABLES, load_file(run / TABLES))
    with pytest.raises(RunError, match=r"lacks tables\.safetensors|its checksum is not the one"):
        load(run)
    (run / "checksums.json").unlink()
    with pytest.raises(RunError, match=match):
        load(run)
    assert damage(run) is not None


def test_more_rows_than_memory_holds_are_refused_unread(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 2 * N_EPISODES - 1)
    with pytest.raises(RunError, match="its tables have 4000 rows; expected at most 3999"):
        load(saved / "a")
    model, _ = long_run(tmp_path)
    model.save(tmp_path / "a")  # what is too much for the tables stays in the document
    assert damage(tmp_path / "a") is None
    assert len(load_file(tmp_path / "a" / TABLES)) == len(TrainingEpisode._fields)


@pytest.mark.parametrize(
    "row", [[1, "a"], [1, None], [1, 2**70], [1, float("inf")], [1, [2]], [], "ab"], ids=lambda row: str(row)[:20]
)
def test_what_is_no_table_of_numbers_stays_in_the_document(monkeypatch: pytest.MonkeyPatch, row: Any) -> None:
    monkeypatch.setattr(tables, "LONG", 2)
    document = {"a": [row, row], "b": {"c": [[1, 2.5], (3, 4.5)]}, "d": [[1], [2, 3]], "e": [[1], [2.5]]}
    rest, columns = tables.split(document)
    assert {name: column.tolist() for name, column in columns.items()} == {"0.0": [1, 3], "0.1": [2.5, 4.5]}
    assert {key: rest[key] for key in "ade"} == {key: document[key] for key in "ade"}
    assert tables.join(rest, columns) == document | {"b": {"c": [[1, 2.5], [3, 4.5]]}}


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hoarding(BaseCallback):
        """Its state grows."""

        def _on_step(self) -> bool:
            return True

        def state_dict(self) -> dict[str, Any]:
            return {"texts": ["much"] * 100 * self.num_timesteps}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    monkeypatch.setattr(saved_run, "MAX_JSON_BYTES", 2**17)
    sentence = (
        r"its state\.json would be .* MiB, and one above 0\.125 MiB is not read again\. Most of it is 'callbacks'"
    )
    with pytest.raises(RunError, match=sentence):
        learner().learn(320, [Hoarding(), RunCheckpoints(tmp_path, every=1, keep=1)])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000000064"]
    assert damage(latest_run(tmp_path)) is None

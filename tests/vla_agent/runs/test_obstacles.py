"""What stands where a run is to be saved: it stays, nothing of the run is lost, and the run goes on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupting import At
from resuming import StopAt, load
from saved_runs import fake_model
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, RunCheckpoints, SaveOnSignal, claim_run, latest_run, safe_learn
from vla_agent.runs.run_files import damage

NEWEST = "0000000064"


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of 32 and 64 timesteps."""
    run_dir = tmp_path_factory.mktemp("run")
    safe_learn(fake_model(), 96, run_dir, RunCheckpoints(run_dir, every=1))
    return run_dir


@pytest.fixture
def run_dir(two_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run", symlinks=True))


def go_on(run_dir: Path, *callbacks: BaseCallback, total: int = 160) -> VLAPPO:
    with claim_run(run_dir, run_dir) as claim:
        assert claim.resumed_from is not None
        model = load(claim.resumed_from)
        used = [RunCheckpoints(run_dir, every=1), *callbacks]
        safe_learn(model, total - model.num_timesteps, run_dir, used, reset_num_timesteps=False)
    return model


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name.lstrip("0") for path in (run_dir / "checkpoints").iterdir())


# -------------------------------------------------------------------------------------------------- checkpoints


def lacks_a_file(path: Path) -> None:
    (path / "optimizer.json").unlink()


def lacks_its_state(path: Path) -> None:
    (path / "state.json").unlink()


def is_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("precious")


@pytest.mark.parametrize("spoil", [lacks_a_file, lacks_its_state, is_a_file])
@pytest.mark.filterwarnings("ignore:The saved run")
def test_a_damaged_checkpoint_in_the_way_stays_and_the_run_goes_on(
    run_dir: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    newest = run_dir / "checkpoints" / NEWEST
    spoil(newest)
    before = {path: path.read_bytes() for path in [newest, *newest.glob("*")] if path.is_file()}
    assert go_on(run_dir, StopAt(40)).num_timesteps == 112  # from 32, to the third rollout
    assert f"'{newest}' is more or less than a saved run, and stays; the run was saved as '{newest}_2'." in caplog.text
    assert {path: path.read_bytes() for path in before} == before
    assert checkpoints(run_dir) == ["64", "64_2", "96"]
    assert damage(newest.with_name(f"{NEWEST}_2")) is None
    assert go_on(run_dir).num_timesteps == 160
    assert checkpoints(run_dir) == ["128", "64", "96"]  # what was saved as 64_2 was removed in its turn
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_under_another_name_is_gone_on_from(run_dir: Path) -> None:
    lacks_a_file(run_dir / "checkpoints" / NEWEST)
    with pytest.warns(UserWarning, match="Going on from the next older one"):
        go_on(run_dir, StopAt(20))
    assert latest_run(run_dir).name == f"{NEWEST}_2"
    assert load(latest_run(run_dir)).num_timesteps == 64


def test_what_is_left_of_a_checkpoint_under_another_name_is_removed(run_dir: Path) -> None:
    """As of a process that was killed while it wrote one."""
    shutil.copytree(run_dir / "checkpoints" / NEWEST, run_dir / "checkpoints" / f".{NEWEST}_2.ab_12cde")
    shutil.copytree(run_dir / "checkpoints" / NEWEST, run_dir / "interrupted_2")
    shutil.copytree(run_dir / "checkpoints" / NEWEST, run_dir / ".interrupted_2.ab_12cde")
    go_on(run_dir, total=96)
    assert not list(run_dir.rglob(".*ab_12cde"))


@pytest.mark.parametrize("name", [".DS_Store", "notes.txt"])
def test_a_note_in_the_checkpoint_that_a_run_goes_on_from_is_no_obstacle(run_dir: Path, name: str) -> None:
    (run_dir / "checkpoints" / NEWEST / name).write_text("mine")
    assert go_on(run_dir).num_timesteps == 160
    assert checkpoints(run_dir) == ["128", "64", "96"]
    assert (run_dir / "checkpoints" / NEWEST / name).read_text() == "mine"


def test_the_checkpoint_that_a_run_goes_on_from_is_not_written_again(run_dir: Path) -> None:
    before = (run_dir / "checkpoints" / NEWEST / "state.json").stat().st_mtime_ns
    go_on(run_dir, total=96)
    assert (run_dir / "checkpoints" / NEWEST / "state.json").stat().st_mtime_ns == before
    older = load(run_dir / "checkpoints" / "0000000032")  # going back is a choice, which has to be noted
    used = [RunCheckpoints(run_dir, every=1, keep=9), StopAt(5)]
    safe_learn(older, 32, run_dir, used, reset_num_timesteps=False)
    assert latest_run(run_dir).name == "0000000032"


# -------------------------------------------------------------------------------------------------- interrupted/


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def put_a_note(run_dir: Path) -> None:
    (run_dir / "interrupted").mkdir(exist_ok=True)
    (run_dir / "interrupted" / ".DS_Store").write_text("mine")


def test_what_an_interruption_could_not_replace_is_found_before_training(tmp_path: Path) -> None:
    assert not safe_learn(fake_model(), 640, tmp_path, At(20, press_ctrl_c))
    put_a_note(tmp_path)
    for attempt in (
        lambda model: safe_learn(model, 64, tmp_path, reset_num_timesteps=False),
        lambda model: model.learn(64, SaveOnSignal(tmp_path), reset_num_timesteps=False),
    ):
        model = load(tmp_path / "interrupted")
        with pytest.raises(FileExistsError, match=r"interrupted' holds '\.DS_Store', which no saved run has"):
            attempt(model)
        assert model.num_timesteps == 32
    (tmp_path / "interrupted" / ".DS_Store").unlink()
    assert safe_learn(load(tmp_path / "interrupted"), 64, tmp_path, reset_num_timesteps=False)


def fail() -> None:
    raise RuntimeError("worker died")


@pytest.mark.parametrize("end", [press_ctrl_c, fail])
def test_what_came_into_the_way_of_an_interruption_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: Callable[[], None]
) -> None:
    caplog.set_level(logging.WARNING)
    used = [At(18, lambda: put_a_note(tmp_path)), At(20, end)]
    try:
        safe_learn(fake_model(), 640, tmp_path, used)
    except RuntimeError:
        assert end is fail
    place = tmp_path / "interrupted"
    assert f"'{place}' is more or less than a saved run, and stays; the run was saved as '{place}_2'." in caplog.text
    assert [path.name for path in place.iterdir()] == [".DS_Store"]
    assert latest_run(tmp_path) == tmp_path / "interrupted_2"
    assert load(latest_run(tmp_path)).num_timesteps == 32
    assert safe_learn(fake_model(), 32, tmp_path, existing="aside")
    (aside,) = (tmp_path / "earlier").iterdir()
    assert {path.name for path in aside.iterdir()} == {"interrupted", "interrupted_2", "run.json"}

"""Evaluations and recordings that an engine's processes share are those of one process."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from libero_gym.demonstrations import record
from libero_gym.demonstrations.recording import RECORDING_FOLDER
from vla_agent import evaluate_policy
from vla_agent.commands import evaluate
from vla_agent.commands import record as recording_command
from vla_agent.commands.record import share_episodes
from vla_agent.engines import EngineError, RayEngine
from vla_agent.engines.cluster import Cluster
from vla_agent.engines.worker import Worker
from vla_agent.evaluation.policies import Subject
from vla_agent.evaluation.provenance import describe_model
from vla_agent.evaluation.sharing import play_share_of
from vla_agent.evaluation.trials import Trial
from vla_agent.policy.loading import load_backbone

ray = pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two processes."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with RayEngine(2, cpus_per_worker=1, start_deadline_s=120) as made:
        yield made
    ray.shutdown()
    th.set_num_threads(threads)


def whose(items: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The process that works on each item, the last item first; items below 0 end it once, and 99 does not count."""
    for position in reversed(range(len(items))):
        path = Path("/tmp") / f"{os.getppid()}-{items[position]}"
        if items[position] == 99:
            continue
        if items[position] < 0 and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        path.unlink(missing_ok=True)
        yield position, (items[position], os.getpid())


def test_each_item_is_worked_on_once_in_both_processes(engine: RayEngine) -> None:
    results = dict(engine.map(whose, [10, 11, 12, 13, 14]))
    assert [results[index][0] for index in range(5)] == [10, 11, 12, 13, 14]
    mine = os.getpid()
    assert [results[index][1] == mine for index in range(5)] == [True, False, True, False, True]
    assert dict(engine.map(whose, [10])) == {0: (10, mine)}
    assert list(engine.map(whose, [])) == []
    assert dict(engine.map(whose, [1, 2], here=lambda items: iter([(0, "here")])))[0] == "here"


def test_a_process_that_dies_is_replaced_and_does_what_it_had_not(engine: RayEngine) -> None:
    before = engine.n_replaced
    results = list(engine.map(whose, [1, -2, 3, 4]))
    assert sorted(index for index, _ in results) == [0, 1, 2, 3]
    assert engine.n_replaced == before + 1
    pids = {item: pid for _, (item, pid) in results}
    assert pids[4] != pids[-2]  # what had been done was not done again
    with pytest.raises(EngineError, match="left 1 items out"):
        list(engine.map(whose, [1, 99]))


def test_all_streams_that_have_a_result_are_told() -> None:
    """Ray's wait gives one of them unless more are asked for; what is not taken in its time counts as lost."""

    class Ray:
        def wait(self, streams: list[Any], *, num_returns: int = 1, timeout: float, fetch_local: bool) -> Any:
            ready = [stream for stream in streams if stream.startswith("ready")][:num_returns]
            return ready, [stream for stream in streams if stream not in ready]

    def told(*streams: str) -> list[str]:
        return Cluster.told(SimpleNamespace(ray=Ray()), streams, 0.0)  # type: ignore[arg-type]

    assert told("ready 0", "busy", "ready 1", "ready 2") == ["ready 0", "ready 1", "ready 2"]
    assert told("busy") == []


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """Six episodes of two tasks, long enough for some to succeed."""
    return {
        "env_id": "LIBERO-Spatial-v0",
        "task_ids": [0, 1],
        "init_state_ids": [0, 1, 2],
        "protocol": "training",
        "renderer": "fast",
        "max_episode_steps": 120,
        "n_envs": 2,
        "progress_bar": False,
    }


def test_episodes_of_two_processes_are_those_of_one(
    engine: RayEngine, evaluation: dict[str, Any], tmp_path: Path
) -> None:
    model = "tiny-libero"
    alone = evaluate_policy(model, **evaluation)
    shared = evaluate_policy(model, **evaluation, engine=engine, out=tmp_path)
    assert shared.episodes == alone.episodes
    assert len(shared.episodes) == 6
    assert len({episode.steps for episode in shared.episodes}) > 2  # else they could be others, and the same
    assert shared.conditions == alone.conditions
    assert shared.settings == alone.settings
    assert shared.complete
    again = evaluate_policy(model, **evaluation, engine=engine, out=tmp_path)  # all of it is there
    assert again.episodes == alone.episodes
    drawn = evaluate_policy(
        model, **(evaluation | {"max_episode_steps": 16}), engine=engine, deterministic=False, seed=3
    )
    assert len(drawn.episodes) == 6


def test_what_other_processes_cannot_have_is_told(
    engine: RayEngine, evaluation: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="give its name"):
        evaluate_policy(load_backbone("tiny-libero"), **evaluation, engine=engine)
    with pytest.raises(ValueError, match="film_failures needs an evaluation without an engine"):
        evaluate_policy("tiny-libero", **evaluation, engine=engine, out=tmp_path, film_failures=1)


def test_a_process_that_finds_another_model_by_the_name_does_not_play() -> None:
    class Evaluator:
        subject = Subject(load_backbone("tiny"), "runs/tiny")

        def close(self) -> None:
            closed.append(self)

    closed: list[Evaluator] = []
    weights = describe_model(*Evaluator.subject[:3])["sha256"]["weights"]
    told = rf"'runs/tiny' on {socket.gethostname()} is another than the one evaluated: training.json, weights differ"
    with pytest.raises(ValueError, match=told):
        next(play_share_of({"weights": weights[::-1], "training.json": "0"}, Evaluator, True, None, 0, [Trial(0, 0)]))
    assert len(closed) == 1


def test_relative_paths_go_by_the_folder_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # where Ray was started, say
    Worker(0, th.get_num_threads(), str(tmp_path))
    assert Path.cwd() == tmp_path
    Worker(0, th.get_num_threads(), str(tmp_path / "on another machine"))
    assert Path.cwd() == tmp_path


def test_demonstrations_of_two_processes_are_those_of_one(engine: RayEngine, tmp_path: Path) -> None:
    options = {
        "suite": "libero_object",
        "policy": "libero_gym.demonstrations:expert_policy",
        "task_ids": 0,
        "init_state_ids": [0, 1, 2],
        "cameras": ("agentview",),
        "image_size": 32,
        "renderer": "fast",
        "max_steps": 20,
        "action_noise": 0.05,
        "keep_failures": True,
        "progress_bar": False,
    }
    alone = record(tmp_path / "alone", **options, n_workers=0)  # type: ignore[arg-type]
    shared = record(tmp_path / "shared", **options, recorder=functools.partial(share_episodes, engine))  # type: ignore[arg-type]
    assert shared == alone
    assert shared.n_written == 3
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone" / RECORDING_FOLDER).glob("*.npz")}
    assert len(files) == 3
    for name, content in files.items():
        assert (tmp_path / "shared" / RECORDING_FOLDER / name).read_bytes() == content


def test_commands_ask_for_an_engine_by_its_name(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    @contextlib.contextmanager
    def the_engine(options: Any) -> Iterator[RayEngine]:
        asked.append((options.engine, options.processes))
        yield engine

    for command in (evaluate, recording_command):
        monkeypatch.setattr(command, "sharing_engine", the_engine)
    share = "--engine ray --processes 2"
    trials = "--model tiny-libero --task-ids 0 --init-states 0,1 --protocol training --renderer fast --n-envs 1"
    evaluate.command([*trials.split(), *share.split(), "--max-episode-steps=8", f"--out={tmp_path / 'a'}"])
    recording = "--task-ids 0 --init-states 0,1 --renderer fast --image-size 32"
    monkeypatch.setattr(recording_command, "record", functools.partial(record, max_steps=8))
    recording_command.command([*recording.split(), *share.split(), "--keep-failures", f"--out={tmp_path / 'b'}"])
    assert asked == [("ray", 2), ("ray", 2)]
    assert "2 of 2 episodes" in capsys.readouterr().out
    for command in (evaluate, recording_command):
        with pytest.raises(ValueError, match="add --engine ray"):
            command.command(["--address", "auto"])
        with pytest.raises(ValueError, match="--processes 16 are an engine's: add --engine ray, or leave it out"):
            command.command(["--processes", "16"])
        with pytest.raises(ValueError, match="--processes"):
            command.command(["--engine", "ray", "--processes", "0"])

"""What is lost of a run on a cluster is replaced with the same result, or the run stops in a sentence and is whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch as th
from interrupting import At
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, make_vec_env
from vla_agent.engines import EngineError, RayEngine
from vla_agent.engines import cluster as engine_cluster
from vla_agent.engines.worker import Worker
from vla_agent.runs import keeping

ray = pytest.importorskip("ray", reason="ray is not installed")

ENV: dict[str, Any] = {
    "model": "tiny-libero",
    "task_id": 0,
    "renderer": "fast",
    "physics": "coarse",
    "placement_seeds": range(2),
    "reward": "progress",  # no episode succeeds in so few steps
    "seed": 0,
}
PPO: dict[str, Any] = {
    "n_steps": 3,
    "batch_size": 6,
    "n_epochs": 1,
    "ratio_level": "token",
    "policy_kwargs": {"model": "tiny-libero", "temperature": 0.5, "autocast": None},
    "seed": 0,
    "device": "cpu",
}
N_ENVS, TIMESTEPS = 2, 12  # two iterations
FIRST_OF_SECOND = 4  # the first step of the second rollout, whose process goes on to play meanwhile
SPLIT: dict[str, Any] = {"placement": "split", "cpus_per_worker": 1, "deadline_s": 15, "room_deadline_s": 5}

Weights = dict[str, th.Tensor]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two raylets: the head, with room for the process that learns, and a machine with room for one that plays."""
    from ray.cluster_utils import Cluster

    threads = th.get_num_threads()
    th.set_num_threads(1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    th.set_num_threads(threads)


@pytest.fixture(scope="module")
def local() -> Weights:
    """What a run in one process learns."""
    return train(None)


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    with RayEngine(1, 1, **SPLIT) as engine:
        yield engine


def train(engine: RayEngine | None, strike: BaseCallback | None = None, run_dir: Path | None = None) -> Weights:
    """The weights that a run learns, or goes on to learn if there is one in ``run_dir``."""
    env = (make_vec_env if engine is None else engine.make_vec_env)("LIBERO-Spatial-v0", N_ENVS, **ENV)
    try:
        if run_dir is not None and run_dir.exists():
            model = VLAPPO.load(keeping.latest_run(run_dir), env, "cpu")
            model.learn(TIMESTEPS - model.num_timesteps, reset_num_timesteps=False)
        else:
            model = VLAPPO("VLAPolicy", env, **PPO)
            if run_dir is None:
                model.learn(TIMESTEPS, callback=strike)
            else:
                keeping.safe_learn(model, TIMESTEPS, run_dir, strike)
        assert model.rollout_buffer.advantages.std() > 0  # else nothing would be learned
        return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    finally:
        env.close()


def assert_same(first: Weights, second: Weights) -> None:
    for name, tensor in first.items():
        th.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def children(pid: int) -> list[int]:
    command = ["pgrep", "-P", str(pid), "-f", "libero_gym.vector.worker"]
    return [int(child) for child in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def test_a_process_of_environments_that_dies_changes_nothing(local: Weights, engine: RayEngine) -> None:
    def kill() -> None:
        (template,) = children(engine.roster.pid(0))
        os.kill(children(template)[0], signal.SIGKILL)

    before = engine.n_replaced
    assert_same(local, train(engine, At(FIRST_OF_SECOND, kill)))
    assert engine.n_replaced == before + 1


def test_a_process_that_hangs_is_replaced_after_its_deadline(local: Weights, engine: RayEngine) -> None:
    before, pid = engine.n_replaced, engine.roster.pid(0)
    assert_same(local, train(engine, At(FIRST_OF_SECOND, lambda: os.kill(pid, signal.SIGSTOP))))
    assert engine.n_replaced == before + 1
    assert not Path(f"/proc/{pid}").exists()  # it does not hold its room, nor wake up later


def test_a_process_that_died_before_training_began_is_replaced(local: Weights, engine: RayEngine) -> None:
    os.kill(engine.roster.pid(0), signal.SIGKILL)
    assert_same(local, train(engine))


def test_another_run_without_room_is_told_what_is_free(engine: RayEngine) -> None:
    with pytest.raises(EngineError, match=r"no room for 2 processes of 1 CPU each within 1 s: 0 of 2 CPUs are free"):
        RayEngine(1, 1, **(SPLIT | {"room_deadline_s": 1}))
    assert engine.roster.answer(0, engine.roster.actor(0).describe.remote())["pid"] == engine.roster.pid(0)


def test_a_machine_that_dies_is_made_up_for_by_another_or_the_run_stops_whole(
    local: Weights, engine: RayEngine, cluster: Any, tmp_path: Path
) -> None:
    first, second = cluster.list_all_nodes()[1], cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    kill = At(FIRST_OF_SECOND, lambda: cluster.remove_node(first, allow_graceful=False))
    assert_same(local, train(engine, kill))
    kill = At(FIRST_OF_SECOND, lambda: cluster.remove_node(second, allow_graceful=False))
    pid, before = engine.roster.pid(0), engine.n_replaced
    with pytest.raises(EngineError, match=rf"process {pid} on .* is gone\. It cannot be replaced: .* 0 of 1 CPUs"):
        train(engine, kill, tmp_path / "run")
    assert engine.n_replaced == before
    assert_same(local, train(None, run_dir=tmp_path / "run"))


def test_an_engine_waits_for_a_machine_that_joins_late_and_refuses_other_code(
    cluster: Any, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.close()  # the last test lost its machine

    class Other(Worker):
        def describe(self) -> dict[str, Any]:
            return super().describe() | {"code": "another"}

    monkeypatch.setattr(engine_cluster, "Worker", Other)
    with futures.ThreadPoolExecutor() as pool:
        waits = pool.submit(RayEngine, 1, 1, **(SPLIT | {"room_deadline_s": 60}))
        time.sleep(1)
        cluster.add_node(num_cpus=1)
        with pytest.raises(EngineError, match=r"runs other sources of libero-vla \(another\)"):
            waits.result()
    until = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2  # what was refused holds no room


def test_a_full_object_store_is_told_in_a_sentence(cluster: Any) -> None:
    @ray.remote(num_cpus=0)
    class Full:
        def play(self) -> None:
            raise ray.exceptions.ObjectStoreFullError("Failed to put object")

    ours = engine_cluster.Cluster(None, 15, 15, 1)
    full = engine_cluster.Remote(3, Full.remote(), "there", 7)  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"Worker 3 .*--object-store-memory"):
        ours.answer(full, full.actor.play.remote())


def test_an_address_where_nobody_listens_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineError, match=rf"Nobody answers at address='{address}' within 15 s"):
            RayEngine(address=address, deadline_s=15)

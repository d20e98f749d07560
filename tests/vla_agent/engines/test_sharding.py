"""Learners that share weights learn what those learn that each hold all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
import torch.distributed as dist
from engine_runs import ENV, ITERATION, N_ENVS, PPO, Kill, Run, assert_same, one_cluster
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vla_agent import VLAPPO, Curriculum, RunError
from vla_agent.algorithms import health
from vla_agent.engines import EngineError, RayEngine
from vla_agent.engines.sharding import ShardedRanks, share_moment

ray = pytest.importorskip("ray", reason="ray is not installed")

POLICY = PPO["policy_kwargs"] | {"average_decay": 0.9}


cluster = pytest.fixture(scope="module", autouse=True)(one_cluster)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    with RayEngine(2, 1, placement="split", shard=True, cpus_per_worker=1, deadline_s=60) as made:
        yield made


@pytest.fixture(scope="module")
def whole() -> Iterator[RayEngine]:
    with RayEngine(2, 1, placement="split", cpus_per_worker=1, deadline_s=60) as made:
        yield made


def train(engine: RayEngine, *callbacks: Any, **kwargs: Any) -> Run:
    env = engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    return Run(env, *callbacks, policy_kwargs=POLICY, **kwargs)


@pytest.fixture(scope="module")
def shared(engine: RayEngine) -> Run:
    return train(engine)


def optimizer_of(run: Run) -> dict[str, dict[str, Any]]:
    policy = run.model.policy
    return {name: policy.optimizer.state[p] for name, p in policy.named_parameters() if p in policy.optimizer.state}


def test_weights_moments_and_averages_are_those_of_whole_learners_within_rounding(
    shared: Run, whole: RayEngine
) -> None:
    run = train(whole)
    assert_same(run, shared, atol=2e-6)
    first, second = optimizer_of(run), optimizer_of(shared)
    assert first.keys() == second.keys()
    assert {"exp_avg", "exp_avg_sq", "average"} <= set().union(*map(set, second.values()))
    for name, state in first.items():
        for key, value in state.items():
            th.testing.assert_close(second[name][key], value, rtol=0, atol=2e-6)
    ours, theirs = (made.model.policy.optimizer.param_groups for made in (run, shared))
    assert [group["lr"] for group in ours] == [group["lr"] for group in theirs]


def test_each_learner_holds_a_share(shared: Run, engine: RayEngine) -> None:
    assert isinstance(engine.ranks, ShardedRanks)
    policy = engine.ranks.policy
    shares = [p for p in policy.parameters() if isinstance(p, DTensor)]
    assert len(shares) == len(list(policy._backbone.parameters()))
    own = sum(share.to_local().numel() for share in shares)
    assert 0.4 < own / sum(share.numel() for share in shares) < 0.6
    moments = [policy.optimizer.state[p]["exp_avg"] for p in shares if p in policy.optimizer.state]
    assert moments
    assert all(isinstance(moment, DTensor) for moment in moments)
    assert not any(isinstance(p, DTensor) for p in shared.model.policy.parameters())


def test_a_learner_that_dies_in_an_update_changes_nothing(shared: Run, engine: RayEngine) -> None:
    before = engine.n_replaced
    cut = train(engine, Kill(engine, 1, rollout=3))
    assert engine.n_replaced == before + 1
    assert_same(shared, cut)


def test_a_learner_that_dies_while_weights_are_gathered_changes_nothing(
    shared: Run, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first learner has some of the new weights by then."""
    calls, whole = [0], health.whole

    def failing(tensor: th.Tensor) -> th.Tensor:
        calls[0] += 1
        if calls[0] == 900:
            raise RuntimeError("Connection closed by peer")
        return whole(tensor)

    monkeypatch.setattr(health, "whole", failing)
    monkeypatch.setattr(engine.cluster, "deadline_s", 15)  # the other one waits for this process
    cut = train(engine)
    assert calls[0] > 900
    assert_same(shared, cut)


def test_a_resumed_run_is_the_one_that_never_stopped(shared: Run, engine: RayEngine, tmp_path: Path) -> None:
    train(engine, timesteps=2 * ITERATION, save=tmp_path / "run")
    env = engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    model = VLAPPO.load(tmp_path / "run", env, "cpu")
    model.learn(ITERATION, callback=Curriculum("frontier"), reset_num_timesteps=False)
    env.close()
    for name, weights in shared.weights.items():
        th.testing.assert_close(model.policy.state_dict()[name], weights, rtol=0, atol=0)


def test_learners_that_play_have_the_whole_policy_between_updates(engine: RayEngine) -> None:
    engine._updates.part()  # a process has one default group
    runs = []
    for shard in (False, True):
        with RayEngine(2, shard=shard, cpus_per_worker=1, deadline_s=60) as engine:
            runs.append(train(engine, timesteps=2 * ITERATION))
    assert_same(*runs, atol=2e-6)


def test_what_cannot_be_shared_is_told(engine: RayEngine, whole: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_learners of at least 2"):
        RayEngine(1, shard=True)
    env = engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    with pytest.raises(ValueError, match="leave shard out"):
        VLAPPO("VLAPolicy", env, **(PPO | {"policy_kwargs": {"model": "tiny-libero", "lora": {}}}))
    env.close()
    train(engine, timesteps=ITERATION, save=tmp_path / "run")
    engine._updates.part()  # a process has one default group
    env = whole.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    with pytest.raises(RunError, match="'shard': True"):
        VLAPPO.load(tmp_path / "run", env, "cpu")
    env.close()


@pytest.mark.parametrize("on_device", [False, True], ids=["foreach", "fused"])
def test_the_count_of_steps_is_where_the_optimizer_wants_it(on_device: bool) -> None:
    count, like = th.tensor(3.0), th.empty(4, 2, device="meta")
    shared = share_moment("step", count, like, on_device)
    assert shared.device.type == ("meta" if on_device else "cpu")
    assert shared is not count


def test_what_an_optimizer_keeps_in_another_shape_is_told(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        like = distribute_tensor(th.zeros(4, 2), mesh, [Shard(0)])
        assert th.equal(share_moment("exp_avg", th.ones(4, 2), like, False).to_local(), th.ones(4, 2))
        with pytest.raises(EngineError, match=r"'row_var' has the shape \(4, 1\) for weights of \(4, 2\)"):
            share_moment("row_var", th.ones(4, 1), like, False)
    finally:
        dist.destroy_process_group()


def test_a_program_with_a_process_group_of_its_own_is_told(engine: RayEngine, tmp_path: Path) -> None:
    engine._updates.part()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(EngineError, match="has one already"):
            train(engine, timesteps=ITERATION)
    finally:
        dist.destroy_process_group()

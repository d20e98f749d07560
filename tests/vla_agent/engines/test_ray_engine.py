"""A run on a Ray cluster is the run in one process: to the bit, and also if processes are lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_learner
import pytest
import torch as th
from engine_runs import ENV, ITERATION, N_ENVS, PPO, TIMESTEPS, Kill, Run, assert_same, one_cluster
from gymnasium.error import ClosedEnvironmentError
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, Curriculum, RunError, VLADistillation, VLAPolicy, make_vec_env
from vla_agent.algorithms.buffers import MixedRolloutBuffer
from vla_agent.engines import EngineError, RayEngine, ranks, ray_engine
from vla_agent.engines.errors import LostError
from vla_agent.engines.ranks import weight_sums

ray = pytest.importorskip("ray", reason="ray is not installed")


cluster = pytest.fixture(scope="module", autouse=True)(one_cluster)


@pytest.fixture(scope="module")
def local() -> Run:
    return Run(make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV))


@pytest.fixture(scope="module")
def split() -> Iterator[RayEngine]:
    with RayEngine(1, 1, placement="split", cpus_per_worker=1, deadline_s=60) as engine:
        yield engine


@pytest.fixture(scope="module")
def pair() -> Iterator[RayEngine]:
    with RayEngine(2, 1, placement="split", cpus_per_worker=1, deadline_s=60) as engine:
        yield engine


@pytest.fixture(scope="module")
def paired(pair: RayEngine) -> Run:
    return Run(pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV))


class StopAfter(BaseCallback):
    """Ends `learn` after some steps."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        return self.n_calls < self.n_steps


def test_one_process_that_plays_and_one_that_learns_are_one_process_to_the_bit(local: Run, split: RayEngine) -> None:
    assert_same(local, Run(split.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)))


def test_classes_that_no_file_holds_reach_the_other_processes(split: RayEngine) -> None:
    class OwnPolicy(VLAPolicy):
        """Of a module that the other processes cannot import."""

    class OwnOptimizer(th.optim.SGD):
        """As above."""

    changes: dict[str, Any] = {
        "policy": OwnPolicy,
        "ratio_level": "action",
        "rollout_buffer_class": type("OwnBuffer", (MixedRolloutBuffer,), {}),
        "policy_kwargs": PPO["policy_kwargs"] | {"optimizer_class": OwnOptimizer},
    }
    alone = Run(make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), timesteps=2 * ITERATION, **changes)
    together = Run(split.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), timesteps=2 * ITERATION, **changes)
    assert_same(alone, together)


def test_a_learner_of_ones_own_takes_rollouts_that_another_process_plays(
    split: RayEngine, request: pytest.FixtureRequest
) -> None:
    ray.cloudpickle.register_pickle_by_value(own_learner)  # no other process has the tests' own modules
    request.addfinalizer(lambda: ray.cloudpickle.unregister_pickle_by_value(own_learner))
    weights = []
    for make in (make_vec_env, split.make_vec_env):
        env = make("LIBERO-Spatial-v0", N_ENVS, **ENV)
        model = own_learner.Reinforce("VLAPolicy", env, n_steps=4, seed=0, policy_kwargs=PPO["policy_kwargs"])
        model.learn(2 * ITERATION)
        env.close()
        weights.append(model.policy.state_dict())
    for name, value in weights[0].items():
        th.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_worlds_have_no_processes_of_environments(split: RayEngine) -> None:
    asked = ray_engine._make_part(split.roster, "LIBERO-Spatial-v0", 4, {"backend": "warp", "device": "cpu"}).keywords
    assert asked == {"backend": "warp", "device": "cpu"}
    asked = ray_engine._make_part(split.roster, "LIBERO-Spatial-v0", 4, {}).keywords
    assert asked == {"n_workers": 1, "timeout": pytest.approx(0.8 * 60)}


def test_colocated_with_one_learner_is_one_process_to_the_bit(local: Run) -> None:
    with RayEngine() as engine:
        assert_same(local, Run(engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)))


def test_two_learners_are_one_with_twice_the_accumulation_within_rounding(local: Run, pair: RayEngine) -> None:
    env = make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    accumulated = Run(env, gradient_accumulation_steps=2, timesteps=2 * ITERATION)
    together = Run(pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), timesteps=2 * ITERATION)
    assert_same(accumulated, together, atol=2e-6)
    assert any(not th.equal(together.weights[name], weights) for name, weights in local.weights.items())


def test_a_rollout_whose_process_dies_is_played_again_to_the_bit(local: Run, split: RayEngine) -> None:
    before = split.n_replaced
    env = split.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    assert_same(local, Run(env, Kill(split, 0, step=6)))
    assert split.n_replaced == before + 1


def test_an_update_whose_learner_dies_is_repeated_to_the_bit(pair: RayEngine, paired: Run) -> None:
    before = pair.n_replaced
    cut = Run(pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), Kill(pair, 1, rollout=3))
    assert pair.n_replaced == before + 1
    assert_same(paired, cut)


def test_a_learner_that_dies_once_the_update_is_done_is_not_waited_for_with_another_update(
    pair: RayEngine, paired: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first learner has stepped already: going back would repeat the update from the weights after it."""
    before, sums, answer = pair.n_replaced, [0], pair.roster.answer

    def counting(learner: Any) -> list[float]:
        sums[0] += 1
        return weight_sums(learner)

    def losing(number: int, *args: Any, **kwargs: Any) -> Any:
        if sums[0] == 2 and number == 1:  # of the second update
            sums[0] += 1
            os.kill(pair.roster.pid(1), signal.SIGKILL)
            raise LostError("Worker 1 is gone.", 1)
        return answer(number, *args, **kwargs)

    monkeypatch.setattr(ranks, "weight_sums", counting)
    monkeypatch.setattr(pair.roster, "answer", losing)
    cut = Run(pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV))
    assert pair.n_replaced == before + 1
    assert_same(paired, cut)


def test_colocated_learners_draw_on_their_own_and_learn_the_same(tmp_path: Path) -> None:
    with RayEngine(2, cpus_per_worker=1, deadline_s=60) as engine:
        first = Run(engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV))
        again = Run(engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), Kill(engine, 0, step=9))
        assert engine.n_replaced == 1
    assert_same(first, again)
    again.model.save(tmp_path / "run")  # its engine is closed
    assert VLAPPO.load(tmp_path / "run", device="cpu").num_timesteps == TIMESTEPS
    with pytest.raises(ClosedEnvironmentError, match="or their engine is"):
        again.model.learn(ITERATION, reset_num_timesteps=False)


def test_a_run_goes_on_with_or_without_an_engine_as_if_it_had_not_stopped(
    local: Run, split: RayEngine, tmp_path: Path
) -> None:
    makers: list[Any] = [make_vec_env, split.make_vec_env]
    for make, make_again in (makers, makers[::-1]):
        path = tmp_path / make.__qualname__
        Run(make("LIBERO-Spatial-v0", N_ENVS, **ENV), timesteps=2 * ITERATION, save=path)
        env = make_again("LIBERO-Spatial-v0", N_ENVS, **ENV)
        model = VLAPPO.load(path, env, "cpu")
        model.learn(ITERATION, callback=Curriculum("frontier"), reset_num_timesteps=False)
        env.close()
        for name, weights in local.weights.items():
            th.testing.assert_close(model.policy.state_dict()[name], weights, rtol=0, atol=0)


def test_a_run_of_two_learners_is_not_gone_on_with_by_one_in_silence(pair: RayEngine, tmp_path: Path) -> None:
    Run(pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV), timesteps=ITERATION, save=tmp_path / "run")
    env = make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    with pytest.raises(RunError, match=r"engine: \{'learners': 2\}, not \{\}"):
        VLAPPO.load(tmp_path / "run", env, "cpu")
    env.close()


def test_a_stale_run_is_weighed_and_the_same_each_time() -> None:
    class Gap(BaseCallback):
        gaps: list[float]

        def _on_training_start(self) -> None:
            self.gaps = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.gaps.append(self.logger.name_to_value.get("train/behaviour_gap", 0.0))

    first, second = Gap(), Gap()
    with RayEngine(1, 1, placement="split", stale=True, cpus_per_worker=1, deadline_s=60) as engine:
        # The first update is the critic's alone, the third the first with a gap, which the fourth rollout's end tells.
        envs = (engine.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV) for _ in range(2))
        runs = [Run(env, gap, timesteps=4 * ITERATION) for env, gap in zip(envs, (first, second), strict=True)]
    assert_same(*runs)
    assert first.gaps == second.gaps
    assert first.gaps[-1] > 0  # what it learned from, an earlier policy drew
    assert runs[0].model.engine_settings == {"stale": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_learners": 0}, "n_learners"),
        ({"n_learners": 2, "n_policies": 3}, "colocated learners play themselves"),
        ({"n_policies": 0, "placement": "split"}, "n_policies=0 is out of range"),
        ({"stale": True}, "placement='split'"),
        ({"placement": "everywhere"}, "everywhere"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"room_deadline_s": 0}, "room_deadline_s"),
        ({"n_learners": 3, "cpus_per_worker": 6, "room_deadline_s": 1}, "the cluster has 8 CPUs on 1 machine"),
        ({"n_learners": 2, "gpus_per_worker": 0.5}, "NCCL sums gradients between GPUs alone"),
        ({"n_learners": 2, "gpus_per_worker": 1, "room_deadline_s": 1}, "the cluster has 0 GPUs on 1 machine"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, EngineError), match=message):
        RayEngine(**arguments)


def test_environments_and_batches_that_do_not_fit_are_refused(pair: RayEngine) -> None:
    env = make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    with pytest.raises(ValueError, match=r"engine\.make_vec_env"):
        VLAPPO("VLAPolicy", env, engine=pair, **PPO)
    env.close()
    with pytest.raises(ValueError, match="n_envs"):
        pair.make_vec_env("LIBERO-Spatial-v0", 0, **ENV)
    own = pair.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    with pytest.raises(ValueError, match="not divided by 2 learners"):
        VLAPPO("VLAPolicy", own, **(PPO | {"batch_size": 1}))
    with pytest.raises(ValueError, match="VLADistillation learns in one process"):
        VLADistillation("VLAPolicy", own, teacher="tiny-libero", n_steps=4, batch_size=8, device="cpu")
    own.close()
    with pytest.raises(ValueError, match="output='torch' keeps observations on one process's device"):
        pair.make_vec_env("LIBERO-Spatial-v0", 2, output="torch")


def test_an_error_in_another_process_is_raised_as_it_was(split: RayEngine) -> None:
    with pytest.raises(TypeError, match="camera"):
        split.make_vec_env("LIBERO-Spatial-v0", 2, **ENV, camera=("agentview",))


def test_a_run_tells_its_memory_once_and_is_refused_where_it_cannot_fit(
    split: RayEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = split.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    model = VLAPPO("VLAPolicy", env, **PPO, verbose=1)
    model.learn(ITERATION)
    model.learn(ITERATION)
    told = capsys.readouterr().out
    assert told.count("Memory by shapes and types") == 1
    assert "process 0, plays: host memory" in told
    assert f"{N_ENVS} environments in 1 processes" in told
    assert ": activations 0." in told or ", activations 0." in told
    assert split.budget is not None
    machine = split.cluster.node
    assert 0.4e9 < split.budget.takers[1].total("host") < 1e9
    assert 0 < split.budget.total(machine, "shared") < 1e8
    small = {machine: split.cluster.machines()[machine]._replace(object_store=10**6)}
    monkeypatch.setattr(split.cluster, "machines", lambda: small)
    with pytest.raises(EngineError, match="GB of Ray's object store"):
        VLAPPO("VLAPolicy", env, **PPO).learn(ITERATION)
    env.close()


def test_no_other_process_gets_the_room_of_the_first_learner() -> None:
    with RayEngine(2, cpus_per_worker=1) as engine:
        held = sum(
            bundle["CPU"] for bundle in ray.util.placement_group_table(engine.cluster._group)["bundles"].values()
        )
        assert held == 2
        assert ray.get(engine.cluster._seat.gpus.remote()) == []
        engine.envs_per_node = 5  # two policies on one machine
        assert engine._shares(None) == [slice(0, 2), slice(2, 5)]
        with pytest.raises(ValueError, match="have 5; leave one"):
            engine._shares(6)


def test_a_rollout_that_a_callback_ends_leaves_the_environments_where_the_next_begins(split: RayEngine) -> None:
    """The other process plays on to the rollout's end, so that it alone knows where episodes begin then."""
    env = split.make_vec_env("LIBERO-Spatial-v0", N_ENVS, **ENV)
    model = VLAPPO("VLAPolicy", env, **(PPO | {"n_steps": 5, "batch_size": 10}))
    model.learn(30, callback=StopAfter(3))
    assert model.num_timesteps == 3 * N_ENVS
    model.learn(10, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[0].all()  # episodes take five decisions
    assert not model.rollout_buffer.episode_starts[1:].any()
    env.close()

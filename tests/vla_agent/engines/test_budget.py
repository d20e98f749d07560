"""What a run takes of each machine is counted before it starts, and refused where it cannot fit."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from policy_throughput import build

from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.engines import EngineError
from vla_agent.engines.activations import Growth
from vla_agent.engines.budget import PROCESS_BYTES, Budget, Process, Run, Sizes, buffer_bytes, n_bytes, sizes_of
from vla_agent.engines.cluster import Machine
from vla_agent.engines.worker import place_of
from vla_agent.policy.critic import ValueHead
from vla_agent.policy.lora import LoraSettings, add_lora

GB = 10**9
SIZES = Sizes(frozen=10 * GB, trained=GB, moments=2 * GB, rollout=4 * GB)
ROOM = Machine("machine a", 100 * GB, 30 * GB, 0)


def two_learners(sizes: Sizes = SIZES, gpu: int = 0) -> Run:
    """Two colocated learners on one machine, of two environments each."""
    processes = [Process(f"learner {rank}", "a", rank, 2, 1, gpu) for rank in range(2)]
    return Run(processes, sizes, n_envs=4, renderer="fast", split=False, stale=False)


def seven_billion() -> Sizes:
    """The published 7B with adapters of rank 32 and a value head, and 16 steps of 64 environments."""
    model = build("7b", th.device("meta"), th.bfloat16)
    add_lora(model, LoraSettings(r=32), model.unused_parameter_names())
    head = ValueHead(model.hidden_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frame = spaces.Box(0, 255, (224, 224, 3), np.uint8)
    buffer = TokenRolloutBuffer(16, spaces.Dict({"image": frame}), spaces.MultiDiscrete([256] * 7), "cpu", n_envs=64)
    policy: Any = th.nn.ModuleList([model, head])
    policy.value_head = head
    policy.optimizer_class, policy.optimizer_kwargs = th.optim.AdamW, {}
    groups = [{"params": trained}, {"params": list(head.parameters())}]
    policy.optimizer = SimpleNamespace(param_groups=groups)
    return sizes_of(SimpleNamespace(policy=policy, rollout_buffer=buffer, n_value_epochs=2))


def test_sizes_are_those_of_shapes_and_types() -> None:
    assert n_bytes([th.zeros(3, 5), th.zeros(2, dtype=th.bfloat16)]) == 64
    space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    buffer = TokenRolloutBuffer(2, space, spaces.MultiDiscrete([256] * 7), "cpu", n_envs=3)
    one = 8 * 8 * 3 + 7 * (8 + 4) + 5 * 4  # a frame; bins, log-probabilities; reward, start, value, targets
    assert buffer_bytes(buffer) == 2 * 3 * one


def test_the_published_7b_is_counted_without_its_weights() -> None:
    sizes = seven_billion()
    # benchmarks/results/policy_memory.json has 15.08 GB of weights, and 15.51 with adapters.
    assert sizes.frozen == pytest.approx(15.08e9, abs=0.01e9)
    assert sizes.trained == pytest.approx(0.44e9, abs=0.01e9)
    assert sizes.moments == 2 * sizes.trained
    assert sizes.rollout == pytest.approx(16 * 64 * 224 * 224 * 3, rel=0.01)
    assert sizes.value_inputs == 4 * 4096 * 16 * 64
    fits, small = two_learners(sizes, gpu=48 * GB), two_learners(sizes, gpu=16 * GB)
    machine = Machine("machine a", 64 * GB, 20 * GB, n_gpus=2)
    Budget(fits, {"a": machine}).check()
    with pytest.raises(
        EngineError, match=r"Learner 0 .* 16\.8 GB of GPU memory \(base weights 15\.1, .*has 16 GB\..*lora_rank"
    ):
        Budget(small, {"a": machine}).check()
    with pytest.raises(EngineError, match=r"Machine a .* 33\.7 GB of GPU memory"):  # both on one GPU of 24 GB
        Budget(two_learners(sizes, gpu=24 * GB), {"a": machine._replace(n_gpus=1)}).check()


def test_each_process_holds_the_model_and_its_share() -> None:
    budget = Budget(two_learners(), {"a": ROOM})
    model, environments = 10 + 1 + 2 + 1, (95_000_000 + 2 * 1_600_000)
    first, second, store = budget.takers
    assert second.total("host") == PROCESS_BYTES + (model + 4 + 2) * GB + environments  # the buffer, and half of it
    assert first.total("host") == second.total("host") + 4 * GB  # what an update would be repeated with
    assert store.total("shared") == 4 * GB  # the rollout that both learn from; a copy of the learner has gone by then
    assert budget.total("a", "host") == first.total("host") + second.total("host")
    assert "machine a: host memory 45" in str(budget)
    assert "rollout to learn from 4" in str(budget)


def test_weights_travel_where_others_play_and_a_stale_rollout_beside_the_update() -> None:
    processes = [Process("learner 0", "a", 0), Process("player", "b", None, 4, 2)]
    machines = {"a": ROOM, "b": ROOM._replace(called="machine b"), "c": ROOM}
    run = Run(processes, SIZES, n_envs=4, renderer=None, split=True, stale=False)
    budget = Budget(run, machines)
    assert {name: budget.total(name, "shared") for name in machines} == {"a": 5 * GB, "b": 5 * GB, "c": 0}
    assert "gradients" not in [what for _, what, _ in budget.takers[1].items]
    learners = [*processes, Process("learner 1", "b", 1)]
    stale = Budget(run._replace(processes=learners, stale=True), machines)
    assert stale.total("a", "shared") == (1 + 4 + 4) * GB
    assert "machine c" not in str(stale)


def test_learners_that_share_weights_take_a_part_of_them_beside_the_whole_that_is_played_or_saved() -> None:
    gpus = [Process("learner 0", "a", 0, gpu=80 * GB), Process("player", "a", None, 4, 1, gpu=80 * GB)]
    gpus += [Process(f"learner {rank}", "a", rank, gpu=80 * GB) for rank in range(1, 4)]
    sizes = Sizes(frozen=0, trained=30 * GB, moments=60 * GB, rollout=GB)
    run = Run(gpus, sizes, n_envs=4, renderer="fast", split=True, stale=False)
    whole, shared = (Budget(run._replace(shard=shard), {"a": ROOM}).takers for shard in (False, True))
    assert [taker.total("gpu") // GB for taker in whole[:3]] == [120, 90, 120]
    assert [taker.total("gpu") // GB for taker in shared[:3]] == [30 + 120 // 4, 30, 120 // 4]
    assert shared[0].total("host") == whole[0].total("host") + 60 * GB  # moments, which it saves


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (ROOM._replace(memory=10 * GB), r"Machine a .* 45 GB of host memory \(base weights 20, .* 36 GB.*fewer envir"),
        (ROOM._replace(object_store=3 * GB), r"Machine a .* 4 GB of Ray's object store .* 3 GB.*--object-store-memory"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_there_is(machine: Machine, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Budget(two_learners(), {"a": machine}).check()


def test_activations_are_counted_by_turns_and_refused_with_a_cure_of_their_own() -> None:
    sizes = SIZES._replace(activations=Growth(GB, 2 * GB), acting=Growth(0, GB))
    run = two_learners(sizes, gpu=24 * GB)._replace(micro_batch=4)
    machine = ROOM._replace(n_gpus=2)
    first = Budget(run, {"a": machine}).takers[0]
    assert ("gpu", "activations", 9 * GB) in first.items
    assert first.total("gpu") == (10 + 1 + 2 + 1 + 9) * GB  # the two environments act while nothing is learned
    assert "activations 9" in str(Budget(run, {"a": machine}))
    plays = Budget(run._replace(micro_batch=0), {"a": machine}).takers[0]
    assert plays.total("gpu") == (14 + 2) * GB
    recorded = run._replace(sizes=sizes._replace(keeps_acting=True))
    assert Budget(recorded, {"a": machine}).takers[0].total("gpu") == (14 + 9 + 2) * GB
    with pytest.raises(EngineError, match=r"25 GB of GPU memory \(.*activations 9.* 24 GB\. Give more gradient_accum"):
        Budget(recorded, {"a": machine}).check()
    with pytest.raises(EngineError, match=r"12 GB\. Give adapters"):  # the weights alone are too much
        Budget(two_learners(sizes, gpu=12 * GB)._replace(micro_batch=4), {"a": machine}).check()


@pytest.mark.parametrize(
    ("gpu", "visible", "place"),
    [("3", None, 3), ("5", "5", 0), ("5", "4, 5", 1), ("0", "1,0", 1), ("GPU-ab", "GPU-cd,GPU-ab", 1)],
)
def test_a_gpu_is_found_among_those_that_the_process_sees(gpu: str, visible: str | None, place: int) -> None:
    assert place_of(gpu, visible) == place


@pytest.mark.parametrize(("gpu", "visible"), [("3", "0,1"), ("0", ""), ("GPU-ab", None)])
def test_a_gpu_that_the_process_does_not_see_is_told(gpu: str, visible: str | None) -> None:
    with pytest.raises(EngineError, match=f"the GPU {gpu}, which it does not see: CUDA_VISIBLE_DEVICES is {visible!r}"):
        place_of(gpu, visible)


def test_a_process_that_only_holds_room_imports_no_torch() -> None:
    code = "import vla_agent.engines.seat, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

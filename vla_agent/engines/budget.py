"""Memory that a run takes of each machine, counted from shapes and types before it starts."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th

from vla_agent.algorithms import health
from vla_agent.engines.activations import Growth, measure
from vla_agent.engines.cluster import Machine
from vla_agent.engines.errors import EngineError
from vla_agent.engines.roster import Roster
from vla_agent.engines.worker import gpu_bytes

# Private memory of a process besides weights and rollouts: Python with torch, SB3 and Ray, measured on a CPU.
PROCESS_BYTES = 400_000_000
# A process of environments, by renderer, and each environment in it: benchmarks/README.md, "Fast frames" (four workers,
# trainer and template take 3066 and 380 MB, with one task) and "Environments".
ENV_WORKER_BYTES = {"exact": 766_000_000, "fast": 95_000_000}
ENV_BYTES = 1_600_000

Kind = Literal["host", "shared", "gpu"]
_CALLED: dict[Kind, str] = {"host": "host memory", "shared": "Ray's object store", "gpu": "GPU memory"}
_CURES: dict[Kind, str] = {
    "host": "Give fewer environments, processes or steps, renderer='fast', or more machines.",
    "shared": "Start Ray with a larger --object-store-memory, or give fewer environments or steps.",
    "gpu": "Give adapters (lora_rank), weights of fewer bits, fewer processes for each GPU, or a larger GPU.",
}
ACTIVATIONS = "activations"  # of an update
_CURE_OF_ACTIVATIONS = "Give more gradient_accumulation_steps, or gradient_checkpointing."


class Sizes(NamedTuple):
    """Bytes of what a learner holds."""

    frozen: int  # weights that are not trained
    trained: int  # weights that are; their gradients take as much
    moments: int  # what the optimizer keeps of them
    rollout: int  # the buffer, for all environments
    value_inputs: int = 0  # what the value head is trained on besides
    activations: Growth = Growth()  # what an update keeps of a micro-batch, by its samples
    acting: Growth = Growth()  # keys, values and activations of who plays, by its environments
    keeps_acting: bool = False  # whether that memory stays during updates, as that of recorded decoding does

    @property
    def copy(self) -> int:
        """What goes to another process that is to become the learner."""
        return self.trained + self.moments


class Taker(NamedTuple):
    """A process, or an object store, and what it takes of its machine."""

    called: str
    machine: str  # id of its node
    items: list[tuple[Kind, str, int]]  # where, what, bytes
    gpu: int = 0  # bytes of its GPU

    def total(self, kind: Kind) -> int:
        """Bytes of one kind."""
        return sum(n_bytes for of, _, n_bytes in self.items if of == kind)


class Process(NamedTuple):
    """What a process of a run does."""

    called: str
    machine: str  # id of its node
    rank: int | None  # among the learners; None if it only plays
    n_envs: int = 0  # environments that it plays; 0 if it only learns
    n_env_workers: int = 0  # their processes
    gpu: int = 0  # bytes of its GPU; 0 for a CPU


class Run(NamedTuple):
    """What decides how much memory a run takes."""

    processes: list[Process]  # this one, which holds what is saved, first
    sizes: Sizes
    n_envs: int
    renderer: str | None  # None without cameras
    split: bool  # whether others than learners play
    stale: bool
    micro_batch: int = 0  # samples that go through the network at once, in an update
    shard: bool = False  # whether each learner holds a share of weights, gradients and moments in updates

    @property
    def n_learners(self) -> int:
        """How many learn."""
        return sum(process.rank is not None for process in self.processes)


class Budget:
    """What each machine has, and what a run takes of it.

    It counts what lives at the same time. Not counted are a GPU's context, libraries' scratch memory, what a backward
    pass makes and drops again, the block that learners who share weights gather, and further scenes of environments
    with several tasks.

    Args:
        run: The run.
        machines: What each machine has, by the id of its node.
    """

    def __init__(self, run: Run, machines: Mapping[str, Machine]) -> None:
        self.machines = dict(machines)
        used = {process.machine for process in run.processes}
        takers = [_process(run, process) for process in run.processes]
        if len(run.processes) > 1:
            takers += [_store(run, machine) for machine in self.machines if machine in used]
        self.takers = takers

    def of(self, machine: str) -> list[Taker]:
        """What takes memory of a machine."""
        return [taker for taker in self.takers if taker.machine == machine]

    def total(self, machine: str, kind: Kind) -> int:
        """Bytes that a machine gives."""
        return sum(taker.total(kind) for taker in self.of(machine))

    def has(self, machine: str, kind: Kind) -> int:
        """Bytes that a machine has; the host's are those that the object store does not fill."""
        found = self.machines[machine]
        if kind == "gpu":
            return max([round(max(found.n_gpus, 1)) * taker.gpu for taker in self.of(machine)], default=0)
        spare = found.object_store - self.total(machine, "shared")
        return found.object_store if kind == "shared" else found.memory + max(spare, 0)

    def check(self) -> None:
        """Complains about what cannot fit.

        Raises:
            EngineError: If a machine, or a GPU, has less than it has to give.
        """
        for taker in self.takers:
            if taker.total("gpu") > taker.gpu:
                raise _refusal("gpu", taker.called, [taker], taker.gpu)
        for machine, found in self.machines.items():
            for kind in _CALLED:
                if self.total(machine, kind) > self.has(machine, kind):
                    raise _refusal(kind, found.called, self.of(machine), self.has(machine, kind))

    def __str__(self) -> str:
        lines = ["Memory by shapes and types, in GB; libraries' scratch memory is not counted."]
        for machine, found in self.machines.items():
            takers = self.of(machine)
            if not takers:
                continue
            kinds: tuple[Kind, ...] = ("host", "shared", "gpu") if self.has(machine, "gpu") else ("host", "shared")
            sums = [
                f"{_CALLED[kind]} {_gb(self.total(machine, kind))} of {_gb(self.has(machine, kind))}" for kind in kinds
            ]
            lines.append(f"{found.called}: {', '.join(sums)}")
            lines += [
                f"  {taker.called}: {_items(taker, kind)}" for taker in takers for kind in kinds if taker.total(kind)
            ]
        return "\n".join(lines)


def budget_of(
    learner: Any, roster: Roster, plays: Sequence[tuple[int | None, slice, int]], split: bool, stale: bool, shard: bool
) -> Budget:
    """What a learner's run takes of the machines of a cluster.

    Args:
        learner: The learner.
        roster: The processes besides this one.
        plays: The process that plays each part of the environments, None for this one; the part; and in how many
            processes it runs.
        split: Whether others than learners play.
        stale: Whether rollouts are played while others are learned from.
        shard: See `Run`.
    """
    cluster, on_gpu = roster.cluster, learner.device.type == "cuda"
    machines, places = cluster.machines(), cluster.places()
    # What this process has taken already, Ray may have found taken.
    here = machines[cluster.node]
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    machines[cluster.node] = here._replace(memory=here.memory + taken)
    parts = {number: (share.stop - share.start, n_workers) for number, share, n_workers in plays}
    gpu = gpu_bytes(learner.device) if on_gpu else 0
    processes = [Process("this process, learner 0", cluster.node, 0, *parts.get(None, (0, 0)), gpu)]
    for number in roster.numbers:
        learns = not (split and number in parts)
        rank = sum(process.rank is not None for process in processes) if learns else None
        called = f"process {number}, {f'learner {rank}' if learns else 'plays'}"
        gpu = roster.gpu(number) if on_gpu else 0
        processes.append(Process(called, places[number], rank, *parts.get(number, (0, 0)), gpu))
    settings = learner.env.unwrapped.settings
    renderer = settings.get("renderer") if settings.get("cameras") else None
    n_envs = learner.rollout_buffer.n_envs
    n_learners = sum(process.rank is not None for process in processes)
    batch_size = getattr(learner, "batch_size", learner.rollout_buffer.buffer_size * n_envs)  # else a whole rollout
    micro_batch = batch_size // (n_learners * learner.gradient_accumulation_steps)
    most = max(process.n_envs for process in processes)
    sizes = measured(learner, micro_batch, most)
    return Budget(Run(processes, sizes, n_envs, renderer, split, stale, micro_batch, shard), machines)


def measured(learner: Any, micro_batch: int, n_envs: int) -> Sizes:
    """`sizes_of`, and what passes through the policy take, see `activations.measure`."""
    with health.advice_on_memory():
        activations, acting = measure(learner.policy, learner._last_obs, micro_batch, n_envs)
    records = learner.device.type == "cuda" and learner.policy.backbone.abilities.cuda_graphs
    return sizes_of(learner)._replace(activations=activations, acting=acting, keeps_acting=records)


def sizes_of(learner: Any) -> Sizes:
    """Bytes of what a learner holds."""
    policy, buffer = learner.policy, learner.rollout_buffer
    trained = [parameter for group in policy.optimizer.param_groups for parameter in group["params"]]
    known = {id(parameter) for parameter in trained}
    frozen = [parameter for parameter in policy.parameters() if id(parameter) not in known]
    n_copies = _n_moments(policy) + bool(getattr(policy, "average_decay", 0))
    width = policy.value_head.layers[0].in_features if getattr(learner, "n_value_epochs", 0) else 0
    return Sizes(
        n_bytes(frozen),
        n_bytes(trained),
        n_copies * n_bytes(trained),
        buffer_bytes(buffer),
        4 * width * buffer.buffer_size * buffer.n_envs,
    )


def n_bytes(tensors: Iterable[th.Tensor]) -> int:
    """Bytes of tensors, which may be without content."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def buffer_bytes(buffer: Any) -> int:
    """Bytes of the arrays of a rollout buffer."""
    values = [*buffer.observations.values(), *vars(buffer).values()]
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def _n_moments(policy: Any) -> int:
    """How many numbers the optimizer keeps for each that it trains."""
    probe = th.zeros(2, requires_grad=True)
    optimizer = policy.optimizer_class([probe], lr=0.0, **policy.optimizer_kwargs)
    probe.grad = th.zeros(2)
    optimizer.step()
    kept = optimizer.state[probe].values()
    return sum(isinstance(value, th.Tensor) and value.shape == probe.shape for value in kept)


def _process(run: Run, process: Process) -> Taker:
    """What a process takes."""
    sizes, share = run.sizes, process.n_envs / run.n_envs
    device: Kind = "gpu" if process.gpu else "host"
    items: list[tuple[Kind, str, int]] = [
        ("host", "process", PROCESS_BYTES),
        *_copies(run, process, device),
    ]
    if process.rank is not None:
        items.append(("host", "rollout buffer", sizes.rollout))
        items.append((device, "values' inputs", sizes.value_inputs))
    items += [(device, what, size) for what, size in _passes(run, process)]
    if process.rank == 0 and run.n_learners > 1:
        items.append(("host", "rollout to repeat an update with", sizes.rollout))
    if process.n_envs:
        items.append(("host", "rollout of its environments", round(share * sizes.rollout)))
        each = ENV_WORKER_BYTES.get(run.renderer or "fast", ENV_WORKER_BYTES["fast"])
        count = f"{process.n_envs} environments in {process.n_env_workers} processes"
        items.append(("host", count, process.n_env_workers * each + process.n_envs * ENV_BYTES))
    return Taker(process.called, process.machine, items, process.gpu)


def _copies(run: Run, process: Process, device: Kind) -> list[tuple[Kind, str, int]]:
    """Weights, gradients and moments of a process; one that only plays has a whole copy of the learner, too."""
    sizes, learns = run.sizes, process.rank is not None
    weights: list[tuple[Kind, str, int]] = [
        (device, "base weights", sizes.frozen),
        (device, "trained parameters", sizes.trained),
    ]
    if not run.shard:
        return [*weights, (device, "optimizer", sizes.moments), *([(device, "gradients", sizes.trained)] * learns)]
    items: list[tuple[Kind, str, int]] = []
    if process.rank == 0 or not learns:
        items.append(("host", "optimizer", sizes.moments))
    if process.rank == 0 or process.n_envs:
        items += weights
    if learns:
        shared = sizes.frozen + 2 * sizes.trained + sizes.moments
        items.append((device, "share of weights, gradients and optimizer", shared // run.n_learners))
    return items


def _passes(run: Run, process: Process) -> list[tuple[str, int]]:
    """What a process's passes through the policy take: those of updates and rollouts take turns."""
    update = 0 if process.rank is None else run.sizes.activations.of(run.micro_batch)
    acting = run.sizes.acting.of(process.n_envs)
    if not run.sizes.keeps_acting:
        update, acting = (update, 0) if update >= acting else (0, acting)
    return [(ACTIVATIONS, update), ("activations of acting", acting)]


def _store(run: Run, machine: str) -> Taker:
    """What a machine's object store holds at its fullest."""
    sizes, is_first = run.sizes, run.processes[0].machine == machine
    others = [process for process in run.processes[1:] if is_first or process.machine == machine]
    played = sum(process.n_envs for process in others) / run.n_envs
    weights = ("trained parameters", sizes.trained if run.split and played else 0)
    rollouts = ("rollouts", round(played * (sizes.rollout + sizes.value_inputs)))
    learn = any(process.rank is not None for process in others)
    update = ("rollout to learn from", (sizes.rollout + sizes.value_inputs) if learn else 0)
    moments = [
        [("copy of the learner", sizes.copy)],
        [weights, rollouts],
        [weights, update, *([rollouts] if run.stale else [])],
    ]
    fullest = max(moments, key=lambda items: sum(size for _, size in items))
    return Taker(_CALLED["shared"], machine, [("shared", what, size) for what, size in fullest if size])


def _refusal(kind: Kind, called: str, takers: Sequence[Taker], has: int) -> EngineError:
    totals: dict[str, int] = {}
    for taker in takers:
        for of, what, size in taker.items:
            if of == kind:
                totals[what] = totals.get(what, 0) + size
    largest = sorted(totals.items(), key=lambda item: -item[1])[:3]
    is_enough = sum(totals.values()) - totals.get(ACTIVATIONS, 0) <= has
    cure = _CURE_OF_ACTIVATIONS if is_enough else _CURES[kind]
    parts = ", ".join(f"{what} {_gb(size)}" for what, size in largest)
    return EngineError(
        f"{called[:1].upper()}{called[1:]} would have to give {_gb(sum(totals.values()))} GB of {_CALLED[kind]} "
        f"({parts}), and has {_gb(has)} GB. {cure}"
    )


def _items(taker: Taker, kind: Kind) -> str:
    parts = ", ".join(f"{what} {_gb(size)}" for of, what, size in taker.items if of == kind and size)
    return f"{_CALLED[kind]} {_gb(taker.total(kind))}: {parts}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}" if size >= 1e7 or not size else f"{size / 1e9:.3f}"

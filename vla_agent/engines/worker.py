"""What runs in another process: some of the environments, a copy of the learner, or both."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.version import package_versions
from vla_agent.algorithms.engine import LocalEngine
from vla_agent.algorithms.rollout import Rollout
from vla_agent.common.hashes import fingerprint
from vla_agent.engines.errors import EngineError, RanksError
from vla_agent.engines.merging import told
from vla_agent.engines.player import Player
from vla_agent.engines.ranks import ProcessRanks
from vla_agent.engines.sharding import ShardedRanks
from vla_agent.runs.serialization import generator_states, restore_generators

PACKAGES = ("libero-vla", "mujoco", "torch", "numpy", "stable-baselines3", "transformers", "peft")


class Copied(NamedTuple):
    """A learner as another process makes it again."""

    algorithm: type[Any]
    run: np.ndarray  # bytes of the zip that `save` writes, uint8
    arguments: dict[str, Any]  # for `load`: what no file can hold


class Update(NamedTuple):
    """What an update depends on besides weights and optimizer."""

    buffer: dict[str, Any]  # arrays of the rollout buffer, by name
    value_inputs: th.Tensor | None
    counters: dict[str, Any]
    rates: dict[str, float | None]  # of this iteration, by the name of their schedule
    generators: dict[str, Any]


class Worker:
    """A process of an engine; it runs one call at a time.

    Args:
        number: Its number in the engine, for messages.
        threads: Threads that torch computes with.
        folder: The folder that the program runs in, by which its relative paths go here, too, if this machine has it.
    """

    def __init__(self, number: int, threads: int, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        th.set_num_threads(threads)
        self.number = number
        self.player: Player | None = None
        self.learner: Any = None
        self._ranks: ProcessRanks | None = None

    def describe(self) -> dict[str, Any]:
        """Where it runs, with what code."""
        import ray

        return {
            "host": socket.gethostname(),
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "gpus": th.cuda.device_count(),
            "gpu_bytes": gpu_bytes("cuda:0") if th.cuda.device_count() else 0,
            "versions": package_versions(PACKAGES),
            "code": code_fingerprint(),
        }

    def make_env(self, make: Callable[[], VecEnv]) -> dict[str, Any]:
        """Makes its environments; what the learner's process has to know of them."""
        if self.player is not None:
            self.player.env.close()
        self.player = Player(make())
        return self.player.describe()

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of its `Player`."""
        return getattr(self.player, name)(*args, **kwargs)

    def load(self, copied: Copied, device: str) -> None:
        """Makes the learner; an earlier one's memory is free by then."""
        self._part()
        self.learner = None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zip"
            path.write_bytes(copied.run.tobytes())
            self.learner = copied.algorithm.load(path, None, device, **copied.arguments)
        self.learner.set_logger(Logger(None, []))

    def play(
        self,
        weights: dict[str, th.Tensor] | None,
        generators: dict[str, Any] | int,
        n_steps: int,
        starts: np.ndarray | None,
        by_token: bool,
        **how: Any,
    ) -> Iterator[Any]:
        """What callbacks read of each step; then the rollout, the generators' states, and where the environments are.

        Args:
            weights: The trained weights to play with; None for those that it has.
            generators: States to begin with, or a seed.
            n_steps: See `Player.play`, as for the others.
            starts: See there.
            by_token: See there.
            how: See there.
        """
        assert self.player is not None
        policy = self.learner.policy
        if weights is not None:
            policy.load_state_dict(weights, strict=False)
        if isinstance(generators, int):
            th.manual_seed(generators)
        else:
            restore_generators(generators, policy.device)
        for event in self.player.play(policy, n_steps, starts, by_token, **how):
            if isinstance(event, Rollout):
                snapshot = self.player.env.snapshot() if hasattr(self.player.env, "snapshot") else None
                after = None if isinstance(generators, int) else generator_states(policy.device)
                yield on_host(event), after, snapshot
            else:
                yield told(event)

    def join(
        self, rank: int, size: int, address: tuple[str, int], deadline_s: float, staleness: int, shard: bool
    ) -> None:
        """Joins the learners.

        Args:
            rank: Its rank.
            size: How many there are.
            address: Where they meet.
            deadline_s: Seconds within which a collective has to end.
            staleness: See `Engine`.
            shard: Whether each holds a share of the weights, see `ShardedRanks`.
        """
        self._part()
        try:
            store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=deadline_s))
        except RuntimeError as error:
            raise RanksError(f"Learner {rank} of {size} did not reach the first one at {address}.") from error
        learner, where = self.learner, (store, self.learner.device, own_address(address[0]), deadline_s)
        if shard:
            self._ranks = ShardedRanks(rank, size, *where, policy=learner.policy, keeps=self.player is not None)
        else:
            self._ranks = ProcessRanks(rank, size, *where)
        learner._engine = Rank(self._ranks, staleness)

    def _part(self) -> None:
        if self._ranks is not None:
            self._ranks.close()
        self._ranks = None

    def update(self, update: Update) -> list[float]:
        """Updates the learner as all other ranks do; the sum of each trained tensor, equal on all ranks."""
        learner = self.learner
        for name, value in update.counters.items():
            setattr(learner, name, value)
        for name, rate in update.rates.items():
            setattr(learner, name, None if rate is None else FloatSchedule(rate))
        buffer = learner.rollout_buffer
        buffer.reset()
        for name, values in update.buffer.items():  # those that processes share cannot be written to
            setattr(buffer, name, values if isinstance(values, dict) else values.copy())
        buffer.pos, buffer.full = buffer.buffer_size, True
        inputs = update.value_inputs
        learner.rollout_value_inputs = None if inputs is None else inputs.to(learner.device)
        restore_generators(update.generators, learner.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rank 0 tells the same
            learner.train()
        learner.logger.name_to_value.clear()
        return cast(Rank, learner._engine).sums

    def work(self, work: Callable[..., Iterator[Any]], items: Sequence[Any]) -> Iterator[Any]:
        """What ``work`` gives for its share of some items, see `RayEngine.map`."""
        yield from work(items)

    def work_with_learner(
        self, work: Callable[..., Iterator[Any]], items: Sequence[Any], weights: dict[str, th.Tensor] | None
    ) -> Iterator[Any]:
        """The same for ``work`` that takes the learner first, see `RayEngine.map_learner`.

        Args:
            work: The work.
            items: The items.
            weights: Trained weights to act with, which the next rollout replaces; None for its own, or their average.
        """
        policy = self.learner.policy
        if weights is not None:
            policy.load_state_dict(weights, strict=False)
        with policy.averaged() if weights is None else contextlib.nullcontext():
            yield from work(self.learner, items)

    def close(self) -> None:
        """Ends its environments."""
        if self.player is not None:
            self.player.env.close()


class Rank(LocalEngine):
    """The engine of a learner that shares each minibatch with others.

    Attributes:
        sums: What `ProcessRanks.learn` gave of the last update.
    """

    sums: list[float]

    def __init__(self, ranks: ProcessRanks, staleness: int) -> None:
        self.ranks, self.staleness = ranks, staleness

    def update(self, learner: Any, train: Callable[[], None]) -> None:
        """Updates this rank."""
        self.sums = cast(ProcessRanks, self.ranks).learn(learner, train)


class MomentsOnHost(LocalEngine):
    """The engine of a learner that is to share its moments with others."""

    moments_device = "cpu"


def on_host(rollout: Rollout) -> Rollout:
    """A rollout whose tensors are in the host's memory."""
    inputs, values = rollout.value_inputs, rollout.last_values
    return rollout._replace(
        value_inputs=None if inputs is None else inputs.cpu(), last_values=None if values is None else values.cpu()
    )


def gpu_bytes(device: th.device | str) -> int:
    """Memory of a GPU."""
    return int(th.cuda.get_device_properties(device).total_memory)


def place_of(gpu: str, visible: str | None) -> int:
    """The number that this process knows a GPU by, of what Ray calls it: its id among all of the machine, or its UUID.

    Args:
        gpu: Ray's id.
        visible: ``$CUDA_VISIBLE_DEVICES`` of this process.

    Raises:
        EngineError: If this process does not see it.
    """
    names = [name.strip() for name in visible.split(",")] if visible is not None else None
    if names is None and gpu.isdecimal():
        return int(gpu)
    if names is None or gpu not in names:
        raise EngineError(
            f"Ray gave this process the GPU {gpu}, which it does not see: CUDA_VISIBLE_DEVICES is {visible!r}. Start "
            "both with the same variable."
        )
    return names.index(gpu)


@functools.cache
def code_fingerprint() -> str:
    """A hash of the sources of both packages: processes that compute together must run the same."""
    parts = []
    for package in ("libero_gym", "vla_agent"):
        found = importlib.util.find_spec(package)
        assert found is not None
        root = Path(found.submodule_search_locations[0])  # type: ignore[index]
        parts += [str(path.relative_to(root)).encode() + path.read_bytes() for path in sorted(root.rglob("*.py"))]
    return fingerprint(parts)[:12]


def own_address(towards: str) -> str:
    """The address of this machine on the way to another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # nothing is sent
        return str(probe.getsockname()[0])

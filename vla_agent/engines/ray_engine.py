"""Rollouts and updates in many processes, on one machine or many, through Ray's actors and placement groups."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import choice, flag, real_number, whole_number
from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.engine import OneRank, Ranks
from vla_agent.algorithms.rollout import Actor, Event, Rollout, Stepped, Stored
from vla_agent.engines.cluster import Cluster, Place, Remote
from vla_agent.engines.errors import EngineError, LostError, RanksError
from vla_agent.engines.merging import fill, merge_rollouts, merge_steps, shares, with_task_weights
from vla_agent.engines.player import Player
from vla_agent.engines.ranks import ProcessRanks, Rendezvous
from vla_agent.engines.vec_env import Answer, LocalPart, PartedVecEnv
from vla_agent.engines.worker import Copied, Update, Updated, weight_sums
from vla_agent.envs.make import make_vec_env
from vla_agent.policy.loading import load_processor
from vla_agent.runs.loading import restore_contents
from vla_agent.runs.saved_run import policy_tensors
from vla_agent.runs.serialization import generator_states, restore_generators

MAX_REPLACEMENTS = 3  # of processes, within one rollout or update

Placement = Literal["colocated", "split"]


class RayEngine:
    """Rollouts and updates in processes of a Ray cluster; `learn`, callbacks, logs and checkpoints are as ever.

    The process that calls `learn` is the first learner, and holds what is saved. With ``placement="colocated"`` each
    learner also plays its share of the environments, so no weights travel. With ``"split"`` other processes play, and
    get the trained parameters before each rollout. Environments are where their policy is: frames travel once, as part
    of a rollout.

        with RayEngine(n_learners=4) as engine:
            env = engine.make_vec_env("LIBERO-Spatial-v0", 32, model="tiny-libero", seed=0)
            VLAPPO("VLAPolicy", env).learn(6144)

    Results: with one learner and one policy, those of a run without an engine, to the bit on a CPU. With n learners,
    those of one learner with n times the ``gradient_accumulation_steps``, within rounding. Several policies draw from
    generators of their own.

    A process that dies or does not answer is replaced: it takes up the environments where the rollout began and plays
    it again, or all learners go back to the weights before the update and repeat it. What is learned is the same then.

    Args:
        n_learners: Learners that share each minibatch, this process among them.
        n_policies: Processes that play; ``n_learners`` if they are the learners.
        placement: "colocated" or "split".
        stale: With "split": whether the next rollout is played while this one is learned from, by the policy before the
            update. Ratios are clipped against the policy before each update, and what the one before it drew is
            weighed, see `losses.behaviour_weights`.
        address: Address of a Ray cluster that this machine belongs to, such as "auto"; None starts one here.
        cpus_per_worker: CPUs of each process besides this one; by default, an equal share of what there is.
        gpus_per_worker: GPUs of each process besides this one; by default 1 where there are any.
        deadline_s: Seconds within which a process has to answer, and learners have to sum a minibatch's gradients.
        start_deadline_s: Seconds within which a process has to start, and to make its environments.

    Attributes:
        n_replaced: How many processes have been replaced so far.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If an argument is out of range.
        EngineError: If the cluster does not answer or is too small.
    """

    def __init__(
        self,
        n_learners: int = 1,
        n_policies: int | None = None,
        *,
        placement: Placement = "colocated",
        stale: bool = False,
        address: str | None = None,
        cpus_per_worker: float | None = None,
        gpus_per_worker: float | None = None,
        deadline_s: float = 300.0,
        start_deadline_s: float = 900.0,
    ) -> None:
        self.n_learners = whole_number("n_learners", n_learners, 1)
        self.placement = cast(Placement, choice("placement", placement, ("colocated", "split")))
        together = placement == "colocated"
        self.n_policies = whole_number("n_policies", n_policies or (n_learners if together else 1), 1)
        if together and self.n_policies != n_learners:
            raise ValueError(
                f"n_policies={n_policies} and n_learners={n_learners}: colocated learners play themselves, so these are "
                "equal; leave n_policies out, or give placement='split'."
            )
        if flag("stale", stale) and together:
            raise ValueError("stale=True needs processes that play while others learn: give placement='split'.")
        self.staleness = int(stale)
        for name, value in (("deadline_s", deadline_s), ("start_deadline_s", start_deadline_s)):
            real_number(name, value, above=0)
        self.cluster = Cluster(address, deadline_s, start_deadline_s)
        self.deadline_s = deadline_s
        self.ranks: Ranks = OneRank()
        self.n_replaced = 0
        n_workers = self.n_learners - 1 + (0 if together else self.n_policies)
        self._place = self._placed(n_workers, cpus_per_worker, gpus_per_worker)
        self._threads = th.get_num_threads()
        self._workers: dict[int, Remote] = {}
        self._makes: dict[int, Callable[[], VecEnv]] = {}  # of the environments, by worker
        self._snapshots: dict[int, dict[str, Any]] = {}  # where the environments are, by worker
        self._task_weights: list[float] | None = None
        self._ahead: list[Iterator[Any]] = []  # the next rollout, if it is under way
        self._repeat: Callable[[], list[Iterator[Any]]] | None = None  # begins another rollout like the last
        self._learner: Any = None
        try:
            if n_workers:
                self.cluster.reserve(n_workers, self._place)
            for number in range(n_workers):
                self._workers[number] = self.cluster.start(number, self._place, self._threads)
        except BaseException:
            self.close()
            raise

    def _placed(self, n_workers: int, cpus: float | None, gpus: float | None) -> Place:
        has = self.cluster.ray.cluster_resources()
        if cpus is None:
            cpus = max(1.0, has.get("CPU", 0) // max(n_workers, 1))
        if gpus is None:
            gpus = 1.0 if has.get("GPU", 0) else 0.0
        return Place(real_number("cpus_per_worker", cpus, above=0), real_number("gpus_per_worker", gpus, minimum=0))

    # ---------------------------------------------------------------------------------------- environments

    @property
    def _players(self) -> list[int | None]:
        """The worker that plays each part; None for this process."""
        own: list[int | None] = [None] if self.placement == "colocated" else []
        return own + list(range(self.n_policies - len(own)))

    @property
    def _learners(self) -> list[int]:
        """The workers that learn, in the order of their ranks, from 1."""
        first = 0 if self.placement == "colocated" else self.n_policies
        return list(range(first, first + self.n_learners - 1))

    def make_vec_env(self, env_id: str, n_envs: int = 1, *, seed: int | None = None, **kwargs: Any) -> PartedVecEnv:
        """`vla_agent.make_vec_env` with the environments where the policies are.

        Raises:
            ValueError: If there are fewer environments than policies, or an argument is wrong.
            EngineError: If a process fails.
        """
        whole_number("n_envs", n_envs, self.n_policies)
        model = kwargs.get("model", "tiny")
        processor = load_processor(model) if isinstance(model, (str, Path)) else model
        self._snapshots.clear()
        self._task_weights = None
        parts: list[tuple[Any, slice]] = []
        asked = {}
        for number, share in zip(self._players, shares(n_envs, self.n_policies), strict=True):
            own = share.stop - share.start
            n_workers = min(own, max(1, int(self._place.cpus)))
            make = functools.partial(make_vec_env, env_id, own, **({"n_workers": n_workers} | kwargs))
            if number is None:
                parts.append((LocalPart(Player(make())), share)) if self.n_policies == 1 else parts.append((make, share))
            else:
                self._makes[number] = make
                asked[number] = self._workers[number].actor.make_env.remote(make)
                parts.append((RemotePart(self, number), share))
        # Here only now, so that all are made at the same time.
        parts = [(LocalPart(Player(part())) if callable(part) else part, share) for part, share in parts]
        told = [
            self.cluster.answer(self._workers[number], reference, self.cluster.start_deadline_s)
            for number, reference in asked.items()
        ]
        first = parts[0][0]
        described = first.player.describe() if isinstance(first, LocalPart) else told[0]
        name = model if isinstance(model, (str, Path)) else None
        env = PartedVecEnv(self, parts, described, processor, name)
        if seed is not None:
            env.seed(seed)
        return env

    def close_env(self, env: PartedVecEnv) -> None:
        """Ends the environments that `make_vec_env` made."""
        for part in env.parts:
            if isinstance(part, LocalPart):
                part.player.env.close()
        for number in self._makes:
            if number in self._workers:
                self._workers[number].actor.close.remote()
        self._makes.clear()

    # ------------------------------------------------------------------------------------ what learners ask

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's result depends on: how many learn and play, where that is more than one."""
        counts = {"learners": self.n_learners, "policies": self.n_policies}
        told: dict[str, Any] = {name: count for name, count in counts.items() if count > 1}
        return told | ({"stale": True} if self.staleness else {})

    def check(self, learner: Any, env: VecEnv | None) -> None:
        """Complains about environments of another engine, and minibatches that learners do not divide."""
        if env is not None and getattr(env.unwrapped, "engine", None) is not self:
            raise ValueError("Make the environments with engine.make_vec_env(...): they belong where the policies are.")
        parts = self.n_learners * learner.gradient_accumulation_steps
        if learner.batch_size % parts:
            raise ValueError(
                f"batch_size={learner.batch_size} is not divided by {self.n_learners} learners with "
                f"gradient_accumulation_steps={learner.gradient_accumulation_steps}; give a multiple of {parts}."
            )

    def begin(self, learner: Any) -> None:
        """Copies the learner to every process that plays or learns."""
        self.abandon()
        self._learner = learner
        self._copy([*self._workers])

    def play(
        self,
        learner: Any,
        policy: Actor,
        env: VecEnv,
        n_steps: int,
        *,
        last_obs: Any = None,
        episode_starts: np.ndarray | None = None,
        buffer: Any = None,
        stopwatch: Any = None,
        **how: Any,
    ) -> Iterator[Event]:
        """The events of a rollout, as all parts play it."""
        parted = cast(PartedVecEnv, env)
        assert buffer is not None and stopwatch is not None
        by_token = isinstance(buffer, TokenRolloutBuffer)
        if self.staleness:
            self._repeat = functools.partial(self._begin, learner, parted, n_steps, by_token, how)
        streams = self._ahead or self._begin(learner, parted, n_steps, by_token, how, stopwatch)
        self._ahead = []
        obs = last_obs
        for step in range(n_steps):
            # A stream of this process plays when it is asked; the others are at work already.
            told = merge_steps([next(stream) for stream in streams])
            yield Stepped(told | {"env": env, "rollout_buffer": buffer, "n_rollout_steps": n_steps, "obs": obs})
            if step + 1 < n_steps:
                yield Stored(obs, told["dones"])
        rollouts = [self._finished(learner, part, stream) for part, stream in zip(parted.parts, streams, strict=True)]
        fill(buffer, rollouts, parted.where)
        rollout = merge_rollouts(buffer, rollouts, parted.where, learner.device)
        for name, seconds in rollout.seconds.items():
            if not isinstance(parted.parts[0], LocalPart):
                stopwatch.seconds[name] = seconds
        yield Stored(rollout.last_obs, rollout.dones)
        yield rollout

    def _begin(
        self,
        learner: Any,
        env: PartedVecEnv,
        n_steps: int,
        by_token: bool,
        how: dict[str, Any],
        stopwatch: Any = None,
    ) -> list[Iterator[Any]]:
        """Begins a rollout in all parts, with the learner's weights and random generators as they are."""
        before = generator_states(learner.device)
        if self.placement == "split":
            self._send_weights(learner)
        streams: list[Iterator[Any]] = []
        for number, (part, share) in enumerate(zip(env.parts, env.where, strict=True)):
            starts = learner._last_episode_starts[share]
            if isinstance(part, LocalPart):
                played = part.player.play(learner.policy, n_steps, starts, by_token, stopwatch=stopwatch, **how)
                streams.append(played)
            else:
                follows_on = number == 0 and not self.staleness  # the update's draws come after, not beside
                begun = before if follows_on else _seed(before, number)
                streams.append(_Stream(self, part.number, begun, n_steps, starts, by_token, how))
        return streams

    def _finished(self, learner: Any, part: Any, stream: Iterator[Any]) -> Rollout:
        """The rollout at the end of a part's stream."""
        last = next(stream)
        if isinstance(part, LocalPart):
            return cast(Rollout, last)
        rollout, generators, snapshot = last
        if snapshot is not None:
            self._snapshots[part.number] = snapshot
        if self.placement == "split" and part.number == 0 and not self.staleness:
            restore_generators(generators, learner.device)
        return cast(Rollout, rollout)

    def update(self, learner: Any, train: Callable[[], None]) -> None:
        """Updates all learners; one that fails is replaced, and the update repeated."""
        if self._repeat is not None and learner.num_timesteps < learner._total_timesteps:
            self._ahead = self._repeat()
        if self.n_learners == 1:
            train()
            return
        counters = {name: getattr(learner, name) for name in learner.counters}
        generators = generator_states(learner.device)
        whole = _update(learner, counters, generators)
        update = self.cluster.put(whole)
        for attempt in range(MAX_REPLACEMENTS + 1):
            asked: dict[int, Any] = {}
            try:
                self._join(learner)
                asked = {number: self._workers[number].actor.update.remote(update) for number in self._learners}
                train()
                self._compare(learner, asked)
                return
            except (RanksError, LostError) as error:
                if attempt == MAX_REPLACEMENTS:
                    raise EngineError(f"An update failed {attempt + 1} times; last: {error}") from error
                self._go_back(learner, whole, asked)

    # ------------------------------------------------------------------------------------------- learners

    def _copy(self, numbers: list[int]) -> None:
        """Gives workers the learner as it is, or as it was before the rollout or update under way."""
        if not numbers:
            return
        learner = self._learner
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zip"
            learner.save(path)
            run = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        kwargs = learner.policy_kwargs
        given = {name: kwargs[name] for name in ("model",) if name in kwargs}
        copied = self.cluster.put(Copied(type(learner), run, {"policy_kwargs": given}))
        device = "cpu" if learner.device.type == "cpu" else "cuda:0"
        asked = [(number, self._workers[number].actor.load.remote(copied, device)) for number in numbers]
        for number, reference in asked:
            self.cluster.answer(self._workers[number], reference, self.cluster.start_deadline_s)
        self.ranks = OneRank()  # loaded learners have joined no others

    def _send_weights(self, learner: Any) -> None:
        trained = {name: tensor.cpu() for name, tensor in policy_tensors(learner.policy).items()}
        weights = self.cluster.put(trained)
        for number in cast(list[int], self._players):
            self._workers[number].actor.set_weights.remote(weights)  # a failure is told by the rollout that follows

    def _join(self, learner: Any) -> None:
        """Brings the learners together, unless they are."""
        if self.ranks.size == self.n_learners:
            return
        meeting = Rendezvous(self.cluster.host, self.deadline_s)
        address = (meeting.host, meeting.port)
        asked = {}
        for rank, number in enumerate(self._learners, 1):
            call = self._workers[number].actor.join
            asked[number] = call.remote(rank, self.n_learners, address, None, self.deadline_s, self.staleness)
        self.ranks = ProcessRanks(0, self.n_learners, meeting.store, learner.device, meeting.host, self.deadline_s)
        self._meeting = meeting
        for number, reference in asked.items():
            self.cluster.answer(self._workers[number], reference)

    def _compare(self, learner: Any, asked: dict[int, Any]) -> None:
        ours = weight_sums(learner)
        for number, reference in asked.items():
            updated: Updated = self.cluster.answer(self._workers[number], reference)
            if updated.sums != ours:
                raise EngineError(
                    f"{self._workers[number].called} has learned other weights than this process from the same update; "
                    "the last checkpoint is whole. Are machines or versions of their libraries mixed?"
                )

    def _go_back(self, learner: Any, update: Update, asked: dict[int, Any]) -> None:
        """Puts all learners back to before the update; those that are gone or hang are replaced."""
        self.ranks = OneRank()
        for number in self._learners:
            try:
                if number in asked:
                    self.cluster.answer(self._workers[number], asked[number])
            except LostError:
                self._restart(number)
            except RanksError:
                pass  # it waited for the one that failed
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zip"
            learner.save(path)
            restore_contents(learner.policy, path)
        for name, value in update.counters.items():
            setattr(learner, name, value)
        for name, values in update.buffer.items():  # the first minibatch brought them into another order
            setattr(learner.rollout_buffer, name, dict(values) if isinstance(values, dict) else values)
        learner.rollout_buffer.generator_ready = False
        restore_generators(update.generators, learner.device)
        self._copy(self._learners)

    # ---------------------------------------------------------------------------------------- replacements

    def _restart(self, number: int) -> None:
        """Starts another process in a worker's place, with its environments where they were."""
        self.n_replaced += 1
        self.cluster.end(self._workers[number])
        self._workers[number] = self.cluster.start(number, self._place, self._threads)
        if number in self._makes:
            self._tell(number, self._workers[number].actor.make_env.remote(self._makes[number]))
            self._go_on(number)

    def _go_on(self, number: int) -> None:
        """Puts a worker's environments where they were, as far as that is known."""
        ask = self._workers[number].actor.ask
        if number in self._snapshots:
            self._tell(number, ask.remote("restore", self.snapshot(number)))

    def snapshot(self, number: int) -> dict[str, Any]:
        """Where a worker's environments were when their last rollout ended or began, with the task weights of now."""
        return with_task_weights(self._snapshots[number], self._task_weights)

    def abandon(self) -> None:
        """Forgets a rollout that was begun ahead: its environments go elsewhere."""
        self._ahead, self._repeat = [], None

    def _tell(self, number: int, reference: Any) -> Any:
        return self.cluster.answer(self._workers[number], reference, self.cluster.start_deadline_s)

    def replace(self, number: int) -> None:
        """Replaces a worker between updates: environments, and the learner as it is."""
        self._restart(number)
        if self._learner is not None:
            self._copy([number])

    def close(self) -> None:
        """Ends all processes; safe to call twice."""
        for remote in self._workers.values():
            if self.cluster.ray.is_initialized():
                self.cluster.end(remote)
        self._workers.clear()
        self.cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RemotePart:
    """Environments of a worker."""

    def __init__(self, engine: RayEngine, number: int) -> None:
        self.engine, self.number = engine, number

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        """Begins a method of the worker's `Player`; a worker that is gone is replaced, and asked again."""
        engine = self.engine
        if name == "call" and args[0] == "set_task_weights":
            engine._task_weights = args[1]
        if name in ("reset", "restore", "begin_episodes", "step"):
            engine._snapshots.pop(self.number, None)
            engine.abandon()
        if name == "call" and args[0] == "snapshot" and engine._ahead:
            return lambda: engine.snapshot(self.number)
        if name == "restore":
            engine._snapshots[self.number] = args[0]
        reference = self._begin(name, *args, **kwargs)

        def answer() -> Any:
            try:
                result = engine.cluster.answer(engine._workers[self.number], reference)
            except LostError:
                if name in ("step", "begin_episodes"):
                    raise
                engine.replace(self.number)
                result = engine.cluster.answer(engine._workers[self.number], self._begin(name, *args, **kwargs))
            if name == "call" and args[0] == "snapshot" and result is not None:
                engine._snapshots[self.number] = result
            return result

        return answer

    def _begin(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.engine._workers[self.number].actor.ask.remote(name, *args, **kwargs)


class _Stream:
    """What a worker tells of a rollout; if it is lost, another plays it again, and what is known is left out."""

    def __init__(
        self,
        engine: RayEngine,
        number: int,
        generators: Any,
        n_steps: int,
        starts: np.ndarray,
        by_token: bool,
        how: dict[str, Any],
    ) -> None:
        self.engine, self.number = engine, number
        self.asked = (generators, n_steps, starts, by_token)
        self.how = how
        self.n_told = self.n_lost = 0
        self.items = self._begin()

    def _begin(self) -> Iterator[Any]:
        remote = self.engine._workers[self.number]
        call = remote.actor.play.options(num_returns="streaming")
        return self.engine.cluster.stream(remote, call.remote(*self.asked, **self.how))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                item = next(self.items)
            except LostError:
                self.n_lost += 1
                if self.n_lost > MAX_REPLACEMENTS or self.number not in self.engine._snapshots:
                    raise
                self.engine.replace(self.number)
                self.items = self._begin()
                for _ in range(self.n_told):
                    next(self.items)
                continue
            self.n_told += 1
            return item


def _seed(generators: dict[str, Any], number: int) -> int:
    """A seed for a part's draws in this rollout, which a run that goes on finds again."""
    digest = hashlib.sha256(f"{generators['torch']} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _update(learner: Any, counters: dict[str, Any], generators: dict[str, Any]) -> Update:
    progress = learner._current_progress_remaining
    schedules = ("lr_schedule", "_value_lr_schedule", "clip_range", "clip_range_vf")
    rates = {name: getattr(learner, name) for name in schedules}
    buffer = learner.rollout_buffer
    names = ("actions", "rewards", "episode_starts", "log_probs", "values", "advantages", "returns")
    inputs = learner.rollout_value_inputs
    return Update(
        {name: getattr(buffer, name) for name in names} | {"observations": dict(buffer.observations)},
        None if inputs is None else inputs.cpu(),
        counters,
        {name: None if schedule is None else float(schedule(progress)) for name, schedule in rates.items()},
        generators,
    )

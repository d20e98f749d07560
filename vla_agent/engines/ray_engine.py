"""Rollouts and updates in many processes, on one machine or many, through Ray's actors and placement groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import choice, flag, real_number, whole_number
from vla_agent.algorithms.engine import Ranks
from vla_agent.algorithms.rollout import Actor, Event
from vla_agent.engines.budget import Budget, budget_of
from vla_agent.engines.cluster import Cluster
from vla_agent.engines.environments import Environments
from vla_agent.engines.errors import EngineError
from vla_agent.engines.merging import shares, sizes_by_node, slices
from vla_agent.engines.packing import Place
from vla_agent.engines.rollouts import Rollouts
from vla_agent.engines.roster import Roster
from vla_agent.engines.spreading import Work, spread, working, working_with_learner
from vla_agent.engines.updates import Updates
from vla_agent.engines.vec_env import PartedVecEnv
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.suites import located
from vla_agent.policy.loading import load_processor

Placement = Literal["colocated", "split"]

_ENV_SHARE_OF_DEADLINE = 0.8


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

    A process that dies or does not answer is replaced, on another machine if its own is gone: it takes up the
    environments where the rollout began and plays it again, or all learners go back to the weights before the update
    and repeat it. What is learned is the same then. So it is if a process of its environments dies or hangs, unless
    they are made with ``restart=True``, which truncates their episodes and goes on. If there is no room for a
    replacement, or this process or its own environments are lost, the run stops; see `safe_learn`.

    Args:
        n_learners: Learners that share each minibatch, this process among them.
        n_policies: Processes that play; ``n_learners`` if they are the learners.
        envs_per_node: Environments of each machine that has policies, which share them; None leaves the number to
            `make_vec_env`.
        placement: "colocated" or "split".
        stale: With "split": whether the next rollout is played while this one is learned from, by the policy before the
            update. Ratios are clipped against the policy before each update, and what the one before it drew is
            weighed, see `losses.behaviour_weights`.
        shard: Whether each learner holds a share of the weights in updates, with its gradients and moments (FSDP2),
            instead of all: for training all weights of a large model. It needs two learners, and a policy without
            ``lora``, whose few weights travel faster whole.
        address: Address of a Ray cluster that this machine belongs to, such as "auto"; None starts one here.
        cpus_per_worker: CPUs of each process, this one among them; by default, the largest number that is free for each
            on its machine.
        gpus_per_worker: GPUs of each process; by default 1 where there are any. Several learners need one each. This
            one computes on its own from then on, if its device is "auto" or "cuda".
        deadline_s: Seconds within which a process has to answer, and learners have to sum a minibatch's gradients; a
            learner that hangs there is known within twice as long.
        start_deadline_s: Seconds within which a process has to start, and to make its environments.
        room_deadline_s: Seconds within which the cluster has to have room, at first and for a replacement: machines may
            join meanwhile, and other runs may end.

    Attributes:
        n_replaced: How many processes have been replaced so far.
        budget: Memory that the run takes of each machine; None before `learn`. Learners with ``verbose=1`` print it.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If an argument is out of range.
        EngineError: If the cluster does not answer or is too small.
    """

    def __init__(
        self,
        n_learners: int = 1,
        n_policies: int | None = None,
        envs_per_node: int | None = None,
        *,
        placement: Placement = "colocated",
        stale: bool = False,
        shard: bool = False,
        address: str | None = None,
        cpus_per_worker: float | None = None,
        gpus_per_worker: float | None = None,
        deadline_s: float = 300.0,
        start_deadline_s: float = 900.0,
        room_deadline_s: float = 60.0,
    ) -> None:
        self.n_learners = whole_number("n_learners", n_learners, 1)
        self.placement = cast(Placement, choice("placement", placement, ("colocated", "split")))
        together = placement == "colocated"
        by_default = n_learners if together else 1
        self.n_policies = by_default if n_policies is None else whole_number("n_policies", n_policies, 1)
        if together and self.n_policies != n_learners:
            raise ValueError(
                f"n_policies={n_policies} and n_learners={n_learners}: colocated learners play themselves, so these "
                "are equal; leave n_policies out, or give placement='split'."
            )
        self.envs_per_node = None if envs_per_node is None else whole_number("envs_per_node", envs_per_node, 1)
        if flag("stale", stale) and together:
            raise ValueError("stale=True needs processes that play while others learn: give placement='split'.")
        self.staleness = int(stale)
        if flag("shard", shard) and n_learners == 1:
            raise ValueError("shard=True needs learners to share with: give n_learners of at least 2.")
        if n_learners > 1 and gpus_per_worker and real_number("gpus_per_worker", gpus_per_worker, minimum=0) < 1:
            raise ValueError(
                f"gpus_per_worker={gpus_per_worker} lets learners share a GPU, and NCCL sums gradients between GPUs "
                "alone: give at least 1, or n_learners=1 and more gradient_accumulation_steps."
            )
        self.moments_device = "cpu" if shard else None
        deadlines = {"deadline_s": deadline_s, "start_deadline_s": start_deadline_s, "room_deadline_s": room_deadline_s}
        self.cluster = Cluster(address, *(real_number(name, value, above=0) for name, value in deadlines.items()))
        n_players = 0 if together else self.n_policies
        n_workers = self.n_learners - 1 + n_players
        try:
            place = _placed(self.cluster, n_workers, cpus_per_worker, gpus_per_worker)
            self.roster = Roster(self.cluster, n_workers, place, th.get_num_threads())
        except BaseException:
            self.cluster.close()
            raise
        # The worker that plays each part; None for this process.
        self._players: list[int | None] = [None, *range(n_workers)] if together else list(range(n_players))
        self._rollouts = Rollouts(self.roster, sends_weights=not together, stale=bool(self.staleness))
        self._updates = Updates(self.roster, range(n_players, n_workers), self.staleness, shard)
        self.roster.on_replaced = self._rollouts.begin_again
        self.budget: Budget | None = None
        self._environments = Environments(self.roster, self._rollouts)
        self._n_env_workers: list[int] = []
        self._closed = False

    @property
    def n_replaced(self) -> int:
        """How many processes have been replaced so far."""
        return self.roster.n_replaced

    def make_vec_env(
        self, env_id: str, n_envs: int | None = None, *, seed: int | None = None, **kwargs: Any
    ) -> PartedVecEnv:
        """`vla_agent.make_vec_env` with the environments where the policies are, which hold one set at a time.

        Args:
            env_id: The id, such as "LIBERO-Spatial-v0"; or a BDDL file, or a folder of such, which all machines see.
            n_envs: Number of all environments; by default ``envs_per_node`` on each machine, or one for each policy.
            seed: Seed of the environments.
            kwargs: Further arguments of `vla_agent.make_vec_env`.

        Raises:
            ValueError: If others are open, there are fewer environments than policies, or an argument is wrong.
            EngineError: If a process fails, or the engine is closed.
        """
        if self._closed:
            raise EngineError("The engine is closed; make another one.")
        self._environments.check_vacant()
        if kwargs.get("output") == "torch":
            raise ValueError(
                "output='torch' keeps observations on one process's device, and an engine moves them between several; "
                "leave it out."
            )
        model = kwargs.get("model", "tiny")
        processor = load_processor(model) if isinstance(model, (str, Path)) else model
        where = self._shares(n_envs)
        makes = [_make_part(self.roster, located(env_id), share.stop - share.start, kwargs) for share in where]
        self._n_env_workers = [make.keywords.get("n_workers", 0) for make in makes]
        parts, described = self._environments.make(list(zip(self._players, makes, strict=True)))
        name = model if isinstance(model, (str, Path)) else None
        env = PartedVecEnv(self, list(zip(parts, where, strict=True)), described, processor, name)
        self._environments.hold(env)
        if seed is not None:
            env.seed(seed)
        return env

    def _shares(self, n_envs: int | None) -> list[slice]:
        """The environments of each policy."""
        if self.envs_per_node is None:
            chosen = self.n_policies if n_envs is None else whole_number("n_envs", n_envs, self.n_policies)
            return shares(chosen, self.n_policies)
        nodes = [self.cluster.node if number is None else self.roster.node(number) for number in self._players]
        found = slices(sizes_by_node(nodes, whole_number("envs_per_node", self.envs_per_node, nodes.count(nodes[0]))))
        if n_envs not in (None, found[-1].stop):
            raise ValueError(
                f"n_envs={n_envs}, but {len(set(nodes))} machines with envs_per_node={self.envs_per_node} have "
                f"{found[-1].stop}; leave one of the two out."
            )
        return found

    def close_env(self) -> None:
        """Ends the environments that `make_vec_env` made; safe to call twice."""
        self._environments.close()

    # ------------------------------------------------------------------------------------ what learners ask

    @property
    def ranks(self) -> Ranks:
        """The learners that share each minibatch; this process is the first."""
        return self._updates.ranks

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's result depends on: how many learn and play, where that is more than one."""
        counts = {"learners": self.n_learners, "policies": self.n_policies}
        told: dict[str, Any] = {name: count for name, count in counts.items() if count > 1}
        kinds = {"stale": bool(self.staleness), "shard": self._updates.shard}
        return told | {name: True for name, chosen in kinds.items() if chosen}

    def check(self, learner: Any, env: VecEnv | None) -> None:
        """Complains about what the engine cannot serve, see `Engine`."""
        if env is not None and getattr(env.unwrapped, "engine", None) is not self:
            raise ValueError("Make the environments with engine.make_vec_env(...): they belong where the policies are.")
        if (self.n_learners > 1 or self.staleness) and not learner.shares_updates:
            raise ValueError(
                f"{type(learner).__name__} learns in one process, from rollouts of the policy that it has: make the "
                "engine with n_learners=1 and without stale."
            )
        parts = self.n_learners * learner.gradient_accumulation_steps
        if self.n_learners > 1 and learner.batch_size % parts:
            raise ValueError(
                f"batch_size={learner.batch_size} is not divided by {self.n_learners} learners with "
                f"gradient_accumulation_steps={learner.gradient_accumulation_steps}; give a multiple of {parts}."
            )
        if self._updates.shard and learner.policy.lora is not None:
            raise ValueError("shard=True shares all weights, and the policy trains adapters (lora); leave shard out.")

    def begin(self, learner: Any) -> None:
        """Copies the learner to every process that plays or learns, if the machines' memory holds what the run takes.

        Raises:
            EngineError: If it does not, or a process fails.
            ClosedEnvironmentError: If the environments are closed.
        """
        learner.env.unwrapped.check_open()
        self._rollouts.begin_anew()
        if self.roster.learner is not learner:
            self._check_memory(learner)
        self.roster.learner = learner
        self.roster.copy_learner()
        self._updates.part()

    def _check_memory(self, learner: Any) -> None:
        plays = list(zip(self._players, learner.env.unwrapped.where, self._n_env_workers, strict=True))
        kinds = (self.placement == "split", bool(self.staleness), self._updates.shard)
        self.budget = budget_of(learner, self.roster, plays, *kinds)
        if learner.verbose:
            print(self.budget)  # as SB3 prints its device
        self.budget.check()

    def play(
        self,
        learner: Any,
        policy: Actor,
        env: VecEnv,
        n_steps: int,
        *,
        last_obs: Any,
        episode_starts: Any,
        buffer: Any,
        stopwatch: Any,
        **how: Any,
    ) -> Iterator[Event]:
        """The events of a rollout, as all parts play it."""
        return self._rollouts.events(learner, cast(PartedVecEnv, env), n_steps, last_obs, buffer, stopwatch, how)

    def update(self, learner: Any, train: Callable[[], None]) -> None:
        """Updates all learners; one that fails is replaced, and the update repeated."""
        if learner.num_timesteps < learner._total_timesteps:
            self._rollouts.begin_ahead(learner)
        if self.n_learners == 1:
            train()
        else:
            self._updates.run(learner, train)

    def map(self, work: Work, items: Sequence[Any], here: Work | None = None) -> Iterator[tuple[int, Any]]:
        """Work on items in all processes at once, this one among them, such as the episodes of an evaluation.

        A process that dies, or gives no result within the start deadline, is replaced, and what it had not done is done
        again. One that has begun goes on with its share if the iterator is abandoned.

        Args:
            work: Function that is given some of the items and yields the position of each among them with its result,
                as they end. It is pickled.
            items: The items; each process gets every n-th.
            here: What this process does; ``work`` by default.

        Yields:
            The position of each item and its result, as they end.

        Raises:
            EngineError: If a process is lost again and again.
        """
        return spread(self.roster, self.roster.numbers, working(self.roster, work), items, here or work)

    def who_acts_as(self, learner: Any) -> list[int]:
        """The other processes whose copy can act as a learner does, from when `learn` begins.

        Those that share the weights (``shard``) have no average, and no whole policy unless they play.
        """
        if self.roster.learner is not learner:
            return []
        if not self._updates.shard:
            return self.roster.numbers
        playing = [number for number in self._players if number is not None]
        return [] if self.placement == "colocated" and learner.policy.average_decay else playing

    def map_learner(
        self, learner: Any, work: Callable[..., Iterator[tuple[int, Any]]], items: Sequence[Any], here: Work
    ) -> Iterator[tuple[int, Any]]:
        """`map` for work that needs the learner; nothing that it learns or plays changes.

        Args:
            learner: The learner.
            work: What the others do; it is given the process's copy of the learner, then the items. The copy acts with
                the weights of now, or with their average, see `VLAPolicy.averaged`.
            items: The items.
            here: What this process does.

        Yields, raises: As `map`.
        """
        with learner.policy.averaged():
            weights = self._rollouts.weights(learner)
        given = {} if weights is None else dict.fromkeys(self._players, weights)
        begin = working_with_learner(self.roster, work, given)
        return spread(self.roster, self.who_acts_as(learner), begin, items, here)

    def close(self) -> None:
        """Ends all processes and environments; safe to call twice."""
        self._closed = True
        try:
            self._updates.part()
            self.roster.close()
            self._environments.close()
        finally:
            self.cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _placed(cluster: Cluster, n_workers: int, cpus: float | None, gpus: float | None) -> Place:
    if gpus is None:
        gpus = 1.0 if cluster.ray.cluster_resources().get("GPU", 0) else 0.0
    gpus = real_number("gpus_per_worker", gpus, minimum=0)
    if cpus is None:
        cpus = cluster.share(n_workers + 1, gpus)
    return Place(real_number("cpus_per_worker", cpus, above=0), gpus)


def _make_part(roster: Roster, env_id: str, n_envs: int, kwargs: dict[str, Any]) -> functools.partial[VecEnv]:
    given: dict[str, Any] = {}
    if kwargs.get("backend", "processes") == "processes":  # they are to say which of them hangs, in time
        given["n_workers"] = min(n_envs, max(1, int(roster.place.cpus)))
        given["timeout"] = _ENV_SHARE_OF_DEADLINE * roster.cluster.deadline_s
    return functools.partial(make_vec_env, env_id, n_envs, **(given | kwargs))

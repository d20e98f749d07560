"""Updates that several learners compute together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from vla_agent.algorithms.engine import OneRank, Ranks
from vla_agent.engines.errors import EngineError, LostError, RanksError
from vla_agent.engines.ranks import ProcessRanks, Rendezvous
from vla_agent.engines.roster import MAX_REPLACEMENTS, Roster, saved
from vla_agent.engines.sharding import ShardedRanks
from vla_agent.engines.worker import Update
from vla_agent.runs.loading import restore_contents
from vla_agent.runs.serialization import generator_states, restore_generators

logger = logging.getLogger(__name__)

_SCHEDULES = ("lr_schedule", "_value_lr_schedule", "clip_range", "clip_range_vf")
_ARRAYS = ("actions", "rewards", "episode_starts", "log_probs", "values", "advantages", "returns")


class Updates:
    """Updates the learner of this process, which is rank 0, and those of others.

    Args:
        roster: The processes.
        numbers: Those that learn, in the order of their ranks, from 1.
        staleness: See `Engine`.
        shard: Whether each holds a share of the weights in updates, see `ShardedRanks`.

    Attributes:
        ranks: The learners that have met; before they have, this one alone.
    """

    def __init__(self, roster: Roster, numbers: Sequence[int], staleness: int, shard: bool) -> None:
        self.roster, self.numbers, self.staleness, self.shard = roster, numbers, staleness, shard
        self.ranks: Ranks = OneRank()
        self._meeting: Rendezvous | None = None
        self._n_replaced = 0  # when they met: one that was replaced since has met nobody
        self._asked: dict[int, Any] = {}  # the last call of each

    def part(self) -> None:
        """Copies of the learner were made anew: they have met no others."""
        if isinstance(self.ranks, ProcessRanks):
            self.ranks.close()
        self.ranks = OneRank()

    def run(self, learner: Any, train: Callable[[], None]) -> None:
        """Updates all; one that fails is replaced, and the update repeated from the weights before it.

        Raises:
            EngineError: If it fails again and again, or learners end with other weights.
        """
        whole = update_of(learner)
        update = self.roster.cluster.put(whole)
        failed: EngineError | None = None
        for _ in range(MAX_REPLACEMENTS + 1):
            try:
                if failed is not None:
                    self._go_back(learner, whole)
                ranks = self._meet(learner)
                self._asked = {n: self.roster.actor(n).update.remote(update) for n in self.numbers}
                ours = ranks.learn(learner, train)
            except (RanksError, LostError) as error:
                logger.warning("%s The update is repeated.", error)
                failed = error
            else:
                self._compare(ours)
                return
        raise EngineError(f"An update failed {MAX_REPLACEMENTS + 1} times; last: {failed}") from failed

    def _meet(self, learner: Any) -> ProcessRanks:
        """Brings the learners together, unless they are."""
        size = len(self.numbers) + 1
        if isinstance(self.ranks, ProcessRanks) and self._n_replaced == self.roster.n_replaced:
            return self.ranks
        self.part()
        deadline_s = self.roster.cluster.deadline_s
        meeting = self._meeting = Rendezvous(self.roster.cluster.host, deadline_s)
        address = (meeting.host, meeting.port)
        self._asked = {}
        for rank, number in enumerate(self.numbers, 1):
            join = self.roster.actor(number).join
            self._asked[number] = join.remote(rank, size, address, deadline_s, self.staleness, self.shard)
        where = (0, size, meeting.store, learner.device, meeting.host, deadline_s)
        if self.shard:
            ranks: ProcessRanks = ShardedRanks(*where, policy=learner.policy, keeps=True)
        else:
            ranks = ProcessRanks(*where)
        for number, reference in self._asked.items():
            self.roster.answer(number, reference)
        self.ranks, self._n_replaced = ranks, self.roster.n_replaced
        return ranks

    def _compare(self, ours: list[float]) -> None:
        """Checks that all have learned the same; one that is lost by now gets a copy, for the update is whole here."""
        for number, reference in self._asked.items():
            try:
                theirs = self.roster.answer(number, reference)
            except LostError as lost:
                self.roster.replace(number, lost)
                continue
            except RanksError:  # of the last sum, which has come here
                self.roster.copy_learner([number])
                self.part()
                continue
            if theirs != ours:
                raise EngineError(
                    f"{self.roster.called(number)} has learned other weights than this process from the same update; "
                    "the last checkpoint is whole. Are machines, or versions of their libraries, mixed?"
                )

    def _go_back(self, learner: Any, update: Update) -> None:
        """Puts all learners back to before the update; those that are gone or hang are replaced."""
        self.part()
        asked, self._asked = self._asked, {}
        begun = time.monotonic()
        for number, reference in asked.items():
            try:
                self.roster.answer(number, reference, begun=begun)
            except LostError as lost:
                self.roster.restart(number, lost)
            except RanksError:
                pass  # it waited for the one that failed
        with saved(learner) as path:
            restore_contents(learner.policy, path, learner.moments_device)
        for name, value in update.counters.items():
            setattr(learner, name, value)
        buffer = learner.rollout_buffer
        for name, values in update.buffer.items():  # the first minibatch brought them into another order
            setattr(buffer, name, dict(values) if isinstance(values, dict) else values)
        buffer.generator_ready = False
        restore_generators(update.generators, learner.device)
        self.roster.copy_learner(self.numbers)


def update_of(learner: Any) -> Update:
    """What the update that is about to begin depends on, besides weights and optimizer."""
    progress, buffer = learner._current_progress_remaining, learner.rollout_buffer
    schedules = {name: getattr(learner, name) for name in _SCHEDULES}
    inputs = learner.rollout_value_inputs
    return Update(
        {name: getattr(buffer, name) for name in _ARRAYS} | {"observations": dict(buffer.observations)},
        None if inputs is None else inputs.cpu(),
        {name: getattr(learner, name) for name in learner.counters},
        {name: None if schedule is None else float(schedule(progress)) for name, schedule in schedules.items()},
        generator_states(learner.device),
    )

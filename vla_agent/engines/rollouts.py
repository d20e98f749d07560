"""Rollouts that several processes play at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np

from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.rollout import Event, Rollout, Stepped, Stored
from vla_agent.engines.errors import EngineError, LostError
from vla_agent.engines.merging import fill, merge_rollouts, merge_steps
from vla_agent.engines.roster import MAX_REPLACEMENTS, NOWHERE, RemotePart, Roster
from vla_agent.engines.vec_env import LocalPart, PartedVecEnv
from vla_agent.runs.saved_run import policy_tensors
from vla_agent.runs.serialization import generator_states, restore_generators


class Ask(NamedTuple):
    """What a rollout is asked with, besides what is drawn with."""

    n_steps: int
    by_token: bool  # whether it holds a log-probability for each token, or for each action
    how: dict[str, Any]  # further keywords of `rollout.play`


class Rollouts:
    """Plays all parts of the environments at once.

    Args:
        roster: The processes.
        sends_weights: Whether those that play do not learn themselves, so that weights have to travel.
        stale: Whether a rollout is begun before the update that precedes it.
    """

    def __init__(self, roster: Roster, sends_weights: bool, stale: bool) -> None:
        self.roster, self.sends_weights, self.stale = roster, sends_weights, stale
        self._ahead: list[Iterator[Any]] = []
        self._ask: Ask | None = None  # the last
        self._is_cut = False  # whether a callback ended the last rollout: other processes have played on

    @property
    def is_ahead(self) -> bool:
        """Whether a rollout is under way that nobody has asked for yet."""
        return bool(self._ahead)

    def begin_ahead(self, learner: Any) -> None:
        """Begins another rollout like the last, by the weights of now."""
        if self.stale and self._ask is not None:
            self._ahead = self._begin(learner, learner.env.unwrapped, self._ask, is_ahead=True)

    def begin_again(self, number: int) -> None:
        """Begins what one process plays ahead again: the process is another one, and is where the rollout began."""
        for stream in self._ahead:
            if cast(_Stream, stream).number == number:
                cast(_Stream, stream).begin()

    def begin_anew(self) -> None:
        """Forgets a rollout that was begun ahead; its environments play it all the same."""
        self._is_cut |= self.is_ahead
        self._ahead, self._ask = [], None

    def abandon(self) -> None:
        """Forgets what was played: the environments go elsewhere."""
        self._ahead, self._ask, self._is_cut = [], None, False

    def events(
        self, learner: Any, env: PartedVecEnv, n_steps: int, last_obs: Any, buffer: Any, stopwatch: Any, how: Any
    ) -> Iterator[Event]:
        """The events of a rollout, see `rollout.play`."""
        ask = Ask(n_steps, isinstance(buffer, TokenRolloutBuffer), how)
        self._ask = ask
        streams = self._ahead or self._begin(learner, env, ask, stopwatch)
        self._ahead, self._is_cut = [], True  # until its end
        for step in range(n_steps):
            # A stream of this process plays when it is asked; the others are at work already.
            told = merge_steps([next(stream) for stream in streams])
            yield Stepped(told | {"env": env, "rollout_buffer": buffer, "n_rollout_steps": n_steps, "obs": last_obs})
            if step + 1 < n_steps:
                yield Stored(last_obs, told["dones"])
        rollouts = [self._end(learner, part, stream) for part, stream in zip(env.parts, streams, strict=True)]
        fill(buffer, rollouts, env.where)
        rollout = merge_rollouts(buffer, rollouts, env.where, learner.device)
        if not any(isinstance(part, LocalPart) for part in env.parts):  # whose seconds are counted already
            stopwatch.seconds |= rollout.seconds
        log_spread(learner, [sum(part.seconds.values()) for part in rollouts])
        yield Stored(rollout.last_obs, rollout.dones)
        self._is_cut = False
        yield rollout

    def weights(self, learner: Any) -> Any:
        """A reference to the trained weights of now, for those that play; None if they learn themselves."""
        if not self.sends_weights:
            return None
        return self.roster.cluster.put({name: tensor.cpu() for name, tensor in policy_tensors(learner.policy).items()})

    def _begin(
        self, learner: Any, env: PartedVecEnv, ask: Ask, stopwatch: Any = None, is_ahead: bool = False
    ) -> list[Iterator[Any]]:
        """Begins a rollout in all parts, with the learner's weights and random generators as they are."""
        before, begins_at = generator_states(learner.device), learner.num_timesteps
        ask = ask._replace(how=ask.how | {"num_timesteps": begins_at})
        weights = self.weights(learner)
        streams: list[Iterator[Any]] = []
        for number, (part, share) in enumerate(zip(env.parts, env.where, strict=True)):
            starts = learner._last_episode_starts[share]
            if isinstance(part, LocalPart):
                how = ask.how | {"stopwatch": stopwatch}
                streams.append(part.player.play(learner.policy, ask.n_steps, starts, ask.by_token, **how))
                continue
            # One that plays all, and then learns from it, draws as a run in one process does.
            follows_on = number == 0 and not self.stale
            begun = before if follows_on else _seed(before, begins_at, is_ahead, number)
            own = None if self._is_cut else starts
            streams.append(_Stream(self.roster, cast(RemotePart, part).number, weights, begun, ask, own))
        return streams

    def _end(self, learner: Any, part: Any, stream: Iterator[Any]) -> Rollout:
        """The rollout at the end of a part's stream."""
        last = next(stream)
        if isinstance(part, LocalPart):
            return cast(Rollout, last)
        rollout, generators, snapshot = last
        if snapshot is not None:
            self.roster.snapshots[part.number] = snapshot
        else:
            self.roster.snapshots.pop(part.number, None)
        if generators is not None:
            restore_generators(generators, learner.device)
        return cast(Rollout, rollout)


def log_spread(learner: Any, seconds: Sequence[float]) -> None:
    """Logs how long the fastest and the slowest of several policies played, for all wait for the slowest."""
    if len(seconds) > 1:
        learner.logger.record("time/fastest_policy_s", min(seconds))
        learner.logger.record("time/slowest_policy_s", max(seconds))


class _Stream:
    """What a process tells of a rollout; if it is lost, another plays it again, and what is known is left out.

    Weights travel with the call, not before it: a process that did not get them does not play, and one that plays again
    has those of the first time.
    """

    def __init__(
        self, roster: Roster, number: int, weights: Any, generators: Any, ask: Ask, starts: np.ndarray | None
    ) -> None:
        self.roster, self.number = roster, number
        self._asked = (weights, generators, ask.n_steps, starts, ask.by_token)
        self._how = ask.how
        self._n_told = self._n_lost = 0
        self.begin()

    def begin(self) -> None:
        """Has the process play, from where its environments are."""
        call = self.roster.actor(self.number).play.options(num_returns="streaming")
        self._items: Iterator[Any] = self.roster.stream(self.number, call.remote(*self._asked, **self._how))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        n_to_skip, lost = 0, None
        while True:
            try:
                if lost is not None:
                    self.roster.replace(self.number, lost)
                    self.begin()
                    n_to_skip = self._n_told
                for _ in range(n_to_skip):
                    next(self._items)
                item = next(self._items)
                break
            except LostError as error:
                lost = error
                self._n_lost += 1
                if not self.roster.knows_where(self.number):
                    raise EngineError(f"{lost} {NOWHERE}") from lost
                if self._n_lost > MAX_REPLACEMENTS:
                    raise EngineError(f"A rollout failed {self._n_lost} times; last: {lost}") from lost
        self._n_told += 1
        return item


def _seed(generators: dict[str, Any], begins_at: int, is_ahead: bool, number: int) -> int:
    """A seed for a part's draws in a rollout, which a run that goes on finds again.

    Args:
        generators: States of the learner's generators. None of them need move from one rollout to the next.
        begins_at: Timestep at which the rollout begins.
        is_ahead: Whether it begins before the update that precedes it.
        number: Number of the part.
    """
    drawn_from = generators["torch"], generators["numpy"], begins_at, is_ahead, number
    return int.from_bytes(hashlib.sha256(repr(drawn_from).encode()).digest()[:8], "little") >> 1

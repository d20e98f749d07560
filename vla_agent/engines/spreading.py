"""Items of work that the processes of an engine share, such as the episodes of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vla_agent.engines.errors import EngineError, LostError
from vla_agent.engines.roster import MAX_REPLACEMENTS, NOWHERE, Roster

# Has a process begin to work on items; gives Ray's stream of what `Work` gives.
Begin = Callable[[int, Sequence[Any]], Any]
# Given items, gives the position of each and its result, once, in whatever order they end.
Work = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]


def working(roster: Roster, work: Work) -> Begin:
    """Work that needs the items alone."""

    def begin(number: int, items: Sequence[Any]) -> Any:
        return roster.actor(number).work.options(num_returns="streaming").remote(work, items)

    return begin


def working_with_learner(roster: Roster, work: Callable[..., Any], weights: Mapping[int | None, Any]) -> Begin:
    """Work that needs the process's copy of the learner, too; see `Worker.work_with_learner` for weights."""

    def begin(number: int, items: Sequence[Any]) -> Any:
        call = roster.actor(number).work_with_learner.options(num_returns="streaming")
        return call.remote(work, items, weights.get(number))

    return begin


def spread(
    roster: Roster, others: Sequence[int], begin: Begin, items: Sequence[Any], here: Work
) -> Iterator[tuple[int, Any]]:
    """Results of items, see `RayEngine.map`.

    Args:
        roster: The other processes.
        others: Those of them that take part.
        begin: Has one of them, by its number, begin its share.
        items: The items.
        here: What this process does with its share.

    Raises:
        EngineError: If a process is lost again and again.
    """
    numbers = [number for number, _ in zip(others, items[1:], strict=False)]  # no more than there are items
    step = len(numbers) + 1
    shares = [
        _Share(roster, number, begin, items, range(first, len(items), step)) for first, number in enumerate(numbers, 1)
    ]
    own = range(0, len(items), step)
    local: Iterator[Any] | None = iter(here([items[index] for index in own]))
    while shares or local is not None:
        if local is not None:
            try:
                position, result = next(local)
                yield own[position], result
            except StopIteration:
                local = None
        if not shares:
            continue
        # This process's own work does not wait for that of others.
        within_s = 0.0 if local is not None else min(share.left_s for share in shares)
        ready = {id(stream) for stream in roster.cluster.told([share.stream for share in shares], within_s)}
        for share in list(shares):
            if id(share.stream) in ready:
                yield from share.take()
            elif share.left_s <= 0:
                share.lose(LostError(f"{roster.called(share.number)} did not answer in its time.", share.number))
            if share.is_done:
                shares.remove(share)


class _Share:
    """The items of one process."""

    def __init__(self, roster: Roster, number: int, begin: Begin, items: Sequence[Any], indices: Sequence[int]) -> None:
        self.roster, self.number, self.begin, self.items = roster, number, begin, items
        self.left = list(indices)  # without a result yet
        self.is_done = False
        self._n_lost = 0
        self._begin()

    def _begin(self) -> None:
        self.given = list(self.left)
        self.stream: Any = self.begin(self.number, [self.items[index] for index in self.given])
        self.since = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds within which it has to give another result; what it needs is made before the first."""
        return self.since + self.roster.cluster.start_deadline_s - time.monotonic()

    def take(self) -> Iterator[tuple[int, Any]]:
        """The result that has come, if any."""
        try:
            position, result = self.roster.answer(self.number, next(self.stream), starting=True)
        except StopIteration:
            if self.left:
                raise EngineError(f"{self.roster.called(self.number)} left {len(self.left)} items out.") from None
            self.is_done = True
            return
        except LostError as error:
            self.lose(error)
            return
        index = self.given[position]
        self.left.remove(index)
        self.since = time.monotonic()
        yield index, result

    def lose(self, error: LostError) -> None:
        """Replaces the process, and has the other do what is left."""
        self._n_lost += 1
        if self._n_lost > MAX_REPLACEMENTS:
            raise EngineError(f"A share of the work failed {self._n_lost} times; last: {error}") from error
        if not self.left:
            self.is_done = True
            return
        if not self.roster.knows_where(self.number):
            raise EngineError(f"{error} {NOWHERE}") from error
        try:
            self.roster.replace(self.number, error)
        except LostError as again:
            self.lose(again)
        else:
            self._begin()

"""Which worker process serves which environment of `LiberoVectorEnv`, and what takes the place of one that fails."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from libero_gym.vector import worker as protocol
from libero_gym.vector.pool import WorkerError, WorkerPool
from libero_gym.vector.shared_arrays import Layout, SharedArrays

logger = logging.getLogger(__name__)

# Times that a worker is replaced without completing a step in between: more is not bad luck.
MAX_REPLACEMENTS = 5
# What a worker is asked to reset: per environment its seed and options.
ResetRequests = dict[int, tuple[int | None, dict[str, Any]]]


class Processes:
    """The workers of a vector environment and the arrays shared with them.

    Args:
        shares: The environments ``[first, last)`` of each worker.
        layout: Of the shared arrays. Each array whose name begins with ``final_`` belongs to the one without that.
        timeout: Seconds after which a worker that does not answer counts as hung.
        restart: Whether to replace workers that die or hang.

    Attributes:
        shared: The arrays.
        n_restarts: How many workers have been replaced.
        restarted: Which environments got a new worker in the latest step or reset, bool (n,).
        seeds: What each environment was last seeded with.
        restarts_since: How often each was restarted since, int (n,).
    """

    def __init__(self, shares: Sequence[tuple[int, int]], layout: Layout, timeout: float, restart: bool) -> None:
        n = shares[-1][1]
        self.shares, self.restart = list(shares), restart
        self.n_restarts = 0
        self.restarted = np.zeros(n, dtype=bool)
        self.seeds: list[int | None] = [None] * n
        self.restarts_since = np.zeros(n, dtype=np.int64)
        self._env_kwargs: list[dict[str, Any]] = []  # of each worker
        self._replacements = [0] * len(shares)  # of each worker, since it last completed a step
        self._step: dict[int, int] | None = None  # the requests of a step under way,
        self._had_ended = np.zeros(n, dtype=bool)  # and whose episode had ended before it
        self._final_names = [name for name in layout if name.startswith("final_")]
        self.shared = SharedArrays(layout)
        try:
            self.pool = WorkerPool(timeout, layout, self.shared.descriptor)
        except BaseException:
            self.shared.close()
            raise

    @property
    def is_stepping(self) -> bool:
        """Whether a step was started whose result nobody has collected."""
        return self._step is not None

    def start(self, env_kwargs: Sequence[dict[str, Any]]) -> None:
        """Start the workers, each with its arguments of `LiberoEnv`; the tasks are compiled by then."""
        self._env_kwargs = list(env_kwargs)
        for first, last in self.shares:
            self.pool.fork(first, last)
        self.pool.gather(self.pool.send(protocol.MAKE, {n: (kwargs,) for n, kwargs in enumerate(self._env_kwargs)}))
        if self.pool.failures:
            raise self._error()

    def reset(self, requests: ResetRequests) -> None:
        """Reset some environments; a step under way is abandoned."""
        self._abandon_step()
        self.restarted[:] = False
        per_worker = {number: (self._of_worker(number, requests),) for number in range(len(self.shares))}
        self.pool.gather(self.pool.send(protocol.RESET, per_worker))
        for index, (given, _) in requests.items():
            if given is not None:
                self.seeds[index], self.restarts_since[index] = given, 0
        for number in self._failed_workers():
            own = self._of_worker(number, requests)
            ended = [i for i in range(*self.shares[number]) if self.shared["phase"][i] == protocol.ENDED]
            self._replace(number, own, keep=[index for index in ended if index not in own])

    def begin_step(self) -> None:
        """Start a step in all workers, with the actions in the shared arrays."""
        self._had_ended = self.shared["phase"] == protocol.ENDED
        self.shared["terminated"][:] = self.shared["truncated"][:] = False
        self._step = self.pool.send(protocol.STEP, dict.fromkeys(range(len(self.shares)), ()))

    def end_step(self) -> None:
        """Wait for the step's end; an interrupted wait can be repeated."""
        assert self._step is not None
        self.restarted[:] = False
        try:
            finished = self.pool.gather(self._step)
        except Exception:
            self._step = None  # all have answered
            raise
        self._step = None
        for number in finished:
            self._replacements[number] = 0
        for number in self._failed_workers():
            self._replace(number, {}, keep=self._cut_short(number))

    def restore(self, snapshots: Sequence[dict[str, Any]], ended: Sequence[bool]) -> None:
        """Put each environment back to a snapshot; its episode goes on or has ended."""
        self._abandon_step()
        self.restarted[:] = False
        per_worker = {
            number: ({index: snapshots[index] for index in range(*share)},) for number, share in enumerate(self.shares)
        }
        self.pool.gather(self.pool.send(protocol.RESTORE, per_worker))
        if self.pool.failures:
            raise self._error()
        for index in np.flatnonzero(ended):
            self._end_episode(int(index))

    def call(self, name: str, chosen: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of some environments."""
        asked: dict[int, list[int]] = {}
        for number, (first, last) in enumerate(self.shares):
            own = [index for index in chosen if first <= index < last]
            if own:
                asked[number] = own
        answers = self.pool.gather(
            self.pool.send(protocol.CALL, {number: (name, own, args, kwargs) for number, own in asked.items()})
        )
        if len(answers) < len(asked):
            raise self._error()
        results = {index: answers[number][place] for number in asked for place, index in enumerate(asked[number])}
        return tuple(results[index] for index in chosen)

    def close(self) -> None:
        """End the processes and free the memory."""
        self.pool.close()
        self.shared.close()

    def _abandon_step(self) -> None:
        """Let a step under way (after Ctrl-C, say) end: its workers still read and write the shared arrays."""
        if self._step is not None:
            try:
                self.pool.gather(self._step)
            except Exception:
                logger.warning("A step that nobody collected had failed.", exc_info=True)
            self._step = None

    def _of_worker(self, number: int, requests: ResetRequests) -> ResetRequests:
        first, last = self.shares[number]
        return {index: request for index, request in requests.items() if first <= index < last}

    def _failed_workers(self) -> list[int]:
        """The workers to replace.

        Raises:
            WorkerError: If there are any, but they are not to be replaced.
        """
        if self.pool.failures and not self.restart:
            raise self._error()
        return list(self.pool.failures)

    def _error(self) -> WorkerError:
        return WorkerError("\n".join(self.pool.failures.values()))

    def _cut_short(self, number: int) -> list[int]:
        """Truncate the episodes that a failed worker leaves behind: their last observations and infos are final.

        Returns:
            The environments that begin no new episode in this step, as the autoreset mode has it.
        """
        mode = int(self.shared["autoreset"][0])
        keep = []
        for index in range(*self.shares[number]):
            if self._had_ended[index]:
                self.shared["rewards"][index] = 0.0
                if mode == protocol.REST:
                    keep.append(index)
                continue
            if not (self.shared["terminated"][index] or self.shared["truncated"][index]):
                self._end_episode(index)
                self.shared["final_reward_terms"][index] = self.shared["rewards"][index] = 0.0
                self.shared["truncated"][index] = True
            if mode != protocol.SAME_STEP:
                keep.append(index)
        return keep

    def _end_episode(self, index: int) -> None:
        """Make the current observation and info of an environment its final ones."""
        for name in self._final_names:
            self.shared[name][index] = self.shared[name.removeprefix("final_")][index]
        self.shared["phase"][index] = protocol.ENDED

    def _replace(self, number: int, requests: ResetRequests, keep: Sequence[int]) -> None:
        """Put a new worker in the place of a failed one and reset its environments, those in ``requests`` as asked.

        Args:
            number: Of the worker.
            requests: The resets asked for.
            keep: Environments that go on showing the end of their episode, until they are reset.

        Raises:
            WorkerError: If the worker has been replaced too often; the message holds the last traceback.
        """
        first, last = self.shares[number]
        while failure := self.pool.failures.get(number):
            if self._replacements[number] >= MAX_REPLACEMENTS:
                raise WorkerError(
                    f"Worker {number} was replaced {MAX_REPLACEMENTS} times without completing a step.\n{failure}"
                )
            self.n_restarts += 1
            self._replacements[number] += 1
            self.restarts_since[first:last] += 1
            self.restarted[first:last] = True
            self._warn_of_replacement(number, failure)
            self.shared["phase"][first:last] = protocol.IDLE  # should Ctrl-C come before the reset
            self.pool.replace(number)
            self.pool.gather(self.pool.send(protocol.MAKE, {number: (self._env_kwargs[number],)}))
            resets: ResetRequests = {}
            for index in range(first, last):
                seed, options = requests.get(index, (None, {}))
                resets[index] = (self._restart_seed(index) if seed is None else seed, options)
            self.pool.gather(self.pool.send(protocol.RESET, {number: (resets,)}))
        for index in keep:
            for name in self._final_names:
                self.shared[name.removeprefix("final_")][index] = self.shared[name][index]
            self.shared["phase"][index] = protocol.ENDED

    def _restart_seed(self, index: int) -> int | None:
        seed = self.seeds[index]
        if seed is None:
            return None
        return int(np.random.SeedSequence([seed, int(self.restarts_since[index])]).generate_state(1)[0])

    def _warn_of_replacement(self, number: int, failure: str) -> None:
        logger.warning("Replacing worker %d. %s", number, failure)
        warnings.warn(
            f"{failure.splitlines()[0]} It is replaced (restart {self.n_restarts}), and environments "
            f"{list(range(*self.shares[number]))} start new episodes.",
            stacklevel=6,
        )


def shares(num_envs: int, n_workers: int | None, n_gpus: int) -> list[tuple[int, int]]:
    """The environments ``[first, last)`` of each worker; sizes differ by at most one.

    Args:
        num_envs: How many there are.
        n_workers: How many workers at most; None for as many as CPU cores, or the next multiple of ``n_gpus``.
        n_gpus: How many GPUs draw.
    """
    if n_workers is None:
        n_workers = os.cpu_count() or 1
        n_workers += -n_workers % max(n_gpus, 1)  # as many on each GPU
    bounds = np.linspace(0, num_envs, min(num_envs, n_workers) + 1).round().astype(int)
    return [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]

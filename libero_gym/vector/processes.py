"""The back end that has environments in worker processes, and replaces a process that fails."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from libero_gym.common.checks import flag, real_number, whole_number
from libero_gym.common.cores import available_cores
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.first_use import compile_tasks
from libero_gym.rendering import devices
from libero_gym.tasks import placement_seeds_of
from libero_gym.vector import protocol
from libero_gym.vector.arguments import MAX_TIMEOUT, check_snapshot_of_workers
from libero_gym.vector.backend import Plan
from libero_gym.vector.pool import WorkerError, WorkerPool
from libero_gym.vector.protocol import FINAL, ResetRequests
from libero_gym.vector.shared_arrays import SharedArrays

logger = logging.getLogger(__name__)

# Times that a worker is replaced without completing a step in between: more is not bad luck.
MAX_REPLACEMENTS = 5
_AUTORESET = {
    AutoresetMode.SAME_STEP: protocol.SAME_STEP,
    AutoresetMode.NEXT_STEP: protocol.NEXT_STEP,
    AutoresetMode.DISABLED: protocol.DISABLED,
    None: protocol.REST,
}


class Processes(Uncopyable):
    """The back end "processes": environments live in workers forked from one template process.

    Each worker serves a fixed share of the environments. Frames, states, rewards and actions are in shared memory.
    Processes rather than threads, because a crash in a driver must not take the trainer along, nor a hang; because
    each worker has an OpenGL context of its own, on a GPU of its own; and because the trainer's Python then never
    waits for theirs.

    ## Failures

    A worker that dies (a crash in a driver, a kill) or hangs raises `WorkerError` with its own traceback: where it
    crashed, or where it was when ``timeout`` ran out. With ``restart=True`` `step` and `reset` of `LiberoVectorEnv`
    replace it and go on:

    * Environments whose episode was cut short are truncated with reward 0. ``final_obs`` and ``final_info`` are their
      last, and the observation is that of a new episode. One whose episode had ended just before keeps its result.
    * The new episode's seed follows from the seed that the environment was last reset with and the number of restarts
      since, so that the same failures give the same rollout. In `reset`, an environment that was to be reset is, with
      the seed and options asked for; others of the worker start a new episode all the same.
    * ``infos["worker_restarted"]``, bool (num_envs,), says which environments this happened to; with ``restart=True``
      it is always there. A warning names the worker, the reason and the environments; the log has the traceback.
    * A worker that is replaced `MAX_REPLACEMENTS` times without completing a step raises `WorkerError` the next time.
    * `call` and `render` cannot make up an answer: they raise, and the next `step` or `reset` replaces the worker.

    In other modes than ``SAME_STEP`` a restart is no autoreset: the step shows the last observation, and the new
    episode begins when the mode has it begin.

    An exception in an environment's Python code is raised here as it was there, from a `WorkerError` with the traceback
    of the worker, which lives on: a bug would only repeat itself. That the template process is lost is a `WorkerError`.

    SIGINT, SIGTERM and SIGHUP are left to the process that made the environments, even if the whole process group
    gets them (Ctrl-C, ``timeout``, a batch system): workers ignore them, and end when that process closes them or is
    gone. A step that Ctrl-C interrupts can still be collected by `step_wait`, or abandoned by `reset`.

    Args:
        plan: The environments.
        n_workers: Number of worker processes; None chooses as many as CPU cores, or the next multiple of the number of
            GPUs to render on, and at most one per environment.
        timeout: Seconds after which a worker that does not answer counts as hung.
        restart: Whether to replace workers that die or hang.
        render_device: EGL device index for all workers, or a sequence with one per worker. None spreads the
            environments evenly over the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves (see
            `libero_gym.rendering.devices`), unless ``MUJOCO_EGL_DEVICE_ID`` is set; without a GPU, EGL chooses.

    Attributes:
        pool: The processes.
        restarted: Which environments got a new worker in the latest step or reset, bool (n,).

    Raises:
        ValueError: If an argument is out of range; no process is started then.
        OSError: If there is too little memory.
        WorkerError: If a worker fails; the message holds its traceback.
    """

    copy_instead = "make another one."
    settings: Mapping[str, Any] = {}
    hand_out = staticmethod(np.asarray)

    def __init__(
        self,
        plan: Plan,
        *,
        n_workers: int | None = None,
        timeout: float = 300.0,
        restart: bool = False,
        render_device: int | Sequence[int | None] | None = None,
    ) -> None:
        n_workers = None if n_workers is None else whole_number("n_workers", n_workers, minimum=1)
        timeout = real_number("timeout", timeout, maximum=MAX_TIMEOUT, above=0)
        self.restart = flag("restart", restart)
        draws = bool(plan.example.cameras) or plan.example.render_mode is not None
        gpus = devices.default_gpus() if render_device is None and draws else []
        n = plan.num_envs
        self._shares = shares(n, n_workers, len(gpus))
        self.render_devices = devices.per_worker(render_device, [last - first for first, last in self._shares], gpus)
        self.n_restarts = 0
        self.restarted = np.zeros(n, dtype=bool)
        self._seeds: list[int | None] = [None] * n  # what each environment was last seeded with,
        self._restarts_since = np.zeros(n, dtype=np.int64)  # and how often it was restarted since
        self._env_kwargs = [plan.env_kwargs | {"render_device": device} for device in self.render_devices]
        self._replacements = [0] * len(self._shares)  # of each worker, since it last completed a step
        self._to_set: dict[str, Any] = {}  # what the workers are told when the step under way is over
        self._step: dict[int, int] | None = None  # the requests of a step under way,
        self._had_ended = np.zeros(n, dtype=bool)  # and whose episode had ended before it
        actions = (n, *(plan.example.action_space.shape or ()))
        layout = {**plan.layout, "actions": (actions, "float64"), "autoreset": ((1,), "int8")}
        layout["task_weights"] = (len(plan.tasks),), "float64"
        self._final_names = [name for name in layout if name.startswith(FINAL)]
        self._shared = SharedArrays(layout)
        try:
            self.pool = WorkerPool(timeout, layout, self._shared.descriptor)
        except BaseException:
            self._shared.close()
            raise
        self.arrays: Mapping[str, np.ndarray] = self._shared.arrays | (
            {"worker_restarted": self.restarted} if self.restart else {}
        )
        self.info_keys: tuple[str, ...] = ("worker_restarted",) if self.restart else ()
        try:
            self._start(plan)
        except BaseException:
            self.close()  # the traceback would keep the processes alive
            raise

    @property
    def is_stepping(self) -> bool:
        """Whether a step has begun that nobody has ended."""
        return self._step is not None

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The process that each environment lives in."""
        return tuple(pid for pid, share in zip(self.pool.pids, self._shares, strict=True) for _ in range(*share))

    def _start(self, plan: Plan) -> None:
        """Have the tasks compiled and loaded by the template, then start the workers."""
        tasks, renderer = plan.tasks, plan.example.renderer if plan.example.cameras else None
        seeds = [placement_seeds_of(task, plan.example.placement_seeds) for task in tasks]
        for same in dict.fromkeys(seeds):  # tasks without initial states have others than the rest
            alike = [task for task, own in zip(tasks, seeds, strict=True) if own == same]
            compile_tasks(alike, renderer=renderer, placement_seeds=same)
        each = tqdm(zip(tasks, seeds, strict=True), "Loading tasks", len(tasks), unit="task", disable=None, leave=False)
        for task, own in each:
            self.pool.compile(task, renderer, own)
        for first, last in self._shares:
            self.pool.fork(first, last)
        self.pool.gather(self.pool.send(protocol.MAKE, {n: (kwargs,) for n, kwargs in enumerate(self._env_kwargs)}))
        if self.pool.failures:
            raise self._error()

    def reset(self, requests: ResetRequests) -> None:
        """Reset some environments; a step that nobody has ended is abandoned."""
        self._abandon_step()
        self.restarted[:] = False
        per_worker = {number: (_of_share(self._shares[number], requests),) for number in range(len(self._shares))}
        self.pool.gather(self.pool.send(protocol.RESET, per_worker))
        for index, (given, _) in requests.items():
            if given is not None:
                self._seeds[index], self._restarts_since[index] = given, 0
        for number in self._failed_workers():
            own = _of_share(self._shares[number], requests)
            ended = [i for i in range(*self._shares[number]) if self._shared["phase"][i] == protocol.ENDED]
            self._replace(number, own, keep=[index for index in ended if index not in own])

    def begin_step(self, actions: np.ndarray) -> None:
        """Start a step in all workers."""
        self._shared["actions"][:] = actions
        self._had_ended = self._shared["phase"] == protocol.ENDED
        self._shared["terminated"][:] = self._shared["truncated"][:] = False
        self._step = self.pool.send(protocol.STEP, dict.fromkeys(range(len(self._shares)), ()))

    def end_step(self) -> None:
        """Wait for the end of the step; a wait that Ctrl-C interrupted can be repeated."""
        assert self._step is not None
        self.restarted[:] = False
        try:
            finished = self.pool.gather(self._step)
        except Exception:
            self._note_end_of_step()  # all have answered
            raise
        self._note_end_of_step()
        for number in finished:
            self._replacements[number] = 0
        for number in self._failed_workers():
            self._replace(number, {}, keep=self._cut_short(number))

    def set_autoreset(self, mode: AutoresetMode | None) -> None:
        """Set what follows an episode's end; None for rest."""
        self._set("autoreset", _AUTORESET[mode])

    def set_task_weights(self, weights: np.ndarray) -> None:
        """Set the probability of each task in later resets."""
        self._set("task_weights", weights)

    def snapshot(self) -> dict[str, Any]:
        """All that the environments' future depends on except the task weights, as JSON can hold it."""
        return {
            "environments": list(self.call("snapshot", range(len(self.restarted)), (), {})),
            "seeds": list(self._seeds),
            "restarts": self._restarts_since.tolist(),
            "ended": (self._shared["phase"] == protocol.ENDED).tolist(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where `snapshot` was taken."""
        n = len(self.restarted)
        saved = check_snapshot_of_workers(snapshot, n)
        self._abandon_step()
        self.restarted[:] = False
        per_worker = {
            number: ({index: saved["environments"][index] for index in range(*share)},)
            for number, share in enumerate(self._shares)
        }
        self.pool.gather(self.pool.send(protocol.RESTORE, per_worker))
        if self.pool.failures:
            raise self._error()
        self._seeds[:], self._restarts_since[:] = saved["seeds"], saved["restarts"]
        for ended in np.flatnonzero(saved["ended"]):
            self._end_episode(int(ended))

    def render(self) -> tuple[np.ndarray, ...]:
        """One frame per environment."""
        return self.call("render", range(len(self.restarted)), (), {})

    def call(self, name: str, chosen: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of some environments."""
        asked: dict[int, list[int]] = {}
        for number, (first, last) in enumerate(self._shares):
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
        """End the processes and free the memory. May be called twice."""
        self.pool.close()
        self._shared.close()

    def _abandon_step(self) -> None:
        """Wait for the end of a step that Ctrl-C left: its workers still read and write the shared arrays."""
        if self._step is not None:
            try:
                self.pool.gather(self._step)
            except Exception:
                logger.warning("A step that nobody collected had failed.", exc_info=True)
            self._note_end_of_step()

    def _set(self, name: str, value: Any) -> None:
        """Tell the workers a setting; not in the middle of a step, in which they read it."""
        self._to_set[name] = value
        if self._step is None:
            self._note_end_of_step()

    def _note_end_of_step(self) -> None:
        self._step = None
        for name in list(self._to_set):
            self._shared[name][:] = self._to_set.pop(name)

    def _failed_workers(self) -> list[int]:
        """Numbers of the workers to replace.

        Raises:
            WorkerError: If a worker failed and ``restart`` is False.
        """
        if self.pool.failures and not self.restart:
            raise self._error()
        return list(self.pool.failures)

    def _error(self) -> WorkerError:
        return WorkerError("\n".join(self.pool.failures.values()))

    def _cut_short(self, number: int) -> list[int]:
        """Truncate the episodes that a failed worker leaves behind: their last observations and infos are final.

        Returns:
            The environments that begin no new episode in this step, according to the autoreset mode.
        """
        mode = int(self._shared["autoreset"][0])
        keep = []
        for index in range(*self._shares[number]):
            if self._had_ended[index]:
                self._shared["rewards"][index] = 0.0
                if mode == protocol.REST:
                    keep.append(index)
                continue
            if not (self._shared["terminated"][index] or self._shared["truncated"][index]):
                self._end_episode(index)
                self._shared[FINAL + "reward_terms"][index] = self._shared["rewards"][index] = 0.0
                self._shared["truncated"][index] = True
            if mode != protocol.SAME_STEP:
                keep.append(index)
        return keep

    def _end_episode(self, index: int) -> None:
        """Make the current observation and info of an environment its final ones."""
        for name in self._final_names:
            self._shared[name][index] = self._shared[name.removeprefix(FINAL)][index]
        self._shared["phase"][index] = protocol.ENDED

    def _replace(self, number: int, requests: ResetRequests, keep: Sequence[int]) -> None:
        """Put a new worker in the place of a failed one and reset its environments, those in ``requests`` as asked.

        Args:
            number: Number of the worker.
            requests: Resets that `reset` was asked for.
            keep: Environments that go on showing the end of their episode, until they are reset.

        Raises:
            WorkerError: If the worker has been replaced too often; the message holds the last traceback.
        """
        first, last = self._shares[number]
        while failure := self.pool.failures.get(number):
            if self._replacements[number] >= MAX_REPLACEMENTS:
                raise WorkerError(
                    f"Worker {number} was replaced {MAX_REPLACEMENTS} times without completing a step.\n{failure}"
                )
            self.n_restarts += 1
            self._replacements[number] += 1
            self._restarts_since[first:last] += 1
            self.restarted[first:last] = True
            _warn_of_replacement(number, failure, self.n_restarts, range(first, last))
            self._shared["phase"][first:last] = protocol.IDLE  # should Ctrl-C come before the reset
            self.pool.replace(number)
            self.pool.gather(self.pool.send(protocol.MAKE, {number: (self._env_kwargs[number],)}))
            resets: ResetRequests = {}
            for index in range(first, last):
                seed, options = requests.get(index, (None, {}))
                again = _restart_seed(self._seeds[index], int(self._restarts_since[index]))
                resets[index] = again if seed is None else seed, options
            self.pool.gather(self.pool.send(protocol.RESET, {number: (resets,)}))
        for index in keep:
            for name in self._final_names:
                self._shared[name.removeprefix(FINAL)][index] = self._shared[name][index]
            self._shared["phase"][index] = protocol.ENDED


def _of_share(share: tuple[int, int], requests: ResetRequests) -> ResetRequests:
    return {index: request for index, request in requests.items() if index in range(*share)}


def _restart_seed(seed: int | None, n_restarts: int) -> int | None:
    return None if seed is None else int(np.random.SeedSequence([seed, n_restarts]).generate_state(1)[0])


def _warn_of_replacement(number: int, failure: str, n_restarts: int, share: range) -> None:
    logger.warning("Replacing worker %d. %s", number, failure)
    warnings.warn(
        f"{failure.splitlines()[0]} It is replaced (restart {n_restarts}), and environments {list(share)} start new "
        "episodes.",
        stacklevel=6,  # who called `LiberoVectorEnv.step`
    )


def shares(num_envs: int, n_workers: int | None, n_gpus: int) -> list[tuple[int, int]]:
    """The environments ``[first, last)`` of each worker; sizes differ by at most one.

    Args:
        num_envs: Number of environments.
        n_workers: Largest number of workers; None for as many as CPU cores, or the next multiple of ``n_gpus``.
        n_gpus: Number of GPUs that draw.
    """
    if n_workers is None:
        n_workers = available_cores()
        n_workers += -n_workers % max(n_gpus, 1)  # as many on each GPU
    bounds = np.linspace(0, num_envs, min(num_envs, n_workers) + 1).round().astype(int)
    return [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]

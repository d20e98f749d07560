"""Many LIBERO environments as one batch, in worker processes that share models and memory."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from libero_gym import devices
from libero_gym import worker as protocol
from libero_gym.env import LiberoEnv, check_task_weights
from libero_gym.first_use import compile_tasks
from libero_gym.pool import WorkerError, WorkerPool
from libero_gym.rewards import TERMS
from libero_gym.shared_arrays import Layout, SharedArrays
from libero_gym.uncopyable import Uncopyable

__all__ = ["LiberoVectorEnv", "WorkerError"]

logger = logging.getLogger(__name__)

# Times that a worker is replaced without completing a step in between: more is not bad luck.
MAX_REPLACEMENTS = 5
# What a worker is asked to reset: per environment its seed and options.
_ResetRequests = dict[int, tuple[int | None, dict[str, Any]]]

_INFO_KEYS = ("is_success", "task_id", "init_state_id", "elapsed_steps")


class LiberoVectorEnv(Uncopyable, gym.vector.VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """`LiberoEnv` times ``num_envs``: the same spaces, batched; a task of its own for each environment.

    The environments live in worker processes, forked from one template process (see `libero_gym.worker`); each serves
    a fixed share of them. Frames, states, rewards and actions are in shared memory. Observations handed out are copies.

    Threads would step no slower: a control step holds Python's lock for 0.5 of its 7.3 ms. Four environments without
    cameras on two cores, which other jobs used as well, made 87 (72-142) control steps per second in two threads and 82
    (64-129) in two processes, median and range of 9 rounds in turns, at 7.6 ms of CPU each. Processes it is because a
    crash in a driver must not take the trainer along, nor a hang; because each has an OpenGL context of its own, on a
    GPU of its own; and because the trainer's Python then never waits for theirs.

    Autoreset is Gymnasium's ``SAME_STEP``: the step that ends an episode returns the next episode's first observation,
    and the last one in ``infos["final_obs"]``, with ``infos["final_info"]``.

    ## Failures

    A worker that dies (a crash in a driver, a kill) or hangs raises `WorkerError` with its own traceback: where it
    crashed, or where it was when ``timeout`` ran out. With ``restart=True`` `step` and `reset` replace it and go on:

    * Environments whose episode was cut short are truncated with reward 0. ``final_obs`` and ``final_info`` are their
      last, and the observation is that of a new episode. One whose episode had ended just before keeps its result.
    * The new episode's seed follows from the seed that the environment was last reset with and the number of restarts
      since, so that the same failures give the same rollout. In `reset`, an environment that was to be reset is, with
      the seed and options asked for; others of the worker start a new episode all the same.
    * ``infos["worker_restarted"]``, bool (num_envs,), says which environments this happened to; with ``restart=True``
      it is always there. A warning names the worker, the reason and the environments; the log has the traceback.
    * A worker that is replaced `MAX_REPLACEMENTS` times without completing a step raises `WorkerError` the next time.
    * `call` and `render` cannot make up an answer: they raise, and the next `step` or `reset` replaces the worker.

    An exception in an environment's Python code raises `WorkerError` either way, and the worker lives on: a bug or a
    bad option would only repeat itself. Without the template process no worker can be replaced; that raises it, too.

    Args:
        num_envs: Number of environments.
        n_workers: Number of worker processes; None chooses as many as CPU cores, or the next multiple of the number of
            GPUs to render on, and at most ``num_envs``.
        timeout: Seconds after which a worker that does not answer counts as hung.
        restart: Whether to replace workers that die or hang.
        render_device: EGL device index for all workers, or a sequence with one per worker. None spreads the
            environments evenly over the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves (see `libero_gym.devices`), unless
            ``MUJOCO_EGL_DEVICE_ID`` is set; without a GPU, EGL chooses.
        max_episode_steps: Truncate episodes after so many control steps; None takes the suite's limit.
        **env_kwargs: Further arguments of `LiberoEnv`.

    Attributes:
        render_devices: EGL device index per worker; None where EGL chooses.
        n_restarts: How many workers have been replaced so far.
        settings: The arguments that decide what happens in the environments, as JSON can hold them.

    Raises:
        ValueError: If an argument is out of range.
        WorkerError: If a worker fails; the message holds its traceback.
    """

    copy_instead = (
        "its worker processes are its own. make_vec(...) another one, and move snapshot() there with restore()."
    )
    metadata: dict[str, Any] = {**LiberoEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        n_workers: int | None = None,
        timeout: float = 300.0,
        restart: bool = False,
        render_device: int | Sequence[int | None] | None = None,
        max_episode_steps: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}; expected an integer of at least 1.")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r}; expected seconds, more than 0.")
        if env_kwargs.get("reward") == "process":
            raise ValueError(
                "reward='process' would put a reward model into every worker; vla_agent.make_vec_env(..., "
                "reward='process', reward_model=...) scores all environments' frames in one batch."
            )
        example = LiberoEnv(**env_kwargs)  # checks the arguments; draws nothing
        self.num_envs = int(num_envs)
        self.suite, self.task_ids, self.instructions = example.suite, example.task_ids, example.instructions
        self.chunk_size, self.render_mode = example.chunk_size, example.render_mode
        self.max_episode_steps = example.suite.max_steps if max_episode_steps is None else max_episode_steps
        self.timeout, self.restart = timeout, restart
        self.settings = example.settings | {"max_episode_steps": self.max_episode_steps}
        self._tasks = example.tasks
        self._terms = TERMS[example.reward_type]
        self._renderer, self._instruction_kind = example.renderer, example.instruction_kind
        self._draws_frames = bool(example.cameras)
        self._array_keys = [key for key in cast(spaces.Dict, example.observation_space).spaces if key != "instruction"]
        self.single_observation_space = example.observation_space
        self.single_action_space = example.action_space
        self.observation_space = batch_space(example.observation_space, self.num_envs)
        self.action_space = batch_space(example.action_space, self.num_envs)
        self._env_kwargs = {**env_kwargs, "max_episode_steps": self.max_episode_steps}
        self._layout = self._make_layout()
        self._shared = SharedArrays(self._layout)
        self.set_task_weights(np.ones(len(self.task_ids)))
        draws = bool(example.cameras) or self.render_mode is not None
        gpus = devices.default_gpus() if render_device is None and draws else []
        self._shares = _shares(self.num_envs, n_workers, len(gpus))
        self.render_devices = devices.per_worker(render_device, [last - first for first, last in self._shares], gpus)
        self.n_restarts = 0
        self._seeds: list[int | None] = [None] * self.num_envs  # what each environment was last seeded with,
        self._restarts_since = np.zeros(self.num_envs, dtype=np.int64)  # and how often it was restarted since
        self._restarted = np.zeros(self.num_envs, dtype=bool)  # in this step or reset
        self._replacements = [0] * len(self._shares)  # of each worker, since it last completed a step
        self._pool = WorkerPool(timeout, self._layout, self._shared.descriptor)
        self._finalizer = weakref.finalize(self, _close, self._pool, self._shared)
        self._start()

    # ----------------------------------------------------------------------------- Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``.

        Args:
            seed: One seed, from which environment i gets ``seed + i``, or one per environment.
            options: `LiberoEnv.reset`'s options, each a value for all environments or a sequence with one for each; and
                ``reset_mask``, bool (num_envs,).
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)), dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {mask.shape}; expected ({self.num_envs},).")
        seeds = self._per_env_seeds(seed)
        per_env = {name: self._per_env_option(name, value) for name, value in options.items()}
        requests: _ResetRequests = {
            int(index): (seeds[index], {name: values[index] for name, values in per_env.items()})
            for index in np.flatnonzero(mask)
        }
        self._restarted[:] = False
        for number in range(len(self._shares)):
            self._pool.send(number, protocol.RESET, self._of_worker(number, requests))
        self._pool.gather(range(len(self._shares)))
        for index, (given, _) in requests.items():
            if given is not None:
                self._seeds[index], self._restarts_since[index] = given, 0
        for number in self._failed_workers():
            self._replace(number, self._of_worker(number, requests))
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step in all workers.

        Raises:
            ValueError: If the actions have another shape, or are not finite.
        """
        values = np.asarray(actions, dtype=np.float64)
        if values.shape != self.action_space.shape:
            raise ValueError(f"The actions have shape {values.shape}; expected {self.action_space.shape}.")
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values).reshape(self.num_envs, -1).all(axis=1)).tolist()
            raise ValueError(f"The actions of environments {bad} hold NaN or infinity; expected values in [-1, 1].")
        self._shared["actions"][:] = values
        self._shared["terminated"][:] = self._shared["truncated"][:] = False
        for number in range(len(self._shares)):
            self._pool.send(number, protocol.STEP)

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Collect the step that `step_async` started."""
        self._restarted[:] = False
        for number in self._pool.gather(range(len(self._shares))):
            self._replacements[number] = 0
        for number in self._failed_workers():
            self._cut_short(number)
            self._replace(number, {})
        terminated = self._shared["terminated"].copy()
        truncated = self._shared["truncated"].copy()
        infos = self._infos("", np.ones(self.num_envs, dtype=bool))
        done = terminated | truncated
        if done.any():
            final = self._observations("final_")
            final_obs = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(done):
                final_obs[index] = {key: values[index] for key, values in final.items()}
            infos["final_obs"], infos["_final_obs"] = final_obs, done.copy()
            infos["final_info"], infos["_final_info"] = self._infos("final_", done), done.copy()
        return self._observations(""), self._shared["rewards"].copy(), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One agentview frame per environment, with ``render_mode="rgb_array"``."""
        return self.call("render") if self.render_mode is not None else None

    def close_extras(self, **kwargs: Any) -> None:
        """Close workers and free the shared memory."""
        self._finalizer()

    # -------------------------------------------------------------------------------------- our additions

    def set_task_weights(self, weights: Sequence[float] | np.ndarray) -> None:
        """Set how often each task of ``task_ids`` is drawn from the next reset on; they need not sum to one.

        Raises:
            ValueError: If there is not one finite, non-negative weight per task, or all are zero.
        """
        self._shared["task_weights"][:] = check_task_weights(weights, len(self.task_ids))

    def set_autoreset(self, enabled: bool) -> None:
        """Whether an environment begins a new episode by itself where one ends; True from the start.

        With False it rests: later steps leave it as it is, with reward 0, until a `reset` whose ``reset_mask`` has it.
        For evaluations, which choose every episode: nothing is simulated or drawn in vain.
        """
        self._shared["rest_at_end"][:] = not enabled

    def snapshot(self) -> dict[str, Any]:
        """All that the future of the environments depends on, as JSON can hold it; for `restore`.

        Raises:
            WorkerError: If a worker has failed.
        """
        return {
            "environments": list(self.call("snapshot")),
            "task_weights": self._shared["task_weights"].tolist(),
            "seeds": self._seeds,
            "restarts": self._restarts_since.tolist(),
        }

    def restore(self, snapshot: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go on where `snapshot` was taken, in this process or another; gives observations and infos as `reset` does.

        Raises:
            ValueError: If the snapshot is of another number of environments.
            WorkerError: If a worker fails.
        """
        saved = snapshot["environments"]
        if len(saved) != self.num_envs:
            raise ValueError(f"The snapshot is of {len(saved)} environments; here are {self.num_envs}.")
        self.set_task_weights(snapshot["task_weights"])
        self._seeds = list(snapshot["seeds"])
        self._restarts_since[:] = snapshot["restarts"]
        self._restarted[:] = False
        for number, share in enumerate(self._shares):
            self._pool.send(number, protocol.RESTORE, {index: saved[index] for index in range(*share)})
        self._pool.gather(range(len(self._shares)))
        if self._pool.failures:
            raise self._error()
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def call(self, name: str, *args: Any, indices: Sequence[int] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of all environments or of some."""
        chosen = range(self.num_envs) if indices is None else indices
        asked: dict[int, list[int]] = {}
        for number, (first, last) in enumerate(self._shares):
            own = [index for index in chosen if first <= index < last]
            if own:
                self._pool.send(number, protocol.CALL, name, own, args, kwargs)
                asked[number] = own
        answers = self._pool.gather(asked)
        if len(answers) < len(asked):
            raise self._error()
        results = {index: answers[number][place] for number in asked for place, index in enumerate(asked[number])}
        return tuple(results[index] for index in chosen)

    # -------------------------------------------------------------------------------------------- private

    def _start(self) -> None:
        renderer = self._renderer if self._draws_frames else None
        tasks = [self._tasks[task_id] for task_id in self.task_ids]
        compile_tasks(tasks, renderer=renderer, placement_seeds=self.settings["placement_seeds"])
        for task_id in tqdm(self.task_ids, desc="Loading tasks", unit="task", disable=None, leave=False):
            self._pool.compile(self.suite.name, task_id, renderer, self.settings["placement_seeds"])
        for (first, last), device in zip(self._shares, self.render_devices, strict=True):
            self._pool.fork(first, last, self._env_kwargs | {"render_device": device})
        self._pool.gather(range(len(self._shares)))
        if self._pool.failures:
            raise self._error()

    def _of_worker(self, number: int, requests: _ResetRequests) -> _ResetRequests:
        first, last = self._shares[number]
        return {index: request for index, request in requests.items() if first <= index < last}

    def _failed_workers(self) -> list[int]:
        """The workers to replace.

        Raises:
            WorkerError: If there are any, but they are not to be replaced.
        """
        if self._pool.failures and not self.restart:
            raise self._error()
        return list(self._pool.failures)

    def _error(self) -> WorkerError:
        return WorkerError("\n".join(self._pool.failures.values()))

    def _cut_short(self, number: int) -> None:
        """Truncate the episodes that a failed worker leaves behind: their last observations and infos are final."""
        for index in range(*self._shares[number]):
            if self._shared["terminated"][index] or self._shared["truncated"][index]:
                continue  # the episode ended before the worker did
            for name in self._layout:
                if name.startswith("final_"):
                    self._shared[name][index] = self._shared[name.removeprefix("final_")][index]
            self._shared["final_reward_terms"][index] = self._shared["rewards"][index] = 0.0
            self._shared["truncated"][index] = True

    def _replace(self, number: int, requests: _ResetRequests) -> None:
        """Put a new worker in the place of a failed one and reset its environments, those in ``requests`` as asked.

        Raises:
            WorkerError: If the worker has been replaced too often; the message holds the last traceback.
        """
        first, last = self._shares[number]
        while failure := self._pool.failures.get(number):
            if self._replacements[number] >= MAX_REPLACEMENTS:
                raise WorkerError(
                    f"Worker {number} was replaced {MAX_REPLACEMENTS} times without completing a step.\n{failure}"
                )
            self.n_restarts += 1
            self._replacements[number] += 1
            self._restarts_since[first:last] += 1
            self._restarted[first:last] = True
            self._warn_of_replacement(number, failure)
            self._pool.replace(number)
            self._pool.gather([number])  # it is ready
            resets: _ResetRequests = {}
            for index in range(first, last):
                seed, options = requests.get(index, (None, {}))
                resets[index] = (self._restart_seed(index) if seed is None else seed, options)
            self._pool.send(number, protocol.RESET, resets)
            self._pool.gather([number])

    def _restart_seed(self, index: int) -> int | None:
        seed = self._seeds[index]
        if seed is None:
            return None
        return int(np.random.SeedSequence([seed, int(self._restarts_since[index])]).generate_state(1)[0])

    def _warn_of_replacement(self, number: int, failure: str) -> None:
        logger.warning("Replacing worker %d. %s", number, failure)
        warnings.warn(
            f"{failure.splitlines()[0]} It is replaced (restart {self.n_restarts}), and environments "
            f"{list(range(*self._shares[number]))} start new episodes.",
            stacklevel=5,
        )

    def _make_layout(self) -> Layout:
        n = self.num_envs
        per_prefix: dict[str, tuple[tuple[int, ...], str]] = {}
        for key in self._array_keys:
            space = self.observation_space[key]  # type: ignore[index]
            per_prefix[key] = (space.shape, space.dtype.name)
        per_prefix |= {"reward_terms": ((n, len(self._terms)), "float64")}
        per_prefix |= {"is_success": ((n,), "bool"), "task_id": ((n,), "int64"), "init_state_id": ((n,), "int64")}
        per_prefix |= {"elapsed_steps": ((n,), "int64")}
        layout = {prefix + key: value for prefix in ("", "final_") for key, value in per_prefix.items()}
        layout |= {"rewards": ((n,), "float64"), "terminated": ((n,), "bool"), "truncated": ((n,), "bool")}
        actions_shape = self.action_space.shape
        assert actions_shape is not None
        layout |= {"task_weights": ((len(self.task_ids),), "float64"), "rest_at_end": ((1,), "bool")}
        return layout | {"actions": (actions_shape, "float64")}

    def _observations(self, prefix: str) -> dict[str, Any]:
        observations: dict[str, Any] = {key: self._shared[prefix + key].copy() for key in self._array_keys}
        task_ids = self._shared[prefix + "task_id"]
        if self._instruction_kind == "text":
            observations["instruction"] = tuple(self._tasks[task_id].instruction for task_id in task_ids)
        elif self._instruction_kind == "id":
            observations["instruction"] = task_ids.copy()
        return observations

    def _infos(self, prefix: str, mask: np.ndarray) -> dict[str, Any]:
        """Infos as Gymnasium batches them: an array per key, and under ``_key`` for which environments it holds."""
        tasks = [self._tasks[task_id] for task_id in self._shared[prefix + "task_id"]]
        infos: dict[str, Any] = {key: self._shared[prefix + key].copy() for key in _INFO_KEYS}
        if self.restart:
            infos["worker_restarted"] = self._restarted.copy()
        infos["task_name"] = np.array([task.name for task in tasks], dtype=object)
        infos["instruction"] = np.array([task.instruction for task in tasks], dtype=object)
        terms = self._shared[prefix + "reward_terms"]
        infos["reward_terms"] = {name: terms[:, column].copy() for column, name in enumerate(self._terms)}
        infos["reward_terms"] |= {"_" + name: mask.copy() for name in self._terms}
        return infos | {"_" + key: mask.copy() for key in infos}

    def _per_env_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + index for index in range(self.num_envs)]
        return self._per_env_option("seed", seed)

    def _per_env_option(self, name: str, value: Any) -> list[Any]:
        if np.ndim(value) == 0:
            return [value] * self.num_envs
        if len(value) != self.num_envs:
            raise ValueError(f"{name} has {len(value)} values; expected one, or one for each of {self.num_envs}.")
        return list(value)


def _shares(num_envs: int, n_workers: int | None, n_gpus: int) -> list[tuple[int, int]]:
    """The environments ``[first, last)`` of each worker; sizes differ by at most one.

    Raises:
        ValueError: If ``n_workers`` is less than one.
    """
    if n_workers is None:
        n_workers = os.cpu_count() or 1
        n_workers += -n_workers % max(n_gpus, 1)  # as many on each GPU
    elif n_workers < 1:
        raise ValueError(f"n_workers={n_workers!r}; expected an integer of at least 1.")
    bounds = np.linspace(0, num_envs, min(num_envs, n_workers) + 1).round().astype(int)
    return [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]


def _close(pool: WorkerPool, shared: SharedArrays) -> None:
    pool.close()
    shared.close()

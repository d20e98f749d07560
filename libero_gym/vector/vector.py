"""Many LIBERO environments as one batch, in worker processes that share models and memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from libero_gym.checks import flag, real_number, whole_number
from libero_gym.compilation.first_use import compile_tasks
from libero_gym.env import LiberoEnv
from libero_gym.env_arguments import check_options, check_task_weights
from libero_gym.rendering import devices
from libero_gym.rewards import TERMS
from libero_gym.tasks import placement_seeds_of
from libero_gym.uncopyable import Uncopyable
from libero_gym.vector import arguments as vector_arguments
from libero_gym.vector import worker as protocol
from libero_gym.vector.pool import WorkerError
from libero_gym.vector.processes import MAX_REPLACEMENTS, Processes, ResetRequests, shares
from libero_gym.vector.shared_arrays import Layout

__all__ = ["MAX_REPLACEMENTS", "LiberoVectorEnv", "WorkerError"]

_INFO_KEYS = ("is_success", "task_id", "init_state_id", "elapsed_steps")
_AUTORESET = {
    AutoresetMode.SAME_STEP: protocol.SAME_STEP,
    AutoresetMode.NEXT_STEP: protocol.NEXT_STEP,
    AutoresetMode.DISABLED: protocol.DISABLED,
}


class LiberoVectorEnv(Uncopyable, gym.vector.VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """`LiberoEnv` times ``num_envs``: the same spaces, batched; a task of its own for each environment.

    The environments live in worker processes, forked from one template process (see `libero_gym.vector.worker`); each
    serves a fixed share of them. Frames, states, rewards and actions are in shared memory. Observations handed out are
    copies.

    Threads would step no slower: a control step holds Python's lock for 0.5 of its 7.3 ms. Four environments without
    cameras on two cores, which other jobs used as well, made 87 (72-142) control steps per second in two threads and 82
    (64-129) in two processes, median and range of 9 rounds in turns, at 7.6 ms of CPU each. Processes it is because a
    crash in a driver must not take the trainer along, nor a hang; because each has an OpenGL context of its own, on a
    GPU of its own; and because the trainer's Python then never waits for theirs.

    Instructions are the environments' own at every step. Gymnasium's ``AsyncVectorEnv``, which
    ``vectorization_mode="async"`` makes, shows none: Gymnasium 1.4 reads ``Text`` from shared memory once, before any
    is there. It is right with ``vector_kwargs=dict(shared_memory=False)`` or ``instruction="id"``; ``"sync"`` is, too.

    ## Autoreset

    ``autoreset_mode`` says what follows an episode's end, as in Gymnasium's own vector environments. The episodes
    themselves are the same in all three modes. Pass it to `gym.make_vec` as an argument of its own: Gymnasium takes
    ``vector_kwargs`` for "sync" and "async" only.

    * ``SAME_STEP``, the default: the step that ends an episode returns the next episode's first observation, and the
      last one in ``infos["final_obs"]``, with ``infos["final_info"]``. Trainers of `vla_agent` need it.
    * ``NEXT_STEP``, Gymnasium's own default, which its wrappers of observations take: the step that ends an episode
      returns its last observation. The next one leaves the action aside and returns the new episode's first, reward 0.
    * ``DISABLED``: ended environments have to be reset, by ``options={"reset_mask": ...}``, before the next step.

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

    In other modes than ``SAME_STEP`` a restart is no autoreset: the step shows the last observation, and the new
    episode begins when the mode has it begin.

    An exception in an environment's Python code is raised here as it was there, from a `WorkerError` with the traceback
    of the worker, which lives on: a bug or a bad option would only repeat itself. Without the template process no
    worker can be replaced; that raises `WorkerError`.

    SIGINT, SIGTERM and SIGHUP are left to the process that made the environments, even where the whole process group
    gets them (Ctrl-C, ``timeout``, a batch system): workers ignore them, and end when that process closes them or is
    gone. A step that Ctrl-C interrupts can still be collected by `step_wait`, or abandoned by `reset`.

    Args:
        num_envs: Number of environments.
        n_workers: Number of worker processes; None chooses as many as CPU cores, or the next multiple of the number of
            GPUs to render on, and at most ``num_envs``.
        timeout: Seconds after which a worker that does not answer counts as hung.
        restart: Whether to replace workers that die or hang.
        render_device: EGL device index for all workers, or a sequence with one per worker. None spreads the
            environments evenly over the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves (see
            `libero_gym.rendering.devices`), unless ``MUJOCO_EGL_DEVICE_ID`` is set; without a GPU, EGL chooses.
        autoreset_mode: A ``gymnasium.vector.AutoresetMode``, or its value, such as ``"NextStep"``.
        max_episode_steps: Truncate episodes after so many control steps; None takes the suite's limit.
        **env_kwargs: Further arguments of `LiberoEnv`.

    Attributes:
        render_devices: EGL device index per worker; None where EGL chooses.
        n_restarts: How many workers have been replaced so far.
        settings: The arguments that decide what happens in the environments, as JSON can hold them.

    Raises:
        ValueError: If an argument is out of range; no process is started then.
        OSError: If there is too little memory.
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
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        vector_arguments.refuse_misspelt_arguments(env_kwargs, type(self).__init__, LiberoEnv.__init__)
        if env_kwargs.get("reward") == "process":
            raise ValueError(
                "reward='process' would put a reward model into every worker; vla_agent.make_vec_env(..., "
                "reward='process', reward_model=...) scores all environments' frames in one batch."
            )
        example = LiberoEnv(**env_kwargs)  # checks the arguments; draws nothing
        self.num_envs = vector_arguments.check_num_envs(num_envs, cast(spaces.Dict, example.observation_space))
        self.timeout = real_number("timeout", timeout, maximum=vector_arguments.MAX_TIMEOUT, above=0)
        self.restart = flag("restart", restart)
        self.autoreset_mode = vector_arguments.check_autoreset_mode(autoreset_mode)
        self.max_episode_steps = example.suite.max_steps
        if max_episode_steps is not None:
            self.max_episode_steps = whole_number("max_episode_steps", max_episode_steps, minimum=1)
        if n_workers is not None:
            n_workers = whole_number("n_workers", n_workers, minimum=1)
        self.suite, self.task_ids, self.instructions = example.suite, example.task_ids, example.instructions
        self.chunk_size, self.render_mode = example.chunk_size, example.render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.settings = example.settings | {"max_episode_steps": self.max_episode_steps}
        self._tasks = example.tasks
        self._terms = TERMS[example.reward_type]
        self.single_observation_space = example.observation_space
        self.single_action_space = example.action_space
        self.observation_space = batch_space(example.observation_space, self.num_envs)
        self.action_space = batch_space(example.action_space, self.num_envs)
        draws = bool(example.cameras) or self.render_mode is not None
        gpus = devices.default_gpus() if render_device is None and draws else []
        sizes = shares(self.num_envs, n_workers, len(gpus))
        self.render_devices = devices.per_worker(render_device, [last - first for first, last in sizes], gpus)
        self._owner = os.getpid()
        self._processes = Processes(sizes, self._make_layout(), self.timeout, self.restart)
        self._finalizer = weakref.finalize(self, self._processes.close)
        try:
            self.set_task_weights(np.ones(len(self.task_ids)))
            self.set_autoreset(True)
            self._compile(example.renderer if example.cameras else None)
            # The suite itself, not its name: the template process knows LIBERO's own suites only.
            common = {**env_kwargs, "suite": self.suite, "max_episode_steps": self.max_episode_steps}
            self._processes.start([common | {"render_device": device} for device in self.render_devices])
        except BaseException:
            self.close()  # the traceback would keep the processes alive
            raise

    @property
    def n_restarts(self) -> int:
        """How many workers have been replaced so far."""
        return self._processes.n_restarts

    # ----------------------------------------------------------------------------- Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; a step that nobody collected is abandoned.

        Args:
            seed: One seed, from which environment i gets ``seed + i``, or one per environment.
            options: `LiberoEnv.reset`'s options, each a value for all environments or a sequence with one for each; and
                ``reset_mask``, bool (num_envs,).

        Raises:
            ValueError: If the seed or an option is unknown, out of range, or for another number of environments; all
                environments are as before then.
            WorkerError: If a worker fails.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        seeds = vector_arguments.check_seeds(seed, self.num_envs)
        mask, per_env = vector_arguments.split_options(options, self.num_envs)
        requests: ResetRequests = {}
        for index in map(int, np.flatnonzero(mask)):
            own = {name: values[index] for name, values in per_env.items()}
            # As the environment would, but before any of them is reset.
            requests[index] = (seeds[index], check_options(own, self.task_ids, self._tasks))
        self._processes.reset(requests)
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step in all workers.

        Raises:
            ValueError: If the actions have another shape, or are not finite.
            gym.error.ResetNeeded: If an environment has no episode yet; or none any more, with ``DISABLED``.
            gym.error.AlreadyPendingCallError: If a step is under way.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        if self._processes.is_stepping:
            raise gym.error.AlreadyPendingCallError(
                "A step is under way; collect it with step_wait(), or abandon it with reset().", "step"
            )
        shape = cast(tuple[int, ...], self.action_space.shape)
        self._shared["actions"][:] = vector_arguments.check_actions(actions, shape)
        self._check_running()
        self._processes.begin_step()

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Collect the step that `step_async` started.

        Raises:
            WorkerError: If a worker fails, and is not to be replaced.
            gym.error.NoAsyncCallError: If there is no such step.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        if not self._processes.is_stepping:
            raise gym.error.NoAsyncCallError("No step is under way; start one with step_async().", "step")
        self._processes.end_step()
        terminated = self._shared["terminated"].copy()
        truncated = self._shared["truncated"].copy()
        infos = self._infos("", np.ones(self.num_envs, dtype=bool))
        done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            final = self._observations("final_")
            final_obs = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(done):
                final_obs[index] = {key: values[index] for key, values in final.items()}
            infos["final_obs"], infos["_final_obs"] = final_obs, done.copy()
            infos["final_info"], infos["_final_info"] = self._infos("final_", done), done.copy()
        return self._observations(""), self._shared["rewards"].copy(), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One agentview frame per environment, with ``render_mode="rgb_array"``."""
        self._check_open()
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
        self._check_open()
        self._shared["task_weights"][:] = check_task_weights(weights, len(self.task_ids))

    def set_autoreset(self, enabled: bool) -> None:
        """Whether what ``autoreset_mode`` says follows an episode's end; True from the start.

        With False an environment rests there: later steps leave it as it is, with reward 0, until a `reset` whose
        ``reset_mask`` has it. For evaluations, which choose every episode: nothing is simulated or drawn in vain.
        With True again, those that rest begin a new episode in the next step, unless autoreset is ``DISABLED``.
        """
        self._check_open()
        self._shared["autoreset"][:] = _AUTORESET[self.autoreset_mode] if flag("enabled", enabled) else protocol.REST

    def snapshot(self) -> dict[str, Any]:
        """All that the future of the environments depends on, as JSON can hold it; for `restore`.

        Raises:
            WorkerError: If a worker has failed.
            gym.error.ResetNeeded: Before the first `reset`.
        """
        self._check_open()
        self._check_begun()
        return {
            "environments": list(self.call("snapshot")),
            "task_weights": self._shared["task_weights"].tolist(),
            "seeds": list(self._processes.seeds),
            "restarts": self._processes.restarts_since.tolist(),
            "ended": (self._shared["phase"] == protocol.ENDED).tolist(),
        }

    def restore(self, snapshot: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go on where `snapshot` was taken, in this process or another; gives observations and infos as `reset` does.

        Raises:
            ValueError: If this is no snapshot, or of another number of environments.
            WorkerError: If a worker fails.
        """
        self._check_open()
        saved = vector_arguments.check_snapshot(snapshot, self.num_envs, len(self.task_ids))
        self.set_task_weights(saved["task_weights"])
        self._processes.seeds[:] = saved["seeds"]
        self._processes.restarts_since[:] = saved["restarts"]
        self._processes.restore(saved["environments"], saved.get("ended", [False] * self.num_envs))
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def call(self, name: str, *args: Any, indices: Sequence[int] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of all environments or of some.

        Raises:
            Exception: As the environment raises it: AttributeError where it has no such attribute.
            TypeError: If the arguments or the results cannot be pickled.
            ValueError: If ``indices`` names an environment that does not exist.
            WorkerError: If a worker has failed.
        """
        self._check_open()
        return self._processes.call(name, vector_arguments.check_indices(indices, self.num_envs), args, kwargs)

    # -------------------------------------------------------------------------------------------- private

    @property
    def _shared(self) -> Any:
        return self._processes.shared

    def _compile(self, renderer: str | None) -> None:
        tasks = [self._tasks[task_id] for task_id in self.task_ids]
        seeds = [placement_seeds_of(task, self.settings["placement_seeds"]) for task in tasks]
        for same in dict.fromkeys(seeds):  # tasks without initial states have others than the rest
            alike = [task for task, own in zip(tasks, seeds, strict=True) if own == same]
            compile_tasks(alike, renderer=renderer, placement_seeds=same)
        each = tqdm(zip(tasks, seeds, strict=True), "Loading tasks", len(tasks), unit="task", disable=None, leave=False)
        for task, own in each:
            self._processes.pool.compile(task, renderer, own)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise gym.error.ClosedEnvironmentError("The environments are closed; make others.")
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"The environments belong to process {self._owner}, which this one ({os.getpid()}) was forked from; "
                "make others here."
            )

    def _check_begun(self) -> None:
        idle = np.flatnonzero(self._shared["phase"] == protocol.IDLE).tolist()
        if idle:
            raise gym.error.ResetNeeded(f"Call reset() first: environments {idle} have no episode.")

    def _check_running(self) -> None:
        """Raise unless each environment can be stepped."""
        self._check_begun()
        ended = np.flatnonzero(self._shared["phase"] == protocol.ENDED).tolist()
        if ended and self._shared["autoreset"][0] == protocol.DISABLED:
            raise gym.error.ResetNeeded(
                f"The episodes of environments {ended} have ended, and autoreset is disabled; reset them with "
                'options={"reset_mask": ...}.'
            )

    def _make_layout(self) -> Layout:
        n = self.num_envs
        layout: dict[str, tuple[tuple[int, ...], str]] = {}
        for key, space in cast(spaces.Dict, self.observation_space).spaces.items():
            if not self._is_text(key):
                layout[key] = (cast(tuple[int, ...], space.shape), np.dtype(space.dtype).name)
        layout |= {"reward_terms": ((n, len(self._terms)), "float64")}
        layout |= {"is_success": ((n,), "bool"), "task_id": ((n,), "int64"), "init_state_id": ((n,), "int64")}
        layout |= {"elapsed_steps": ((n,), "int64")}
        layout = {prefix + key: value for prefix in ("", "final_") for key, value in layout.items()}
        layout |= {"rewards": ((n,), "float64"), "terminated": ((n,), "bool"), "truncated": ((n,), "bool")}
        layout |= {"phase": ((n,), "int8"), "autoreset": ((1,), "int8")}
        layout |= {"task_weights": ((len(self.task_ids),), "float64")}
        return layout | {"actions": (cast(tuple[int, ...], self.action_space.shape), "float64")}

    def _is_text(self, key: str) -> bool:
        return isinstance(cast(spaces.Dict, self.single_observation_space)[key], spaces.Text)

    def _observations(self, prefix: str) -> dict[str, Any]:
        task_ids = self._shared[prefix + "task_id"]
        instructions = tuple(self._tasks[task_id].instruction for task_id in task_ids)
        return {
            key: instructions if self._is_text(key) else self._shared[prefix + key].copy()
            for key in cast(spaces.Dict, self.single_observation_space).spaces
        }

    def _infos(self, prefix: str, mask: np.ndarray) -> dict[str, Any]:
        """Infos as Gymnasium batches them: an array per key, and under ``_key`` for which environments it holds."""
        tasks = [self._tasks[task_id] for task_id in self._shared[prefix + "task_id"]]
        infos: dict[str, Any] = {key: self._shared[prefix + key].copy() for key in _INFO_KEYS}
        if self.restart:
            infos["worker_restarted"] = self._processes.restarted.copy()
        infos["task_name"] = np.array([task.name for task in tasks], dtype=object)
        infos["instruction"] = np.array([task.instruction for task in tasks], dtype=object)
        terms = self._shared[prefix + "reward_terms"]
        infos["reward_terms"] = {name: terms[:, column].copy() for column, name in enumerate(self._terms)}
        infos["reward_terms"] |= {"_" + name: mask.copy() for name in self._terms}
        return infos | {"_" + key: mask.copy() for key in infos}

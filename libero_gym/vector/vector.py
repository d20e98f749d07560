"""Many LIBERO environments as one batch, whatever simulates them."""

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

from libero_gym.common.checks import choice, flag
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.env import LiberoEnv
from libero_gym.env.arguments import check_actions, check_options, check_task_weights, one_or_all
from libero_gym.env.starts import check_place, existing_starts
from libero_gym.rewards import TERMS
from libero_gym.vector import arguments as vector_arguments
from libero_gym.vector.backend import ENDED, FINAL, IDLE, INFO_KEYS, Backend, BackendFactory, Plan, ResetRequests
from libero_gym.vector.pool import WorkerError
from libero_gym.vector.processes import MAX_REPLACEMENTS, Processes
from libero_gym.vector.warp import warp

__all__ = ["BACKENDS", "MAX_REPLACEMENTS", "LiberoVectorEnv", "WorkerError"]

# What can simulate the environments, by the name that `LiberoVectorEnv` is asked with.
BACKENDS: dict[str, BackendFactory] = {"processes": Processes, "warp": warp}


def backend_factory(backend: str | BackendFactory) -> BackendFactory:
    """What makes the back end of that name; a function that makes one is returned as it is.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    return backend if callable(backend) else BACKENDS[choice("backend", backend, BACKENDS)]


class LiberoVectorEnv(Uncopyable, gym.vector.VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """`LiberoEnv` times ``num_envs``: the same spaces, batched; a task of its own for each environment.

    A back end simulates the environments. ``"processes"`` (`libero_gym.vector.processes.Processes`) has them in worker
    processes and gives what `LiberoEnv` gives, to the bit. ``"warp"`` (`libero_gym.gpu.vector.Warp`) has them as worlds
    on a device, in single precision; with ``output="torch"`` it hands out tensors. Observations handed out are copies.

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

    A worker process that dies or hangs raises `WorkerError` with its own traceback. With ``restart=True`` `step` and
    `reset` replace it and go on; `Processes` says what becomes of its episodes. An exception in an environment's Python
    code is raised here as it was there.

    Args:
        num_envs: Number of environments.
        backend: What simulates them: a name among `BACKENDS`, or a function that makes a `Backend` of a `Plan`.
        autoreset_mode: A ``gymnasium.vector.AutoresetMode``, or its value, such as ``"NextStep"``.
        max_episode_steps: Truncate episodes after so many control steps: one number, or one for each of the chosen
            tasks. None takes the tasks' own limits.
        **kwargs: Arguments of the back end (those of `Processes`: ``n_workers``, ``timeout``, ``restart``,
            ``render_device``; those of `Warp`: ``device``, ``nconmax``, ``njmax``, ``deterministic``, ``output``), and
            further arguments of `LiberoEnv`.

    Attributes:
        backend: What simulates the environments.
        settings: The arguments that decide what happens in the environments, as JSON can hold them.
        task_weights: How often each task of ``task_ids`` is drawn, float64 (n_tasks,); they sum to one.

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
        backend: str | BackendFactory = "processes",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        make = backend_factory(backend)
        own = vector_arguments.keywords(make)
        options = {name: value for name, value in kwargs.items() if name in own}
        env_kwargs = {name: value for name, value in kwargs.items() if name not in own}
        names = ["num_envs", *vector_arguments.keywords(type(self).__init__), *own]
        vector_arguments.refuse_misspelt_arguments(env_kwargs, names, LiberoEnv.__init__, BACKENDS)
        if env_kwargs.get("reward") == "process":
            raise ValueError(
                "reward='process' would put a reward model into every worker; vla_agent.make_vec_env(..., "
                "reward='process', reward_model=...) scores all environments' frames in one batch."
            )
        # It checks the arguments and draws nothing.
        example = LiberoEnv(**env_kwargs, max_episode_steps=max_episode_steps)
        self.num_envs = vector_arguments.check_num_envs(num_envs, cast(spaces.Dict, example.observation_space))
        self.autoreset_mode = vector_arguments.check_autoreset_mode(autoreset_mode)
        # No `TimeLimit` stands around these environments: they count by themselves, and the example is like them.
        limits = [example.step_limits[task_id] for task_id in example.task_ids]
        self.max_episode_steps = example.max_episode_steps = one_or_all(limits)
        self.suite, self.task_ids, self.instructions = example.suite, example.task_ids, example.instructions
        self.chunk_size, self.render_mode = example.chunk_size, example.render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._tasks, self._starts = example.tasks, (example.init_state_ids, example.placement_seeds)
        self._terms = TERMS[example.reward]
        self.single_observation_space = example.observation_space
        self.single_action_space = example.action_space
        self.observation_space = batch_space(example.observation_space, self.num_envs)
        self.action_space = batch_space(example.action_space, self.num_envs)
        self._owner = os.getpid()
        env_kwargs |= {"suite": self.suite.loaded(), "max_episode_steps": self.max_episode_steps}
        self.backend: Backend = make(Plan(self.num_envs, example, env_kwargs), **options)
        self.settings: dict[str, Any] = {**example.settings, **self.backend.settings}
        self._finalizer = weakref.finalize(self, self.backend.close)
        self.set_task_weights(np.ones(len(self.task_ids)))
        self.set_autoreset(True)

    @property
    def n_restarts(self) -> int:
        """How many workers have been replaced so far."""
        return self.backend.n_restarts

    @property
    def render_devices(self) -> tuple[int | None, ...]:
        """EGL device index per worker; None where EGL chooses."""
        return self.backend.render_devices

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
            ValueError: If the seed or an option is unknown, out of range, or for another number of environments. All
                are as before then, unless a ``placement_seed`` finds no place for a task that a reset drew.
            WorkerError: If a worker fails.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        seeds = vector_arguments.check_seeds(seed, self.num_envs)
        mask, per_env = vector_arguments.split_options(options, self.num_envs)
        requests: ResetRequests = {}
        for index in map(int, np.flatnonzero(mask)):
            own = {name: values[index] for name, values in per_env.items()}
            checked = check_options(own, self.task_ids, self._tasks)  # before any is reset
            requests[index] = (seeds[index], check_place(checked, self.task_ids, self._tasks))
        self.backend.reset(requests)
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments: `step_async`, then `step_wait`, which say what can be wrong."""
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
        if self.backend.is_stepping:
            raise gym.error.AlreadyPendingCallError(
                "A step is under way; collect it with step_wait(), or abandon it with reset().", "step"
            )
        checked = check_actions(actions, cast(tuple[int, ...], self.action_space.shape))
        self._check_running()
        self.backend.begin_step(checked)

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Collect the step that `step_async` started.

        Raises:
            WorkerError: If a worker fails, and is not to be replaced.
            gym.error.NoAsyncCallError: If there is no such step.
            gym.error.ClosedEnvironmentError: After `close`.
        """
        self._check_open()
        if not self.backend.is_stepping:
            raise gym.error.NoAsyncCallError("No step is under way; start one with step_async().", "step")
        self.backend.end_step()
        terminated = self.backend.arrays["terminated"].copy()
        truncated = self.backend.arrays["truncated"].copy()
        infos = self._infos("", np.ones(self.num_envs, dtype=bool))
        done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            final = self._observations(FINAL)
            final_obs = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(done):
                final_obs[index] = {key: values[index] for key, values in final.items()}
            infos["final_obs"], infos["_final_obs"] = final_obs, done.copy()
            infos["final_info"], infos["_final_info"] = self._infos(FINAL, done), done.copy()
        hand_out = self.backend.hand_out
        rewards = hand_out(self.backend.arrays["rewards"].copy())
        return self._observations(""), rewards, hand_out(terminated), hand_out(truncated), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One agentview frame per environment, with ``render_mode="rgb_array"``."""
        self._check_open()
        return self.backend.render() if self.render_mode is not None else None

    def close_extras(self, **kwargs: Any) -> None:
        """Close the back end."""
        self._finalizer()

    # -------------------------------------------------------------------------------------- our additions

    def set_task_weights(self, weights: Sequence[float] | np.ndarray) -> None:
        """Set how often each task of ``task_ids`` is drawn from the next reset on; they need not sum to one.

        Raises:
            ValueError: If there is not one finite, non-negative weight per task, or all are zero.
        """
        self._check_open()
        self.task_weights = check_task_weights(weights, len(self.task_ids))
        self.backend.set_task_weights(self.task_weights)

    def episode_starts(self, task_id: int) -> list[dict[str, int]]:
        """`reset`'s options of every start that an episode of a task is drawn from, each as likely.

        Raises:
            ValueError: If ``task_id`` is none of ``task_ids``.
        """
        self._check_open()
        check_options({"task_id": task_id}, self.task_ids, self._tasks)
        return [{"task_id": int(task_id), **start} for start in existing_starts(self._tasks[task_id], *self._starts)]

    def set_autoreset(self, enabled: bool) -> None:
        """Whether what ``autoreset_mode`` says follows an episode's end; True from the start.

        With False an environment rests there: later steps leave it as it is, with reward 0, until a `reset` whose
        ``reset_mask`` has it. For evaluations, which choose every episode: nothing is simulated or drawn in vain.
        With True again, those that rest begin a new episode in the next step, unless autoreset is ``DISABLED``.
        """
        self._check_open()
        self._rests = not flag("enabled", enabled)
        self.backend.set_autoreset(None if self._rests else self.autoreset_mode)

    def snapshot(self) -> dict[str, Any]:
        """All that the future of the environments depends on, as JSON can hold it; for `restore`.

        Raises:
            WorkerError: If a worker has failed.
            gym.error.ResetNeeded: Before the first `reset`.
        """
        self._check_open()
        self._check_begun()
        return {**self.backend.snapshot(), "task_weights": self.task_weights.tolist()}

    def restore(self, snapshot: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go on where `snapshot` was taken, in this process or another; gives observations and infos as `reset` does.

        Raises:
            ValueError: If this is no snapshot, or of another number of environments.
            WorkerError: If a worker fails.
        """
        self._check_open()
        lengths = {"environments": self.num_envs, "task_weights": len(self.task_ids)}
        saved = vector_arguments.check_snapshot(snapshot, lengths)
        weights = check_task_weights(saved["task_weights"], len(self.task_ids))
        self.backend.restore(saved)
        self.set_task_weights(weights)
        return self._observations(""), self._infos("", np.ones(self.num_envs, dtype=bool))

    def call(self, name: str, *args: Any, indices: Sequence[int] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of all environments or of some; they go on where it put them.

        Raises:
            Exception: As the environment raises it: AttributeError where it has no such attribute.
            TypeError: If the arguments or the results cannot be pickled.
            ValueError: If ``indices`` names an environment that does not exist, or ``name`` is "set_task_weights".
            WorkerError: If a worker has failed.
        """
        self._check_open()
        return self.backend.call(name, vector_arguments.check_call(name, indices, self.num_envs), args, kwargs)

    # -------------------------------------------------------------------------------------------- private

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise gym.error.ClosedEnvironmentError("The environments are closed; make others.")
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"The environments belong to process {self._owner}, which this one ({os.getpid()}) was forked from; "
                "make others here."
            )

    def _check_begun(self) -> None:
        idle = np.flatnonzero(self.backend.arrays["phase"] == IDLE).tolist()
        if idle:
            raise gym.error.ResetNeeded(f"Call reset() first: environments {idle} have no episode.")

    def _check_running(self) -> None:
        """Raise unless each environment can be stepped."""
        self._check_begun()
        ended = np.flatnonzero(self.backend.arrays["phase"] == ENDED).tolist()
        if ended and self.autoreset_mode is AutoresetMode.DISABLED and not self._rests:
            raise gym.error.ResetNeeded(
                f"The episodes of environments {ended} have ended, and autoreset is disabled; reset them with "
                'options={"reset_mask": ...}.'
            )

    def _is_text(self, key: str) -> bool:
        return isinstance(cast(spaces.Dict, self.single_observation_space)[key], spaces.Text)

    def _observations(self, prefix: str) -> dict[str, Any]:
        arrays = self.backend.arrays
        task_ids = arrays[prefix + "task_id"]
        instructions = tuple(self._tasks[task_id].instruction for task_id in task_ids)
        return {
            key: instructions if self._is_text(key) else arrays[prefix + key].copy()
            for key in cast(spaces.Dict, self.single_observation_space).spaces
        }

    def _infos(self, prefix: str, mask: np.ndarray) -> dict[str, Any]:
        """Infos as Gymnasium batches them: an array per key, and under ``_key`` for which environments it holds."""
        arrays = self.backend.arrays
        tasks = [self._tasks[task_id] for task_id in arrays[prefix + "task_id"]]
        infos: dict[str, Any] = {key: arrays[prefix + key].copy() for key in INFO_KEYS}
        infos |= {key: arrays[key].copy() for key in self.backend.info_keys}
        infos["task_name"] = np.array([task.name for task in tasks], dtype=object)
        infos["mujoco"] = np.full(len(tasks), self.settings["mujoco"], dtype=object)
        infos["instruction"] = np.array([task.instruction for task in tasks], dtype=object)
        terms = arrays[prefix + "reward_terms"]
        infos["reward_terms"] = {name: terms[:, column].copy() for column, name in enumerate(self._terms)}
        infos["reward_terms"] |= {"_" + name: mask.copy() for name in self._terms}
        return infos | {"_" + key: mask.copy() for key in infos}

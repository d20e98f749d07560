"""Many LIBERO environments as one batch, in worker processes that share models and memory."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from libero_gym import worker as protocol
from libero_gym.env import LiberoEnv, check_task_weights
from libero_gym.observations import IMAGE_KEYS
from libero_gym.shared_arrays import Layout, SharedArrays

_INFO_KEYS = ("is_success", "task_id", "init_state_id")


class WorkerError(RuntimeError):
    """A worker process failed, died or did not answer; the message holds its own traceback."""


class LiberoVectorEnv(gym.vector.VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """`LiberoEnv` times ``num_envs``: the same spaces, batched; a task of its own for each environment.

    Processes, not threads: a crash in a driver must not take the trainer with it, and software OpenGL scales over
    processes. There are as many as CPU cores (at most one per environment), forked from one template process
    (see `libero_gym.worker`); each serves a fixed share of the environments. Frames, states, rewards and actions are
    in shared memory. Observations handed out are copies.

    Autoreset is Gymnasium's ``SAME_STEP``: the step that ends an episode returns the next episode's first observation,
    and the last one in ``infos["final_obs"]``, with ``infos["final_info"]``.

    Args:
        num_envs: Number of environments.
        n_workers: Number of worker processes; None chooses ``min(num_envs, CPU cores)``.
        timeout: Seconds after which a worker that does not answer counts as hung.
        max_episode_steps: Truncate episodes after so many control steps; None takes the suite's limit.
        **env_kwargs: Arguments of `LiberoEnv`.

    Raises:
        ValueError: If an argument is out of range.
        WorkerError: If a worker fails; the message holds its traceback.
    """

    metadata: dict[str, Any] = {**LiberoEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        n_workers: int | None = None,
        timeout: float = 300.0,
        max_episode_steps: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}; expected an integer of at least 1.")
        example = LiberoEnv(**env_kwargs)  # checks the arguments; draws nothing
        self.num_envs = int(num_envs)
        self.suite, self.task_ids, self.instructions = example.suite, example.task_ids, example.instructions
        self.chunk_size, self.render_mode = example.chunk_size, example.render_mode
        self.max_episode_steps = example.suite.max_steps if max_episode_steps is None else max_episode_steps
        self.timeout = timeout
        self._tasks = example.tasks
        self._terms = ("success", "progress") if example.reward_type == "progress" else ("success",)
        self._cameras, self._renderer = example.cameras, example.renderer
        self.single_observation_space = example.observation_space
        self.single_action_space = example.action_space
        self.observation_space = batch_space(example.observation_space, self.num_envs)
        self.action_space = batch_space(example.action_space, self.num_envs)
        self._env_kwargs = {**env_kwargs, "max_episode_steps": self.max_episode_steps}
        self._layout = self._make_layout(example.image_size)
        self._shared = SharedArrays(self._layout)
        self.set_task_weights(np.ones(len(self.task_ids)))
        self._waiting: list[int] = []
        self._pool = _WorkerPool(timeout)
        self._finalizer = weakref.finalize(self, self._pool.close)
        self._start(n_workers)

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
        for number, (first, last) in enumerate(self._shares):
            requests = {
                index: (seeds[index], {name: values[index] for name, values in per_env.items()})
                for index in range(first, last)
                if mask[index]
            }
            self._pool.send(number, protocol.RESET, requests)
        self._pool.gather(range(len(self._shares)))
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
        for number in range(len(self._shares)):
            self._pool.send(number, protocol.STEP)

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Collect the step that `step_async` started."""
        self._pool.gather(range(len(self._shares)))
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

    def call(self, name: str, *args: Any, indices: Sequence[int] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of all environments or of some."""
        chosen = range(self.num_envs) if indices is None else indices
        asked: list[tuple[int, list[int]]] = []
        results: dict[int, Any] = {}
        for number, (first, last) in enumerate(self._shares):
            own = [index for index in chosen if first <= index < last]
            if own:
                self._pool.send(number, protocol.CALL, name, own, args, kwargs)
                asked.append((number, own))
        for (_, own), answers in zip(asked, self._pool.gather([number for number, _ in asked]), strict=True):
            results.update(zip(own, answers, strict=True))
        return tuple(results[index] for index in chosen)

    # -------------------------------------------------------------------------------------------- private

    def _start(self, n_workers: int | None) -> None:
        n_workers = min(self.num_envs, n_workers or os.cpu_count() or 1)
        bounds = np.linspace(0, self.num_envs, n_workers + 1).round().astype(int)
        self._shares = [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]
        for task_id in tqdm(self.task_ids, desc="Compiling tasks", unit="task", disable=None, leave=False):
            self._pool.compile(self.suite.name, task_id, self._renderer if self._cameras else None)
        for first, last in self._shares:
            self._pool.fork(first, last, self._env_kwargs, self._layout, self._shared.descriptor)
        self._pool.gather(range(n_workers))

    def _make_layout(self, image_size: int) -> Layout:
        n = self.num_envs
        image = ((n, image_size, image_size, 3), "uint8")
        per_prefix: dict[str, tuple[tuple[int, ...], str]] = {IMAGE_KEYS[camera]: image for camera in self._cameras}
        per_prefix |= {"state": ((n, 8), "float32"), "reward_terms": ((n, len(self._terms)), "float64")}
        per_prefix |= {"is_success": ((n,), "bool"), "task_id": ((n,), "int64"), "init_state_id": ((n,), "int64")}
        layout = {prefix + key: value for prefix in ("", "final_") for key, value in per_prefix.items()}
        layout |= {"rewards": ((n,), "float64"), "terminated": ((n,), "bool"), "truncated": ((n,), "bool")}
        actions_shape = self.action_space.shape
        assert actions_shape is not None
        return layout | {"actions": (actions_shape, "float64"), "task_weights": ((len(self.task_ids),), "float64")}

    def _observations(self, prefix: str) -> dict[str, Any]:
        keys = [IMAGE_KEYS[camera] for camera in self._cameras] + ["state"]
        observations: dict[str, Any] = {key: self._shared[prefix + key].copy() for key in keys}
        task_ids = self._shared[prefix + "task_id"]
        observations["instruction"] = tuple(self._tasks[task_id].instruction for task_id in task_ids)
        return observations

    def _infos(self, prefix: str, mask: np.ndarray) -> dict[str, Any]:
        """Infos as Gymnasium batches them: an array per key, and under ``_key`` for which environments it holds."""
        tasks = [self._tasks[task_id] for task_id in self._shared[prefix + "task_id"]]
        infos: dict[str, Any] = {key: self._shared[prefix + key].copy() for key in _INFO_KEYS}
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


class _WorkerPool:
    """The template process and its workers, and the connections to them."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._connections: list[Connection] = []
        self._crash_logs: list[Any] = []
        self._closed = False
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "libero_gym.worker", str(theirs.fileno())]
        # One thread each: the workers are as many as the cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._template = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._control_socket = ours
        self._control = Connection(os.dup(ours.fileno()))

    def compile(self, suite: str, task_id: int, renderer: str | None) -> None:
        self._ask_template("compile", suite, task_id, renderer)

    def fork(self, first: int, last: int, env_kwargs: dict[str, Any], layout: Layout, memory_fd: int) -> None:
        ours, theirs = socket.socketpair()
        crash_log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._control.send(("fork", first, last, env_kwargs, dict(layout)))
        socket.send_fds(self._control_socket, [b"."], [theirs.fileno(), memory_fd, crash_log.fileno()])
        self._await_template()
        theirs.close()
        self._connections.append(Connection(ours.detach()))
        self._crash_logs.append(crash_log)

    def send(self, number: int, request: str, *args: Any) -> None:
        try:
            self._connections[number].send((request, args))
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self._death(number) from error

    def gather(self, numbers: Sequence[int] | range) -> list[Any]:
        """One answer from each of these workers, in order. All are collected before any failure is reported."""
        answers: dict[int, tuple[str, Any]] = {}
        pending = {self._connections[number]: number for number in numbers}
        deadline = time.monotonic() + self.timeout
        while pending:
            ready = wait(list(pending), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise WorkerError(
                    f"Workers {sorted(pending.values())} did not answer within {self.timeout:g} s. "
                    "On a slow machine, pass a larger timeout."
                )
            for connection in ready:
                assert isinstance(connection, Connection)
                number = pending.pop(connection)
                try:
                    answers[number] = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise self._death(number) from None
        for number, (kind, content) in answers.items():
            if kind == "error":
                raise WorkerError(f"Worker {number} failed:\n{content}")
        return [answers[number][1] for number in numbers]

    def close(self) -> None:
        """Ask the workers to leave, and end the template; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for connection in self._connections:
            try:
                connection.send((protocol.CLOSE, ()))
                connection.close()
            except OSError:
                pass  # it is gone already
        self._control.close()
        self._control_socket.close()
        for crash_log in self._crash_logs:
            crash_log.close()
        try:
            self._template.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()

    def _death(self, number: int) -> WorkerError:
        crash_log = self._crash_logs[number]
        crash_log.seek(0)
        trace = crash_log.read().decode(errors="replace").strip()
        return WorkerError(
            f"Worker {number} died without an answer.\n{trace or 'It left no traceback: killed, perhaps.'}"
        )

    def _ask_template(self, *request: Any) -> Any:
        self._control.send(request)
        return self._await_template()

    def _await_template(self) -> Any:
        if not self._control.poll(self.timeout):
            raise WorkerError(f"The template process did not answer within {self.timeout:g} s.")
        try:
            kind, content = self._control.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerError("The template process died; its last words are on standard error.") from None
        if kind == "error":
            raise WorkerError(f"The template process failed:\n{content}")
        return content

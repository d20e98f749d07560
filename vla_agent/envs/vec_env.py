"""Vector environments as SB3 sees them: prompts as tokens, actions as bins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from libero_gym.common.checks import whole_number
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.dimensions import ACTION_DIM, CAMERA_KEYS
from vla_agent.backbone import BackboneProcessor, Codec
from vla_agent.common.tensors import on_host, stacked
from vla_agent.envs.infos import unbatch_infos
from vla_agent.envs.prompts import PromptTable
from vla_agent.episode_totals import EpisodeTotals

ImageTransform = Callable[[np.ndarray], np.ndarray]

# These observations are passed on unchanged: the robot's state, and what only a critic may know.
VECTOR_KEYS = ("state", "privileged")


def is_worker_error(error: BaseException) -> bool:
    """Whether an error says that a process of environments died or hung, and was not to be replaced."""
    from libero_gym.vector.pool import WorkerError

    return isinstance(error, WorkerError)


class VLAVecEnv(Uncopyable, VecEnv):
    """A Gymnasium vector environment with instructions and continuous actions, for agents with tokens and bins.

    | observation | space | |
    | --- | --- | --- |
    | `image` (and `wrist_image`) | uint8 (H, W, 3) | after ``image_transform`` |
    | `state` | float32 (8,) | where the environment gives it |
    | `privileged` | float32 (51,) | with ``privileged=True``: what no camera shows; read by the critic alone |
    | `input_ids`, `attention_mask` | int64 (L,) | the instruction's prompt, looked up in a table |

    Actions are the codec's, such as ``MultiDiscrete([256] * (7 * chunk))``. `infos` are SB3's: a dict per environment
    with the environment's own keys, and at an episode's end `terminal_observation`, `TimeLimit.truncated` and `episode`
    (return `r`, length `l`, seconds `t`), so that no `Monitor` is needed.

    Args:
        venv: The environments, with Gymnasium's ``SAME_STEP`` autoreset. Their observations may be tensors on a device,
            and stay there; rewards and flags are copied.
        processor: The model's processor; `vla_agent.policy.loading.load_processor` reads it without weights.
        instructions: Every instruction that can occur; ``venv.instructions`` by default.
        unnorm_key: Key of the checkpoint's statistics that decode the actions; None takes the only one.
        image_transform: Function of each batch of images, uint8 (n_envs, H, W, 3).
        model: Name of the processor's checkpoint; `VLAPPO` loads it if its policy names no model.

    Attributes:
        codec: What decodes actions and writes prompts.

    Raises:
        ValueError: If the environments' autoreset, spaces, chunk size or output do not fit.

    Non-obvious behaviours: in the step that ends an episode, `infos` are those of its last step, while the observation
    and ``reset_infos`` are the next episode's. `begin_episodes` may begin others than those asked for, if a worker
    fails meanwhile.
    """

    copy_instead = (
        "its worker processes are its own. make_vec_env(...) another one, and move snapshot() with restore()."
    )

    def __init__(
        self,
        venv: VectorEnv[Any, Any, Any],
        processor: Any,
        *,
        instructions: Sequence[str] | None = None,
        unnorm_key: str | None = None,
        image_transform: ImageTransform | None = None,
        model: str | Path | None = None,
    ) -> None:
        self._closed = False
        if image_transform is not None and getattr(venv, "settings", {}).get("output") == "torch":
            raise ValueError(
                "image_transform is a function of NumPy's arrays, and output='torch' keeps images on the device; leave "
                "one of them out."
            )
        self.model = model
        self.venv: Any = venv
        self.processor: BackboneProcessor = processor
        self.unnorm_key = unnorm_key
        self.image_transform = image_transform
        mode = venv.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"The environments' autoreset_mode is {mode}; VLAVecEnv needs AutoresetMode.SAME_STEP.")
        observation_space, self._action_shape = _checked_spaces(venv)
        texts = list(cast(Any, venv).instructions if instructions is None else instructions)
        self.codec: Codec = processor.codec(unnorm_key)
        chunk_size = self._action_shape[0] if len(self._action_shape) == 2 else 1
        if self.codec.chunk_size != chunk_size:
            raise ValueError(
                f"The environments take {chunk_size} actions per step, but the model decides {self.codec.chunk_size}; "
                "make them with that chunk_size."
            )
        self._prompts = PromptTable(texts, self.codec)
        self._image_keys = [key for key in CAMERA_KEYS if key in observation_space.spaces]
        parts = {key: _image_space(self._transform, observation_space[key]) for key in self._image_keys}
        parts |= {k: cast(spaces.Box, observation_space[k]) for k in VECTOR_KEYS if k in observation_space.spaces}
        super().__init__(
            venv.num_envs,
            spaces.Dict(cast(dict[str, spaces.Space[Any]], parts | self._prompts.spaces())),
            self.codec.action_space,
        )
        self._actions: np.ndarray | None = None
        self._instructions: Sequence[str] = [""] * self.num_envs
        self._totals = EpisodeTotals(self.num_envs)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in all environments; seeds and options given before are used up."""
        self._check_open()
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        options = _by_name(self._options)
        try:
            obs, infos = self.venv.reset(seed=seeds, options=options or None)
        except ValueError:
            self._reset_options()  # a wrong one would be refused for ever
            raise
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = unbatch_infos(infos, range(self.num_envs))
        self._totals.begin(slice(None))
        return self._observe(obs, infos)

    def begin_episodes(self, options: Mapping[int, Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Begin new episodes in some environments; the others go on.

        The environments that begin use up their seeds given before.

        Args:
            options: `LiberoEnv.reset`'s options (``task_id``, ``init_state_id``, ...) by environment.

        Returns:
            Observations of all environments. ``reset_infos`` holds new infos of those that began; an environment whose
            worker had to be replaced begins as well.

        Raises:
            ValueError: If there is no such environment.
        """
        self._check_open()
        for chosen in options:
            whole_number("environment", chosen, 0, self.num_envs - 1)
        mask = np.isin(np.arange(self.num_envs), list(options))
        per_env = _by_name([options.get(index, {}) for index in range(self.num_envs)])
        seeds = [seed if index in options else None for index, seed in enumerate(self._seeds)]
        given = None if all(seed is None for seed in seeds) else seeds
        obs, infos = self.venv.reset(seed=given, options={**per_env, "reset_mask": mask})
        self._seeds = [None if index in options else seed for index, seed in enumerate(self._seeds)]
        mask |= infos.get("worker_restarted", False)
        began = np.flatnonzero(mask)
        for index, info in zip(began, unbatch_infos(infos, began), strict=True):
            self.reset_infos[index] = info
        self._totals.begin(mask)
        return self._observe(obs, infos)

    def step_async(self, actions: np.ndarray) -> None:
        """Decode bins (n_envs, 7 * chunk) and start the step.

        Raises:
            ValueError: If the actions have another shape, or are not bins.
        """
        self._send(self.decode(actions))

    def step_actions(self, actions: np.ndarray) -> VecEnvStepReturn:
        """Step with actions instead of bins: float64 (n_envs, 7) or (n_envs, chunk, 7), as the environments take."""
        self.step_actions_async(actions)
        return self.step_wait()

    def step_actions_async(self, actions: np.ndarray) -> None:
        """Start a step with actions instead of bins; see `step_actions`."""
        self._send(np.asarray(actions, dtype=np.float64))

    def step_wait(self) -> VecEnvStepReturn:
        """Collect the step: observations, rewards float32 (n_envs,), dones, infos."""
        if hasattr(self.venv, "step_wait"):
            obs, rewards, terminated, truncated, infos = self.venv.step_wait()
        else:
            obs, rewards, terminated, truncated, infos = self.venv.step(self._actions)
        # Observations may be tensors of a device; what decides how to go on is read here, once.
        rewards, terminated, truncated = (on_host(values) for values in (rewards, terminated, truncated))
        dones = terminated | truncated
        self._totals.add(rewards)
        ended = np.flatnonzero(dones)
        per_env: list[dict[str, Any]] = unbatch_infos(infos, range(self.num_envs))
        if len(ended):
            self._close_episodes(ended, infos, per_env, truncated & ~terminated)
        return self._observe(obs, infos), np.asarray(rewards, dtype=np.float32), dones, per_env

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """The environments' actions for bins (n_envs, 7 * chunk): float64 (n_envs, 7) or (n_envs, chunk, 7).

        Raises:
            ValueError: If the actions have another shape, or are not bins.
        """
        bins = np.asarray(actions)
        expected = (self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        if bins.shape != expected:
            raise ValueError(f"The actions are {bins.dtype} {bins.shape}; expected integers {expected}.")
        return self.codec.decode(bins).reshape(self.num_envs, *self._action_shape)

    def close(self) -> None:
        """Close the environments and their workers; safe to call twice."""
        if not self._closed:
            self._closed = True
            self.venv.close()

    def set_task_weights(self, weights: Sequence[float] | np.ndarray) -> None:
        """Set how often each task is drawn from the next reset on; see `LiberoVectorEnv.set_task_weights`."""
        self.venv.set_task_weights(weights)

    def set_autoreset(self, enabled: bool) -> None:
        """Set whether a new episode follows an ended one; see `LiberoVectorEnv.set_autoreset`."""
        self._check_open()
        if hasattr(self.venv, "set_autoreset"):
            self.venv.set_autoreset(enabled)

    def instructions(self) -> list[str]:
        """The instruction that each environment shows now, for policies that read words instead of `input_ids`."""
        return list(self._instructions)

    def snapshot(self) -> dict[str, Any] | None:
        """All that the environments' future depends on, as JSON can hold it; None if they cannot be saved."""
        from libero_gym.vector.pool import WorkerError

        if not hasattr(self.venv, "snapshot"):
            return None
        try:
            saved = self.venv.snapshot()
        except (WorkerError, gym.error.ClosedEnvironmentError):
            return None  # the next step replaces the worker, or raises
        return {
            "venv": saved,
            "settings": self.settings,
            "returns": self._totals.returns.tolist(),
            "lengths": self._totals.lengths.tolist(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go on from a snapshot, in this process or another, and return its observations.

        Raises:
            ValueError: If it is no snapshot of so many environments.
        """
        self._check_open()
        needed = ("venv", "returns", "lengths")
        if not isinstance(snapshot, Mapping) or any(key not in snapshot for key in needed):
            raise ValueError(f"Expected what VLAVecEnv.snapshot() gave, a dict with {', '.join(needed)}.")
        if not len(snapshot["returns"]) == len(snapshot["lengths"]) == self.num_envs:
            raise ValueError(f"The snapshot is of {len(snapshot['returns'])} environments; these are {self.num_envs}.")
        obs, infos = self.venv.restore(snapshot["venv"])
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = unbatch_infos(infos, range(self.num_envs))
        self._totals.restore(snapshot["returns"], snapshot["lengths"])
        return self._observe(obs)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that the environments' behaviour depends on, as JSON can hold them."""
        return {**getattr(self.venv, "settings", {}), "unnorm_key": self.unnorm_key}

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the vector environment; if it has none of that name, of each environment."""
        chosen = self._indices(indices)
        self._check_open()
        if hasattr(self.venv, attr_name):
            return [getattr(self.venv, attr_name)] * len(chosen)
        return list(self._call(attr_name, chosen))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not offered: the environments live in other processes."""
        raise NotImplementedError(f"Cannot set '{attr_name}' on running environments; make them with another argument.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Results of a method of each environment."""
        return list(self._call(method_name, self._indices(indices), *method_args, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, because the infos have its `episode` entries; False for all others."""
        return [wrapper_class is Monitor] * len(self._indices(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The frames that the environments render with ``render_mode="rgb_array"``; without it None for each."""
        self._check_open()
        return _images(self.venv.render(), self)

    # ------------------------------------------------------------------------------------------- private

    def _check_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError("The environments are closed; make them anew with make_vec_env.")

    def _send(self, actions: np.ndarray) -> None:
        self._check_open()
        self._actions = actions
        if hasattr(self.venv, "step_async"):
            self.venv.step_async(actions)

    def _observe(self, obs: dict[str, Any], infos: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Note what all environments show now, and convert it."""
        self._instructions = obs["instruction"]
        return self._converted(obs, infos)

    def _converted(self, obs: dict[str, Any], infos: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """SB3's observations from Gymnasium's; both are batched. Errors name the task by the infos."""
        result = {key: self._transform(obs[key]) for key in self._image_keys}
        result |= {key: obs[key] for key in VECTOR_KEYS if key in obs}
        result["input_ids"], result["attention_mask"] = self._prompts.look_up(obs["instruction"], infos)
        return result

    def _transform(self, images: np.ndarray) -> np.ndarray:
        return images if self.image_transform is None else self.image_transform(images)

    def _close_episodes(
        self, ended: np.ndarray, infos: dict[str, Any], per_env: list[dict[str, Any]], timed_out: np.ndarray
    ) -> None:
        """Replace the infos of ended episodes by those of their last step, and add what SB3 looks for."""
        finals = [infos["final_obs"][i] for i in ended]
        batch = {key: stacked([final[key] for final in finals]) for key in finals[0] if key != "instruction"}
        last = self._converted(batch | {"instruction": [final["instruction"] for final in finals]})
        for row, (i, info) in enumerate(zip(ended, unbatch_infos(infos["final_info"], ended), strict=True)):
            self.reset_infos[i] = per_env[i]
            per_env[i] = info | {
                "terminal_observation": {key: values[row] for key, values in last.items()},
                "TimeLimit.truncated": bool(timed_out[i]),
                "episode": self._totals.summary(i),
            }
        self._totals.begin(ended)

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        chosen = list(indices) if isinstance(indices, Iterable) else [indices]
        return [whole_number("index", index, 0, self.num_envs - 1) for index in chosen]

    def _call(self, name: str, indices: list[int], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._check_open()
        if not hasattr(self.venv, "call"):
            raise AttributeError(f"The environments have no '{name}'.")
        if indices != list(range(self.num_envs)):
            kwargs["indices"] = indices
        return self.venv.call(name, *args, **kwargs)


def _by_name(options: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A value for each environment by option; None where it was given none."""
    names = sorted({name for given in options for name in given})
    return {name: [given.get(name) for given in options] for name in names}


def _images(frames: Sequence[np.ndarray] | None, env: VLAVecEnv) -> list[np.ndarray | None]:
    """What `VLAVecEnv.get_images` gives for rendered frames; a warning and None for each environment without them."""
    if frames is not None:
        return list(frames)
    told = f"The render mode is {env.render_mode}, so there are no images; make_vec_env(render_mode='rgb_array')."
    warnings.warn(told, stacklevel=3)
    return [None] * env.num_envs


def speaks_tokens(env: VecEnv) -> bool:
    """Whether environments show prompts as tokens and take bins, as `VLAVecEnv` does, wherever they run."""
    return hasattr(env.unwrapped, "processor")


def _checked_spaces(venv: VectorEnv[Any, Any, Any]) -> tuple[spaces.Dict, tuple[int, ...]]:
    """The observation space of one environment, and the shape of its actions."""
    observation_space, action_space = venv.single_observation_space, venv.single_action_space
    if not isinstance(observation_space, spaces.Dict) or not isinstance(
        observation_space.spaces.get("instruction"), spaces.Text
    ):
        raise ValueError(f"VLAVecEnv needs a Dict of observations with 'instruction', a Text; got {observation_space}.")
    shape = action_space.shape
    if not isinstance(action_space, spaces.Box) or not shape or shape[-1] != ACTION_DIM or len(shape) > 2:
        raise ValueError(f"VLAVecEnv needs actions Box({ACTION_DIM},) or Box(k, {ACTION_DIM}), got {action_space}.")
    return observation_space, shape


def _image_space(transform: ImageTransform, space: spaces.Space[Any]) -> spaces.Box:
    """The space of an environment's images after a transform, which is tried on a black one."""
    example = transform(np.zeros((1, *cast(spaces.Box, space).shape), dtype=np.uint8))
    if example.ndim != 4 or example.shape[-1] != 3 or example.dtype != np.uint8:
        raise ValueError(f"image_transform gives {example.dtype} {example.shape}; expected uint8 (n, H, W, 3).")
    return spaces.Box(0, 255, example.shape[1:], np.uint8)

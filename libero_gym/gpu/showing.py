"""What environments show: observations and infos are written where results are read from, and frames are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from libero_gym.common.checks import choice
from libero_gym.dimensions import CAMERA_KEYS, IMAGE_KEYS, PRIVILEGED_KEY
from libero_gym.env import LiberoEnv
from libero_gym.env.state import EpisodeState
from libero_gym.gpu.mirror import Mirror
from libero_gym.gpu.places import Places
from libero_gym.gpu.tensors import DeviceFrames, DeviceValues, tensor_of
from libero_gym.gpu.worlds import robot_states
from libero_gym.vector.backend import FINAL, Plan

Episodes = Mapping[int, EpisodeState]  # by the environment's number


class Showing:
    """Shows environments, on the host or, with ``output="torch"``, on the device.

    Args:
        plan: The environments.
        places: Their worlds.
        mirror: What draws exact frames.
        device: Warp's name of the device.
        output: "numpy" or "torch".

    Attributes:
        arrays: See `vector.backend.Backend`.
    """

    def __init__(self, plan: Plan, places: Places, mirror: Mirror, device: str, output: str) -> None:
        self._example, self._places, self._mirror, self._device = plan.example, places, mirror, device
        self._is_torch = output == "torch"
        arrays = {name: np.zeros(*entry) for name, entry in plan.layout.items()}
        self.arrays: Mapping[str, Any] = arrays
        if self._is_torch:
            self.arrays = arrays | _on_device(arrays, plan.example, device)

    def show(self, prefix: str, episodes: Episodes) -> None:
        """Write the observations and infos of some environments."""
        chosen, states, arrays, example = list(episodes), list(episodes.values()), self.arrays, self._example
        if not chosen:
            return
        arrays[prefix + "state"][chosen] = robot_states(self._places.read("sample", chosen))
        if example.privileged:
            arrays[prefix + PRIVILEGED_KEY][chosen] = [episode.privileged for episode in states]
        if prefix + "instruction" in arrays:
            arrays[prefix + "instruction"][chosen] = [episode.task.task_id for episode in states]
        if self._is_torch:
            self._show_frames(prefix, chosen)
        else:
            for camera, frames in self.frames(episodes, example.cameras, example.image_size).items():
                arrays[prefix + IMAGE_KEYS[camera]][chosen] = frames
        arrays[prefix + "is_success"][chosen] = self._places.read("flags", chosen)[:, 0] != 0
        for key in ("init_state_id", "elapsed_steps"):
            arrays[prefix + key][chosen] = [getattr(episode, key) for episode in states]
        arrays[prefix + "task_id"][chosen] = [episode.task.task_id for episode in states]
        if prefix:
            arrays[prefix + "reward_terms"][chosen] = arrays["reward_terms"][chosen]

    def frames(self, episodes: Episodes, cameras: tuple[str, ...], size: int) -> dict[str, list[np.ndarray]]:
        """Frames by camera: fast ones from the device, exact ones by OpenGL from states on the host."""
        if not cameras:
            return {}
        found: dict[int, Sequence[np.ndarray]] = {}
        if self._example.renderer == "fast":
            for group, own in self._places.by_group(episodes):
                found |= dict(zip(own, group.frames(self._places.worlds(own), cameras, size), strict=True))
        else:
            for (index, episode), state in zip(episodes.items(), self._places.states(list(episodes)), strict=True):
                found[index] = self._mirror.frames(episode, state, cameras, size)
        return {camera: [found[index][place] for index in episodes] for place, camera in enumerate(cameras)}

    def hand_out(self, values: np.ndarray) -> Any:
        """Rewards or flags as users get them."""
        return tensor_of(values, self._device) if self._is_torch else values

    def _show_frames(self, prefix: str, indices: Sequence[int]) -> None:
        """Write frames where they are drawn."""
        cameras, size = self._example.cameras, self._example.image_size
        for group, own in self._places.by_group(indices) if cameras else ():
            frames = group.frames_on_device(self._places.worlds(own), cameras, size)
            for number, camera in enumerate(cameras):
                self.arrays[prefix + IMAGE_KEYS[camera]].put(own, frames, number, len(cameras))


def check_output(output: str, example: LiberoEnv) -> str:
    """The output, if such environments can have it.

    Raises:
        ValueError: If it is none, or their frames are not drawn on the device.
    """
    choice("output", output, ("numpy", "torch"))
    if output == "torch" and example.cameras and example.renderer != "fast":
        raise ValueError(
            f"output='torch' has its frames drawn on the device, and renderer={example.renderer!r} draws elsewhere; "
            "take renderer='fast'."
        )
    return output


def _on_device(arrays: Mapping[str, np.ndarray], example: LiberoEnv, device: str) -> dict[str, Any]:
    """What holds observations in place of the arrays."""
    found: dict[str, Any] = {}
    for key in cast(spaces.Dict, example.observation_space).spaces:
        for name in (key, FINAL + key):
            if name in arrays:
                is_image = key in CAMERA_KEYS
                found[name] = (
                    DeviceFrames(arrays[name].shape, device) if is_image else DeviceValues(arrays[name], device)
                )
    return found

"""What an environment shows of its simulator: frames, the robot's state, the instruction, privileged numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from libero_gym.dimensions import IMAGE_KEYS, PRIVILEGED_KEY
from libero_gym.observations import Observation, add_instruction, layer_key, observation_space, proprioception
from libero_gym.privileged import PrivilegedState
from libero_gym.rendering import renderer as rendering
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import Task


@dataclass
class Observer:
    """Observes the current task's simulator; arguments are those of `LiberoEnv`, checked.

    Attributes:
        cameras: Cameras to draw; none draws nothing and needs no OpenGL.
        image_size: Side of their frames in pixels.
        renderer: A name among `rendering.RENDERERS`.
        render_device: EGL device index; None lets EGL choose.
        n_render_threads: How many threads draw a fast frame.
        layers: What each camera shows besides its image, names among `dimensions.LAYERS`.
        privileged: Whether to show what only the simulator knows.
        instruction: A name among `observations.INSTRUCTION_KINDS`.
        limits: Control steps of an episode, by task id; privileged observations hold the share that is left.
    """

    cameras: tuple[str, ...]
    image_size: int
    renderer: str
    render_device: int | None
    n_render_threads: int
    layers: tuple[str, ...]
    privileged: bool
    instruction: str
    limits: Mapping[int, int]

    def space(self, n_tasks: int) -> spaces.Dict:
        """The space of the observations, in a suite of so many tasks."""
        shown = self.cameras, self.image_size, self.privileged, self.instruction
        return observation_space(*shown, n_tasks, self.layers)

    def begin(self, simulator: Simulator, task: Task) -> None:
        """Turn to a task, which this simulator runs."""
        self._simulator, self._task = simulator, task
        if self.privileged:
            self._privileged_state = PrivilegedState(simulator.compiled.goal, simulator.model)

    def frames(self, simulator: Simulator, size: int, cameras: tuple[str, ...] = ("agentview",)) -> list[np.ndarray]:
        """A simulator's frames, uint8 (size, size, 3), drawn as the arguments say."""
        how = self.render_device, self.renderer, self.n_render_threads
        return rendering.render(simulator, cameras, size, *how)

    def __call__(self, elapsed_steps: int) -> Observation:
        """The observation after so many control steps of the episode."""
        observation: Observation = {}
        if self.layers:
            for camera in self.cameras:
                observation |= self._layers(camera)
        elif self.cameras:
            frames = self.frames(self._simulator, self.image_size, self.cameras)
            observation = {IMAGE_KEYS[camera]: frame for camera, frame in zip(self.cameras, frames, strict=True)}
        observation["state"] = proprioception(self._simulator)
        if self.privileged:
            time_left = 1 - elapsed_steps / self.limits[self._task.task_id]
            robot_state = observation["state"][None]
            observation[PRIVILEGED_KEY] = self._privileged_state(self._simulator.arrays, robot_state, time_left)[0]
        return add_instruction(observation, self._task, self.instruction)

    def _layers(self, camera: str) -> Observation:
        """A camera's image, and the layers that are asked for."""
        size, key = self.image_size, IMAGE_KEYS[camera]
        how = self.renderer, self.render_device, self.n_render_threads
        frame = rendering.render_frame(self._simulator, camera, size, size, *how)
        shown = {"depth": frame.depth, "segmentation": frame.bodies}
        return {key: frame.image} | {layer_key(camera, layer): shown[layer] for layer in self.layers}

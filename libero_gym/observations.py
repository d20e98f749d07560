"""From a simulator's sampled state to the observation dictionary, and its space."""

from __future__ import annotations

import math
import string
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from libero_gym.dimensions import IMAGE_KEYS, PRIVILEGED_KEY, STATE_DIM
from libero_gym.privileged import SIZE as PRIVILEGED_SIZE
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import Task

Observation: TypeAlias = dict[str, Any]

MAX_INSTRUCTION_LENGTH = 256
# How an observation shows the instruction: by its words, by its task's index, or not at all.
INSTRUCTION_KINDS = ("text", "id", "none")
# Printable ASCII, and the typographic marks that LIBERO-PRO's instructions use. The first character is what zeroed
# shared memory reads as (Gymnasium's AsyncVectorEnv shows that): a space would look like an empty instruction.
INSTRUCTION_CHARSET = "\ufffd" + "".join(
    sorted(set(string.printable) - set("\t\n\r\x0b\x0c")) + ["\u2018", "\u2019", "\u201c", "\u201d", "\u2013", "\u2014"]
)


def observation_space(
    cameras: tuple[str, ...],
    image_size: int,
    privileged: bool = False,
    instruction: str = "text",
    n_tasks: int = 1,
    layers: tuple[str, ...] = (),
) -> spaces.Dict:
    """The space of an environment's observations.

    Args:
        cameras: Names from `IMAGE_KEYS`.
        image_size: Side of their frames in pixels.
        privileged: Whether observations hold what only the simulator knows; see `libero_gym.privileged`.
        instruction: One of `INSTRUCTION_KINDS`.
        n_tasks: Number of the suite's tasks, for ``"id"``.
        layers: What each camera shows besides its image, names among `dimensions.LAYERS`.
    """
    parts: dict[str, spaces.Space[Any]] = {
        IMAGE_KEYS[camera]: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for camera in cameras
    }
    size = image_size, image_size
    for camera in cameras if "depth" in layers else ():
        parts[layer_key(camera, "depth")] = spaces.Box(0, np.inf, size, np.float32)
    for camera in cameras if "segmentation" in layers else ():
        parts[layer_key(camera, "segmentation")] = spaces.Box(-1, np.iinfo(np.int32).max, size, np.int32)
    parts["state"] = spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
    if privileged:
        parts[PRIVILEGED_KEY] = spaces.Box(-np.inf, np.inf, (PRIVILEGED_SIZE,), np.float32)
    if instruction == "text":
        parts["instruction"] = spaces.Text(MAX_INSTRUCTION_LENGTH, charset=INSTRUCTION_CHARSET)
    elif instruction == "id":
        parts["instruction"] = spaces.Discrete(n_tasks)
    return spaces.Dict(parts)


def layer_key(camera: str, layer: str) -> str:
    """The observation's key of a camera's layer, such as ``wrist_depth``."""
    return IMAGE_KEYS[camera].replace("image", layer)


def add_instruction(observation: Observation, task: Task, kind: str) -> Observation:
    """The observation with the task's instruction added, as `observation_space` describes it."""
    if kind == "text":
        observation["instruction"] = task.instruction
    elif kind == "id":
        observation["instruction"] = np.int64(task.task_id)
    return observation


def proprioception(simulator: Simulator) -> np.ndarray:
    """The robot's state, float32 (8,): end-effector position in m, axis-angle in rad, finger joints in m."""
    return np.concatenate(
        [simulator.eef_pos(), quat_to_axis_angle(simulator.eef_quat()), simulator.gripper_qpos()]
    ).astype(np.float32)


def quat_to_axis_angle(quat: np.ndarray) -> np.ndarray:
    """Axis times angle in rad, (3,), of an xyzw unit quaternion, as robosuite 1.4's ``quat2axisangle`` gives it."""
    w = min(max(float(quat[3]), -1.0), 1.0)
    norm = math.sqrt(1.0 - w * w)
    if norm == 0.0:
        return np.zeros(3)
    return np.asarray((quat[:3] * 2.0 * math.acos(w)) / norm)

"""The benchmark's numbers and names that many files share, each stated once; it imports nothing of ours."""

from typing import Literal

CONTROL_FREQ = 20  # control steps per second, robosuite's `control_freq` in LIBERO
ACTION_DIM = 7  # change of position (3) and of orientation (3), gripper
GRIPPER_DIM = ACTION_DIM - 1  # the gripper's place in an action
STATE_DIM = 8  # end-effector position (3) and axis-angle (3), two finger joints

IMAGE_KEYS = {
    "agentview": "image",
    "wrist": "wrist_image",
    "frontview": "frontview_image",
    "birdview": "birdview_image",
    "sideview": "sideview_image",
}
"""The observation's key of each camera."""
CAMERA_KEYS = tuple(IMAGE_KEYS.values())
LAYERS = ("depth", "segmentation")
"""What a camera shows besides its image, on request; the key has the layer's name in the place of ``image``."""
PRIVILEGED_KEY = "privileged"
"""The observation's key of what only the simulator knows, see `libero_gym.privileged`."""

# Discount of shaping terms; equal to the default of PPO, so that shaping leaves the optimal policy unchanged.
SHAPING_GAMMA = 0.99

Renderer = Literal["exact", "fast"]
"""What draws frames, see `libero_gym.rendering.renderer`."""

Physics = Literal["exact", "fast", "coarse"]
"""How physics are stepped, see `libero_gym.simulation.simulator.Simulator`."""

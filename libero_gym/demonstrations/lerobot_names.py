"""What data sets in LeRobot's format call states, actions and cameras: LeRobot's own names, and openpi's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from libero_gym.demonstrations.lerobot_layout import IMAGE_PREFIX

# openpi's conversion of LIBERO (examples/libero/convert_libero_data_to_lerobot.py) leaves "observation." out.
_STATES = ("observation.state", "state")
_ACTIONS = ("action", "actions")
# What published sets of LIBERO call the frames that our environments show under the first name of each row.
_CAMERAS = (
    ("image", "agentview", "agentview_rgb", "agentview_image", "front"),
    ("wrist_image", "image2", "wrist", "eye_in_hand_rgb", "eye_in_hand", "robot0_eye_in_hand_image"),
)


class Columns(NamedTuple):
    """Names of the columns that hold numbers.

    Attributes:
        state: The robot's states.
        action: The actions.
    """

    state: str
    action: str

    @classmethod
    def of(cls, features: Mapping[str, Any]) -> Columns:
        """Those of a data set with these features; LeRobot's own names where it has none of them."""
        return cls(*(next((name for name in names if name in features), names[0]) for names in (_STATES, _ACTIONS)))


def camera_key(feature: str) -> str:
    """Name of a camera, by that of its feature: what follows ``observation.images.``."""
    return feature.removeprefix(IMAGE_PREFIX).removeprefix("observation.")


def same_camera(wanted: str, present: Collection[str]) -> str | None:
    """The name under which a data set has a camera that the caller knows by another; None if it has none such.

    Args:
        wanted: The caller's name, such as "wrist_image".
        present: The names in the data set, such as "image2".
    """
    if wanted in present:
        return wanted
    names = next((names for names in _CAMERAS if wanted in names), ())
    return next((name for name in names if name in present), None)

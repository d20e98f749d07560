"""The card of a dataset: a ``README.md`` that tells Hugging Face's tools where the parquet files are."""

from __future__ import annotations

from pathlib import Path

from libero_gym.common.atomic import write_text

CARD_PATH = "README.md"
# The header follows LeRobot's own cards. The card states no number, so that a longer dataset can keep it.
CARD = """\
---
tags:
- LeRobot
- LIBERO
task_categories:
- robotics
configs:
- config_name: default
  data_files: data/*/*.parquet
---

Demonstrations in LeRobot's format v3.0, written by libero-vla.

- Episodes, frames and frame rate: `meta/info.json`; what each episode shows: `meta/episodes/`.
- Actions (7): position, axis-angle, gripper; -1 opens the gripper and +1 closes it.
- States (8): position in m, axis-angle in rad, finger joints in m.
- Frames are turned by 180 degrees against the simulator's cameras.
"""


def write_card(root: Path) -> None:
    """Write the card, unless the folder has a ``README.md``: that is the user's own, or the same card."""
    path = root / CARD_PATH
    if not path.exists() and not path.is_symlink():
        write_text(path, CARD)

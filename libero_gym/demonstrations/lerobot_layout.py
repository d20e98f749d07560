"""The LeRobot dataset format v3.0: where its files lie and what its columns are called.

A folder holds ``meta/info.json`` (features, paths, totals), ``meta/stats.json``, ``meta/tasks.parquet``,
``meta/episodes/chunk-000/file-000.parquet`` (where each episode lies), ``data/chunk-000/file-000.parquet`` and
``videos/<key>/chunk-000/file-000.mp4``. The format lets a file hold many episodes. The writer writes one file per
episode, so that damage costs one episode; the reader reads both.

The episode's row has the standard fields and these of ours: ``libero/success``, ``libero/suite``, ``libero/task_id``,
``libero/task_name``, ``libero/init_state_id``, ``libero/placement_seed``, ``libero/seed``, ``libero/versions`` (JSON).

A frame's row has ``next.reward`` (1 for the action that succeeds, else 0), ``next.done`` and ``next.success``;
datasets of before have no ``next.reward``.

Frames and actions are those of the environments: images are turned by 180 degrees, +1 closes the gripper.
"""

from __future__ import annotations

from libero_gym.common.version import install_extra

CODEBASE_VERSION = "v3.0"
CHUNK_SIZE = 1000  # files per folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_FOLDER = "meta/episodes"
EPISODES_PATH = f"{EPISODES_FOLDER}/chunk-000/file-000.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
IMAGE_PREFIX = "observation.images."
NEXT_REWARD, NEXT_DONE = "next.reward", "next.done"  # what a frame's action earned, and whether it was the last
NEXT_SUCCESS = "next.success"  # whether the goal held after it
STATE_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"]
ACTION_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper"]
OWN_PREFIX = "libero/"  # of the fields that only our datasets have
OWN_FIELDS: dict[str, type] = {
    "success": bool,
    "suite": str,
    "task_id": int,
    "task_name": str,
    "init_state_id": int,
    "placement_seed": int,
    "seed": int,
}


def require_pyarrow() -> None:
    """Raise an ImportError with the cure if pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(f"LeRobot's format needs pyarrow: {install_extra('data')}") from error

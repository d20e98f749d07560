"""Pseudo-labels of demonstrations: cuts where the gripper changes, keyframes where the hand rests.

VLA-RL (arXiv 2505.18719) trains its process reward on such labels. It cuts an episode where the gripper's opening
changes markedly; the frames of a segment in which the end effector nearly stops are keyframes and get a positive label.
The paper gives no thresholds. Those here are our own, in SI units, and can be given as arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.dimensions import CONTROL_FREQ
from libero_gym.gripper import FINGERS, gripper_opening

# The Panda's fingers are 0 to 8 cm apart. Grasping a can changes the opening by 16 mm, but only the first 4 mm of its
# release are recorded: then the goal holds and the episode ends.
MIN_OPENING_CHANGE = 0.003  # m
# A hand rests if it moves slower than REST_SPEED, or than this fraction of the episode's fastest frame.
REST_SPEED = 0.02  # m/s
REST_FRACTION = 0.1


class Segments(NamedTuple):
    """An episode's segments and labels.

    Attributes:
        cuts: First frame of every segment except the first, int64 (n_segments - 1,), increasing.
        segment_ids: Segment of each frame, int64 (T,).
        keyframes: Frames labelled positive, int64 (n_keyframes,), increasing.
        labels: 1 at keyframes and 0 elsewhere, int64 (T,).
        opening: Distance between the fingers in m, (T,).
        speed: Speed of the end effector in m/s, (T,).
    """

    cuts: np.ndarray
    segment_ids: np.ndarray
    keyframes: np.ndarray
    labels: np.ndarray
    opening: np.ndarray
    speed: np.ndarray


def eef_speed(state: np.ndarray, fps: float = CONTROL_FREQ) -> np.ndarray:
    """Speed of the end effector in m/s, (T,): central differences of ``state[:, 0:3]``, one-sided at both ends."""
    if len(state) < 2:
        return np.zeros(len(state))
    velocity = np.gradient(np.asarray(state[:, 0:3], dtype=np.float64), 1.0 / fps, axis=0)
    return np.asarray(np.linalg.norm(velocity, axis=1))


def gripper_cuts(opening: np.ndarray, min_change: float = MIN_OPENING_CHANGE, still_for: int = 3) -> np.ndarray:
    """Frames at which the gripper begins a marked change.

    A change is a run of frames in which the opening moves; pauses of less than ``still_for`` frames belong to it. A
    change is marked if the openings at its ends differ by ``min_change``: fingers that tremble make no cut.

    Args:
        opening: Distance between the fingers in m, (T,).
        min_change: Smallest difference in m of a marked change.
        still_for: Number of frames without motion that end a change.

    Returns:
        The last frame before each change, int64 (n_cuts,). It is never 0, because a segment precedes every cut.
    """
    # Fingers that need more than ten times `still_for` frames for a marked change drift; they do not move.
    moving = np.flatnonzero(np.abs(np.diff(opening)) > 0.1 * min_change / max(still_for, 1))
    if len(moving) == 0:
        return np.zeros(0, dtype=np.int64)
    runs = np.split(moving, np.flatnonzero(np.diff(moving) > still_for) + 1)
    changes = [(run[0], run[-1] + 1) for run in runs]
    cuts = [start for start, end in changes if start > 0 and abs(opening[end] - opening[start]) >= min_change]
    return np.array(cuts, dtype=np.int64)


def rest_keyframes(
    speed: np.ndarray,
    cuts: np.ndarray,
    rest_speed: float = REST_SPEED,
    rest_fraction: float = REST_FRACTION,
    skip_start: int = 5,
) -> np.ndarray:
    """One keyframe per rest of the hand: the slowest frame of each run of frames in which the hand nearly stops.

    Runs end at cuts, so that a rest with a grasp in it gives one keyframe before the grasp and one after it.

    Args:
        speed: Speed of the end effector in m/s, (T,).
        cuts: First frame of each segment except the first.
        rest_speed: A hand slower than this rests, in m/s.
        rest_fraction: A hand slower than this fraction of the episode's highest speed rests, too.
        skip_start: Number of frames at the episode's start that are no keyframes, because the arm has not moved yet.

    Returns:
        Frame indices, int64 (n_keyframes,), increasing.
    """
    if len(speed) == 0:
        return np.zeros(0, dtype=np.int64)
    resting = speed <= max(rest_speed, rest_fraction * float(speed.max()))
    resting[:skip_start] = False
    frames = np.flatnonzero(resting)
    if len(frames) == 0:
        return np.zeros(0, dtype=np.int64)
    ids = _segment_ids(len(speed), cuts)[frames]
    breaks = np.flatnonzero((np.diff(frames) > 1) | (np.diff(ids) > 0)) + 1
    return np.array([run[np.argmin(speed[run])] for run in np.split(frames, breaks)], dtype=np.int64)


def segment_episode(
    state: np.ndarray,
    actions: np.ndarray,
    *,
    fps: float = CONTROL_FREQ,
    min_opening_change: float = MIN_OPENING_CHANGE,
    rest_speed: float = REST_SPEED,
    rest_fraction: float = REST_FRACTION,
) -> Segments:
    """Segments and positive frames of one demonstration.

    Args:
        state: Robot states (T, 8): position in m, axis-angle in rad, finger joints in m.
        actions: Actions (T, 7). Only their number is used: cuts follow the measured opening, not the command.
        fps: Frames per second.
        min_opening_change: See `gripper_cuts`.
        rest_speed: See `rest_keyframes`.
        rest_fraction: See `rest_keyframes`.

    Returns:
        The segments and labels.

    Raises:
        ValueError: If the shapes do not fit, or a state is not finite.
    """
    state, actions = np.asarray(state), np.asarray(actions)
    if state.ndim != 2 or state.shape[1] != 8 or actions.shape != (len(state), 7):
        raise ValueError(f"state {state.shape} and actions {actions.shape}: expected (T, 8) and (T, 7), T alike.")
    if not np.isfinite(state).all():
        raise ValueError("The states hold NaN or infinity; a segmentation would follow them.")
    opening, speed = gripper_opening(state[:, FINGERS]).astype(np.float64), eef_speed(state, fps)
    cuts = gripper_cuts(opening, min_opening_change)
    keyframes = rest_keyframes(speed, cuts, rest_speed, rest_fraction)
    labels = np.zeros(len(state), dtype=np.int64)
    labels[keyframes] = 1
    return Segments(cuts, _segment_ids(len(state), cuts), keyframes, labels, opening, speed)


def _segment_ids(n_frames: int, cuts: np.ndarray) -> np.ndarray:
    """Segment of each frame, int64 (n_frames,)."""
    return np.asarray(np.searchsorted(cuts, np.arange(n_frames), side="right"), dtype=np.int64)

"""Pseudo-labels: cuts where the gripper changes markedly, keyframes where the hand nearly stops."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import random_actions
from scripted import soup_into_basket

from libero_gym.demonstrations.segments import eef_speed, gripper_cuts, segment_episode
from libero_gym.env import LiberoEnv


def states(position: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Robot states (T, 8) of a hand on the x axis, in m."""
    state = np.zeros((len(position), 8))
    state[:, 0] = position
    state[:, 6], state[:, 7] = opening / 2, -opening / 2
    return state


def pick() -> np.ndarray:
    """Move 20 frames at 20 cm/s, rest 10 with a grasp at frame 25, move 20 frames."""
    velocity = np.concatenate([np.full(20, 0.01), np.zeros(10), np.full(20, 0.01)])
    opening = np.concatenate([np.full(25, 0.08), [0.06, 0.04], np.full(23, 0.03)])
    return states(np.cumsum(velocity), opening)


def test_speed_of_a_uniform_motion_is_its_velocity() -> None:
    state = states(np.arange(10) * 0.01, np.full(10, 0.08))
    np.testing.assert_allclose(eef_speed(state), 0.2, rtol=1e-9)  # 1 cm in 50 ms
    np.testing.assert_allclose(eef_speed(state, fps=10), 0.1, rtol=1e-9)


def test_a_grasp_cuts_the_episode_once_and_leaves_a_keyframe_on_either_side() -> None:
    segments = segment_episode(pick(), np.zeros((50, 7)))
    assert segments.cuts.tolist() == [24]
    assert segments.segment_ids.tolist() == [0] * 24 + [1] * 26
    assert len(segments.keyframes) == 2
    before, after = segments.keyframes
    assert 20 <= before < 24 <= after < 30
    assert np.flatnonzero(segments.labels).tolist() == segments.keyframes.tolist()


def test_a_trembling_gripper_makes_no_cut() -> None:
    trembling = 0.04 + 0.001 * np.sin(np.arange(100))
    assert len(gripper_cuts(trembling)) == 0


def test_an_opening_that_returns_in_one_go_makes_no_cut_but_two_separate_changes_make_two() -> None:
    still = np.full(10, 0.08)
    closing, opening = np.linspace(0.08, 0.0, 5), np.linspace(0.0, 0.08, 5)
    assert gripper_cuts(np.concatenate([still, closing[1:], opening[1:], still])).tolist() == []
    assert gripper_cuts(np.concatenate([still, closing[1:], np.zeros(10), opening[1:], still])).tolist() == [9, 23]


def test_a_hand_that_never_rests_has_no_keyframe() -> None:
    segments = segment_episode(states(np.arange(30) * 0.01, np.full(30, 0.08)), np.zeros((30, 7)))
    assert segments.keyframes.tolist() == []
    assert segments.labels.sum() == 0


@pytest.mark.parametrize("n_frames", [0, 1, 2])
def test_short_episodes_are_one_segment(n_frames: int) -> None:
    segments = segment_episode(np.zeros((n_frames, 8)), np.zeros((n_frames, 7)))
    assert segments.segment_ids.tolist() == [0] * n_frames
    assert segments.keyframes.tolist() == []


def test_shapes_and_values_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"state \(5, 8\) and actions \(4, 7\): expected"):
        segment_episode(np.zeros((5, 8)), np.zeros((4, 7)))
    with pytest.raises(ValueError, match="NaN"):
        segment_episode(np.full((5, 8), np.nan), np.zeros((5, 7)))


def test_pick_and_place_on_the_simulator_is_cut_at_grasp_and_release() -> None:
    env = LiberoEnv("libero_object", task_id=0, cameras=())
    obs, _ = env.reset(seed=0, options={"init_state_id": 0})
    state, actions = [], []
    for action in soup_into_basket(env.simulator):
        state.append(obs["state"])
        actions.append(action)
        obs, _, terminated, *_ = env.step(action)
        if terminated:
            break
    env.close()
    segments = segment_episode(np.stack(state), np.stack(actions))
    gripper = np.stack(actions)[:, 6]
    commands = np.flatnonzero(np.diff(gripper)) + 1  # the frames whose action first closes, and first opens
    assert len(segments.cuts) == len(commands) == 2
    assert (np.abs(segments.cuts - commands) <= 3).all()
    assert segments.labels[segments.cuts[0] :].any()


def test_labels_are_deterministic() -> None:
    generator = np.random.default_rng(0)
    state = generator.normal(0, 0.01, (60, 8)).cumsum(axis=0)
    first, second = (segment_episode(state, random_actions(60)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

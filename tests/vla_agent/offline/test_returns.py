"""Returns by hand, with frames left out and with values in the place of what comes later."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cloning import SIZE
from outcomes import RIGHT, attempt, recorded

from vla_agent.offline.returns import lambda_returns, rewards_between
from vla_agent.sft import ActionChunks
from vla_agent.sft.outcomes import Outcomes


def outcomes(rewards: list[float], dones: list[int], durations: list[int], kept: list[list[int]]) -> Outcomes:
    """Outcomes of episodes, of each of which some control steps are frames."""
    episode_ids = np.repeat(np.arange(len(kept)), [len(times) for times in kept])
    arrays = np.array(rewards, np.float32), np.array(dones, bool), np.array(durations)
    succeeded = np.array(rewards)[np.cumsum(durations) - 1] > 0
    return Outcomes(*arrays, episode_ids, np.concatenate(kept).astype(np.int64), succeeded)


def test_returns_discount_every_control_step_also_between_frames() -> None:
    found = rewards_between(outcomes([0, 0, 0, 1], [0, 0, 0, 1], [4], [[0, 3]]), gamma=0.5)
    np.testing.assert_allclose(found, [[0, 1], [0.125, 0]])
    np.testing.assert_allclose(lambda_returns(*found), [0.125, 1])


def test_what_is_earned_between_two_frames_belongs_to_the_first() -> None:
    rewards, discounts = rewards_between(outcomes([1, 2, 4, 8], [0, 0, 0, 1], [4], [[0, 2]]), gamma=0.5)
    np.testing.assert_allclose(rewards, [1 + 0.5 * 2, 4 + 0.5 * 8])
    np.testing.assert_allclose(discounts, [0.25, 0])


def test_nothing_flows_over_an_end() -> None:
    two = outcomes([0, 0, 0, 1], [0, 1, 0, 1], [2, 2], [[0, 1], [0, 1]])
    np.testing.assert_allclose(lambda_returns(*rewards_between(two, 0.9)), [0, 0, 0.9, 1])
    midway = outcomes([0, 0, 0, 1], [0, 1, 0, 1], [4], [[0, 1, 2, 3]])
    np.testing.assert_allclose(lambda_returns(*rewards_between(midway, 0.9)), [0, 0, 0.9, 1])


def test_lambda_returns_by_hand() -> None:
    rewards, discounts, values = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.5, 0.0]), np.array([9.0, 3.0, 5.0])
    np.testing.assert_allclose(lambda_returns(rewards, discounts, values, 0.0), [2.5, 4.5, 4.0])
    second = 2 + 0.5 * (0.75 * 5 + 0.25 * 4)
    np.testing.assert_allclose(
        lambda_returns(rewards, discounts, values, 0.25), [1 + 0.5 * (0.75 * 3 + 0.25 * second), second, 4.0]
    )


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_right_values_leave_returns_as_they_are(lam: float) -> None:
    found = rewards_between(outcomes([0, 1, 0, 0, 2, 1], [0, 0, 1, 0, 0, 1], [3, 3], [[0, 2], [0, 1, 2]]), 0.9)
    exact = lambda_returns(*found)
    np.testing.assert_allclose(lambda_returns(*found, exact, lam), exact)


def test_waiting_that_is_cut_still_costs_time() -> None:
    episode = attempt("push the plate", RIGHT, True)
    episode.state[:] = 0.0  # the hand waits for the gripper's change, which is half-way
    data = ActionChunks([episode], image_size=SIZE, chunk_size=2, cut_waiting=True)
    assert data.outcomes is not None
    assert data.outcomes.times.tolist() == [0, 6, 7, 8, 9, 10, 11]
    returns = lambda_returns(*rewards_between(data.outcomes, 0.9))
    np.testing.assert_allclose(returns, 0.9 ** (11 - data.outcomes.times))


def test_what_would_follow_a_failure_is_not_learned() -> None:
    """An expert holds still at its end, and so may a success; a policy that ran out of time would have gone on."""
    episodes = [attempt("push the plate", RIGHT, True), attempt("push the plate", RIGHT, False)]
    data = ActionChunks(episodes, image_size=SIZE, chunk_size=3)
    assert data[np.array([10, 22])].valid.tolist() == [[True, True, True], [True, True, False]]
    cut = ActionChunks(episodes, image_size=SIZE, chunk_size=3, pad_chunks=False)
    assert cut[np.array([10, 22])].valid.tolist() == [[True, True, False]] * 2


def test_wrong_numbers_are_told() -> None:
    with pytest.raises(ValueError, match=r"gamma"):
        rewards_between(outcomes([1], [1], [1], [[0]]), 1.5)
    with pytest.raises(ValueError, match=r"returns_lambda=0.5 needs values"):
        lambda_returns(np.ones(1), np.zeros(1), None, 0.5)
    wrong = dataclasses.replace(attempt("push the plate", RIGHT, True), rewards=np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"Episode 0 \('push the plate'\) has rewards of shape \(3,\).*expected 12"):
        recorded([wrong])

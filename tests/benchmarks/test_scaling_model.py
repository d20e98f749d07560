"""The model of scaling, worked by hand."""

from __future__ import annotations

import dataclasses

import pytest
from scaling.measuring import line
from scaling.model import Pieces, Recipe, crossing, iteration_s, rollout_s, scale, update_s
from scaling_model import seven_billion

PIECES = Pieces(
    env_s=0.5,
    decode_call_s=1.0,
    decode_row_s=0.25,
    update_batch_s=2.0,
    update_row_s=0.5,
    again_row_s=0.125,
    between_s=3.0,
    reduce_call_s=0.125,
    reduce_byte_s=0.01,
    call_s=0.25,
    item_s=0.0625,
    byte_s=0.001,
    trained_bytes=100.0,
    sample_bytes=50.0,
)
RECIPE = Recipe(envs=4, n_steps=10, batch=20, n_epochs=2)
FREE = dataclasses.replace(PIECES, between_s=0, reduce_call_s=0, reduce_byte_s=0, call_s=0, item_s=0, byte_s=0)


def test_one_unit_plays_and_learns_alone() -> None:
    assert rollout_s(PIECES, RECIPE, 1, 1, 0) == 10 * (4 * 0.5 + 1 + 4 * 0.25)
    assert update_s(PIECES, RECIPE, 1, 1) == 4 * (2 + 20 * 0.5)
    assert iteration_s(PIECES, RECIPE, 1, 1, split=False) == 40 + 48 + 3


def test_two_colocated_units_pay_for_calls_sums_and_rollouts() -> None:
    # One of two policies is elsewhere, and sends 40 of 80 samples; the gradients of four minibatches are summed.
    assert rollout_s(PIECES, RECIPE, 2, 2, 1) == pytest.approx(40 + 10 * 0.0625 + 0.25 + 40 * 50 * 0.001)
    assert update_s(PIECES, RECIPE, 2, 2) == pytest.approx(48 + 4 * (0.125 + 100 * 0.01) + 80 * 50 * 0.001)


def test_a_split_shares_cores_while_it_waits() -> None:
    played = 10 * (4 * 0.5 + 1 + 8 * 0.25) + 0.25 + 80 * 50 * 0.001 + 0.25 + 100 * 0.001
    learned = 4 * (2 + 40 * 0.5)
    assert iteration_s(PIECES, RECIPE, 2, 1, split=True) == pytest.approx(played + learned + 3)


def test_a_stale_split_overlaps_and_scores_once_more() -> None:
    learned = 4 * (2 + 40 * 0.5) + 80 * 0.125 + 3
    read = 10 * 0.0625 + 80 * 50 * 0.001
    assert iteration_s(PIECES, RECIPE, 2, 1, split=True, stale=True) == pytest.approx(learned + read)
    idle = dataclasses.replace(PIECES, update_batch_s=0, update_row_s=0)
    played = 10 * (8 * 0.5 + 1 + 8 * 0.25) + 0.25 + 80 * 50 * 0.001 + 0.25 + 100 * 0.001
    assert iteration_s(idle, RECIPE, 2, 1, split=True, stale=True) == pytest.approx(played)
    apart = dataclasses.replace(idle, units_are_cores=False)  # cores of their own
    assert iteration_s(apart, RECIPE, 2, 1, split=True, stale=True) == pytest.approx(played - 10 * 4 * 0.5)


def test_learner_0_that_reads_slower_than_policies_play_holds_them_up() -> None:
    slow = dataclasses.replace(FREE, item_s=1.0)
    assert rollout_s(slow, RECIPE, 16, 16, 16) == pytest.approx(10 * 16 * 1.0)  # and not 10 * (4 * 0.5 + 1 + 4 * 0.25)
    assert rollout_s(slow, RECIPE, 16, 16, 15) == pytest.approx(10 * (4 + 15 * 1.0))


def test_without_overheads_colocated_units_scale_ideally_and_a_split_that_waits_never_does() -> None:
    rows = scale(FREE, RECIPE)
    assert [row["units"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    for row in rows:
        assert row["colocated"] == pytest.approx(row["units"] * rows[0]["colocated"])
    assert crossing(rows, "split") is None
    assert rows[3]["stale"] > rows[3]["split"]


def test_the_crossing_is_where_a_placement_stays_ahead() -> None:
    rows = [{"units": n, "colocated": 1.0, "stale": ahead} for n, ahead in ((2, 2.0), (4, 0.5), (8, 1.5), (16, 3.0))]
    assert crossing(rows, "stale") == 8
    assert crossing([{"units": 1, "colocated": 1.0}, *rows[:2]], "stale") is None


def test_a_line_goes_through_its_points() -> None:
    assert line([1, 4, 16], [3, 9, 33]) == pytest.approx((1, 2))
    assert line([1, 2], [2, 1])[1] == 0


def test_the_7b_reads_its_weights_for_each_token() -> None:
    large = seven_billion(PIECES, env_s=0.01)
    assert large.decode_call_s == pytest.approx(7 * 15.08e9 / 4e12)
    assert large.decode_row_s == pytest.approx((134.8 - 33.7) / 24 / 395.6 + (219.4 - 56.7) / 24 / 4000, rel=1e-3)
    assert large.trained_bytes == pytest.approx(0.43e9, rel=0.01)

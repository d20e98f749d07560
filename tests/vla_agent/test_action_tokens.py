"""Bins, token ids and actions against numbers worked by hand and the published formulas."""

import numpy as np
import pytest

from vla_agent.action_tokens import (
    ActionTokenizer,
    BinCodec,
    action_table,
    bin_centers,
    nearest_bins,
    normalize,
    to_bins,
    unnormalize,
)

STATS = {
    "q01": [-0.94, -0.88, -0.94, -0.11, -0.2, -0.18, 0.0],
    "q99": [0.94, 0.88, 0.94, 0.11, 0.2, 0.18, 1.0],
    "mask": [True] * 6 + [False],
}


@pytest.fixture
def tokenizer() -> ActionTokenizer:
    return ActionTokenizer(32000)


def test_published_ids_of_worked_values(tokenizer):
    # linspace(-1, 1, 256) has edges -1, -1 + 2/255, ..., 1; the middle of the range lies between edges 127 and 128.
    actions = np.array([-1.0, -1.0 + 2 / 255 + 1e-9, 0.0, 1.0 - 1e-9, 1.0, -7.0, 7.0])
    assert tokenizer.encode(actions).tolist() == [31999, 31998, 31872, 31745, 31744, 31999, 31744]


def test_last_two_ids_mean_the_same_action(tokenizer):
    decoded = tokenizer.decode(np.array([31999, 31872, 31746, 31745, 31744]))
    np.testing.assert_allclose(decoded, [-254 / 255, 0, 252 / 255, 254 / 255, 254 / 255], rtol=0, atol=1e-12)


def test_ids_that_are_no_actions_decode_to_the_nearest_bin(tokenizer):
    decoded = tokenizer.decode(np.array([0, 31743, 32000, 32063]))
    np.testing.assert_allclose(decoded, [254 / 255, 254 / 255, -254 / 255, -254 / 255], rtol=0, atol=1e-12)


def test_decode_follows_the_published_formula(tokenizer):
    ids = np.arange(31700, 32064)
    edges = np.linspace(-1, 1, 256)
    centers = (edges[:-1] + edges[1:]) / 2.0
    discretized = np.clip(32000 - ids - 1, a_min=0, a_max=centers.shape[0] - 1)
    np.testing.assert_array_equal(tokenizer.decode(ids), centers[discretized])


def test_round_trip_error_is_at_most_one_255th(tokenizer):
    actions = np.random.default_rng(0).uniform(-1, 1, (10_000, 7))
    error = np.abs(tokenizer.decode(tokenizer.encode(actions)) - actions)
    assert error.max() <= 1 / 255 + 1e-12
    assert error.max() > 0.99 / 255  # the bound is tight, so a finer table would be another one


def test_every_edge_belongs_to_the_bin_above(tokenizer):
    edges = np.linspace(-1, 1, 256)
    assert tokenizer.encode(edges).tolist() == list(range(31999, 31743, -1))


def test_bins_count_upward_with_the_action(tokenizer):
    assert tokenizer.bins_to_ids(np.arange(256)).tolist() == list(range(31999, 31743, -1))
    np.testing.assert_array_equal(tokenizer.ids_to_bins(tokenizer.bins_to_ids(np.arange(256))), np.arange(256))
    assert (np.diff(bin_centers()[:255]) > 0).all()
    assert bin_centers()[254] == bin_centers()[255]


@pytest.mark.parametrize("token_id", [31743, 32000])
def test_strict_bins_refuse_other_ids(tokenizer, token_id):
    with pytest.raises(ValueError, match=rf"Token id {token_id} is not an action; actions are 31744\.\.31999"):
        tokenizer.ids_to_bins(np.array([31800, token_id]))


def test_bad_input_is_named(tokenizer):
    with pytest.raises(ValueError, match="must be finite"):
        tokenizer.encode(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="Expected integer token ids, got dtype float64"):
        tokenizer.decode(np.array([31800.0]))
    with pytest.raises(ValueError, match=r"Bins must lie in 0\.\.255, got -1\.\.3"):
        tokenizer.bins_to_ids(np.array([-1, 3]))
    with pytest.raises(ValueError, match="cannot hold 256 action tokens"):
        ActionTokenizer(256)


def test_unnormalize_maps_the_ends_to_the_quantiles_and_leaves_masked_dimensions():
    actions = np.stack([np.full(7, -1.0), np.zeros(7), np.full(7, 1.0)])
    expected = [STATS["q01"][:6] + [-1.0], [0.0] * 7, STATS["q99"][:6] + [1.0]]
    np.testing.assert_allclose(unnormalize(actions, STATS), expected, rtol=0, atol=1e-12)


def test_normalize_comes_back_from_unnormalize_and_clips_beyond_the_quantiles():
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    np.testing.assert_allclose(normalize(unnormalize(actions, STATS), STATS), actions, rtol=0, atol=1e-7)
    far = normalize(np.full(7, 5.0), STATS)
    np.testing.assert_array_equal(far, [1.0] * 6 + [5.0])  # the gripper is masked: neither scaled nor clipped


def test_bins_of_worked_actions():
    stats = {"q01": [0.0, 0.0], "q99": [10.0, 10.0], "mask": [True, False]}
    # 5 of 0..10 is 0, between edges 127 and 128; the second dimension takes 0.5 and 1 as they are.
    actions = np.array([[5.0, 0.5], [10.0, 1.0], [-3.0, -1.0]])
    assert to_bins(actions, stats).tolist() == [
        [127, 191],
        [254, 255],
        [0, 0],
    ]
    assert nearest_bins(np.array([-1.0, 0.0, 1.0, 9.0])).tolist() == [0, 127, 255, 255]


def test_tokens_are_bins_counted_down(tokenizer):
    actions = np.random.default_rng(1).uniform(-1.2, 1.2, (100, 7))
    np.testing.assert_array_equal(tokenizer.encode(actions), 31999 - nearest_bins(actions))


def test_a_codec_reads_chunks_action_by_action():
    table = np.arange(512.0).reshape(2, 256)  # dimension 0 decodes to the bin, dimension 1 to 256 more
    codec = BinCodec(table, 3, lambda text: [1, len(text)])
    assert codec.action_space.nvec.tolist() == [256] * 6
    decoded = codec.decode(np.array([[0, 1, 2, 3, 4, 5]], dtype=np.uint8))
    assert decoded.tolist() == [[[0, 257], [2, 259], [4, 261]]]
    assert codec.decode(np.zeros((0, 6), dtype=int)).shape == (0, 3, 2)
    assert [part.tolist() for part in codec.encode_prompt("push")] == [[1, 4], [1, 1]]


def test_statistics_without_mask_rescale_everything():
    stats = {"q01": [0.0], "q99": [10.0]}
    np.testing.assert_allclose(unnormalize(np.array([[0.5]]), stats), [[7.5]])


def test_action_table_decodes_as_the_protocol_does():
    table = action_table(STATS)
    assert table.shape == (7, 256)
    np.testing.assert_allclose(table[0, [0, 255]], [-0.94 * 254 / 255, 0.94 * 254 / 255])
    # Gripper: the model says 1 to open, the environment wants -1; the sign changes where 2g - 1 does, at g = 0.5.
    open_bins = bin_centers() > 0.5
    np.testing.assert_array_equal(table[6], np.where(open_bins, -1.0, 1.0))
    assert open_bins.sum() == 65  # bins 191..255


def test_incomplete_statistics_are_named():
    with pytest.raises(ValueError, match="lack q99; they have mask, q01"):
        action_table({"q01": [0.0], "mask": [True]})
    with pytest.raises(ValueError, match="lists of equal length"):
        action_table({"q01": [0.0, 1.0], "q99": [1.0]})
    with pytest.raises(ValueError, match=r"Actions of shape \(2, 3\) do not fit statistics of 7 dimensions"):
        unnormalize(np.zeros((2, 3)), STATS)
    with pytest.raises(ValueError, match="must be finite"):
        action_table({"q01": [float("nan")], "q99": [1.0]})

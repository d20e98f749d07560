"""Temperature and truncation of an action token's distribution."""

from __future__ import annotations

import pytest
import torch as th

from vla_agent.bins import OUTSIDE, Sampling, bin_log_probs, kept_bins


@pytest.fixture
def logits() -> th.Tensor:
    return 3 * th.randn(4, 256, generator=th.Generator().manual_seed(0))


def test_without_truncation_it_is_the_softmax(logits: th.Tensor) -> None:
    assert th.equal(bin_log_probs(logits, 1.5), th.log_softmax(logits / 1.5, dim=-1))


def test_top_k_keeps_the_likeliest_in_proportion(logits: th.Tensor) -> None:
    log_probs = bin_log_probs(logits, top_k=5)
    values, bins = logits.topk(5, dim=-1)
    th.testing.assert_close(log_probs.gather(-1, bins), th.log_softmax(values, dim=-1))
    assert (log_probs == OUTSIDE).sum(-1).tolist() == [251] * 4


def test_top_p_keeps_the_smallest_set_with_that_probability() -> None:
    logits = th.full((1, 256), -100.0)
    logits[0, [7, 3, 9, 5]] = th.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, bins in ((0.4, [7]), (0.5, [7]), (0.6, [3, 7]), (0.9, [3, 7, 9]), (1e-9, [7])):
        assert kept_bins(logits.log_softmax(-1), None, top_p)[0].nonzero().flatten().tolist() == bins
    # Of the two that top_k leaves, the first has 0.625.
    assert kept_bins(logits.log_softmax(-1), 2, 0.6)[0].nonzero().flatten().tolist() == [7]


def test_ties_keep_as_many_bins_as_asked_for() -> None:
    assert kept_bins(th.zeros(2, 256).log_softmax(-1), 10, None).sum(-1).tolist() == [10, 10]
    assert kept_bins(th.zeros(2, 256).log_softmax(-1), None, 0.25).sum(-1).tolist() == [64, 64]


def test_drawn_bins_stay_inside_and_gradients_finite(logits: th.Tensor) -> None:
    logits.requires_grad_()
    unlikely = logits.argmin(-1)
    log_probs = bin_log_probs(logits, top_k=3, drawn=unlikely)
    drawn = log_probs.gather(-1, unlikely[:, None])
    assert (drawn > OUTSIDE).all()
    th.testing.assert_close(log_probs.exp().sum(-1), th.ones(4))
    entropy = -(log_probs.exp() * log_probs).sum()
    (drawn.sum() + entropy).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs() > 1e-5).sum(-1).tolist() == [4] * 4


@pytest.mark.parametrize("truncation", [{"top_k": 4}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.9}])
def test_only_kept_bins_are_drawn_as_often_as_their_probability(
    logits: th.Tensor, truncation: dict[str, float]
) -> None:
    sampling = Sampling(temperature=1.3, **truncation)
    noise = sampling.noise(1, 20_000, logits.device, th.Generator().manual_seed(0))
    counts = th.bincount(sampling.choose(logits[:1].expand(20_000, -1), noise[0]), minlength=256) / 20_000
    th.testing.assert_close(counts, bin_log_probs(logits[0], 1.3, **truncation).exp(), atol=0.015, rtol=0)
    assert (counts > 0).sum() <= (bin_log_probs(logits[0], 1.3, **truncation) > OUTSIDE).sum()


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}])
def test_truncation_must_leave_a_bin(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Sampling(**wrong)


def test_a_seed_draws_what_multinomial_would(logits: th.Tensor) -> None:
    noise = Sampling().noise(3, 4, logits.device, th.Generator().manual_seed(0))
    generator = th.Generator().manual_seed(0)
    for draw in noise:
        expected = th.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        assert th.equal(Sampling().choose(logits, draw), expected)

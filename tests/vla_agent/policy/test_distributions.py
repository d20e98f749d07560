"""The action chain: probabilities worked by hand, and by summing over every chain of a model small enough to."""

import itertools
import math

import pytest
import torch as th

from vla_agent.algorithms.losses import (
    approximate_kl,
    clip_fraction,
    clip_values,
    clipped_surrogate,
    normalize,
    reference_kl,
    value_loss,
)
from vla_agent.bins import Sampling
from vla_agent.policy.distributions import ActionTokenDistribution, Chain


def two_bin_logits(probs: list[list[float]]) -> th.Tensor:
    """Logits (1, N, 256) that leave bins 0 and 1 alone possible, with these probabilities."""
    logits = th.full((1, len(probs), 256), -1e9)
    logits[0, :, :2] = th.tensor(probs).log()
    return logits


def tied_to_model(temperature: float = 1.0) -> ActionTokenDistribution:
    """Two tokens of two bins; the second one's odds depend on the first."""

    def score(actions: th.Tensor) -> th.Tensor:
        rows = [two_bin_logits([[0.8, 0.2], [0.5, 0.5] if first == 0 else [0.1, 0.9]]) for first in actions[:, 0]]
        return th.cat(rows)

    def draw(deterministic: bool) -> Chain:
        first = th.zeros(4000, dtype=th.int64) if deterministic else (th.rand(4000) < 0.2).long()
        probs = score(first.unsqueeze(1)).softmax(-1)[:, 1]
        second = probs.argmax(-1) if deterministic else th.multinomial(probs, 1).squeeze(1)
        actions = th.stack([first, second], 1)
        return Chain(actions, score(actions))

    return ActionTokenDistribution(2, Sampling(temperature=temperature)).proba_distribution(draw=draw, score=score)


def test_log_prob_sums_over_action_dims() -> None:
    logits = two_bin_logits([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]])
    distribution = ActionTokenDistribution(3).proba_distribution(logits)
    actions = th.tensor([[1, 0, 1]])
    th.testing.assert_close(distribution.log_prob(actions), th.tensor([math.log(0.5 * 0.25 * 0.9)]))
    th.testing.assert_close(
        distribution.token_log_probs(actions), th.tensor([[math.log(0.5), math.log(0.25), math.log(0.9)]])
    )


def test_chain_probabilities_sum_to_one_and_follow_the_prefix() -> None:
    distribution = tied_to_model()
    probs = {
        chain: distribution.log_prob(th.tensor([chain])).exp().item() for chain in itertools.product([0, 1], [0, 1])
    }
    assert probs == pytest.approx({(0, 0): 0.4, (0, 1): 0.4, (1, 0): 0.02, (1, 1): 0.18}, abs=1e-6)


def test_samples_come_with_the_chain_s_frequencies() -> None:
    th.manual_seed(0)
    actions = tied_to_model().sample()
    frequency = (actions == th.tensor([1, 1])).all(1).float().mean()
    assert frequency == pytest.approx(0.18, abs=0.02)
    assert frequency != pytest.approx(
        0.2 * 0.58, abs=0.02
    )  # what independent tokens with the same marginals would give


def test_mode_is_greedy_token_by_token() -> None:
    assert tied_to_model().mode()[0].tolist() == [0, 0]
    logits = two_bin_logits([[0.4, 0.6], [0.9, 0.1]])
    assert ActionTokenDistribution(2).actions_from_params(logits, deterministic=True).tolist() == [[1, 0]]


def test_entropy_is_the_sum_of_conditional_entropies() -> None:
    logits = two_bin_logits([[0.5, 0.5], [0.25, 0.75]])
    distribution = ActionTokenDistribution(2).proba_distribution(logits)
    by_hand = [math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    th.testing.assert_close(distribution.entropy_per_dim(), th.tensor([by_hand]))
    th.testing.assert_close(distribution.entropy(), th.tensor([sum(by_hand)]))


def test_mean_conditional_entropy_over_samples_is_the_chain_s_entropy() -> None:
    th.manual_seed(0)
    distribution = tied_to_model()
    distribution.sample()
    joint = -sum(p * math.log(p) for p in (0.4, 0.4, 0.02, 0.18))
    assert distribution.entropy().mean() == pytest.approx(joint, abs=0.01)


def test_temperature_divides_logits_when_scoring() -> None:
    logits = two_bin_logits([[0.2, 0.8]])
    hot = ActionTokenDistribution(1, Sampling(temperature=2.0)).proba_distribution(logits)
    odds = math.sqrt(0.8 / 0.2)
    assert hot.log_prob(th.tensor([[1]])).exp().item() == pytest.approx(odds / (1 + odds))


def test_bfloat16_logits_are_scored_in_float32() -> None:
    distribution = ActionTokenDistribution(7).proba_distribution(th.randn(2, 7, 256, dtype=th.bfloat16))
    assert distribution.log_prob(th.zeros(2, 7)).dtype == th.float32
    assert distribution.log_probs.exp().sum(-1) == pytest.approx(th.ones(2, 7).numpy(), abs=1e-5)


def test_log_prob_of_another_chain_needs_a_model() -> None:
    logits, actions = th.zeros(1, 2, 256), th.tensor([[3, 4]])
    distribution = ActionTokenDistribution(2).proba_distribution(logits, actions)
    distribution.log_prob(actions.float())  # SB3's buffer hands actions back as floats
    with pytest.raises(ValueError, match="no model to score others"):
        distribution.log_prob(th.tensor([[3, 5]]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature=.*expected a number above 0"):
        ActionTokenDistribution(7, Sampling(temperature=temperature))


def test_logits_of_another_shape_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 7, 256\)"):
        ActionTokenDistribution(7).proba_distribution(th.zeros(2, 7, 255))


# ------------------------------------------------------------------------------------------- losses


def test_clipped_surrogate_by_hand() -> None:
    ratio, advantages = th.tensor([1.5, 1.5, 0.5, 0.5]), th.tensor([1.0, -1.0, 1.0, -1.0])
    # min(1.5, 1.2), min(-1.5, -1.2), min(0.5, 0.8), min(-0.5, -0.8)
    assert clipped_surrogate(ratio, advantages, 0.2).item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert clip_fraction(ratio, 0.6).item() == 0.0
    assert clip_fraction(ratio, 0.2).item() == 1.0


def test_token_and_action_ratios_have_one_gradient_at_ratio_one() -> None:
    log_probs = th.randn(5, 7, requires_grad=True)
    old, advantages = log_probs.detach(), th.randn(5)
    by_action = clipped_surrogate(th.exp((log_probs - old).sum(1)), advantages, 0.2)
    by_token = clipped_surrogate(th.exp(log_probs - old), advantages, 0.2)
    gradients = [th.autograd.grad(loss, log_probs)[0] for loss in (by_action, by_token)]
    th.testing.assert_close(*gradients)


def test_value_losses_by_hand() -> None:
    values, returns = th.tensor([0.0, 0.0]), th.tensor([1.0, 30.0])
    assert value_loss(values, returns).item() == pytest.approx((1 + 900) / 2)
    assert value_loss(values, returns, "huber", 10.0).item() == pytest.approx((0.5 + 10 * (30 - 5)) / 2)
    assert clip_values(th.tensor([3.0]), th.tensor([1.0]), 0.5).item() == 1.5
    assert clip_values(th.tensor([3.0]), th.tensor([1.0]), None).item() == 3.0


def test_kl_estimates() -> None:
    assert approximate_kl(th.zeros(3)).item() == 0.0
    assert approximate_kl(th.tensor([math.log(2.0)])).item() == pytest.approx(1 - math.log(2))
    p, q = th.tensor([[[0.5, 0.5]]]).log(), th.tensor([[[0.25, 0.75]]]).log()
    assert reference_kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert reference_kl(p, p).item() == 0.0


def test_normalize_leaves_a_single_advantage() -> None:
    assert normalize(th.tensor([3.0])).item() == 3.0
    th.testing.assert_close(normalize(th.tensor([1.0, 3.0])), th.tensor([-1.0, 1.0]) / math.sqrt(2))

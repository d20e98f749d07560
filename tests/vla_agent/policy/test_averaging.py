"""The moving average of a policy's weights: by hand, inside and outside of `averaged`, and across a save."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch as th
from resuming import assert_equal_runs, learner, load

from vla_agent.policy.averaging import AVERAGE, averaged, keep_average, own_weights


def test_it_is_the_average_by_hand_and_ends_where_it_began() -> None:
    weight, other = (th.nn.Parameter(th.tensor([1.0, 2.0])) for _ in range(2))
    optimizer = th.optim.Adam([weight, other], lr=0.1)
    keep_average(optimizer, [weight], 0.5)
    expected = None
    for n in range(1, 8):
        (weight.sum() ** 2 + other.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.5, (1 + n) / (10 + n))
        now = weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    own = weight.detach().clone(), other.detach().clone()
    with averaged(optimizer):
        th.testing.assert_close(weight.detach(), expected)
        assert not th.equal(weight, own[0])
        assert th.equal(other, own[1])
    assert th.equal(weight, own[0])


def test_a_parameter_that_does_not_move_has_no_average() -> None:
    moving, still = (th.nn.Parameter(th.ones(2)) for _ in range(2))
    optimizer = th.optim.SGD([moving, still], lr=0.1)
    keep_average(optimizer, [moving, still], 0.9)
    moving.sum().backward()
    optimizer.step()
    assert [AVERAGE in optimizer.state[parameter] for parameter in (moving, still)] == [True, False]
    with averaged(optimizer):
        assert th.equal(still, th.ones(2))


def stepped_twice() -> tuple[th.nn.Parameter, th.optim.Optimizer]:
    """A weight that went from 1 to -1, and keeps an average."""
    weight = th.nn.Parameter(th.ones(1))
    optimizer = th.optim.SGD([weight], lr=1.0)
    keep_average(optimizer, [weight], 0.9)
    for _ in range(2):
        weight.grad = th.ones(1)
        optimizer.step()
    return weight, optimizer


def test_an_error_inside_puts_the_weights_back() -> None:
    weight, optimizer = stepped_twice()
    with contextlib.suppress(KeyError), averaged(optimizer):
        assert weight.item() != -1.0
        raise KeyError
    assert weight.item() == -1.0


def test_a_resumed_run_keeps_the_average_to_the_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "policy_kwargs": {"average_decay": 0.9}}
    whole = learner(**settings).learn(128)
    cut = learner(**settings).learn(64)
    cut.save(tmp_path / "run")
    resumed = load(tmp_path / "run", policy_kwargs={"average_decay": 0.9})
    resumed.learn(64, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)
    name, parameter = next(iter(whole.policy.named_parameters()))
    assert AVERAGE in whole.policy.optimizer.state[parameter], name
    own = parameter.detach().clone()
    with whole.policy.averaged():
        assert not th.equal(parameter, own)
    assert th.equal(parameter, own)


def test_learning_is_the_same_with_an_average() -> None:
    plain, averages = learner().learn(64), learner(policy_kwargs={"average_decay": 0.9}).learn(64)
    for one, other in zip(plain.policy.parameters(), averages.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_a_run_that_goes_on_without_an_average_forgets_it(tmp_path: Path) -> None:
    learned = learner(policy_kwargs={"average_decay": 0.9}).learn(64)
    learned.save(tmp_path / "run")
    resumed = load(tmp_path / "run", policy_kwargs={"average_decay": 0.0}, allow_changes=True)
    assert not any(AVERAGE in state for state in resumed.policy.optimizer.state.values())


@pytest.mark.parametrize("decay", [1.0, -0.1, "0.9", float("nan")])
def test_a_decay_out_of_range_is_refused(decay: Any) -> None:
    with pytest.raises(ValueError, match="average_decay"):
        learner(policy_kwargs={"average_decay": decay})


def test_inside_the_average_the_own_weights_are_at_hand() -> None:
    weight, optimizer = stepped_twice()
    with own_weights(optimizer):
        assert weight.item() == -1.0
    with averaged(optimizer), averaged(optimizer):  # one within the other is the same
        average = weight.item()
        with own_weights(optimizer):
            assert weight.item() == -1.0
        assert weight.item() == average != -1.0
    with own_weights(optimizer):
        assert weight.item() == -1.0

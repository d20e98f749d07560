"""A loss or gradient that is no number costs a step, not the run; three in a row end it, with a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch as th
from fakes import FakeBackbone
from test_checkpointing import fake_model

from vla_agent import VLAPPO, NonFiniteError, safe_learn


def poison_losses(model: VLAPPO, numbers: Collection[int]) -> None:
    """Makes the losses of the minibatches with these numbers NaN."""
    original, calls = model._losses, iter(range(10_000))

    def losses(*args: Any) -> Any:
        result = original(*args)
        if next(calls) not in numbers:
            return result
        metrics = {name: value * math.nan for name, value in result.metrics.items()}
        return result._replace(loss=result.loss * math.nan, metrics=metrics)

    model._losses = losses  # type: ignore[method-assign]


def weights(model: VLAPPO) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def test_a_step_is_skipped_and_counted_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two minibatches per update, the second of the first update and the first of the second."""
    model = fake_model()
    steps: list[int] = []
    take_step = model.policy.optimizer.step
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: (steps.append(1), take_step())[1])
    poison_losses(model, {1, 2})
    with pytest.warns(UserWarning, match="A minibatch gave loss nan and gradient norm nan; its step is skipped"):
        model.learn(96, log_interval=None)  # type: ignore[arg-type]
    assert len(steps) == 4
    assert model.n_skipped_steps == 2
    assert model.logger.name_to_value["train/skipped_steps"] == 2
    assert math.isfinite(model.logger.name_to_value["train/loss"])
    assert all(bool(th.isfinite(weight).all()) for weight in weights(model))


def test_an_infinite_gradient_is_noticed_though_the_loss_is_finite() -> None:
    model = fake_model()
    model.policy.value_head.register_full_backward_hook(  # type: ignore[union-attr]
        lambda module, inputs, outputs: tuple(None if g is None else g * math.inf for g in inputs)
    )
    before = weights(model)
    with pytest.warns(UserWarning, match="gradient norm (nan|inf)"):
        model.learn(32)
    assert all(th.equal(one, other) for one, other in zip(before, weights(model), strict=True))


@pytest.mark.filterwarnings("ignore:A minibatch gave")
def test_three_in_a_row_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    model = fake_model()
    model.learn(32)
    before = weights(model)
    poison_losses(model, range(100))
    with pytest.raises(NonFiniteError, match="3 minibatches in a row gave a loss or a gradient that is not finite"):
        safe_learn(model, 320, tmp_path, reset_num_timesteps=False)
    kept = VLAPPO.load(tmp_path / "interrupted", device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)})
    assert all(th.equal(one, other) for one, other in zip(before, weights(kept), strict=True))
    assert kept.num_timesteps == 64  # before the rollout whose update broke

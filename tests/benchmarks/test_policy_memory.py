"""The counter behind `benchmarks/policy_memory.py` counts what lives, once, and what elementwise operations move."""

from __future__ import annotations

import pytest
import torch as th
from policy_memory import Tally, as_on_a_gpu
from torch.nn import functional as F


@pytest.fixture
def tally() -> Tally:
    return Tally()


def test_memory_counts_until_it_is_freed_and_views_count_nothing(tally: Tally) -> None:
    x = th.zeros(1000, device="meta")
    tally.hold(x)
    with tally:
        y = x + 1
        z = y.view(10, 100)[:5]
        assert tally.live == 8000
        del y
        assert tally.live == 8000, "a view keeps it"
        del z
        assert tally.live == 4000
        th.cat([x, x])  # freed at once
    assert tally.live == 4000
    assert tally.peak == 12000


def test_a_backward_pass_keeps_what_it_needs(tally: Tally) -> None:
    x = th.zeros(1000, device="meta", requires_grad=True)
    tally.hold(x)
    with tally:
        y = x.exp().sin()  # exp keeps its output, sin its input, which is the same; and there is the result
        assert tally.live == 3 * 4000
        y.sum().backward()
        del y
        assert tally.live == 2 * 4000, "the leaf and its gradient"


def test_matrix_products_are_not_elementwise(tally: Tally) -> None:
    a, b = th.zeros(10, 20, device="meta"), th.zeros(20, 30, device="meta")
    with tally:
        c = a @ b
        assert tally.elementwise == 0
        c.relu()
    assert tally.elementwise == 2 * 4 * 300


def test_fused_kernels_keep_inputs_and_outputs_alone(tally: Tally) -> None:
    q, k, v = (th.zeros(2, 3, 50, 8, device="meta", requires_grad=True) for _ in range(3))
    with as_on_a_gpu(), tally:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert tally.live == 4 * (out.numel() + 2 * 3 * 50), "no weights of every pair"
        norm = F.rms_norm(out, (8,), th.ones(8, device="meta"), 1e-6)
        norm.sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape

"""Attention by products of matrices, for bfloat16 on a CPU, against torch's own in float32."""

import pytest
import torch as th
from torch.nn import functional as F

from vla_agent.openvla.attention import attend


def drawn(n_queries: int = 9, n_keys: int = 9) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(0)
    shapes = [(2, 3, n, 8) for n in (n_queries, n_keys, n_keys)]
    q, k, v = (th.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return q, k, v


def left_padded(n_queries: int, n_keys: int) -> th.Tensor:
    mask = th.ones(2, 1, n_queries, n_keys, dtype=th.bool).tril(n_keys - n_queries)
    mask[1, ..., :3] = False
    return mask


@pytest.mark.parametrize("kind", ["all", "causal", "padded", "one query"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_agrees_with_float32_and_so_do_the_gradients(kind: str, scale: float | None) -> None:
    q, k, v = drawn(1 if kind == "one query" else 9)
    mask = left_padded(q.shape[2], 9) if kind in ("padded", "one query") else None
    seen = th.ones(2, 1, q.shape[2], 9, dtype=th.bool) if mask is None else mask
    rows = seen.any(-1)[..., None]  # queries that see nothing give anything

    def run(by_products: bool) -> list[th.Tensor]:
        with th.autocast("cpu", th.bfloat16, enabled=by_products):
            found = attend(q, k, v, mask, is_causal=kind == "causal", scale=scale)
        assert found.dtype == (th.bfloat16 if by_products else th.float32)
        found = found.float().where(rows, 0.0)
        return [found, *th.autograd.grad(found.square().sum(), (q, k, v))]

    for exact, rounded in zip(run(False), run(True), strict=True):
        th.testing.assert_close(rounded, exact, rtol=0.05, atol=0.06)
        assert not th.equal(rounded, exact)


def test_a_query_that_sees_nothing_gives_numbers_and_reaches_no_gradient_of_others() -> None:
    q, k, v = drawn()
    mask = th.zeros(2, 1, 9, 9, dtype=th.bool)
    mask[..., 0, 0] = True
    with th.autocast("cpu", th.bfloat16):
        found = attend(q, k, v, mask)
    assert found.isfinite().all()
    th.testing.assert_close(found[:, :, 0].float(), v[:, :, 0], rtol=0.01, atol=0.01)
    (gradient,) = th.autograd.grad(found[:, :, 0].float().sum(), v)
    assert not gradient[:, :, 1:].any()


def test_without_autocast_it_is_torchs_own() -> None:
    q, k, v = drawn()
    assert th.equal(attend(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))

"""Memory that updates and decoding of the published 7B take, counted on its shapes without a GPU or weights.

    python benchmarks/policy_memory.py --out benchmarks/results/policy_memory.json

Takes a few minutes on a CPU. Every operation runs on tensors without content, and each result is counted until it is
freed. ``peak_gb`` is the largest sum at any time: weights, adapters with gradients and Adam's moments, activations.
``elementwise_gb`` is what all operations except matrix products read and write; a GPU does those at the rate of its
memory (some 4,000 GB/s on an H200), not of its tensor cores. Attention and norms count as the fused kernels that a GPU
has. The GPU's context, the allocator's rounding and fragments, and libraries' scratch memory are not counted. A
micro-batch is the part of a minibatch that goes through the model at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch as th
from measuring import commit, report
from policy_throughput import PROMPT_LENGTH, build, pefts_layers
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vla_agent.bins import GREEDY, bin_log_probs
from vla_agent.engines.activations import Live, tensors_in
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.decoders import ChainDecoder
from vla_agent.openvla.sequence import PromptLayout
from vla_agent.policy.lora import LoraSettings, add_lora

MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::convolution"}


class Tally(Live):
    """Counts bytes that live, and bytes that elementwise operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.elementwise = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.name not in MATRIX_PRODUCTS and not func.is_view:
            moved = tensors_in((args, kwargs)) + tensors_in(result)
            self.elementwise += sum(x.numel() * x.element_size() for x in moved)
        return result


class _FusedAttention(th.autograd.Function):
    """Keeps what flash attention keeps: its inputs, its output and a float32 number per query."""

    @staticmethod
    def forward(ctx: Any, q: th.Tensor, k: th.Tensor, v: th.Tensor) -> th.Tensor:
        out = th.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=th.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        return tuple(map(th.empty_like, ctx.saved_tensors[:3]))


class _FusedNorm(th.autograd.Function):
    """Keeps its input and a float32 number per row."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=th.float32))
        return th.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        return th.empty_like(ctx.saved_tensors[0]), None


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention and norms are single kernels, and empty tensors know no autocast, which is off anyway."""
    with (
        mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: _FusedAttention.apply(q, k, v)),
        mock.patch.object(F, "rms_norm", lambda x, shape, weight, eps: _FusedNorm.apply(x, weight)),
        mock.patch.object(th, "autocast", return_value=contextlib.nullcontext()),
    ):
        yield


def make_inputs(model: OpenVLA, batch: int) -> tuple[PromptLayout, th.Tensor]:
    """Prompts of one length, the piece that is appended included, and images."""
    empty = th.zeros(batch, PROMPT_LENGTH + 1, dtype=th.int64, device="meta")
    size, n_channels = model.config.image_size, 6 * model.config.num_images
    pixels = th.zeros(batch, n_channels, size, size, dtype=model.dtype, device="meta")
    return PromptLayout(empty[:, :1], empty[:, 1:], empty[:, 0], False), pixels


def count_update(batch: int, rank: int, *, checkpointing: bool = False, with_pefts: bool = False) -> dict[str, Any]:
    """Two optimizer steps of adapters, of one micro-batch each."""
    model = build("7b", th.device("meta"), th.bfloat16)
    add_lora(model, LoraSettings(r=rank), model.unused_parameter_names())
    model.set_gradient_checkpointing(checkpointing)
    optimizer = th.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])
    layout, pixels = make_inputs(model, batch)
    actions = th.zeros(batch, model.n_action_tokens, dtype=th.int64, device="meta")

    def step() -> None:
        hidden = ChainDecoder().hidden(model, layout, model.embed_prefix(layout, pixels, None), actions)
        bin_log_probs(model.bin_logits(hidden)).mean().backward()
        del hidden
        optimizer.step()
        optimizer.zero_grad()

    with pefts_layers() if with_pefts else contextlib.nullcontext():
        counts = _count(model, step, n_runs=2)
    settings = {"micro_batch": batch, "gradient_checkpointing": checkpointing, "pefts_layers": with_pefts}
    return settings | counts


def count_decoding(batch: int) -> dict[str, Any]:
    """Seven tokens for a batch."""
    model = build("7b", th.device("meta"), th.bfloat16)
    layout, pixels = make_inputs(model, batch)

    @th.no_grad()
    def decode() -> None:
        ChainDecoder().draw(model, layout, model.embed_prefix(layout, pixels, None), GREEDY, None)

    return {"batch": batch} | _count(model, decode, n_runs=1)


def _count(model: OpenVLA, run: Callable[[], None], n_runs: int) -> dict[str, Any]:
    tally = Tally()
    for parameter in model.parameters():
        tally.hold(parameter)
    weights = tally.live
    with as_on_a_gpu():
        with tally:
            for _ in range(n_runs):
                before = tally.elementwise
                run()
        with FlopCounterMode(display=False) as flops:
            run()
    return {
        "weights_gb": round(weights / 1e9, 2),
        "peak_gb": round(tally.peak / 1e9, 2),
        "elementwise_gb": round((tally.elementwise - before) / 1e9, 1),
        "matrix_tflop": round(cast(int, flops.get_total_flops()) / 1e12, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--decoding-batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--lora-rank", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    updates = [
        {"batch": batch, "checkpointing": checkpointing}
        for checkpointing in (False, True)
        for batch in args.micro_batches
    ]
    updates.append({"batch": 16, "with_pefts": True})
    results: dict[str, Any] = {"commit": commit(), "torch": th.__version__, "lora_rank": args.lora_rank}
    results["updates"] = [count_update(rank=args.lora_rank, **settings) for settings in tqdm(updates, desc="updates")]
    results["decoding"] = [count_decoding(batch) for batch in tqdm(args.decoding_batches, desc="decoding")]
    report(results, args.out)


if __name__ == "__main__":
    main()

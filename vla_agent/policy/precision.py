"""Types of a policy's weights and of what is computed over them, and a warning about types that lose small steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch as th

from vla_agent.backbone import VLABackbone
from vla_agent.policy.arguments import parse_dtype


def choose_types(
    model: str | Path | VLABackbone,
    dtype: str | th.dtype | None,
    autocast: str | th.dtype | None,
    device: th.device | str | None,
    *,
    trains_all: bool,
) -> tuple[th.dtype | None, th.dtype | None]:
    """The type of the weights (None: as they are), and the type to compute in (None: that of the weights).

    Args:
        model: A name, or a model whose weights have a type already.
        dtype: The user's choice for the weights, a name or a type.
        autocast: The user's choice for computing; "auto" leaves it to this function.
        device: Where the weights will be; None is the CPU.
        trains_all: Whether the weights themselves are trained, and not adapters.

    Raises:
        ValueError: If a name is unknown.
    """
    weights = parse_dtype(dtype)
    on_gpu = th.device(device or "cpu").type != "cpu"
    is_open = weights is None and trains_all and on_gpu and isinstance(model, (str, Path))
    if autocast == "auto":
        return (th.float32, th.bfloat16) if is_open else (weights, None)
    computed = parse_dtype(autocast, "autocast")
    if computed == th.bfloat16 and not on_gpu:
        warn_of_slow_products()
    return (th.float32 if is_open or (weights is None and computed) else weights), computed


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has products of bfloat16 (AVX512-BF16, AMX, or AVX512 alone at half the gain)."""
    return bool(th.ops.mkldnn._is_mkldnn_bf16_supported())


def warn_of_slow_products() -> None:
    """Warns where computing in bfloat16 costs time instead of saving it."""
    if not multiplies_bfloat16():
        warnings.warn(
            "This CPU has no products of bfloat16, so autocast='bfloat16' takes several times as long here as float32 "
            "does; leave it out (--autocast none).",
            UserWarning,
            stacklevel=4,
        )


def warn_of_lost_steps(trained: Iterable[th.nn.Parameter], way_out: str) -> None:
    """Warns if trained weights have a type in which most steps round to nothing.

    Args:
        trained: Parameters that an optimizer steps.
        way_out: Advice that ends the message.
    """
    coarse = [p.dtype for p in trained if th.finfo(p.dtype).eps > th.finfo(th.float32).eps]
    if coarse:
        warnings.warn(
            f"The weights that are trained are {str(coarse[0]).removeprefix('torch.')}, in which steps of less than a "
            f"few thousandths of a weight are lost, as most are: {way_out}.",
            UserWarning,
            stacklevel=3,
        )

"""Torch's random numbers, seeded for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch as th


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeds torch's generators, and puts them back at the end."""
    with th.random.fork_rng(devices=range(th.cuda.device_count())):
        th.manual_seed(seed)
        yield

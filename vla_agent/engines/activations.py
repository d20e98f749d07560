"""Memory that passes through a policy take besides its weights, measured on a sample before a run starts."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Growth(NamedTuple):
    """Bytes that grow with a batch."""

    fixed: int = 0
    each: int = 0  # of a sample

    def of(self, n: int) -> int:
        """Bytes of a batch of n; 0 of none."""
        return self.fixed + n * self.each if n else 0


class Live(TorchDispatchMode):
    """Counts the bytes of what operations make, until it is freed.

    Attributes:
        live: Bytes now.
        peak: The most that there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def hold(self, tensor: th.Tensor) -> None:
        """Counts a tensor's memory until it is freed, once for all its views."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = n_bytes = storage.nbytes()
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, n_bytes)

    def _free(self, n_bytes: int) -> None:
        self.live -= n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.hold(tensor)
        return result


def tensors_in(tree: Any) -> list[th.Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, th.Tensor)]


def kept_bytes(run: Callable[[], Any], known: Iterable[th.Tensor]) -> int:
    """Bytes that a pass keeps for its backward pass, each storage once.

    Not counted is what ``gradient_checkpointing`` computes again, a block at a time.

    Args:
        run: The pass; what it returns holds the graph.
        known: Tensors that are there anyway, such as weights.
    """
    is_known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
    kept: dict[int, Any] = {}  # the storages themselves, lest another gets the id of one that is freed

    def keep(tensor: th.Tensor) -> th.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in is_known:
            kept[id(storage)] = storage
        return tensor

    with th.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = run()
    total = sum(storage.nbytes() for storage in kept.values())
    del graph
    return total


def peak_bytes(run: Callable[[], Any], known: Iterable[th.Tensor]) -> int:
    """Bytes that a pass takes at its fullest, besides known tensors."""
    live = Live()
    for tensor in known:
        live.hold(tensor)
    before = live.live
    with live:
        run()
    return live.peak - before


def growth(measure: Callable[[int], int], most: int) -> Growth:
    """How bytes grow, by a batch of one sample and, unless there are never ``most`` so many, one of two."""
    one = measure(1)
    each = measure(2) - one if most > 1 else one
    return Growth(one - each, each)


def measure(policy: Any, obs: dict[str, np.ndarray], micro_batch: int, n_envs: int) -> tuple[Growth, Growth]:
    """What an update keeps of samples, and what it takes to act in environments.

    Weights, gradients and random generators stay as they are.

    Args:
        policy: The policy.
        obs: Observations; those with the longest and the shortest prompt stand for all.
        micro_batch: Samples of an update that pass at once; one pass is of no more.
        n_envs: Environments of a process, at most; the same.
    """
    lengths = obs["attention_mask"].sum(axis=1)
    rows = [int(lengths.argmax()), int(lengths.argmin())]
    known = [*policy.parameters(), *policy.buffers()]
    n_tokens = policy.action_space.shape[0]

    def batch(n: int) -> dict[str, th.Tensor]:
        return {key: th.as_tensor(values[rows[:n]], device=policy.device) for key, values in obs.items()}

    def update(n: int) -> int:
        given, actions = batch(n), th.zeros(n, n_tokens, device=policy.device)
        return kept_bytes(lambda: policy.score(given, actions), known)

    @th.no_grad()
    def act(n: int) -> int:
        given = batch(n)
        return peak_bytes(lambda: policy.act(given, deterministic=True), known)

    with th.random.fork_rng(devices=range(th.cuda.device_count())):
        return growth(update, micro_batch), growth(act, n_envs)

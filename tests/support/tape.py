"""A stand-in for CUDA graphs on a CPU: it records operations and repeats them on the same memory, without Python.

What a graph would miss, a tape misses too: a switch that changed since, a weight that was replaced rather than written
to. What a graph refuses, it refuses: waiting for a value, making tensors from Python's numbers, drawing at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_REFUSED = ("_local_scalar_dense", "lift_fresh", "nonzero", "exponential_", "multinomial", "bernoulli", "rand")


class Tape(TorchDispatchMode):
    """A recorded run; see `vla_agent.openvla.cuda_graphs.Recording`."""

    device_type = "cpu"

    def __init__(self, run: Callable[[], tuple[th.Tensor, ...]], device: th.device, beside: Tape | None) -> None:
        super().__init__()
        assert beside is None or beside.outputs, "shares the memory of a recording that was released"
        self.n_replays = 0
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        with self:
            self.outputs = run()
        for output in self.outputs:
            output.fill_(0)  # as on a GPU, recording computes nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::").startswith(_REFUSED):
            raise RuntimeError(f"{func} is not permitted while recording")
        # Aliases: a graph knows addresses, and would not see another tensor put in a parameter's place.
        args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, th.Tensor) else x, (args, kwargs or {}))
        result = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, result))
        return result

    @th.no_grad()
    def replay(self) -> None:
        """Repeats every operation into the tensors that it filled when it was recorded."""
        self.n_replays += 1
        for func, args, kwargs, result in self._operations:
            again = func(*args, **kwargs)
            if any(value.alias_info for value in func._schema.returns):
                continue  # in place, or a view: nothing was computed into new memory
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, th.Tensor):
                    old.copy_(new)

    def release(self) -> None:
        """Forgets everything; replaying is an error from now on."""
        self.outputs = ()
        self._operations = []

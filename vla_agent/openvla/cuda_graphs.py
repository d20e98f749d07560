"""Replays whole decoding runs as CUDA graphs: one launch instead of the thousands that Python issues for a batch.

`GraphCache.run` gives what calling the function would give, bit for bit, and can be read as that call. The function is
recorded as it is, with every single-token step and the growing views of the key-value cache: all shapes are the same at
each replay, and the buffers stay where they were when it was recorded.
"""

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from operator import getitem, is_
from typing import Any, Protocol

import torch as th
from torch import nn

Tensors = tuple[th.Tensor, ...]
MAX_GRAPHS = 8  # the longest prompt of a batch has a handful of lengths over a suite's ten tasks
MAX_SEEN = 64


class Recording(Protocol):
    """One run whose operations can be repeated on the same memory."""

    outputs: Tensors

    def replay(self) -> None:
        """Computes `outputs` anew from what the inputs, and the weights, hold now."""

    def release(self) -> None:
        """Gives up the memory, once nothing on the device uses it any more."""


class RecordFn(Protocol):
    """Records the operations of a function that reads and writes only tensors of one device type."""

    @property
    def device_type(self) -> str:
        """Type of device whose operations it records."""

    def __call__(self, run: Callable[[], Tensors], device: th.device, beside: Any) -> Recording:
        """Records `run`; `beside` is a kept recording of the same kind whose scratch memory may be shared, or None."""


class CudaGraph:
    """A run recorded as a CUDA graph.

    Graphs recorded beside each other share scratch memory. That is safe here in any order: they replay one after the
    other on the caller's stream, and nothing in the shared memory is read after the next one has begun.

    Args:
        run: What to record. Must not wait for the device nor draw random numbers.
        device: Where it runs.
        beside: A kept graph.
    """

    device_type = "cuda"

    def __init__(self, run: Callable[[], Tensors], device: th.device, beside: "CudaGraph | None") -> None:
        self._device = device
        # The allocator keeps memory apart by stream, so sharing it takes the same stream.
        self._stream: th.cuda.Stream = th.cuda.Stream(device) if beside is None else beside._stream
        self._graph = th.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        with th.cuda.device(device):
            caller = th.cuda.current_stream()
            try:
                # Libraries set themselves up at their first call on a stream, which a graph must not contain.
                self._stream.wait_stream(caller)
                with th.cuda.stream(self._stream):
                    run()
                caller.wait_stream(self._stream)
                # thread_local: what other threads do meanwhile (data loaders, simulators) is none of the graph's.
                with th.cuda.graph(self._graph, pool, self._stream, capture_error_mode="thread_local"):
                    self.outputs = run()
            except RuntimeError:
                self._recover()
                raise
            finally:
                th.cuda.set_stream(caller)  # a recording that fails leaves its own stream behind

    def _recover(self) -> None:
        """Records a trifle: until one succeeds, torch before 2.12 refuses to draw random numbers after a failure."""
        trifle = th.zeros(1, device=self._device)
        with contextlib.suppress(RuntimeError), th.cuda.graph(th.cuda.CUDAGraph(), stream=th.cuda.Stream()):
            trifle.add_(1)

    def replay(self) -> None:
        """Computes the outputs anew, from what the inputs hold now."""
        with th.cuda.device(self._device):
            self._graph.replay()

    def release(self) -> None:
        """Frees the graph and its outputs; waits for the device, which may be replaying it still."""
        th.cuda.synchronize(self._device)
        self.outputs = ()
        self._graph.reset()


class GraphCache:
    """Runs functions of a model, and replays those that come again with tensors of the same shapes.

    The first call of its kind runs as it is, the second is recorded. A graph reads the weights in place, so optimizer
    steps show. It is not used when weights were moved or replaced or layers changed (all graphs are dropped then), nor
    where adapters are switched otherwise, or torch's choice of kernels is, than when it was recorded.

    Args:
        record: Makes recordings.
        max_graphs: Kept at most; the one that was not used for longest goes first.
    """

    def __init__(self, record: RecordFn = CudaGraph, max_graphs: int = MAX_GRAPHS) -> None:
        self.enabled = True
        self._record_fn = record
        self._max_graphs = max_graphs
        self._watch: _Watch | None = None
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        """How many graphs are kept."""
        return len(self._graphs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model has graphs of its own."""
        return type(self), (self._record_fn, self._max_graphs), {"enabled": self.enabled}

    def clear(self) -> None:
        """Drops all graphs and their memory."""
        while self._graphs:
            self._graphs.popitem()[1].recording.release()
        self._seen.clear()
        self._watch = None

    def run(
        self,
        fn: Callable[..., Tensors],
        model: nn.Module,
        settings: tuple[Hashable, ...],
        tensors: tuple[th.Tensor | None, ...],
    ) -> Tensors:
        """What `fn(model, *settings, *tensors)` returns.

        Args:
            fn: Depends on nothing but its arguments, draws no random numbers, and does not wait for the device.
            model: Its weights and modes are watched.
            settings: Arguments that decide which operations are run.
            tensors: Arguments that they run on.
        """
        device = next(tensor.device for tensor in tensors if tensor is not None)
        if not self.enabled or device.type != self._record_fn.device_type:
            return fn(model, *settings, *tensors)
        if self._watch is None or not self._watch.is_unchanged():
            self.clear()
            self._watch = _Watch(model)
        # Autocast keeps converted weights, which a replay would not see change.
        if self._watch.has_hooks() or th.is_autocast_enabled(device.type):
            return fn(model, *settings, *tensors)
        key = (fn, settings, tuple(map(_signature, tensors)), self._watch.modes(), _kernel_choice())
        if key not in self._graphs and self._is_new(key):
            return fn(model, *settings, *tensors)
        if key not in self._graphs and not self._record(key, lambda *copies: fn(model, *settings, *copies), tensors):
            return fn(model, *settings, *tensors)
        self._graphs.move_to_end(key)
        return self._graphs[key](tensors)

    def _is_new(self, key: Hashable) -> bool:
        new = key not in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return new

    def _record(self, key: Hashable, run: Callable[..., Tensors], tensors: tuple[th.Tensor | None, ...]) -> bool:
        """Records a graph; if that fails, says so once and turns recording off."""
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)[1].recording.release()
        beside = next(iter(self._graphs.values())).recording if self._graphs else None
        try:
            # Buffers made in inference mode could not be written outside of it.
            with th.inference_mode(False), th.no_grad():
                self._graphs[key] = _Graph(self._record_fn, run, tensors, beside)
        except RuntimeError as error:
            self.enabled = False
            self.clear()
            warnings.warn(
                f"Decoding could not be recorded as a CUDA graph and goes on without ({error}). If memory ran out, use "
                "smaller batches; set_cuda_graphs(False) keeps from trying.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True


class _Graph:
    """A recording and the memory that it reads."""

    def __init__(
        self,
        record: RecordFn,
        run: Callable[..., Tensors],
        tensors: tuple[th.Tensor | None, ...],
        beside: Recording | None,
    ) -> None:
        self._inputs = [None if tensor is None else th.empty_like(tensor).copy_(tensor) for tensor in tensors]
        device = next(tensor.device for tensor in tensors if tensor is not None)
        self.recording = record(lambda: run(*self._inputs), device, beside)

    def __call__(self, tensors: tuple[th.Tensor | None, ...]) -> Tensors:
        for buffer, tensor in zip(self._inputs, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)
        self.recording.replay()
        return tuple(output.clone() for output in self.recording.outputs)


class _Watch:
    """Tells whether a model is still what it was when the watch began.

    Asked at every call, so it looks through flat lists: walking 7B's five thousand modules, adapters included, takes
    ten times as long. It holds no reference to the model itself, which is to be freed as soon as its owner drops it.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._families = [module._modules for module in modules]
        self._sizes = list(map(len, self._families))
        links = [(family, name) for family in self._families for name in family]
        self._parents, self._names = [parent for parent, _ in links], [name for _, name in links]
        self._children = list(map(getitem, self._parents, self._names))
        slots = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name in tensors
        ]
        self._holders, self._keys = [holder for holder, _ in slots], [key for _, key in slots]
        self._addresses = self._read_addresses()
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        # peft's, known by a name so that the model does without peft
        self._adapters = [module.__dict__ for module in modules if "_disable_adapters" in module.__dict__]

    def has_hooks(self) -> bool:
        """Whether Python expects to be called during a pass."""
        return any(self._hooks)

    def is_unchanged(self) -> bool:
        """Whether the layers are the same and their tensors are where they were, and of the same type."""
        try:
            same_children = all(map(is_, map(getitem, self._parents, self._names), self._children))
            same_layers = same_children and list(map(len, self._families)) == self._sizes
            return same_layers and self._read_addresses() == self._addresses
        except KeyError:  # something was removed
            return False

    def modes(self) -> tuple[Hashable, ...]:
        """How the adapters are switched."""
        return tuple(
            (
                layer["_disable_adapters"],
                str(layer.get("_active_adapter")),
                *layer["merged_adapters"],
                *layer["scaling"].values(),
            )
            for layer in self._adapters
        )

    def _read_addresses(self) -> list[tuple[int, th.dtype] | None]:
        tensors = map(getitem, self._holders, self._keys)
        return [None if tensor is None else (tensor.data_ptr(), tensor.dtype) for tensor in tensors]


def _signature(tensor: th.Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _kernel_choice() -> tuple[Hashable, ...]:
    """Global settings by which torch chooses kernels."""
    attention = th.backends.cuda
    return (
        th.get_float32_matmul_precision(),
        th.are_deterministic_algorithms_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(),
    )

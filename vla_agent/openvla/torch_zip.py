"""Reads the tensors of a ``torch.save`` file without unpickling it.

OpenVLA-OFT publishes its state projector and action head only in this format. Unpickling a downloaded file runs
whatever code its author chose; so the pickle inside is interpreted here by a machine that knows the few instructions a
dictionary of plain tensors needs, calls nothing by name, and refuses the rest.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from vla_agent.openvla.folder import CheckpointError

_STORAGES = {
    "FloatStorage": th.float32,
    "DoubleStorage": th.float64,
    "HalfStorage": th.float16,
    "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64,
    "IntStorage": th.int32,
}
_MAKE_DICT = ("collections", "OrderedDict")
_MAKE_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_MAKE_PARAMETER = ("torch._utils", "_rebuild_parameter")
_GLOBALS = {_MAKE_DICT, _MAKE_TENSOR, _MAKE_PARAMETER, *(("torch", name) for name in _STORAGES)}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list}


class _Name(NamedTuple):
    """A global that the pickle refers to; never looked up."""

    module: str
    name: str


class _Storage(NamedTuple):
    """Where a tensor's numbers are."""

    dtype: th.dtype
    key: str
    numel: int


class _Mark:
    """Where a group of items begins on the stack."""


def read_state_dict(path: Path) -> dict[str, th.Tensor]:
    """Tensors by name of a file that ``torch.save(module.state_dict(), path)`` wrote.

    Raises:
        CheckpointError: If the file is damaged, or holds anything but a dictionary of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise CheckpointError(f"'{path}' was written on a big-endian machine, which is not supported.")
            content = _Machine(archive, root).run(archive.read(pickled))
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}' is damaged or not a file of torch.save ({error!r}).") from error
    if not isinstance(content, dict) or not all(isinstance(value, th.Tensor) for value in content.values()):
        raise CheckpointError(f"'{path}' holds something else than tensors by name.")
    return {str(name): value for name, value in content.items()}


class _Machine:
    """Interprets a pickle of tensors. Names are compared, never imported, and nothing is called."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, th.Tensor] = {}

    def run(self, pickled: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._execute(opcode.name, argument)
        raise CheckpointError("The pickle has no end.")

    def _execute(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("TUPLE", "LIST"):
            items = self._pop_to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            symbol = stack.pop()
            stack.append(self._named(stack.pop(), symbol))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._make(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()  # versions of the modules that the tensors were of
        else:
            raise CheckpointError(f"The file's pickle uses {name}, which a dictionary of tensors does not need.")

    def _pop_to_mark(self) -> list[Any]:
        start = max(i for i, item in enumerate(self._stack) if isinstance(item, _Mark))
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    @staticmethod
    def _named(module: str, name: str) -> _Name:
        if (module, name) not in _GLOBALS:
            raise CheckpointError(
                f"The file's pickle refers to {module}.{name}, which a dictionary of tensors does not need; "
                "it may be an attempt to run code. Convert the file to safetensors where you trust it."
            )
        return _Name(module, name)

    @staticmethod
    def _storage(identifier: Any) -> _Storage:
        kind, storage_type, key, _, numel = identifier
        if kind != "storage" or not isinstance(storage_type, _Name) or not isinstance(numel, int):
            raise CheckpointError("The file's pickle describes its numbers in an unknown way.")
        return _Storage(_STORAGES[storage_type.name], str(key), numel)

    def _make(self, function: Any, arguments: Any) -> Any:
        if function == _MAKE_DICT and arguments == ():
            return {}
        if function == _MAKE_PARAMETER:
            return arguments[0]
        if function != _MAKE_TENSOR:
            raise CheckpointError("The file's pickle makes something else than tensors.")
        storage, offset, shape, stride = arguments[:4]
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if min((*shape, *stride, offset), default=0) < 0 or (0 not in shape and last >= storage.numel):
            raise CheckpointError("A tensor of the file reaches beyond its numbers.")
        return th.as_strided(self._numbers(storage), shape, stride, offset).clone()

    def _numbers(self, storage: _Storage) -> th.Tensor:
        if storage.key not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{storage.key}")
            n_bytes = storage.numel * storage.dtype.itemsize
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != n_bytes:
                raise CheckpointError(
                    f"Numbers '{storage.key}' of the file do not fill the {n_bytes} bytes they should."
                )
            raw = bytearray(self._archive.read(entry))
            self._storages[storage.key] = th.frombuffer(raw, dtype=storage.dtype) if raw else th.empty(0)
        return self._storages[storage.key]

"""Reads the tensors of a ``torch.save`` file with ``torch.load(weights_only=True)``, behind a check of its size.

OpenVLA-OFT publishes its state projector and action head only in this format. torch's own reader runs no code of the
file, but a small file can still make it allocate without bound (``bytearray(10**12)``, a tensor of stride 0) or never
end (the hash of tuples that hold one another). So the pickle is checked first: it may hold what a dictionary of plain
tensors needs and nothing else, and its numbers must lie in the file.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from vla_agent.openvla.files import CheckpointError

_MAX_PICKLE_BYTES = 2**20  # those of OFT take a few KB
_MAX_TUPLES = 10_000  # five per tensor; the hash of tuples in tuples recurses, and must not end the stack

_STORAGES = {
    "FloatStorage": th.float32,
    "DoubleStorage": th.float64,
    "HalfStorage": th.float16,
    "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64,
    "IntStorage": th.int32,
}
_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}" for name in _STORAGES),
}
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "SETITEM", "SETITEMS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "BINUNICODE", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_LIST"),
    *_INTEGERS,
    *_TUPLES,
    *_PUTS,
    *_GETS,
}
_NUMBERS = ["MARK", "BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE", "NUMEL", "TUPLE", "BINPERSID"]


class _Op(NamedTuple):
    """An instruction of a pickle and its argument."""

    name: str
    argument: Any = None


def read_state_dict(path: Path) -> dict[str, th.Tensor]:
    """Tensors by name of a file that ``torch.save(module.state_dict(), path)`` wrote.

    Raises:
        CheckpointError: If the file is damaged, or holds anything but a dictionary of tensors of the file's size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
        # Mapped: torch takes no number from outside the file, and does not resize a tensor's storage to fit its shape.
        content = th.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except RuntimeError as error:
        first_line = str(error).split("\n", 1)[0]
        raise CheckpointError(
            f"'{path}' is damaged: torch cannot read it, or a tensor of it reaches beyond its numbers ({first_line})."
        ) from error
    except Exception as error:  # the unpickler raises what its instructions come upon
        raise CheckpointError(f"'{path}' is damaged or not a file of torch.save ({error!r:.300}).") from error
    _check_tensors(content, path)
    return {name: tensor.detach().clone() for name, tensor in content.items()}  # the file may be replaced


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses an archive that holds more than its size, or a pickle of more than tensors."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    size = path.stat().st_size
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
    if (
        not stored
        or sum(entry.file_size for entry in archive.infolist()) > size
        or len(entries) < len(archive.filelist)
    ):
        raise CheckpointError(
            f"'{path}' is no file of torch.save: its entries are compressed, overlap, or have one name twice."
        )
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"'{path}' is damaged or not a file of torch.save: it has {len(pickles)} data.pkl.")
    if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"'{path}' describes its tensors in {entries[pickles[0]].file_size / 2**20:.1f} MiB; expected at most "
            f"{_MAX_PICKLE_BYTES / 2**20:.0f} MiB."
        )
    prefix = f"{pickles[0].removesuffix('data.pkl')}data/"
    sizes = {name.removeprefix(prefix): entry.file_size for name, entry in entries.items() if name.startswith(prefix)}
    _check_pickle(archive.read(pickles[0]), sizes, path)


def _check_pickle(pickled: bytes, sizes: dict[str, int], path: Path) -> None:
    """Refuses instructions and names that a dictionary of plain tensors does not need.

    Args:
        pickled: The file's pickle.
        sizes: Bytes of the file's numbers by their key.
        path: What messages call it.
    """
    done: list[_Op] = []  # as the stack saw them: without PUT, and for GET what was put
    memo: dict[int, _Op] = {}
    n_tuples = 0
    instructions: Iterator[tuple[Any, Any, Any]] = pickletools.genops(pickled)
    for opcode, argument, _ in instructions:
        name = opcode.name
        if name == "PROTO" and argument != 2:
            raise CheckpointError(
                f"'{path}' is a pickle of protocol {argument}; expected 2, torch.save's own. Convert the file to "
                "safetensors where you trust it."
            )
        if name not in _OPCODES:
            raise CheckpointError(f"The pickle of '{path}' uses {name}, which a dictionary of tensors does not need.")
        if name == "GLOBAL" and argument not in _NAMES:
            raise CheckpointError(
                f"The pickle of '{path}' refers to {argument.replace(' ', '.')}, which a dictionary of tensors does "
                "not need; it may be an attempt to run code. Convert the file to safetensors where you trust it."
            )
        if name in _PUTS:
            memo[argument] = done[-1]
            continue
        done.append(memo[argument] if name in _GETS else _Op(name, argument))
        n_tuples += name in _TUPLES
        if n_tuples > _MAX_TUPLES or (name in _GETS and done[-1].name in _TUPLES):
            raise CheckpointError(f"The pickle of '{path}' nests tuples as no dictionary of tensors does.")
        if name == "BINPERSID":
            _check_numbers(done, sizes, path)


def _check_numbers(done: list[_Op], sizes: dict[str, int], path: Path) -> None:
    """Compares what the last instructions say about some numbers with the file."""
    # MARK 'storage' <type> <key> <device> <numel> TUPLE BINPERSID
    last = done[-8:]
    shape = [_Op("NUMEL") if op.name in _INTEGERS else op for op in last]
    if [op.name for op in shape] != _NUMBERS or last[1].argument != "storage":
        raise CheckpointError(f"The pickle of '{path}' describes its numbers in an unknown way.")
    storage, key, numel = last[2].argument.removeprefix("torch "), last[3].argument, last[5].argument
    if storage not in _STORAGES:
        raise CheckpointError(f"The pickle of '{path}' describes its numbers in an unknown way.")
    n_bytes = numel * _STORAGES[storage].itemsize
    if sizes.get(key) != n_bytes:
        raise CheckpointError(
            f"'{path}' is damaged: numbers '{key}' of it do not fill the {n_bytes} bytes they should."
        )


def _check_tensors(content: Any, path: Path) -> None:
    """Refuses anything but plain tensors by name that are no larger than the file."""
    plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, th.Tensor) and value.layout == th.strided
        for name, value in content.items()
    )
    if not plain:
        raise CheckpointError(f"'{path}' holds something else than tensors by name.")
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in content.items()}
    grown = [name for name, n_bytes in sizes.items() if n_bytes > content[name].untyped_storage().nbytes()]
    # Two names of one tensor are usual, so twice the file's size is; many views of one storage are an attack.
    if grown or sum(sizes.values()) > 2 * path.stat().st_size:
        what = f"its tensor '{grown[0]}' has more elements than numbers" if grown else "its tensors are larger than it"
        raise CheckpointError(f"'{path}' would take much more memory than the file: {what}.")

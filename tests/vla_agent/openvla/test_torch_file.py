"""Tensors come out of torch.save's files, code in them does not run, and small files do not take much memory."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch import nn

from vla_agent.openvla.files import CheckpointError
from vla_agent.openvla.torch_file import read_state_dict


def rewrite(source: Path, target: Path, entry: str, content: bytes) -> None:
    """A copy of an archive with one entry replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(entry) else old.read(name))


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16, th.float16, th.float64])
def test_a_state_dict_comes_back_bit_for_bit(tmp_path: Path, dtype: th.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)).to(dtype)
    th.save(module.state_dict(), tmp_path / "a.pt")
    read = read_state_dict(tmp_path / "a.pt")
    assert list(read) == list(module.state_dict())
    for name, value in module.state_dict().items():
        assert read[name].dtype == dtype
        assert th.equal(read[name], value)


def test_views_parameters_and_shared_numbers(tmp_path: Path) -> None:
    base = th.arange(24.0).reshape(4, 6)
    content = {
        "t": base.t(),
        "row": base[2],
        "p": nn.Parameter(base[:, 1:3]),
        "empty": th.empty(0),
        "one": th.tensor(7),
    }
    th.save(content, tmp_path / "a.pt")
    read = read_state_dict(tmp_path / "a.pt")
    for name, value in content.items():
        assert th.equal(read[name], value.detach())


class _Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize(("protocol", "message"), [(2, r"refers to \w+\.mkdir"), (4, "pickle of protocol 4")])
def test_code_is_refused_and_never_runs(tmp_path: Path, protocol: int, message: str) -> None:
    witness = tmp_path / "ran"
    th.save({"a": th.zeros(2)}, tmp_path / "a.pt")
    payload = pickle.dumps({"a": _Payload(os.mkdir, str(witness))}, protocol=protocol)
    rewrite(tmp_path / "a.pt", tmp_path / "evil.pt", "data.pkl", payload)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "evil.pt")
    assert not witness.exists()


def test_only_tensors_by_name_are_read(tmp_path: Path) -> None:
    th.save(OrderedDict(a=3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="something else than tensors"):
        read_state_dict(tmp_path / "a.pt")
    th.save({"a": {1, 2}}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="does not need"):
        read_state_dict(tmp_path / "b.pt")


def test_damage_is_named(tmp_path: Path) -> None:
    path, damaged = tmp_path / "a.pt", tmp_path / "damaged.pt"
    th.save({"a": th.zeros(100)}, path)
    damaged.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="damaged or not a file"):
        read_state_dict(damaged)
    rewrite(path, damaged, "data/0", b"\0" * 396)
    with pytest.raises(CheckpointError, match="the 400 bytes"):
        read_state_dict(damaged)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    assert pickled.count(b"Kd\x85") == 1  # the shape (100,)
    rewrite(path, damaged, "data.pkl", pickled.replace(b"Kd\x85", b"Ke\x85"))
    with pytest.raises(CheckpointError, match="beyond its numbers"):
        read_state_dict(damaged)


def a_pickle(path: Path) -> bytes:
    """The pickle of a file that holds a tensor of 100 numbers, "a"."""
    th.save({"a": th.zeros(100)}, path)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    th.save({"a": th.zeros(1).expand(10**9)}, tmp_path / "a.pt")  # 4 GB, in a file of 1 KB
    assert (tmp_path / "a.pt").stat().st_size < 2000
    with pytest.raises(CheckpointError, match="'a' has more elements than numbers"):
        read_state_dict(tmp_path / "a.pt")
    th.save({"a": th.zeros(1).expand(10**15)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="'a' has more elements than numbers"):
        read_state_dict(tmp_path / "a.pt")
    base = th.zeros(1000)
    th.save({str(i): base[:] for i in range(50)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="its tensors are larger than it"):
        read_state_dict(tmp_path / "a.pt")


def test_numbers_are_taken_from_the_tensors_own_entry(tmp_path: Path) -> None:
    pickled = a_pickle(tmp_path / "a.pt")
    assert pickled.count(b"Kdt") == 1  # 100 numbers in the storage
    rewrite(tmp_path / "a.pt", tmp_path / "evil.pt", "data.pkl", pickled.replace(b"Kdt", b"J\xff\xff\xff\x7ft"))
    with pytest.raises(CheckpointError, match="do not fill the 8589934588 bytes"):
        read_state_dict(tmp_path / "evil.pt")


PROTOCOL, STOP = b"\x80\x02", b"."
ENDLESS = {
    "tuples that hold one another are hashed": (
        b"}K\x00" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x01s",
        "nests tuples",
    ),
    "tuples in tuples": (b"}K\x00" + b"\x85" * 200_000 + b"K\x01s", "nests tuples"),
    "marks": (b"(" * 500_000 + b"t" * 500_000, "nests tuples"),
    "bytes without end": (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", "refers to __builtin__.bytearray"),
    "a tensor made by its size": (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85\x81", "refers to torch.FloatTensor"),
    "storage of another kind": (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\ntQ", "in an unknown way"),
    "strings without numbers": (b"X\x01\x00\x00\x00aQ", "in an unknown way"),
    "no end": (b"}" * 10, "damaged"),
    "too large": (b"}0" * 10**6, r"describes its tensors in 1\.9 MiB"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_pickle_without_end_or_of_much_memory_is_refused(tmp_path: Path, what: str) -> None:
    a_pickle(tmp_path / "a.pt")
    content, message = ENDLESS[what]
    stop = b"" if what == "no end" else STOP
    rewrite(tmp_path / "a.pt", tmp_path / "evil.pt", "data.pkl", PROTOCOL + content + stop)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "evil.pt")


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"}" * 10**7)
    with pytest.raises(CheckpointError, match="compressed, overlap"):
        read_state_dict(tmp_path / "a.pt")

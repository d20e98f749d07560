"""Tensors come out of torch.save's files, and code in them does not run."""

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

from vla_agent.openvla.folder import CheckpointError
from vla_agent.openvla.torch_zip import read_state_dict


def rewrite(source: Path, target: Path, entry: str, content: bytes) -> None:
    """A copy of an archive with one entry replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(entry) else old.read(name))


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16, th.float16, th.float64])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_state_dict_comes_back_bit_for_bit(tmp_path: Path, dtype: th.dtype, protocol: int) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)).to(dtype)
    th.save(module.state_dict(), tmp_path / "a.pt", pickle_protocol=protocol)
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


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_never_runs(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    th.save({"a": th.zeros(2)}, tmp_path / "a.pt")
    payload = pickle.dumps({"a": _Payload(os.mkdir, str(witness))}, protocol=protocol)
    rewrite(tmp_path / "a.pt", tmp_path / "evil.pt", "data.pkl", payload)
    with pytest.raises(CheckpointError, match=r"refers to \w+\.mkdir"):
        read_state_dict(tmp_path / "evil.pt")
    assert not witness.exists()


def test_only_tensors_by_name_are_read(tmp_path: Path) -> None:
    th.save(OrderedDict(a=3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="something else than tensors"):
        read_state_dict(tmp_path / "a.pt")
    th.save({"a": {1, 2}}, tmp_path / "b.pt", pickle_protocol=4)
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

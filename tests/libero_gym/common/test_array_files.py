"""Files of arrays: what is packed is unpacked, and damage is told."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from libero_gym.common.array_files import pack, unpack

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 255], np.uint8)}


def test_what_is_packed_is_unpacked_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    body = pack({"z": [1, 2], "a": "bowl"}, ARRAYS)
    assert body == pack({"a": "bowl", "z": [1, 2]}, ARRAYS)
    (tmp_path / "file.npz").write_bytes(body)
    description, arrays = unpack(tmp_path / "file.npz")
    assert description == {"a": "bowl", "z": [1, 2]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


@pytest.mark.parametrize(
    "damage", ["flipped", "cut", "missing", "pickled", "nameless", "compressed", "endless", "inflated", "npy"]
)
def test_damage_is_told_by_the_callers_error(tmp_path: Path, damage: str) -> None:
    class DamagedError(ValueError):
        pass

    path, body = tmp_path / "file.npz", bytearray(pack({}, ARRAYS))
    if damage == "flipped":
        body[len(body) // 2] ^= 0xFF
    if damage in ("flipped", "cut"):
        path.write_bytes(body if damage == "flipped" else body[:100])
    elif damage == "pickled":
        np.savez(path, a=np.array([{}], dtype=object), description=np.zeros(2, np.uint8))
    elif damage == "nameless":
        np.savez(path, **ARRAYS)
    elif damage == "compressed":
        np.savez_compressed(path, a=np.random.default_rng(0).normal(size=1000))
        body = bytearray(path.read_bytes())
        body[100:200] = bytes(100)
        path.write_bytes(body)
    elif damage == "endless":
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", stream.getvalue())
    elif damage == "inflated":
        np.savez_compressed(path, a=np.zeros(10**6), description=np.frombuffer(b"{}", np.uint8))
    elif damage == "npy":
        np.save(tmp_path / "file.npy", ARRAYS["a"])
        (tmp_path / "file.npy").rename(path)
    with pytest.raises(DamagedError, match=r"file\.npz is damaged \("):
        unpack(path, DamagedError)

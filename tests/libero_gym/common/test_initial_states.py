"""Initial states from files that somebody was sent: what is too large, cut, or says more than it holds is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from libero_gym.common import initial_states
from libero_gym.common.initial_states import read_states

STATES = np.arange(12.0).reshape(3, 4)


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of an NPY of such a shape, without its numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_states_are_read_as_they_are_and_cannot_be_changed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"states{suffix}"
    np.save(path, STATES) if suffix == ".npy" else np.savez_compressed(path, states=STATES)
    found = read_states(path)
    path.unlink()  # they are in memory
    np.testing.assert_array_equal(found, STATES)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1.0


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive counts unpacked: these zeros are a thousand times less on disk."""
    path, zeros = tmp_path / f"states{suffix}", np.zeros((1000, 1000))
    np.save(path, zeros) if suffix == ".npy" else np.savez_compressed(path, states=zeros)
    monkeypatch.setattr(initial_states, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match=r"has 80\d+ bytes, unpacked; expected initial states of at most 1000000"):
        read_states(path)


@pytest.mark.parametrize("shape", [(3, 5), (10**9, 10**6)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_says_more_than_it_holds_takes_no_memory(
    tmp_path: Path, suffix: str, shape: tuple[int, int]
) -> None:
    path, content = tmp_path / f"states{suffix}", header(shape) + STATES.tobytes()
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("states.npy", content)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged \(.+\); expected initial states"):
        read_states(path)


@pytest.mark.parametrize("place", ["numbers", "directory"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / "states.npz"
    np.savez_compressed(path, states=np.random.default_rng(0).normal(size=(50, 40)))
    body = bytearray(path.read_bytes())
    first = 100 if place == "numbers" else body.index(b"PK\x01\x02")
    body[first : first + 4] = bytes(4)
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"states\.npz is damaged \(.+\); expected initial states"):
        read_states(path)

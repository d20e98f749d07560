"""Hashes: of files and weights for reports and checksums, and short ones that tell two objects apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import torch as th

_BLOCK = 2**20  # bytes read at once


def sha256(stream: IO[bytes]) -> str:
    """SHA-256 of what is left of a stream, in hexadecimal."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        return sha256(stream)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file directly in a folder, by name; hidden files are left out."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: hash_file(path) for path in paths}


def hash_weights(tensors: Mapping[str, th.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(th.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """Short name of some bytes: the first 16 hexadecimal digits of the SHA-256 of the parts, one behind the other.

    Saved runs keep fingerprints of their processor and their scorer, so the parts that those pass must stay the same.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]

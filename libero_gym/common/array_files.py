"""Files of named arrays and a description: NPZ files, whose entries carry checksums and hold no pickles."""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.json_files import parse_json

_OF_NUMPY = (MemoryError, ValueError, TypeError, EOFError, tokenize.TokenError)
_OF_ARCHIVES = (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError)  # the last for an unknown compression
DAMAGE = (*_OF_NUMPY, *_OF_ARCHIVES)
"""What reading a damaged NPZ or NPY raises, besides an OSError."""


def pack(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a file with a description, as JSON holds it, and arrays by name."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(description, sort_keys=True).encode(), np.uint8)
    np.savez(buffer, **arrays, description=text)  # type: ignore[arg-type]  # its second parameter is a flag
    return buffer.getvalue()


def unpack(path: Path, error: type[ValueError] = ValueError) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description and the arrays of a file that `pack` made.

    Args:
        path: The file.
        error: The class of the exception for damage.

    Raises:
        ValueError: (``error``) If the file is damaged or missing.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            size, limit = sum(entry.file_size for entry in zipped.infolist()), path.stat().st_size
        if size > limit:  # `pack` does not compress
            raise ValueError(f"it has {limit} bytes and says to hold {size}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        description = parse_json(arrays.pop("description").tobytes(), "its description")
    except (OSError, *DAMAGE) as damage:
        raise error(f"{path} is damaged ({damage}).") from damage
    return description, arrays

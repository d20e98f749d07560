"""LIBERO's initial states as it published them, for programs that ``torch.load`` them.

The benchmark package keeps them as NPZ. Here every ``.pruned_init.npz`` gets a ``.pruned_init`` beside it: a NumPy
array in torch's own container, written without torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from libero_gym.benchmark import VERSION
from libero_gym.common import cache
from libero_gym.common.atomic import allowed

_SUFFIX = ".pruned_init.npz"


@functools.cache
def init_states_folder(source: str) -> Path:
    """A folder like ``source`` that also has the files as they were published; ``source`` if none can be written.

    It is made once, in the cache's folder, which takes a second or two.
    """
    try:
        place = hashlib.blake2b(str(Path(source).resolve()).encode(), digest_size=4).hexdigest()
        folder = cache.cache_dir() / f"init-files-{VERSION}-{place}"
        if not folder.is_dir():
            _fill(Path(source), folder)
    except OSError:
        return Path(source)
    return folder


def _fill(source: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".init-files-", dir=folder.parent))
    try:
        made.chmod(allowed(0o777))
        files = sorted(source.glob(f"*/*{_SUFFIX}"))
        if not files:
            raise FileNotFoundError(f"{source} holds no initial states.")
        for path in files:
            place = made / path.parent.name
            place.mkdir(exist_ok=True)
            (place / path.name).symlink_to(path.resolve())
            with np.load(path, allow_pickle=False) as archive:
                (place / path.name.removesuffix(".npz")).write_bytes(torch_file(archive["states"]))
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def torch_file(array: np.ndarray) -> bytes:
    """The bytes of ``torch.save(array)``, which ``torch.load(..., weights_only=False)`` reads as the array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(array, protocol=2))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()

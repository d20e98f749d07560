"""The files of a saved run, in a folder or in one zip: finding, checking and reading them. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import safetensors.torch
import torch as th
from safetensors import SafetensorError

from libero_gym.common.json_files import MAX_BYTES, parse_json
from vla_agent.common.atomic import ZIP, Kind
from vla_agent.common.hashes import sha256
from vla_agent.runs import tables
from vla_agent.runs.documents import fault

FORMAT = 2
HYPERPARAMETERS, POLICY, STATE = "hyperparameters.json", "policy.safetensors", "state.json"
OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
TABLES = "tables.safetensors"
CHECKSUMS = "checksums.json"
FILES = (HYPERPARAMETERS, POLICY, OPTIMIZER, OPTIMIZER_GROUPS, STATE)
# Only a long run has tables, and runs of earlier versions have no checksums; `train` notes the states that it trained
# on in `training.json`.
RUN = Kind("saved run", FILES, (TABLES, CHECKSUMS, "training.json"))

MAX_JSON_BYTES = 4 * MAX_BYTES  # a thousand environments' states are 20 MB
_SB3_FILES = ("data", "pytorch_variables.pth", "_stable_baselines3_version")
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error)


class RunError(ValueError):
    """A saved run that is incomplete, damaged, or does not fit."""


class DamagedRunError(RunError):
    """A saved run that lacks something, or differs from what was written."""


class RunFiles(Protocol):
    """Reads a run's files, wherever they are.

    Attributes:
        path: The folder or zip.
        names: Names of its files.
    """

    path: Path
    names: frozenset[str]

    def stream(self, name: str) -> IO[bytes]:
        """Opens a file to read bytes from."""

    def tensors(self, name: str) -> dict[str, th.Tensor]:
        """Tensors in a safetensors file, by name."""


class FolderFiles:
    """The files of a run in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = frozenset(name for name in (*RUN.files, *RUN.optional) if (path / name).is_file())

    def stream(self, name: str) -> IO[bytes]:
        """An open file, for reading."""
        return (self.path / name).open("rb")

    def tensors(self, name: str) -> dict[str, th.Tensor]:
        """Tensors in a safetensors file, by name."""
        return safetensors.torch.load_file(self.path / name)


class ZipFiles:
    """The files of a run in a zip. They are uncompressed, so that none is larger than the zip; none is extracted.

    Raises:
        DamagedRunError: If the zip holds anything else than a run's files as we write them.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        entries = archive.infolist()
        self.names = frozenset(entry.filename for entry in entries)
        foreign = sorted(self.names - {*RUN.files, *RUN.optional})
        if foreign:
            raise DamagedRunError(f"The zip '{path}' is no saved run: it holds {foreign[0]!r}, which no run has.")
        if len(self.names) != len(entries):
            raise DamagedRunError(f"The zip '{path}' is damaged: it holds a file twice.")
        compressed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1]
        if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise DamagedRunError(
                f"The zip '{path}' is not as VLAPPO.save writes it: its files are compressed, encrypted, or larger "
                "than the zip. Unpack it, and load the folder."
            )

    def stream(self, name: str) -> IO[bytes]:
        """An open file, for reading."""
        return self.archive.open(name)

    def tensors(self, name: str) -> dict[str, th.Tensor]:
        """Tensors in a safetensors file, by name."""
        return safetensors.torch.load(self.archive.read(name))


def find(path: str | Path) -> Path:
    """The folder or zip of a run: ``x`` also finds ``x.zip`` and the reverse, as with SB3; the exact name comes first.

    Raises:
        RunError: If there is neither.
    """
    path = Path(path)
    if not path.name:
        candidates = [path]
    else:
        candidates = [path, path.with_name(path.name + ZIP)]
        if path.suffix == ZIP and path.stem:
            candidates.append(path.with_suffix(""))
    there = [candidate for candidate in candidates if candidate.exists()]
    if not there:
        raise RunError(
            f"There is no saved run at '{path}'; expected a folder with {', '.join(FILES)}, or a zip of these."
        )
    runs = [path for path in there if path.is_file() or any((path / name).is_file() for name in FILES)]
    return (runs or there)[0]


def is_run(path: str | Path) -> bool:
    """Whether a run of ours is saved at a path, whole or not; ``x`` also finds ``x.zip``."""
    try:
        with opened(path) as files:
            return HYPERPARAMETERS in files.names
    except (RunError, OSError):
        return False


def is_foreign_zip(path: Path) -> bool:
    """Whether only SB3's own loader may read a file: a zip that holds no run of ours."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return HYPERPARAMETERS not in archive.namelist() and any(name in archive.namelist() for name in _SB3_FILES)
    except _ZIP_ERRORS:
        return False


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[RunFiles]:
    """The files of the run at a path, with the suffix ``.zip`` or without.

    Raises:
        RunError: If there is no run, or the zip holds something else.
    """
    path = find(path)
    if path.is_dir():
        yield FolderFiles(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise DamagedRunError(
            f"'{path}' is a file, but no saved run: it cannot be read as a zip ({error}). Give a folder or zip that "
            "VLAPPO.save wrote."
        ) from error
    with archive:
        yield ZipFiles(path, archive)


def read_json(files: RunFiles, name: str, form: Any = object, *, with_tables: bool = True) -> Any:
    """Reads a JSON document of a run, and checks its form (see `documents.fault`).

    Args:
        files: The run's files.
        name: Name of the document.
        form: What it must look like.
        with_tables: Whether long tables of the state are put back into it, see `tables`.

    Raises:
        DamagedRunError: If the file is no document, or one of another form.
    """
    called = f"'{files.path / name}'"
    with _reading(files, name), files.stream(name) as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    document = parse_json(content, called, error=DamagedRunError, max_bytes=MAX_JSON_BYTES)
    if name == STATE and with_tables:
        columns = read_tensors(files, TABLES) if TABLES in files.names else {}
        try:
            document = tables.join(document, columns)
        except (ValueError, RecursionError) as error:
            raise DamagedRunError(f"{called} is damaged, or '{files.path / TABLES}' is: {error}.") from error
    if wrong := fault(document, form):
        raise DamagedRunError(f"{called} is damaged: {wrong}.")
    return document


def read_tensors(files: RunFiles, name: str) -> dict[str, th.Tensor]:
    """Reads the tensors of a run's file, which are all finite.

    Raises:
        DamagedRunError: If the file is damaged, or a tensor holds NaN or infinity.
    """
    with _reading(files, name):
        tensors = files.tensors(name)
    for key, tensor in tensors.items():
        try:
            is_finite = bool(tensor.isfinite().all())
        except RuntimeError as error:  # of a type in which nothing is computed
            raise DamagedRunError(f"'{files.path / name}' is damaged: {key} is of type {tensor.dtype}.") from error
        if not is_finite:
            raise DamagedRunError(f"'{files.path / name}' is damaged: {key} holds NaN or infinity.")
    return tensors


def check_whole(files: RunFiles) -> bool:
    """Compares a run with its checksums, and returns whether it has any; runs of earlier versions have none.

    Raises:
        DamagedRunError: If a file is missing, is no JSON, or differs from what was written.
        RunError: If it has another format.
    """
    missing = [name for name in FILES if name not in files.names]
    if missing:
        what = "folder" if files.path.is_dir() else "zip"
        raise DamagedRunError(f"The {what} '{files.path}' is no complete run: it lacks {', '.join(missing)}.")
    found = read_json(files, HYPERPARAMETERS).get("format")
    if found != FORMAT:
        raise RunError(f"The run '{files.path}' has format {found}; this version reads format {FORMAT}.")
    if CHECKSUMS not in files.names:
        for name in (OPTIMIZER_GROUPS, STATE):
            read_json(files, name)
        return False
    wanted = read_json(files, CHECKSUMS, {"sha256": dict.fromkeys(FILES, str)})["sha256"]
    if TABLES in wanted and TABLES not in files.names:
        raise DamagedRunError(f"'{files.path}' is no complete run: it lacks {TABLES}.")
    for name in (*FILES, TABLES) if TABLES in files.names else FILES:
        with _reading(files, name), files.stream(name) as stream:
            is_same = sha256(stream) == wanted.get(name)
        if not is_same:
            raise DamagedRunError(
                f"'{files.path / name}' is damaged: its checksum is not the one in {CHECKSUMS}. If it was changed on "
                f"purpose, remove {CHECKSUMS}."
            )
    return True


def damage(path: str | Path) -> str | None:
    """Why a run cannot be loaded, as one sentence; None if its files are there, readable, and what was written.

    It makes no model, so it is cheap beside loading. Only loading tells whether the run fits a model or an environment.
    """
    try:
        with opened(path) as files:
            check_whole(files)
            if CHECKSUMS not in files.names:
                for name in (POLICY, OPTIMIZER):
                    read_tensors(files, name)
    except RunError as error:
        return str(error)
    except OSError as error:
        return f"'{path}' cannot be read ({error})."
    return None


@contextlib.contextmanager
def _reading(files: RunFiles, name: str) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except (SafetensorError, *_ZIP_ERRORS) as error:
        raise DamagedRunError(f"'{files.path / name}' is damaged ({error}).") from error

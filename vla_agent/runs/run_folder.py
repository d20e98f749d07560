"""A run's folder: which run it belongs to, which process writes into it, and its newest whole save."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import re
import shlex
import socket
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import choice, whole_number
from libero_gym.common.json_files import read_json
from libero_gym.common.version import version
from vla_agent.runs import run_files
from vla_agent.runs.learner import Learner
from vla_agent.runs.run_files import FILES, STATE, RunError

Existing = Literal["refuse", "aside"]

CHECKPOINTS, INTERRUPTED, MODEL, BEST, EARLIER = "checkpoints", "interrupted", "model", "best", "earlier"
RUN, LOCK = "run.json", ".lock"
# What a run leaves in its folder. It is put aside in this order: the identity last, as what is left is the old run's.
LOGS = ("curve.png", "episode.mp4", "times.json", "progress*.csv", "events.out.tfevents.*")
AGAIN = "_[0-9]*"  # behind the name of a save that found another name taken, see `keeping.save_where_free`
SAVES = (CHECKPOINTS, INTERRUPTED, INTERRUPTED + AGAIN, MODEL, BEST)
LEFT_BY_RUNS = (*SAVES, "best_report", *LOGS, "training.json", RUN)


class Claim:
    """The right of this process to write a run into a folder, until `release` or the end of the process.

    Attributes:
        run_dir: The folder.
        id: Identity of the run, in `run.json` and in everything that is saved for it.
        attempt: Number of times that the run was begun or resumed; what a later attempt saved counts as newer.
        resumed_from: The saved run to go on from; None for a new one.
    """

    def __init__(self, run_dir: Path, id_: str, attempt: int, resumed_from: Path | None, lock: int | None) -> None:
        self.run_dir, self.id, self.attempt, self.resumed_from = run_dir, id_, attempt, resumed_from
        self._lock = lock
        self.is_open = True  # no model trains for it yet

    def give(self, model: Learner) -> None:
        """Gives a model the identity of this run, which its saves then bear, unless another model has it."""
        if not self.is_open:
            return
        self.is_open = False
        before = model.run["attempt"] if model.run is not None and model.run["id"] == self.id else 0
        model.run = {"id": self.id, "attempt": max(self.attempt, before)}

    def release(self) -> None:
        """Lets others write into the folder; a second call does nothing."""
        if _claims.get(_key(self.run_dir)) is self:
            del _claims[_key(self.run_dir)]
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *args: object) -> None:
        self.release()


_claims: dict[Path, Claim] = {}  # of this process, by folder


def _forget_claims() -> None:
    """Drops the locks in a fork, which would hold them beyond its parent's end."""
    for claim in _claims.values():
        claim._unlock()
    _claims.clear()


os.register_at_fork(after_in_child=_forget_claims)


# ------------------------------------------------------------------------------------------------ claim


def claim_run(run_dir: str | Path, resume: str | Path | None = None, *, existing: Existing = "refuse") -> Claim:
    """Claims a folder for a run, so that no other process writes into it and no older run is overwritten.

    Call it before anything slow. `RunCheckpoints`, `SaveOnSignal` and `safe_learn` call it if nobody has.

    Args:
        run_dir: The folder, which is made if it is missing.
        resume: A saved run to go on from, or a folder with saved runs, see `latest_run`. From one in ``run_dir`` the
            same run goes on; from one elsewhere another run begins.
        existing: What to do with another run in the folder: "refuse" raises, "aside" moves it to
            ``<run_dir>/earlier/<date>``.

    Raises:
        RunError: If the folder holds a run that does not go on, if another process is writing into it, or if there is
            nothing to go on from.
        OSError: If the folder cannot be written to.
    """
    run_dir, source = checked(run_dir), None if resume is None else latest_run(resume)
    goes_on = source is not None and _is_inside(source, run_dir)
    return _claim(run_dir, goes_on, existing, source, nothing_written=True)


def enter(run_dir: str | Path, model: Learner, *, fresh: bool, existing: Existing = "refuse") -> tuple[Claim, bool]:
    """The claim under which a model may write into a folder: this process's, or a new one.

    Args:
        run_dir: The folder.
        model: The learner; it is not given the claim yet.
        fresh: Whether a new run begins, rather than that of the model going on.
        existing: As for `claim_run`.

    Returns:
        The claim, and whether it is new; the caller releases a new one.

    Raises:
        As `claim_run`.
    """
    run_dir = checked(run_dir)
    held, run_id = _claims.get(_key(run_dir)), None if model.run is None else model.run["id"]
    if held is not None and (held.is_open or (not fresh and held.id == run_id)):
        return held, False
    # Both None: a run saved before there were identities goes on in a folder of that time.
    goes_on = not fresh and identity(run_dir) == run_id
    shared = run_id if any(claim.id == run_id for claim in _claims.values()) else None  # a second folder of one run
    return _claim(run_dir, goes_on, existing, None, shared), held is None


def claimed_folder(model: object) -> Path | None:
    """The folder that this process has claimed for the run of a model; None if there is none."""
    run = getattr(model, "run", None)
    folders = [claim.run_dir for claim in _claims.values() if isinstance(run, dict) and claim.id == run["id"]]
    return folders[0] if folders else None


def _claim(
    run_dir: Path,
    goes_on: bool,
    existing: Existing,
    resumed_from: Path | None,
    run_id: str | None = None,
    nothing_written: bool = False,
) -> Claim:
    choice("existing", existing, ("refuse", "aside"))
    held = _claims.pop(_key(run_dir), None)
    with _naming(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(run_dir) if held is None else held._lock
    try:
        document = _read_run(run_dir) or {} if goes_on else {}
        if not goes_on and _holds_run(run_dir):
            if existing == "refuse":
                raise RunError(_refusal(run_dir))
            _put_aside(run_dir)
        elif not goes_on and nothing_written and _holds_logs(run_dir):
            _put_aside(run_dir)
        run_id = (identity(run_dir) if goes_on else run_id) or uuid.uuid4().hex
        attempts = [*document.get("attempts", []), _this_process()]
        attempt = max(len(attempts), 1 + _last_attempt(run_dir))
        with _naming(run_dir):
            write_text(run_dir / RUN, json.dumps({"id": run_id, "attempts": attempts}, indent=1) + "\n")
    except BaseException:
        if lock is not None and held is None:
            os.close(lock)
        elif held is not None:
            _claims[_key(run_dir)] = held
        raise
    if held is not None:
        held._lock = None  # it is the new claim's
    claim = _claims[_key(run_dir)] = Claim(run_dir, run_id, attempt, resumed_from, lock)
    return claim


def _refusal(run_dir: Path) -> str:
    begun = (_read_run(run_dir) or {"attempts": [{}]})["attempts"][0].get("date")
    what = ", ".join(f"{name}/" for name in _holds_run(run_dir)) + (f"; begun {begun}" if begun else "")
    folder, code = shlex.quote(str(run_dir)), repr(str(run_dir))
    return (
        f"'{run_dir}' already holds a run ({what}), and a new one would mix with it. To go on with it, add "
        f"--resume {folder} (in code: VLAPPO.load(latest_run({code}), env) and reset_num_timesteps=False). To begin a "
        f"new one, give another folder (--out), or have the old one moved to '{run_dir / EARLIER}' by --existing aside "
        "(in code: existing='aside')."
    )


def _holds_run(run_dir: Path) -> list[str]:
    """The names of what a run has saved in a folder."""
    names = []
    for path in (path for pattern in SAVES for path in sorted(run_dir.glob(pattern))):
        if path.is_file() or (path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())):
            names.append(path.name)
    return names


def _holds_logs(run_dir: Path) -> bool:
    """Whether a run of ours that ended before its first save left logs, which a new one would write over."""
    return (run_dir / RUN).is_file() and any(any(run_dir.glob(pattern)) for pattern in LOGS)


def _put_aside(run_dir: Path) -> None:
    """Moves what a run left to a folder of its own, and deletes nothing."""
    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    names = [stamp, *(f"{stamp}_{number}" for number in range(2, 1000))]
    aside = next(path for name in names if not (path := run_dir / EARLIER / name).exists())
    aside.mkdir(parents=True)
    for pattern in LEFT_BY_RUNS:
        for path in list(run_dir.glob(pattern)):
            if path.is_symlink():  # a relative one would lead elsewhere from there
                (aside / path.name).symlink_to(path.resolve())
                path.unlink()
            else:
                path.rename(aside / path.name)


def _this_process() -> dict[str, Any]:
    return {"date": _now(), "version": version(), "pid": os.getpid(), "command": list(sys.argv)}


def _now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"


def _acquire(run_dir: Path) -> int | None:
    """Locks a folder; the system unlocks it when the process ends, also if it is killed.

    Returns:
        The lock's file descriptor; None if the file system has no locks.

    Raises:
        RunError: If another process holds the lock.
    """
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 500).decode(errors="replace").strip() or "an unknown process"
        os.close(descriptor)
        raise RunError(
            f"Another training writes into '{run_dir}': {holder}. Wait for its end, stop it, or give another folder."
        ) from None
    except OSError as error:  # some network file systems
        os.close(descriptor)
        warnings.warn(
            f"'{run_dir}' cannot be locked ({error.strerror}); take care that no other training writes into it.",
            stacklevel=5,
        )
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n".encode())
    return descriptor


def checked(run_dir: str | Path) -> Path:
    """The path of a run's folder; ValueError if it is no path."""
    if not isinstance(run_dir, (str, Path)) or not str(run_dir).strip():
        raise ValueError(f"run_dir={run_dir!r}; expected the path of a folder.")
    return Path(run_dir)


@contextlib.contextmanager
def _naming(run_dir: Path) -> Iterator[None]:
    """Adds to errors of the disk which folder could not be written to, and what to do."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; a run needs a folder that it can write to, so give another one"
        raise type(error)(error.errno, reason, str(run_dir)) from error


def _is_inside(path: Path, run_dir: Path) -> bool:
    """Whether a path is in a run's folder and was not put aside there; a link in the folder may lead out of it."""
    for given in (path.absolute(), path.resolve()):
        for folder in (given, *given.parents):
            below = given.relative_to(folder).parts
            if ".." not in below and _key(folder) == _key(run_dir):
                return below[:1] != (EARLIER,)
    return False


def _key(run_dir: Path) -> Path:
    return run_dir.resolve()


# ------------------------------------------------------------------------------------- what is saved in it


class Saved(NamedTuple):
    """A saved run in a folder, whole or not."""

    path: Path
    run_id: str | None  # None if it was saved outside of any claimed folder, or cannot be read
    order: tuple[float, int, int, float]  # attempt, timesteps, iterations, time: the newest has the largest


def latest_run(run_dir: str | Path) -> Path:
    """The saved run to go on from: the folder or zip itself if it is one, else the newest whole save of the run in it.

    A newer save that is damaged or incomplete is skipped, with a warning that names it.

    Raises:
        RunError: If there is no save, or every one is damaged.
    """
    run_dir = checked(run_dir)
    if run_dir.is_file() or any((run_dir / name).is_file() for name in FILES):
        if (why := damage(run_dir)) is not None:
            raise RunError(f"The saved run '{run_dir}' is damaged: {why} Give an older one to go on from.")
        return run_dir
    own = identity(run_dir)
    found = [run for run in saved_in(run_dir) if run.run_id in (own, None)]  # what others saved there is not ours
    if not found:
        raise RunError(f"There is no saved run in '{run_dir}'; expected checkpoints/, interrupted/ or model/.")
    skipped: list[str] = []
    for run in sorted(found, key=lambda run: run.order, reverse=True):
        why = damage(run.path)
        if why is None:
            for note in skipped:
                warnings.warn(f"{note} Going on from the next older one, '{run.path}'.", stacklevel=2)
            return run.path
        skipped.append(f"The saved run '{run.path}' is damaged: {why}")
    raise RunError(f"No saved run in '{run_dir}' is whole. {' '.join(skipped)}")


def saved_by(folder: Path, run_id: str) -> list[Path]:
    """The checkpoints in a folder that hold all files of a save of this run, the oldest first."""
    paths = [path for path in folder.glob("[0-9]*") if timestep_of(path) is not None]
    found = [saved_at(path) for path in paths if all((path / name).is_file() for name in FILES)]
    return [run.path for run in sorted(filter(None, found), key=lambda run: run.order) if run.run_id == run_id]


def timestep_of(checkpoint: Path) -> int | None:
    """The timestep in a checkpoint's name, such as 64 in "0000000064" and "0000000064_2"; None if there is none."""
    named = re.fullmatch(r"(\d+)(_\d+)?", checkpoint.name)
    return int(named[1]) if named is not None else None


def identity(run_dir: Path) -> str | None:
    """Identity of the run that a folder belongs to; None if there is no run, or only one of an earlier version."""
    if (document := _read_run(run_dir)) is not None:
        return document["id"]
    readable = [run for run in saved_in(run_dir) if run.order[0] < math.inf]
    return max(readable, key=lambda run: run.order).run_id if readable else None


def _last_attempt(run_dir: Path) -> int:
    return int(max((run.order[0] for run in saved_in(run_dir) if run.order[0] < math.inf), default=0))


def saved_in(run_dir: Path) -> list[Saved]:
    """What a run can go on from in a folder, whole or not."""
    places = [run_dir / INTERRUPTED, *run_dir.glob(INTERRUPTED + AGAIN), run_dir / MODEL]
    places += (run_dir / CHECKPOINTS).glob("[0-9]*")
    return [run for run in map(saved_at, places) if run is not None]


def damage(path: Path) -> str | None:
    """Why a run cannot go on from a save, as one sentence; None if the save is whole and has its place in the order."""
    try:
        if (found := run_files.damage(path)) is None:
            _read_order(path)
        return found
    except (RunError, OSError) as error:
        return str(error)


def saved_at(path: Path) -> Saved | None:
    """What a folder says of the run in it; None if it holds no file of a run."""
    if not any((path / name).is_file() for name in FILES):
        return None
    try:
        return _read_order(path)
    except (OSError, RunError):
        # Perhaps the newest: `latest_run` comes to it first, and says that it is damaged.
        return Saved(path, None, (math.inf, timestep_of(path) or 0, 0, 0.0))


def _read_order(path: Path) -> Saved:
    with run_files.opened(path) as files:
        state = run_files.read_json(files, STATE, with_tables=False)
    try:
        run = state.get("run") or {"id": None, "attempt": 0}
        numbers = [run["attempt"], state["counters"]["num_timesteps"], state["counters"]["n_iterations"]]
        attempt, timesteps, iterations = (whole_number(STATE, number, 0) for number in numbers)
        return Saved(path, run["id"], (attempt, timesteps, iterations, path.stat().st_mtime))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"'{path / STATE}' is damaged: it lacks a run's counters.") from error


def _read_run(run_dir: Path) -> dict[str, Any] | None:
    """The content of `run.json`; None if there is none, with a warning if it is damaged."""
    path = run_dir / RUN
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            document = read_json(path, error=RunError)
        except RunError as error:
            warnings.warn(f"{error} The newest run in the folder tells whose it is.", stacklevel=4)
            return None
        attempts = document.get("attempts")
        whole = isinstance(attempts, list) and attempts and all(isinstance(attempt, dict) for attempt in attempts)
        if whole and isinstance(document.get("id"), str):
            return document
        warnings.warn(f"'{path}' is damaged. The newest run in the folder tells whose it is.", stacklevel=4)
    return None

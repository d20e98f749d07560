"""Checkpoints while training runs, and a last one on a signal or an error, so that nothing is lost.

This serves every learner of the package that trains a `VLAPolicy`; see `learner.Learner` for what it asks of one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import MaybeCallback

from libero_gym.common.checks import whole_number
from vla_agent.callbacks.tree import as_callbacks, parts
from vla_agent.common.atomic import destination, remove
from vla_agent.runs.learner import Learner
from vla_agent.runs.run_files import RUN, RunError
from vla_agent.runs.run_folder import (
    BEST,
    CHECKPOINTS,
    INTERRUPTED,
    MODEL,
    Claim,
    Existing,
    checked,
    claim_run,
    enter,
    latest_run,
    saved_by,
    timestep_of,
)

__all__ = ["RunCheckpoints", "SaveOnSignal", "claim_run", "latest_run", "safe_learn"]

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` sends its signal to the process and then to its group, so it comes twice. Ctrl-C comes once per key.
SAME_SIGNAL_S = 1.0
# Names that folders have while saved runs are written or removed, see `atomic.writing`.
_TEMPORARY = re.compile(rf"\.((?:\d+|{INTERRUPTED}|{BEST})(?:_\d+)?|{MODEL})(\.old)?(\.\w+)?")


class _RunCallback(BaseCallback):
    """A callback that writes into a run's folder while it trains."""

    def __init__(self, run_dir: str | Path, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.run_dir = checked(run_dir)
        self._own_claim: Claim | None = None

    @property
    def learner(self) -> Learner:
        """What trains; SB3 calls it ``model``."""
        return cast(Learner, self.model)

    def _on_training_start(self) -> None:
        check_saves_runs(self.model, type(self).__name__)
        learner = self.learner
        claim, is_new = enter(self.run_dir, learner, fresh=learner.run is None and learner.began_at_zero)
        claim.give(learner)
        self._own_claim = claim if is_new else self._own_claim
        _remove_leftovers(self.run_dir)

    def _on_training_end(self) -> None:
        if self._own_claim is not None:
            self._own_claim.release()
            self._own_claim = None


class RunCheckpoints(_RunCallback):
    """Saves the run as ``<run_dir>/checkpoints/<timesteps>`` every few iterations, and removes older ones.

    An iteration is a rollout and its update. Each checkpoint appears complete or not at all; `latest_run` finds the
    newest. Only what this run wrote is removed: a checkpoint that holds a file of the user's stays, and where anything
    but a whole saved run stands, a checkpoint is saved as ``<timesteps>_2``, with a warning. It serves learners that
    train a `VLAPolicy`.

    Args:
        run_dir: Folder of the run; see `claim_run`.
        every: Number of iterations from one checkpoint to the next.
        keep: Number of newest checkpoints that stay.
        keep_every: Number of timesteps; the first checkpoint past each multiple of it stays for good. 0 keeps none.

    Raises:
        ValueError: If ``every``, ``keep`` or ``keep_every`` is out of range; the message names one.
    """

    def __init__(
        self, run_dir: str | Path, every: int = 10, keep: int = 2, keep_every: int = 0, verbose: int = 0
    ) -> None:
        super().__init__(run_dir, verbose)
        self.folder = self.run_dir / CHECKPOINTS
        self.every = whole_number("every", every, 1)
        self.keep = whole_number("keep", keep, 1)
        self.keep_every = whole_number("keep_every", keep_every, 0)
        self._written: list[Path] = []  # by this run, the oldest first

    def _on_training_start(self) -> None:
        super()._on_training_start()
        try:
            self.folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()  # now, rather than at the first checkpoint
        except OSError as error:
            reason = f"{error.strerror}; no checkpoint could be written there, so give another folder"
            raise type(error)(error.errno, reason, str(self.folder)) from error
        _remove_leftovers(self.folder)
        assert self.learner.run is not None  # the claim gave it
        self._written = saved_by(self.folder, self.learner.run["id"])

    def _on_rollout_start(self) -> None:
        # The update before is complete, and nothing of the next rollout has happened yet.
        n_iterations = self.learner.n_iterations
        if n_iterations and n_iterations % self.every == 0 and not self._is_written():
            path = save_where_free(self.learner, self.folder / f"{self.num_timesteps:010d}")
            self._written = [*(other for other in self._written if other != path), path]
            self._remove_old()

    def _on_step(self) -> bool:
        return True

    def _is_written(self) -> bool:
        """Whether the newest checkpoint is of now, because the run goes on from it."""
        return bool(self._written) and timestep_of(self._written[-1]) == self.num_timesteps

    def _remove_old(self) -> None:
        passed = 0
        for path in sorted(self._written[: -self.keep]):
            timestep = timestep_of(path)
            assert timestep is not None  # of all that are written
            if self.keep_every and timestep // self.keep_every > passed:
                passed = timestep // self.keep_every
                continue
            self._written.remove(path)
            try:
                remove(path, RUN)
            except OSError as error:
                logger.warning("The old checkpoint '%s' was not removed: %s", path, error)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a saved run of a claimed folder.

    What lies beside no "interrupted", "model" or "best" stays: it may be the only one.
    """
    for path in folder.glob(".*"):
        name = _TEMPORARY.fullmatch(path.name)
        if name is None or path.is_symlink() or not path.is_dir():
            continue
        has_another = name[1][0].isdigit() or (folder / name[1]).is_dir()
        if has_another and all(entry.name in (*RUN.files, *RUN.optional, "run") for entry in path.rglob("*")):
            shutil.rmtree(path, ignore_errors=True)


def save_where_free(learner: Learner, path: Path) -> Path:
    """Saves a run at a path; where anything but a whole saved run stands, beside it as ``<path>_2`` and so on.

    Returns:
        The path at which the run was saved; a warning in the log names it if it is another.
    """
    numbered = (path.with_name(f"{path.name}_{number}") for number in range(2, 1000))
    place = next((place for place in (path, *numbered) if _is_free(place)), path)
    learner.save(place)
    if place != path:
        logger.warning("'%s' is more or less than a saved run, and stays; the run was saved as '%s'.", path, place)
    return place


def _is_free(path: Path) -> bool:
    try:
        destination(path, RUN)
        return True
    except FileExistsError:
        return False


def check_saves_runs(model: Any, who: str) -> None:
    """Refuses a learner whose `save` writes no run, as TypeError; ``who`` wants to save it."""
    if not getattr(model, "saves_runs", False):
        what = f"{type(model).__name__} with {type(getattr(model, 'policy', None)).__name__}"
        raise TypeError(
            f"{who} saves a VLAPPO (or another learner of vla_agent) with a VLAPolicy, and this is a {what}; use SB3's "
            "CheckpointCallback."
        )


class StoppedBeforeStart(Exception):
    """A signal came before the first step; the run was saved as it begins."""


class SaveOnSignal(_RunCallback):
    """Ends training at the next step when SIGINT (Ctrl-C), SIGTERM or SIGHUP comes, and saves the run.

    A second signal has its usual effect. The handlers are set during `learn`, in the main thread only. If SIGHUP is
    ignored, as under ``nohup``, it stays so; SIGINT, which shells ignore for what a script runs in the background, is
    heard all the same, so that ``kill -INT`` saves such a run.

    Args:
        run_dir: Folder of the run, see `claim_run`; the run is saved as ``<run_dir>/interrupted``, or beside it if
            something else has come there since the training started, which the log then tells.
        name: Name of the saved run's folder, instead of "interrupted".

    Attributes:
        received: The signal that came; None before one comes.

    Raises:
        FileExistsError: When training starts, if ``<run_dir>/interrupted`` is anything but a whole saved run.
        TypeError: When training starts, if the learner saves no runs.
    """

    def __init__(self, run_dir: str | Path, name: str = INTERRUPTED, verbose: int = 0) -> None:
        super().__init__(run_dir, verbose)
        if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"name={name!r}; expected the name of a folder in '{run_dir}', such as {INTERRUPTED!r}.")
        self.path = self.run_dir / name
        self.received: signal.Signals | None = None
        self.started = False  # the first step may have been taken
        self.stepped = False  # it has been
        self.saved = False  # after a signal
        self._since = 0.0
        self._early = False  # whether handlers were set before training started
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Sets the handlers until `remove`, before training starts; `learn` sets them by itself."""
        self._early = True
        self._install()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)

    def remove(self) -> None:
        """Puts the previous handlers back, unless somebody has set others since; a second call does nothing."""
        for number, handler in list(self._previous.items()):
            if signal.getsignal(number) in (self._handle, self._handle_again):
                signal.signal(number, handler)
                del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received, self._since = signal.Signals(number), time.monotonic()
        for other in self._previous:
            if signal.getsignal(other) == self._handle:
                signal.signal(other, self._handle_again)
        when = "after this step" if self.started else "before the first step"
        logger.warning("%s: saving to '%s' %s. Again to stop at once.", self.received.name, self.path, when)

    def _handle_again(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT and time.monotonic() - self._since < SAME_SIGNAL_S:
            return
        self.remove()
        signal.raise_signal(number)

    def check_place(self) -> None:
        """Refuses what a save could not replace, as FileExistsError: at a signal it would be too late to say so."""
        destination(self.path, RUN)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.check_place()
        if not self._early:
            self.received = None
            self._install()
        if self.received is not None:
            self.save()
            raise StoppedBeforeStart(f"{self.received.name} came before the first step.")
        self.started = True

    def _on_step(self) -> bool:
        self.stepped = True
        return self.received is None

    def _on_training_end(self) -> None:
        if self.received is not None:
            self.save()
        if not self._early:
            self.remove()
        super()._on_training_end()

    def save(self) -> None:
        """Saves the run, as after a signal."""
        save_where_free(self.learner, self.path)
        self.saved = True


def safe_learn(
    model: Learner,
    total_timesteps: int,
    run_dir: str | Path,
    callback: MaybeCallback = None,
    *,
    existing: Existing = "refuse",
    **learn_kwargs: Any,
) -> bool:
    """`model.learn` that loses nothing: on a signal or an error the run is saved and the workers are closed.

    What is saved is the run as it was before the rollout or update that is under way, weights and optimizer included,
    so that going on from there gives what would have come without the interruption. An update that fails half-way
    leaves no trace in it; see `ResumableAlgorithm.max_copy_bytes` for models too large to be copied before each update.
    An error before the first step saves nothing: there is nothing new, and a corrected call finds the folder as it was.

    Args:
        model: The learner, of a `VLAPolicy`.
        total_timesteps: As for `learn`.
        run_dir: Folder of the run, see `claim_run`; the run is saved as ``<run_dir>/interrupted`` if it does not end by
            itself.
        callback: As for `learn`.
        existing: What to do with another run in ``run_dir``, see `claim_run`.
        learn_kwargs: Other arguments of `learn`.

    Returns:
        True if it ended by itself, False after a signal.

    Raises:
        RunError: If ``run_dir`` holds another run, or another process is writing into it.
        FileExistsError: If ``<run_dir>/interrupted`` is anything but a whole saved run.
        TypeError: If the learner saves no runs, as with SB3's policies.
    """
    check_saves_runs(model, "safe_learn")
    keeper = SaveOnSignal(run_dir)
    keeper.install()
    own_claim = None
    try:
        fresh = learn_kwargs.get("reset_num_timesteps", True)
        claim, is_new = enter(run_dir, model, fresh=fresh, existing=existing)
        own_claim = claim if is_new else None
        keeper.check_place()
        return _learn(model, total_timesteps, keeper, [keeper, *as_callbacks(callback)], learn_kwargs)
    finally:
        if own_claim is not None:
            own_claim.release()
        keeper.remove()


def _learn(
    model: Learner, total_timesteps: int, keeper: SaveOnSignal, callbacks: list[BaseCallback], kwargs: dict[str, Any]
) -> bool:
    try:
        with contextlib.suppress(StoppedBeforeStart):
            model.learn(total_timesteps, CallbackList(callbacks), **kwargs)
        if keeper.received and not keeper.saved:  # it came after the last step
            keeper.save()
    except BaseException as error:  # the first error is the one to report
        is_worth_saving = keeper.stepped or (keeper.started and keeper.received is not None)
        is_saved = is_worth_saving and _save_what_is_left(model, keeper.path, error)
        _close(model)
        if not (is_saved and keeper.received and isinstance(error, Exception)):
            raise
        # The same signal may have ended what this process talks to. It asked for an end, and nothing is lost.
        logger.warning("After %s: %s: %s", keeper.received.name, type(error).__name__, error)
        return False
    stopped = any(isinstance(part, SaveOnSignal) and part.received for part in parts(callbacks))
    if stopped:
        _close(model)
    return not stopped


def _save_what_is_left(model: Learner, path: Path, error: BaseException) -> bool:
    """Saves the run after an error; if that fails, says so and what there is instead, and returns False."""
    try:
        save_where_free(model, path)
        return True
    except Exception as reason:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                way_out = f"The newest run that is saved is '{latest_run(path.parent)}': go on from there."
            except (RunError, OSError):
                way_out = "Nothing of this run is saved."
        message = f"The run could not be saved as '{path}' ({type(reason).__name__}: {reason}). {way_out}"
        logger.error(message)
        error.add_note(message)
        return False


def _close(model: Learner) -> None:
    """Closes the environments; a failure is only logged, because an error or a signal came before it."""
    if model.env is not None:
        try:
            model.env.close()
        except Exception as error:
            logger.warning("The environments did not close: %s: %s", type(error).__name__, error)

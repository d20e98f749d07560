"""Nothing is lost: checkpoints while training runs, and a last one on a signal or an error."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import MaybeCallback

from vla_agent.callbacks import as_callbacks
from vla_agent.checkpointing import STATE, RunError

if TYPE_CHECKING:
    from vla_agent.ppo import VLAPPO

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHECKPOINTS, INTERRUPTED = "checkpoints", "interrupted"


class RunCheckpoints(BaseCallback):
    """Saves the run as ``<run_dir>/checkpoints/<timesteps>`` every so many iterations, and removes older ones.

    An iteration is a rollout and its update. Each checkpoint appears complete or not at all; `latest_run` finds the
    newest.

    Args:
        run_dir: Of the run.
        every: Iterations from one to the next.
        keep: So many of the newest stay.
        keep_every: Those whose timesteps passed another multiple of this stay for good; 0 for none.

    Raises:
        ValueError: If ``every`` or ``keep`` is less than 1.
    """

    def __init__(
        self, run_dir: str | Path, every: int = 10, keep: int = 2, keep_every: int = 0, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        if every < 1 or keep < 1:
            raise ValueError(f"every={every}, keep={keep}; expected at least 1 each.")
        self.folder = Path(run_dir) / CHECKPOINTS
        self.every, self.keep, self.keep_every = every, keep, keep_every

    def _on_rollout_start(self) -> None:
        # The update before is complete, and nothing of the next rollout has happened yet.
        n_iterations = self.model.n_iterations  # type: ignore[attr-defined]
        if n_iterations and n_iterations % self.every == 0:
            self.model.save(self.folder / f"{self.num_timesteps:010d}")
            self._remove_old()

    def _on_step(self) -> bool:
        return True

    def _remove_old(self) -> None:
        for leftover in self.folder.glob(".*"):  # of a process that was killed while it wrote or removed
            shutil.rmtree(leftover, ignore_errors=True)
        passed = 0
        for path in sorted(path for path in self.folder.iterdir() if path.name.isdigit())[: -self.keep]:
            if self.keep_every and int(path.name) // self.keep_every > passed:
                passed = int(path.name) // self.keep_every
                continue
            shutil.rmtree(path.rename(path.with_name(f".{path.name}")), ignore_errors=True)


def latest_run(run_dir: str | Path) -> Path:
    """What to go on from: the folder itself if it is a saved run, or the newest one that `safe_learn` left in it.

    Raises:
        RunError: If there is none.
    """
    run_dir = Path(run_dir)
    candidates = [run_dir, run_dir / INTERRUPTED, run_dir / "model", *(run_dir / CHECKPOINTS).glob("[0-9]*")]
    runs = [path for path in candidates if (path / STATE).is_file()]
    if not runs:
        raise RunError(f"There is no saved run in '{run_dir}'; expected checkpoints/, interrupted/ or model/.")
    return max(runs, key=_progress)


def _progress(path: Path) -> tuple[int, int, float]:
    try:
        counters = json.loads((path / STATE).read_text(encoding="utf-8"))["counters"]
    except (ValueError, KeyError):
        return 0, 0, 0.0  # damaged: loading it says so, if there is nothing better
    return counters["num_timesteps"], counters["n_iterations"], path.stat().st_mtime


class SaveOnSignal(BaseCallback):
    """Ends training at the next step when SIGINT (Ctrl-C) or SIGTERM comes, and saves the run.

    A second signal does what it did before. Handlers are set for the time of `learn`, in the main thread only.

    Args:
        run_dir: The run is saved as ``<run_dir>/interrupted``.
        name: Another name.

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self, run_dir: str | Path, name: str = INTERRUPTED, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(run_dir) / name
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Set the handlers; `learn` does it by itself."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def remove(self) -> None:
        """Put the previous handlers back, where nobody has set others since; safe to call twice."""
        for number, handler in list(self._previous.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
                del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        logger.warning("%s: saving to '%s' after this step. Again to stop at once.", self.received.name, self.path)
        self.remove()

    def _on_training_start(self) -> None:
        self.received = None
        self.install()

    def _on_step(self) -> bool:
        return self.received is None

    def _on_training_end(self) -> None:
        self.remove()
        if self.received is not None:
            self.model.save(self.path)


def safe_learn(
    model: VLAPPO, total_timesteps: int, run_dir: str | Path, callback: MaybeCallback = None, **learn_kwargs: Any
) -> bool:
    """`model.learn` that loses nothing: on a signal or an error the run is saved and the workers are closed.

    What is saved is the run as it was before the rollout or update that is under way, weights and optimizer included,
    so that going on from there gives what would have come without the interruption. An update that fails half-way
    leaves no trace in it; see `VLAPPO.max_copy_bytes` for models too large to be copied before each update.

    Args:
        model: To train.
        total_timesteps: As for `learn`.
        run_dir: The run is saved as ``<run_dir>/interrupted`` if it does not end by itself.
        callback: As for `learn`.
        learn_kwargs: Other arguments of `learn`.

    Returns:
        True if it ended by itself, False after a signal.
    """
    keeper = SaveOnSignal(run_dir)
    try:
        model.learn(total_timesteps, CallbackList([keeper, *as_callbacks(callback)]), **learn_kwargs)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            model.save(keeper.path)
        _close(model)
        raise
    finally:
        keeper.remove()
    if keeper.received is not None:
        _close(model)
    return keeper.received is None


def _close(model: VLAPPO) -> None:
    if model.env is not None:
        model.env.close()

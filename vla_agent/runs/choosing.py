"""Which save stands for a run, when its folder is named as a model: to evaluate it, to film it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vla_agent.runs import run_folder
from vla_agent.runs.run_files import FILES
from vla_agent.runs.run_folder import BEST, identity, latest_run, saved_at, saved_in


class Chosen(NamedTuple):
    """A save of a run.

    Attributes:
        path: The save.
        reason: Which one it is, and why, as one sentence.
    """

    path: Path
    reason: str


def is_run_folder(path: str | Path) -> bool:
    """Whether a folder holds saves of a run, as ``runs/ppo`` does, and is not a save or a checkpoint itself."""
    path = Path(path)
    if not path.is_dir() or any((path / name).is_file() for name in (*FILES, "config.json")):
        return False
    return (path / run_folder.RUN).is_file() or bool(saved_in(path)) or saved_at(path / BEST) is not None


def choose_save(run_dir: str | Path) -> Chosen:
    """The save that stands for a run: the best of its own evaluations, or the newest if it was never evaluated.

    To go on with a run is another matter: `latest_run` takes the newest, and never the best.

    Raises:
        RunError: If there is no save, or every one is damaged.
    """
    run_dir = Path(run_dir)
    best = saved_at(run_dir / BEST)
    if best is not None and best.run_id in (identity(run_dir), None):
        reason = f"'{run_dir}' stands for '{best.path}', the best of the run's own evaluations"
        return Chosen(best.path, f"{reason} (timestep {best.order[1]}).")
    newest = latest_run(run_dir)
    saved = saved_at(newest)
    when = f" (timestep {saved.order[1]})" if saved is not None else ""
    reason = (
        f"'{run_dir}' stands for '{newest}', its newest save{when}: no evaluation during the training kept a best/."
    )
    return Chosen(newest, reason)

"""Evaluations that go on from a folder: what has to be the same, and models of which too little is known to say so."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

from vla_agent.actors.loading import EXPERT
from vla_agent.evaluation.frames import UNTOLD
from vla_agent.evaluation.journal import Journal
from vla_agent.evaluation.reports import EvaluationReport
from vla_agent.evaluation.results import ReportError

_OF_EVERY_MODEL = {"class", "name", "source", "sha256"}  # entries of a description that `describe_model` makes itself
_SERVER = "server"  # entry of a `RemotePolicy`'s


def open_journal(
    out: Path | None, report: EvaluationReport
) -> contextlib.AbstractContextManager[Journal | None, bool | None]:
    """The journal of a report's evaluation; None without a folder.

    Raises:
        ReportError: If the folder holds another evaluation, or episodes of what may be another model.
        BlockingIOError: If another evaluation writes into it.
    """
    if out is None:
        return contextlib.nullcontext()
    decisive = {name: value for name, value in report.settings.items() if name != "n_envs"}
    journal = Journal(out, report.conditions | decisive | {"model": report.manifest["model"]})
    try:
        if journal.episodes:
            _check_told(journal, report.manifest["model"])
            _check_frames(journal, report.settings.get("image_transform"))
    except BaseException:
        journal.close()
        raise
    return journal


def _check_told(journal: Journal, model: dict[str, Any]) -> None:
    """Refuse to go on with an object that only its class tells from others; warn of a policy that only its name does.

    Raises:
        ReportError: If nothing tells the object from another of its class.
    """
    if model["sha256"] or "fingerprint" in model or model["name"] == EXPERT:
        return
    kind, count = model["class"], _count(journal)
    taken_over = f"The evaluation takes over {count} of '{journal.path}'"
    if _SERVER in model:
        _warn(f"{taken_over}; whether the server has the same weights as then is not known.")
    elif model["name"] is not None:
        _warn(f"{taken_over}; {model['name']!r} has the same file as then, and no fingerprint() to say more.")
    elif not model.keys() - _OF_EVERY_MODEL:
        raise ReportError(
            f"'{journal.path}' holds {count} of a {kind}, and nothing tells this {kind} from another: give another "
            "folder, remove it, or give the class a method fingerprint() that returns a text, another one for weights "
            "and settings that act differently."
        )


def _check_frames(journal: Journal, image_transform: Any) -> None:
    """Refuse to go on with an image transform that its name and lines do not tell from others.

    Raises:
        ReportError: If it is one.
    """
    if isinstance(image_transform, str) and image_transform.endswith(UNTOLD):
        raise ReportError(
            f"'{journal.path}' holds {_count(journal)}, and nothing tells whether their image_transform was the same: "
            "give another folder, remove it, or take a plain function without arguments that are bound to it."
        )


def _count(journal: Journal) -> str:
    return "1 episode" if len(journal.episodes) == 1 else f"{len(journal.episodes)} episodes"


def _warn(told: str) -> None:
    warnings.warn(told, stacklevel=5)  # where the caller runs the evaluation

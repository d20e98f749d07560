"""From a saved run to the learner that made it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch as th

from vla_agent.runs.run_files import HYPERPARAMETERS, opened, read_json

# Modules of learners, by the name that their runs hold. A new one goes here.
LEARNERS = {
    "VLAPPO": "vla_agent.algorithms.ppo",
    "VLAGRPO": "vla_agent.algorithms.grpo",
    "VLADistillation": "vla_agent.algorithms.distillation",
}


def load_learner(path: str | Path, device: th.device | str = "auto", **kwargs: Any) -> Any:
    """The learner that a run was saved by, without environments: to act, or to ask for its policy.

    Args:
        path: Folder or zip of the run.
        device: Device to load it to.
        kwargs: Further arguments of its `load`.

    Raises:
        RunError: If there is no whole run, or its learner is none of `LEARNERS`.
    """
    with opened(path) as files:
        saved = read_json(files, HYPERPARAMETERS, {"algorithm": object}) if HYPERPARAMETERS in files.names else {}
    made_by = saved.get("algorithm")
    name = made_by if isinstance(made_by, str) and made_by in LEARNERS else "VLAPPO"  # which says what it lacks
    learner = getattr(importlib.import_module(LEARNERS[name]), name)
    return learner.load(Path(path), device=device, **kwargs)

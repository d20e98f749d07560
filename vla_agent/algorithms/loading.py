"""From a saved run to the learner that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch as th

from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.grpo import VLAGRPO
from vla_agent.algorithms.ppo import VLAPPO
from vla_agent.runs.run_files import HYPERPARAMETERS, opened, read_json

# Learners by the name that their runs hold. A new one goes here.
LEARNERS: dict[str, type[VLALearner]] = {kind.__name__: kind for kind in (VLAPPO, VLAGRPO)}


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
    return LEARNERS.get(made_by if isinstance(made_by, str) else "", VLAPPO).load(Path(path), device=device, **kwargs)

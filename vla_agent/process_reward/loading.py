"""From a name to a reward model: those that ship, and those in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libero_gym.common.checks import as_path
from vla_agent.common.shipped import SHIPPED_FOLDER
from vla_agent.process_reward.interface import RewardModel, RewardModelError
from vla_agent.process_reward.storage import CONFIG_FILE, read_config
from vla_agent.process_reward.tiny_scorer import TinyScorer
from vla_agent.process_reward.vlm_scorer import VLMScorer

# Classes by the name that `save` writes into scorer.json. A new kind of scorer with `save` and `load` goes here.
SCORERS: dict[str, Any] = {kind.__name__: kind for kind in (TinyScorer, VLMScorer)}


def load_reward_model(path: str | Path, device: Any = "cpu") -> RewardModel:
    """Load the scorer that is saved in a folder, or the one of that name that ships.

    Nothing is downloaded: a scorer of a model of the hub needs that model here, or `VLMScorer.load` with ``download``.

    Args:
        path: The folder, or a name such as "tiny-scorer".
        device: Device to load the scorer's weights to.

    Raises:
        RewardModelError: If there is no such scorer, or it is damaged.
        TypeError: If ``path`` is no path.
    """
    shipped = sorted(found.parent.name for found in SHIPPED_FOLDER.glob(f"*/{CONFIG_FILE}"))
    path = as_path("path", path)
    folder = SHIPPED_FOLDER / path if str(path) in shipped else path.expanduser()
    config = read_config(folder, shipped)
    kind = config.get("class")
    if not isinstance(kind, str) or kind not in SCORERS:
        raise RewardModelError(f"'{folder}' holds a {kind!r:.80}; known are {', '.join(SCORERS)}.")
    scorer: RewardModel = SCORERS[kind].load(folder, device)
    return scorer

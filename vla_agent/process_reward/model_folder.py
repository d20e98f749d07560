"""Refuses a vision-language model's folder that would run code of its own, or build a model without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libero_gym.common.json_files import read_json
from vla_agent.process_reward.interface import RewardModelError

_MAX_LAYERS, _MAX_WIDTH = 1024, 2**24  # far above any model's


def check_model_folder(path_or_id: str | Path) -> None:
    """Look through the JSON files of a model's folder for references to code; an id of the hub has no files here.

    `auto_map` names Python files to import, and an attention of the form "owner/name" a kernel to download.
    transformers asks on the terminal about the former; a training on a cluster has none. It also builds as many layers
    as `config.json` says before it reads a weight.

    Raises:
        RewardModelError: If there is such a reference or number, or a JSON file is damaged.
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        if not path.name.endswith(("config.json", "processor.json")):  # not the vocabularies, which are large
            continue
        for key, value in _settings(read_json(path, error=RewardModelError)):
            names_kernel = key.strip("_").endswith(("attn_implementation", "attn_implementation_internal"))
            if (key == "auto_map" and value) or (names_kernel and "/" in str(value)):
                raise RewardModelError(
                    f"'{path}' asks for code that is not part of transformers ({key!r}), which is never run here. Take "
                    "a model that transformers has itself."
                )
            numbers = value if isinstance(value, list) else [value]
            if path.name == "config.json" and any(isinstance(n, int) and n > _maximum(key) for n in numbers):
                raise RewardModelError(f"'{path}' says {key}={value!r:.80}; no model has more than {_maximum(key)}.")


def _maximum(key: str) -> float:
    if key.endswith(("layers", "layer", "depth", "depths", "blocks")):
        return _MAX_LAYERS
    return _MAX_WIDTH if key.endswith(("size", "sizes", "dim", "dims", "heads", "head", "embd")) else float("inf")


def _settings(content: Any) -> list[tuple[str, Any]]:
    """Keys and values of a JSON document, at any depth."""
    found, left = [], [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found += list(value.items())
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found

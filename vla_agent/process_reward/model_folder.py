"""Finds a vision-language model; refuses one that would run code of its own, load another, or be built without end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from libero_gym.common.json_files import read_json
from vla_agent.process_reward.interface import RewardModelError

_MAX_LAYERS, _MAX_WIDTH = 1024, 2**24  # far above any model's
_ADAPTER = "adapter_config.json"
# What transformers reads of a model: its configuration, its tokenizer, its templates and its weights.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub's id, "owner/name"."""
    return _HUB_ID.fullmatch(name) is not None


def find_model(path_or_id: str | Path, download: bool = True) -> Path:
    """The folder of a model, which `check_model_folder` has looked through.

    Of a model of the hub, the JSON files come first, and the rest of the same revision after they were looked through.

    Args:
        path_or_id: Folder or hub id.
        download: Whether to fetch from the hub; False takes a model of the hub only if its files are here already.

    Raises:
        RewardModelError: If there is no such model, or it is refused.
    """
    if Path(path_or_id).is_dir():
        check_model_folder(Path(path_or_id))
        return Path(path_or_id)
    if not is_hub_id(str(path_or_id)):
        raise RewardModelError(
            f"'{path_or_id}' is no vision-language model that can be loaded: there is no such folder, and a hub id is "
            "'owner/name'."
        )
    folder = _hub_folder(str(path_or_id), ("*.json",), None, download)
    check_model_folder(folder)
    return _hub_folder(str(path_or_id), _FILES, folder.name, download)


def _hub_folder(repo_id: str, patterns: tuple[str, ...], revision: str | None, download: bool) -> Path:
    """The folder of a revision's files, whose name is its commit; None is the latest revision."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo_id, revision=revision, allow_patterns=list(patterns), local_files_only=not download
        )
    except Exception as error:  # the hub's client raises many kinds, those of its transport included
        cure = "check the spelling and the network, or give a folder"
        if not download:
            cure = f"a scorer's file downloads nothing by itself: `hf download {repo_id}` does, or download=True"
        raise RewardModelError(
            f"'{repo_id}' is neither a folder here nor a vision-language model that can be loaded from the hub "
            f"({type(error).__name__}); {cure}."
        ) from error
    return Path(found)


def check_model_folder(folder: Path) -> None:
    """Look through the JSON files of a model's folder for references to code and to other models.

    `auto_map` names Python files to import, and an attention of the form "owner/name" a kernel to download.
    transformers asks on the terminal about the former; a training on a cluster has none. It also builds as many layers
    as `config.json` says before it reads a weight. It takes the model that an `adapter_config.json` names in the place
    of the folder's own, or puts the adapters that lie beside the weights into the model.

    Raises:
        RewardModelError: If there is such a reference or number, or a JSON file is damaged.
    """
    if (folder / _ADAPTER).exists():
        raise RewardModelError(
            f"'{folder}' holds adapters ({_ADAPTER}), which bring a model of their own choice; give the folder of a "
            "whole model, such as peft's merge_and_unload() leaves."
        )
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

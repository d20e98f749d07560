"""A scorer's folder: its configuration and weights, written as a whole and read with care."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file

from libero_gym.common.json_files import read_json
from vla_agent.common.atomic import Kind, save_tensors, writing
from vla_agent.common.hashes import fingerprint
from vla_agent.process_reward.interface import RewardModelError

CONFIG_FILE, WEIGHTS_FILE = "scorer.json", "scorer.safetensors"
SCORER = Kind("saved scorer", (CONFIG_FILE, WEIGHTS_FILE))


def write_scorer(folder: str | Path, document: dict[str, Any], tensors: dict[str, th.Tensor]) -> None:
    """Write a scorer's configuration and weights to a folder, completely or not at all.

    Args:
        folder: The folder; a scorer that is there is replaced.
        document: Content of scorer.json; "class" names the scorer's class, which `loading` reads.
        tensors: Weights by name.

    Raises:
        FileExistsError: If something else than a scorer is there.
        OSError: If it cannot be written.
    """
    with writing(folder, SCORER) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        save_tensors(tensors, temporary / WEIGHTS_FILE)


def digest(tensors: dict[str, th.Tensor], about: str = "") -> str:
    """Short hash of a scorer: of its weights as float32, and of a text about the rest of it."""
    weights = (name.encode() + tensor.float().cpu().numpy().tobytes() for name, tensor in sorted(tensors.items()))
    return fingerprint(itertools.chain([about.encode()], weights))


def read_config(folder: Path, shipped: Sequence[str] = ()) -> dict[str, Any]:
    """Content of the scorer.json in a scorer's folder.

    Args:
        folder: The folder.
        shipped: Names of the scorers that ship, for the message if there is no folder.

    Raises:
        RewardModelError: If there is no such folder, or the file is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        choice = f", or one that ships: {', '.join(map(repr, shipped))}" if shipped else ""
        raise RewardModelError(f"There is no reward model at '{folder}'; give a folder with {CONFIG_FILE}{choice}.")
    config: dict[str, Any] = read_json(folder / CONFIG_FILE, error=RewardModelError)
    return config


def read_weights(folder: Path) -> dict[str, th.Tensor]:
    """The tensors of a scorer's folder.

    Raises:
        RewardModelError: If they are missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise RewardModelError(f"The scorer in '{folder}' is incomplete or damaged: {error}") from error


def check_weights(folder: Path, tensors: dict[str, th.Tensor], wanted: dict[str, th.Tensor]) -> None:
    """Compare the names and shapes of a folder's tensors with the model's.

    Raises:
        RewardModelError: If they differ.
    """
    wrong = sorted(set(tensors) ^ set(wanted)) or sorted(
        name for name, tensor in wanted.items() if tensors[name].shape != tensor.shape
    )
    if wrong:
        raise RewardModelError(
            f"The tensors in '{folder}' do not fit the model that its {CONFIG_FILE} describes: "
            f"{', '.join(wrong[:5])} differ."
        )

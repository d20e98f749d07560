"""What a process reward model is, and finding one by its name."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file

from libero_gym.checks import as_path
from libero_gym.json_files import read_json
from vla_agent.atomic import Kind, save_tensors, writing

# Scorers that ship, beside the policies.
SHIPPED_FOLDER = Path(__file__).parents[1] / "checkpoints"
CONFIG_FILE, WEIGHTS_FILE = "scorer.json", "scorer.safetensors"
SCORER = Kind("saved scorer", (CONFIG_FILE, WEIGHTS_FILE))
CAMERA = "image"


class RewardModelError(ValueError):
    """A reward model that cannot be found or read, does not fit the environment, or gives what are no scores."""


@runtime_checkable
class RewardModel(Protocol):
    """Says from a camera's frame how much of an instruction is done.

    A model may also have ``image_size`` (the side in pixels that it takes), ``camera`` (the observation key that it
    looks at, "image" by default) and ``fingerprint()`` (what tells it from others); they are checked where they exist.
    """

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], float (n,), of images uint8 (n, H, W, 3) under n instructions."""


def checked_scores(model: RewardModel, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """The model's scores, float64 (n,).

    Raises:
        RewardModelError: If they are not n finite numbers in [0, 1].
    """
    scores = np.asarray(model.score(images, instructions), dtype=np.float64)
    name = type(model).__name__
    if scores.shape != (len(images),):
        raise RewardModelError(f"{name}.score gave shape {scores.shape} for {len(images)} images; expected one each.")
    wrong = ~(np.isfinite(scores) & (scores >= 0) & (scores <= 1))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise RewardModelError(
            f"{name}.score gave {scores[first]} for '{instructions[first]}'; expected scores in [0, 1]. "
            "A sigmoid of its output would be."
        )
    return scores


def check_frames(images: np.ndarray, instructions: Sequence[str], size: int | None = None) -> None:
    """Complains about what a scorer would answer for without meaning: one instruction for many frames, floats.

    Args:
        images: uint8 (n, H, W, 3).
        instructions: n of them.
        size: Side of the frames in pixels, if it is fixed.

    Raises:
        RewardModelError: If they are others.
    """
    came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
    side = "H, W" if size is None else f"{size}, {size}"
    is_batch = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    if not is_batch or (size is not None and images.shape[1:3] != (size, size)):
        raise RewardModelError(f"The frames to score are {came}; expected uint8 (n, {side}, 3).")
    texts = None if isinstance(instructions, str) else list(instructions)
    if texts is None or len(texts) != len(images) or not all(isinstance(text, str) for text in texts):
        raise RewardModelError(
            f"instructions={instructions!r:.80}; expected a list of {len(images)} strings, one a frame."
        )


def warn_of_unseen(instructions: Sequence[str], known: Sequence[str], warned: set[str]) -> None:
    """Warn of each instruction that a scorer was not trained on, once.

    Args:
        instructions: Asked about.
        known: Trained on.
        warned: Those that were warned of, extended.
    """
    for instruction in instructions:
        if instruction not in known and instruction not in warned:
            warned.add(instruction)
            warnings.warn(
                f"The scorer never saw '{instruction}' in training; its scores may mean little.", stacklevel=4
            )


def check_camera(model: RewardModel, observations: dict[str, tuple[int, ...]]) -> str:
    """The observation key that the model looks at.

    Args:
        model: The model.
        observations: Shapes of the environment's observations by key.

    Raises:
        RewardModelError: If the environment has not that camera, or its frames another size.
    """
    name, camera, size = type(model).__name__, getattr(model, "camera", CAMERA), getattr(model, "image_size", None)
    if camera not in observations:
        raise RewardModelError(
            f"The {name} looks at '{camera}', which the environment does not show; it has {', '.join(observations)}."
        )
    if size is not None and observations[camera] != (size, size, 3):
        raise RewardModelError(
            f"The {name} was trained for frames of {size} x {size} pixels, but '{camera}' has shape "
            f"{observations[camera]}; make the environment with image_size={size}, or train a scorer for its frames."
        )
    return str(camera)


def load_reward_model(path: str | Path, device: Any = "cpu") -> RewardModel:
    """The scorer saved in a folder, or one that ships, by its name.

    Raises:
        RewardModelError: If there is none, or it is damaged.
        TypeError: If ``path`` is no path.
    """
    from vla_agent.process_reward.tiny_scorer import TinyScorer
    from vla_agent.process_reward.vlm_scorer import VLMScorer

    shipped = sorted(found.parent.name for found in SHIPPED_FOLDER.glob(f"*/{CONFIG_FILE}"))
    path = as_path("path", path)
    folder = SHIPPED_FOLDER / path if str(path) in shipped else path.expanduser()
    config = read_config(folder, shipped)
    kinds: dict[str, Any] = {"TinyScorer": TinyScorer, "VLMScorer": VLMScorer}
    kind = config.get("class")
    if not isinstance(kind, str) or kind not in kinds:
        raise RewardModelError(f"'{folder}' holds a {kind!r:.80}; known are {', '.join(kinds)}.")
    scorer: RewardModel = kinds[kind].load(folder, device)
    return scorer


def write_scorer(folder: str | Path, document: dict[str, Any], tensors: dict[str, th.Tensor]) -> None:
    """Write a scorer's configuration and weights to a folder, completely or not at all.

    Raises:
        FileExistsError: If something else than a scorer is there.
        OSError: If it cannot be written.
    """
    with writing(folder, SCORER) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        save_tensors(tensors, temporary / WEIGHTS_FILE)


def digest(tensors: dict[str, th.Tensor], about: str = "") -> str:
    """What tells these weights, and what else is said, from others."""
    found = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def read_config(folder: Path, shipped: Sequence[str] = ()) -> dict[str, Any]:
    """What a scorer's folder says of it.

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

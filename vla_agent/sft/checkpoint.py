"""What resuming a fine-tuning needs, in a folder: weights, their average and AdamW's moments, by parameter name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from vla_agent.common.atomic import Kind, save_tensors, writing
from vla_agent.runs.run_files import FolderFiles, read_json, read_tensors

STATE_FILE, TENSORS_FILE = "trainer.json", "trainer.safetensors"
TRAINER = Kind("checkpoint of a fine-tuning", (STATE_FILE, TENSORS_FILE))
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names of its two averages


def write_checkpoint(folder: str | Path, tensors: Mapping[str, th.Tensor], document: dict[str, Any]) -> None:
    """Write a checkpoint in one rename; an interruption leaves the folder as it was.

    Args:
        folder: The folder; a checkpoint that is there is replaced.
        tensors: What `pack_tensors` gives.
        document: The step, and the identity of the run, as JSON holds them.

    Raises:
        FileExistsError: If something else than such a checkpoint is there.
        OSError: If it cannot be written.
    """
    with writing(folder, TRAINER) as temporary:
        save_tensors(tensors, temporary / TENSORS_FILE)
        (temporary / STATE_FILE).write_text(json.dumps(document, indent=1) + "\n")


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """The document and the tensors of `write_checkpoint`.

    Raises:
        ValueError: If there is no such checkpoint, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / STATE_FILE).is_file() or not (folder / TENSORS_FILE).is_file():
        raise ValueError(f"'{folder}' is no checkpoint of a fine-tuning: {STATE_FILE} or {TENSORS_FILE} is missing.")
    files = FolderFiles(folder)
    document = read_json(files, STATE_FILE, {"step": range(2**62), "identity": {}})
    return document, read_tensors(files, TENSORS_FILE)


def pack_tensors(
    trained: Mapping[str, nn.Parameter], average: Mapping[str, th.Tensor], optimizer: th.optim.Optimizer
) -> dict[str, th.Tensor]:
    """Tensors of a run on the CPU, under "weights|name", "average|name", "exp_avg|name" and "exp_avg_sq|name".

    Args:
        trained: Parameters that are trained, by name.
        average: Their moving average by name; empty without one.
        optimizer: AdamW over those parameters; it has no moments before the first step.
    """
    tensors = {f"weights|{name}": parameter.detach() for name, parameter in trained.items()}
    tensors |= {f"average|{name}": tensor for name, tensor in average.items()}
    for name, parameter in trained.items():
        moments = optimizer.state[parameter]
        tensors |= {f"{key}|{name}": moments[key] for key in _MOMENTS if key in moments}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def check_tensors(
    folder: str | Path,
    tensors: Mapping[str, th.Tensor],
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, th.Tensor],
) -> None:
    """Refuse tensors that `pack_tensors` does not give for such a run, before any is copied.

    Raises:
        ValueError: If one is missing or has another shape.
    """
    shapes = {f"weights|{name}": parameter.shape for name, parameter in trained.items()}
    shapes |= {f"average|{name}": tensor.shape for name, tensor in average.items()}
    for name, parameter in trained.items():
        if any(f"{key}|{name}" in tensors for key in _MOMENTS):
            shapes |= {f"{key}|{name}": parameter.shape for key in _MOMENTS}
    wrong = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
    if wrong:
        raise ValueError(
            f"'{Path(folder) / TENSORS_FILE}' is damaged, or of another model: {', '.join(wrong[:3])} is missing or "
            "has another shape."
        )


@th.no_grad()
def restore_tensors(
    tensors: Mapping[str, th.Tensor],
    step: int,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, th.Tensor],
    optimizer: th.optim.Optimizer,
) -> None:
    """Copy `pack_tensors`' tensors back into a run that `check_tensors` found to fit them.

    Args:
        tensors: The tensors.
        step: Steps that AdamW has taken; it corrects its moments' bias by that number.
        trained: Parameters to write, by name.
        average: Moving average to write, by name.
        optimizer: AdamW to give its moments.
    """
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"weights|{name}"])
        if f"{_MOMENTS[0]}|{name}" in tensors:
            moments = {key: tensors[f"{key}|{name}"].to(parameter.device) for key in _MOMENTS}
            optimizer.state[parameter] = {"step": th.tensor(float(step)), **moments}
    for name, tensor in average.items():
        tensor.copy_(tensors[f"average|{name}"])

"""From a checkpoint's name to its model: `config.json` says what kind it is, and a registry who can load that kind.

The one place where policies, environments and evaluation meet OpenVLA. Another model becomes known by one call::

    register_backbone("pi0_fast", BackboneLoader(load=Pi0.from_pretrained, load_processor=Pi0Processor.from_pretrained))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch as th
from torch import nn

from libero_gym.common.checks import did_you_mean
from libero_gym.common.json_files import read_json
from vla_agent.backbone import BackboneProcessor, VLABackbone
from vla_agent.openvla.files import CONFIG_FILE, CheckpointError, resolve_folder


@dataclass(frozen=True)
class BackboneLoader:
    """How checkpoints of one kind are read.

    Attributes:
        load: ``load(name, dtype=..., device=...)`` gives a `VLABackbone`, a `torch.nn.Module` in evaluation mode.
            ``dtype`` and ``device`` may be None, and the loader chooses. ``name`` is what the user wrote: the name of a
            model that ships, a folder, or a hub id.
        load_processor: ``load_processor(name)`` gives a `BackboneProcessor` without reading weights.
    """

    load: Callable[..., Any]
    load_processor: Callable[[str | Path], Any]


_LOADERS: dict[str, BackboneLoader] = {}


def register_backbone(model_type: str, loader: BackboneLoader) -> None:
    """Makes a kind of model known to `load_backbone`, and so to `VLAPPO`, `make_vec_env` and `Evaluator`.

    Args:
        model_type: What the ``config.json`` of such checkpoints says under that name. A kind that is known already is
            replaced.
        loader: How its checkpoints are read.

    Raises:
        TypeError: If the name is no string or the loader no `BackboneLoader`.
    """
    if not isinstance(model_type, str) or not isinstance(loader, BackboneLoader):
        raise TypeError(f"Expected a model_type and a BackboneLoader, got {model_type!r} and {loader!r}.")
    _LOADERS[model_type] = loader


def load_backbone(
    model: str | Path | VLABackbone, dtype: th.dtype | None = None, device: th.device | str | None = None
) -> VLABackbone:
    """The model itself, moved and converted in place, or the checkpoint of that name.

    Args:
        model: The name of a model that ships with this package, a folder, a hub id, or a backbone.
        dtype: Type of the weights; left to the checkpoint's loader, or as it is, if None.
        device: Where the model will be; the same applies to None.

    Raises:
        CheckpointError: If there is no such checkpoint, or nobody registered its kind.
    """
    if isinstance(model, (str, Path)):
        return cast(VLABackbone, _find_loader(model).load(model, dtype=dtype, device=device))
    cast(nn.Module, model).to(device=device, dtype=dtype)
    return model


def load_processor(name: str | Path) -> BackboneProcessor:
    """Reads what a checkpoint says besides its weights: prompts, image sizes, statistics.

    Args:
        name: The name of a model that ships with this package, a folder, or a hub id.

    Raises:
        CheckpointError: If there is no such checkpoint, or nobody registered its kind.
    """
    return cast(BackboneProcessor, _find_loader(name).load_processor(name))


def _find_loader(name: str | Path) -> BackboneLoader:
    folder = resolve_folder(name, weights=False)
    try:
        model_type = read_json(folder / CONFIG_FILE).get("model_type", "openvla")
    except (OSError, ValueError):
        model_type = "openvla"  # its reader says what is wrong with the file
    if not isinstance(model_type, str) or model_type not in _LOADERS:
        guess = did_you_mean(str(model_type), _LOADERS)
        raise CheckpointError(
            f"Checkpoint folder '{folder}' holds a model of type {model_type!r:.80}, which nobody registered.{guess} "
            f"Known types: {', '.join(_LOADERS)}. Others become known by "
            "vla_agent.policy.register_backbone(model_type, BackboneLoader(load, load_processor))."
        )
    return _LOADERS[model_type]


def _load_openvla(name: str | Path, *, dtype: th.dtype | None, device: th.device | str | None) -> Any:
    from vla_agent.openvla import OpenVLA  # brings transformers, which takes seconds

    return OpenVLA.from_pretrained(name, dtype=dtype, device=device)


def _load_openvla_processor(name: str | Path) -> Any:
    from vla_agent.openvla.processor import load_processor

    return load_processor(name)


_OPENVLA = BackboneLoader(_load_openvla, _load_openvla_processor)
register_backbone("openvla", _OPENVLA)
register_backbone("prismatic", _OPENVLA)  # what the earliest published checkpoints call themselves

"""The optimizer of a run: its moments by parameter name, packed for a save and restored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch as th

from vla_agent.policy.averaging import AVERAGE
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.run_files import (
    CHECKSUMS,
    OPTIMIZER,
    OPTIMIZER_GROUPS,
    DamagedRunError,
    RunFiles,
    read_json,
    read_tensors,
)

_FORM = {"class": str, "groups": [{"params": [str]}], "scalars": {}}


def pack_optimizer(policy: VLAPolicy) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """The optimizer's tensors under "parameter|name", and its groups with parameters by name."""
    names: dict[th.Tensor, str] = {parameter: name for name, parameter in policy.named_parameters()}
    tensors, scalars = {}, {}
    for parameter, state in policy.optimizer.state.items():
        if parameter not in names:  # its adapter was merged into the model meanwhile
            continue
        for key, value in state.items():
            if isinstance(value, th.Tensor):
                tensors[f"{names[parameter]}|{key}"] = value
            else:
                scalars[f"{names[parameter]}|{key}"] = value
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[parameter] for parameter in group["params"] if parameter in names]}
        for group in policy.optimizer.param_groups
    ]
    return tensors, {"class": type(policy.optimizer).__name__, "groups": groups, "scalars": scalars}


def restore_optimizer(policy: VLAPolicy, files: RunFiles, device: str | None = None) -> None:
    """Restores what `pack_optimizer` gave; another class of optimizer starts afresh, with a warning.

    Args:
        policy: The policy.
        files: The run's files.
        device: Where the tensors go; None for where their parameters are.

    Raises:
        DamagedRunError: If the saved state does not fit the policy's parameters.
    """
    saved = read_json(files, OPTIMIZER_GROUPS, _FORM)
    optimizer = policy.optimizer
    if saved["class"] != type(optimizer).__name__:
        warnings.warn(
            f"The run used {saved['class']}, and this one {type(optimizer).__name__}: it starts afresh.", stacklevel=5
        )
        return
    parameters = dict(policy.named_parameters())
    entries = read_tensors(files, OPTIMIZER) | saved["scalars"]
    wrong = _fault_of_entries(entries, parameters) or _fault_of_groups(saved["groups"], policy)
    if not wrong and CHECKSUMS not in files.names:
        wrong = _fault_of_moments(entries, parameters, saved["groups"])
    if wrong:
        raise DamagedRunError(f"The optimizer in '{files.path}' is damaged: {wrong}.")
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        group.update({key: value for key, value in settings.items() if key != "params"})
    counts_on_device = {
        parameter
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    for key, value in entries.items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        if entry == AVERAGE and not policy.average_decay:
            continue  # nothing would keep it up to date
        # A "step" stays on the host unless it is counted on the device, as torch's `Optimizer.load_state_dict` has it.
        if isinstance(value, th.Tensor) and (entry != "step" or parameter in counts_on_device):
            value = value.to(parameter.device if device is None else device)
        optimizer.state[parameter][entry] = value


def _fault_of_entries(entries: Mapping[str, Any], parameters: Mapping[str, th.nn.Parameter]) -> str | None:
    """What does not fit: each entry must be a number or a tensor, of a parameter of the policy."""
    for key, value in entries.items():
        if key.rpartition("|")[0] not in parameters:
            return f"it has {key!r}, which is of no parameter of this policy"
        if not isinstance(value, (th.Tensor, bool, int, float, type(None))):
            return f"{key} is {value!r}; expected a number"
    return None


def _fault_of_moments(
    entries: Mapping[str, Any], parameters: Mapping[str, th.nn.Parameter], groups: list[dict[str, Any]]
) -> str | None:
    """What does not fit where no checksum vouches for what the optimizer wrote.

    Moments have their parameter's shape, or are Adafactor's sums over its last dimension or the one before (Shazeer and
    Stern 2018, arXiv 1804.04235). Parameters of a group have the same moments if they are all vectors, or none is.
    """
    kinds: dict[str, set[str]] = {}
    for key, value in entries.items():
        name, _, entry = key.rpartition("|")
        shape = tuple(parameters[name].shape)
        factors = ((*shape[:-1], 1), (*shape[:-2], 1, shape[-1])) if len(shape) > 1 else ()
        if isinstance(value, th.Tensor) and tuple(value.shape) not in ((), shape, *factors):
            return f"{key} has shape {tuple(value.shape)}, and the parameter {shape}"
        kinds.setdefault(name, set()).add(entry)
    for group in groups:
        members = [name for name in group["params"] if name in kinds]
        vectors = [name for name in members if parameters[name].ndim < 2]
        for alike in (vectors, [name for name in members if name not in vectors]):
            wanted = set().union(*(kinds[name] for name in alike))
            for name in alike:
                if kinds[name] != wanted:
                    return f"{name} lacks {', '.join(sorted(wanted - kinds[name]))}"
    return None


def _fault_of_groups(groups: list[dict[str, Any]], policy: VLAPolicy) -> str | None:
    """What does not fit: the groups must have the same parameters, and settings of the kinds that they have now."""
    names = {parameter: name for name, parameter in policy.named_parameters()}
    own = policy.optimizer.param_groups
    if len(groups) != len(own):
        return f"it has {len(groups)} groups of parameters, and this policy's {len(own)}"
    for number, (group, mine) in enumerate(zip(groups, own, strict=True)):
        if group["params"] != [names[parameter] for parameter in mine["params"]]:
            return f"its group {number} has other parameters than this policy's"
        for key in mine.keys() - {"params"}:
            if key in group and not _is_same_kind(group[key], mine[key]):
                return f"{key} of group {number} is {group[key]!r}, which stands where {mine[key]!r} does in a new run"
    if "lr" in own[0] and any("lr" not in group for group in groups):
        return "a group has no learning rate (lr)"
    return None


def _is_same_kind(saved: Any, now: Any) -> bool:
    if isinstance(now, (list, tuple)):
        return isinstance(saved, list) and len(saved) == len(now) and all(map(_is_same_kind, saved, now))
    if isinstance(now, (bool, str)):
        return type(saved) is type(now)
    if isinstance(now, (int, float)):
        return isinstance(saved, (int, float)) and not isinstance(saved, bool) and abs(saved) < float("inf")
    return saved is None or isinstance(saved, (bool, int, float))  # such as foreach=None

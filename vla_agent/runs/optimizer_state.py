"""The optimizer of a run: its moments by parameter name, packed for a save and restored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch as th

from vla_agent.policy.averaging import AVERAGE
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.run_files import OPTIMIZER, OPTIMIZER_GROUPS, DamagedRunError, RunFiles, read_json, read_tensors

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
    wrong = _fault_of_entries(entries, parameters, saved["groups"]) or _fault_of_groups(saved["groups"], policy)
    if wrong:
        raise DamagedRunError(f"The optimizer in '{files.path}' is damaged: {wrong}.")
    for key, value in entries.items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        if entry == AVERAGE and not policy.average_decay:
            continue  # nothing would keep it up to date
        if isinstance(value, th.Tensor) and value.ndim:
            value = value.to(parameter.device if device is None else device)
        optimizer.state[parameter][entry] = value
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        group.update({key: value for key, value in settings.items() if key != "params"})


def _fault_of_entries(
    entries: Mapping[str, Any], parameters: Mapping[str, th.nn.Parameter], groups: list[dict[str, Any]]
) -> str | None:
    """What does not fit: parameters of a group with moments must have the same ones, each of its own shape."""
    kinds: dict[str, set[str]] = {}
    for key, value in entries.items():
        name, _, entry = key.rpartition("|")
        if name not in parameters:
            return f"it has {key!r}, which is of no parameter of this policy"
        shape = tuple(parameters[name].shape)
        if isinstance(value, th.Tensor) and tuple(value.shape) not in ((), shape):
            return f"{key} has shape {tuple(value.shape)}, and the parameter {shape}"
        if not isinstance(value, (th.Tensor, bool, int, float, type(None))):
            return f"{key} is {value!r}; expected a number"
        kinds.setdefault(name, set()).add(entry)
    for group in groups:
        members = {name: kinds[name] for name in group["params"] if name in kinds}
        wanted = set().union(*members.values())
        for name, found in members.items():
            if found != wanted:
                return f"{name} lacks {', '.join(sorted(wanted - found))}"
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

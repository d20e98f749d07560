"""Runs on disk: a folder or zip of JSON and safetensors, published in one rename. Nothing in it is ever unpickled.

| file | content |
| --- | --- |
| `hyperparameters.json` | constructor arguments, spaces, the base model's id, fingerprints and action statistics |
| `policy.safetensors` | adapters and value head; without adapters, all weights |
| `optimizer.safetensors`, `optimizer.json` | the optimizer's moments by parameter name, and its groups |
| `state.json` | what else going on depends on: counters, random generators, environments, callbacks |
| `tables.safetensors` | long tables of the state, such as all episodes so far, by column; only long runs have it |
| `checksums.json` | SHA-256 of the others |

`loading` reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch as th

from vla_agent.common.atomic import ZIP, destination, save_tensors, writing, writing_zip, zip_destination
from vla_agent.common.hashes import fingerprint, hash_weights
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs import tables
from vla_agent.runs.learner import Learner, live_policy
from vla_agent.runs.moments import Contents, own_containers
from vla_agent.runs.optimizer_state import pack_optimizer
from vla_agent.runs.run_files import (
    CHECKSUMS,
    FILES,
    FORMAT,
    HYPERPARAMETERS,
    MAX_JSON_BYTES,
    OPTIMIZER,
    OPTIMIZER_GROUPS,
    POLICY,
    RUN,
    STATE,
    TABLES,
    RunError,
    sha256,
)
from vla_agent.runs.serialization import generator_states, space_to_json, to_json


def save(model: Learner, path: Path) -> None:
    """Writes a run: a folder, or one zip if the path ends in ``.zip``. A run that is there is exchanged in one step.

    What is written is of one moment: the run as it is, or from a rollout's first step to the end of its update, the run
    before that rollout, from which going on repeats it exactly.

    Raises:
        ValueError: If an argument of the policy cannot be written as JSON.
        RunError: In the middle of an update of more than the model's ``max_copy_bytes``, or if a document would be
            larger than what is read again. Nothing is written then.
        FileExistsError: If something else than a run is there.
        OSError: If it cannot be written.
    """
    is_zip = path.suffix == ZIP
    (zip_destination if is_zip else destination)(path, RUN)  # before anything is gathered
    moment = model.moment()
    if moment.missing is not None:
        raise RunError(f"{moment.missing} Save before or after the update; checkpoints from before it are whole.")
    contents = moment.contents or live_contents(live_policy(model))
    state, columns = tables.split(moment.state)
    documents = {
        HYPERPARAMETERS: _hyperparameters(model),
        OPTIMIZER_GROUPS: contents.optimizer_groups,
        STATE: state,
    }
    tensors = {POLICY: contents.weights, OPTIMIZER: contents.optimizer_tensors}
    if columns:
        tensors[TABLES] = columns
    with (writing_zip if is_zip else writing)(path, RUN) as folder:
        for name, content in tensors.items():
            save_tensors(content, folder / name)
        for name, document in documents.items():
            _write_json(folder / name, document)
        names = (*FILES, TABLES) if columns else FILES
        _write_json(folder / CHECKSUMS, {"sha256": {name: _sha256_of(folder / name) for name in names}})


def training_state(model: Learner) -> dict[str, Any]:
    """Everything except weights and optimizer that going on depends on, now, as JSON can hold it.

    It shares no dict or list with the run, so it stays what it is while the run goes on.
    """
    return own_containers(model.state_dict() | {"generators": generator_states(model.device)})


def live_contents(policy: VLAPolicy) -> Contents:
    """What an update changes, as it is now; the tensors are the policy's own."""
    return Contents(policy_tensors(policy), *pack_optimizer(policy))


def policy_tensors(policy: VLAPolicy) -> dict[str, th.Tensor]:
    """What differs from the base model: adapters and value head, or all weights if the model itself is trained."""
    state = policy.state_dict()
    if policy.lora is None:
        return state
    return {name: tensor for name, tensor in state.items() if "lora_" in name or name.startswith("value_head.")}


def _hyperparameters(model: Learner) -> dict[str, Any]:
    policy, progress = live_policy(model), model.progress_remaining
    known = model.without_env if model.env is None else {}
    # The device belongs to the machine, and the model has a place of its own, by its id.
    policy_kwargs = {key: value for key, value in model.policy_kwargs.items() if key not in ("device", "model")}
    return {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": type(policy).__name__,
        "arguments": {name: to_json(name, value, progress) for name, value in model.constructor_arguments().items()},
        "policy_kwargs": {name: to_json(name, value, progress) for name, value in policy_kwargs.items()},
        "base_model": {
            "id": policy.model_id,
            "class": type(policy.backbone).__name__,
            "fingerprint": policy.backbone.processor.fingerprint(),
            "norm_stats": _action_statistics(policy),
            "frozen": frozen_fingerprint(policy),
        },
        "n_envs": model.n_envs,
        "engine": known.get("engine", model.engine_settings),
        "depends_on": known.get("depends_on", {}) | model.depends_on,
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
    }


def frozen_fingerprint(policy: VLAPolicy) -> str | None:
    """Short hash of the weights under a policy's adapters, in whatever type they are loaded; None without adapters."""
    if policy.lora is None:
        return None
    known: str | None = getattr(policy, "_frozen_fingerprint", None)
    if known is None:  # gigabytes, which stay as they are
        trained = policy_tensors(policy)
        frozen = ((name, tensor) for name, tensor in sorted(policy.state_dict().items()) if name not in trained)
        known = fingerprint(hash_weights({name: tensor.to(th.bfloat16)}).encode() for name, tensor in frozen)
        policy._frozen_fingerprint = known  # type: ignore[assignment]
    return known


def _action_statistics(policy: VLAPolicy) -> dict[str, Any] | None:
    """What the model's actions are scaled by, as its `config.json` says it: whoever runs the adapters needs it."""
    return getattr(getattr(policy.backbone.processor, "config", None), "norm_stats", None)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    if len(text) > MAX_JSON_BYTES:
        sizes = {key: len(json.dumps(value)) for key, value in document.items()}
        largest = max(sizes, key=lambda key: sizes[key])
        raise RunError(
            f"The run cannot be saved: its {path.name} would be {len(text) / 2**20:.4g} MiB, and one above "
            f"{MAX_JSON_BYTES / 2**20:.4g} MiB is not read again. Most of it is {largest!r}; train with fewer "
            "environments, or with callbacks whose state_dict keeps less."
        )
    path.write_text(text, encoding="utf-8")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256(stream)

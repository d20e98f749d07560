"""Runs on disk: a folder of JSON and safetensors, published in one rename. Nothing in it is ever unpickled.

| file | content |
| --- | --- |
| `hyperparameters.json` | constructor arguments, spaces, the base model's id, fingerprint and action statistics |
| `policy.safetensors` | adapters and value head; without adapters, all weights |
| `optimizer.safetensors`, `optimizer.json` | the optimizer's moments by parameter name, and its groups |
| `state.json` | what else going on depends on: counters, random generators, environments, callbacks |
"""

from __future__ import annotations

import json
import reprlib
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.folders import writing
from vla_agent.moments import Contents, Moment, own_containers
from vla_agent.policy import VLAPolicy
from vla_agent.rollout import check_batches
from vla_agent.serialization import (
    from_json,
    generator_states,
    restore_generators,
    space_from_json,
    space_to_json,
    to_json,
)

if TYPE_CHECKING:
    from vla_agent.ppo import VLAPPO
    from vla_agent.vec_env import VLAVecEnv

SelfVLAPPO = TypeVar("SelfVLAPPO", bound="VLAPPO")

FORMAT = 2
HYPERPARAMETERS, POLICY, STATE = "hyperparameters.json", "policy.safetensors", "state.json"
OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
FILES = (HYPERPARAMETERS, POLICY, OPTIMIZER, OPTIMIZER_GROUPS, STATE)

CONSTRUCTOR_ARGUMENTS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "clip_range_vf",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
    "tensorboard_log",
    "verbose",
    "seed",
    "gradient_accumulation_steps",
    "critic_warmup_iterations",
    "value_loss",
    "huber_delta",
    "ratio_level",
    "value_learning_rate",
    "kl_ref_coef",
    "ratio_tolerance",
    "bootstrap_time_limits",
    "value_gae_lambda",
    "n_value_epochs",
    "policy_warmup_iterations",
)
COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "n_iterations",
    "n_skipped_steps",
)


# Arguments that change nothing of what is learned.
INCONSEQUENTIAL = ("verbose", "tensorboard_log")


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state is saved with the run, and given back to one of its class when the run goes on."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, as JSON can hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; called before the training starts."""


class RunError(ValueError):
    """A saved run that is incomplete, damaged, or does not fit."""


def is_zip(path: Path) -> bool:
    """Whether SB3 saved there: a zip file, with or without its suffix."""
    candidates = [path, path.with_name(path.name + ".zip")]
    return any(candidate.is_file() and zipfile.is_zipfile(candidate) for candidate in candidates)


# ------------------------------------------------------------------------------------------------ save


def save(model: VLAPPO, path: Path) -> None:
    """Writes a run. An existing folder is exchanged for the new one in one step.

    What is written is of one moment: the run as it is, or from a rollout's first step to the end of its update, the run
    before that rollout, from which going on repeats it exactly.

    Raises:
        ValueError: If an argument of the policy cannot be written as JSON.
        RunError: In the middle of an update of more than the model's ``max_copy_bytes``.
    """
    moment = model.boundary or Moment(training_state(model))
    if moment.missing is not None:
        raise RunError(f"{moment.missing} Save before or after the update; checkpoints from before it are whole.")
    contents = moment.contents or live_contents(cast(VLAPolicy, model.policy))
    documents = {
        HYPERPARAMETERS: _hyperparameters(model),
        OPTIMIZER_GROUPS: contents.optimizer_groups,
        STATE: moment.state,
    }
    tensors = {POLICY: contents.weights, OPTIMIZER: contents.optimizer_tensors}
    with writing(path) as folder:
        for name, content in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, folder / name)
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def live_contents(policy: VLAPolicy) -> Contents:
    """What an update changes, as it is now; the tensors are the policy's own."""
    return Contents(policy_tensors(policy), *_pack_optimizer(policy))


def policy_tensors(policy: VLAPolicy) -> dict[str, th.Tensor]:
    """What differs from the base model: adapters and value head, or all weights where the model itself is trained."""
    state = policy.state_dict()
    if policy.lora is None:
        return state
    return {name: tensor for name, tensor in state.items() if "lora_" in name or name.startswith("value_head.")}


def _hyperparameters(model: VLAPPO) -> dict[str, Any]:
    policy = cast(VLAPolicy, model.policy)
    policy_kwargs = {key: value for key, value in model.policy_kwargs.items() if key not in ("device", "model")}
    progress = model._current_progress_remaining
    return {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": type(policy).__name__,
        "arguments": {name: to_json(name, getattr(model, name), progress) for name in CONSTRUCTOR_ARGUMENTS}
        | {"stats_window_size": model._stats_window_size},
        "policy_kwargs": {name: to_json(name, value, progress) for name, value in policy_kwargs.items()},
        "base_model": {
            "id": policy.model_id,
            "class": type(policy.backbone).__name__,
            "fingerprint": policy.backbone.processor.fingerprint(),
            "norm_stats": _action_statistics(policy),
        },
        "n_envs": model.n_envs,
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
    }


def _action_statistics(policy: VLAPolicy) -> dict[str, Any] | None:
    """What the model's actions are scaled by, as its `config.json` says it: whoever runs the adapters needs it."""
    return getattr(getattr(policy.backbone.processor, "config", None), "norm_stats", None)


def _pack_optimizer(policy: VLAPolicy) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """The optimizer's tensors under "parameter|name", and its groups with parameters by name."""
    names: dict[th.Tensor, str] = {parameter: name for name, parameter in policy.named_parameters()}
    tensors, scalars = {}, {}
    for parameter, state in policy.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, th.Tensor):
                tensors[f"{names[parameter]}|{key}"] = value
            else:
                scalars[f"{names[parameter]}|{key}"] = value
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[parameter] for parameter in group["params"]]}
        for group in policy.optimizer.param_groups
    ]
    return tensors, {"class": type(policy.optimizer).__name__, "groups": groups, "scalars": scalars}


def training_state(model: VLAPPO) -> dict[str, Any]:
    """Everything except weights and optimizer that going on depends on, now, as JSON can hold it.

    It shares no dict or list with the run, so it stays what it is while the run goes on.
    """
    starts = model._last_episode_starts
    can_tell = is_restorable(model.env) and model._last_obs is not None
    state = {
        "run": model.run,
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "episodes": list(model.ep_info_buffer or ()),
        "successes": [bool(success) for success in model.ep_success_buffer or ()],
        "generators": generator_states(model.device),
        "environments": cast("VLAVecEnv", model.env).snapshot() if can_tell else None,
        "episode_starts": None if starts is None else np.asarray(starts, dtype=bool).tolist(),
        "callbacks": {name: callback.state_dict() for name, callback in model.stateful_callbacks.items()},
    }
    return own_containers(state)


def is_restorable(env: GymEnv | None) -> bool:
    """Whether environments have `VLAVecEnv.snapshot` and what belongs to it; a wrapper must have its own."""
    return hasattr(type(env), "snapshot")


def parts(callbacks: Iterable[BaseCallback]) -> Iterator[BaseCallback]:
    """All callbacks in trees of them."""
    for callback in callbacks:
        yield callback
        yield from parts(getattr(callback, "callbacks", []))
        if isinstance(child := getattr(callback, "callback", None), BaseCallback):
            yield from parts([child])


def stateful_callbacks(root: BaseCallback) -> dict[str, StatefulCallback]:
    """The callbacks in a tree of them that have a state to save, by class name, numbered where there are several."""
    found: dict[str, StatefulCallback] = {}
    counts: Counter[str] = Counter()
    for callback in parts([root]):
        if isinstance(callback, StatefulCallback):
            name = type(callback).__name__
            found[f"{name}-{counts[name]}" if counts[name] else name] = callback
            counts[name] += 1
    return found


# ------------------------------------------------------------------------------------------------ load


def load(
    algorithm: type[SelfVLAPPO],
    path: Path,
    env: GymEnv | None,
    device: th.device | str,
    allow_changes: bool,
    **changes: Any,
) -> SelfVLAPPO:
    """The run saved at `path`; see `VLAPPO.load`.

    Raises:
        RunError: If it is incomplete, damaged, of another format, does not fit ``env`` or the base model, or would go
            on otherwise than it was made, and that is not allowed.
    """
    saved, state = _read_hyperparameters(path), _read_json(path, STATE)
    asked = dict(changes)
    policy_kwargs = from_json(saved["policy_kwargs"]) | changes.pop("policy_kwargs", {})
    base = saved["base_model"]
    policy_kwargs.setdefault("model", base["id"])
    if policy_kwargs["model"] is None:
        raise RunError(
            f"The run '{path}' was made with a model object ({base['class']}), which no checkpoint names; "
            "give policy_kwargs=dict(model=...)."
        )
    arguments = from_json(saved["arguments"]) | changes | {"policy_kwargs": policy_kwargs}
    model = algorithm(saved["policy"], cast(Any, None), device=device, _init_setup_model=False, **arguments)
    model.observation_space = space_from_json(saved["observation_space"])
    model.action_space = space_from_json(saved["action_space"])
    model.n_envs = saved["n_envs"]
    if env is not None:
        model.env = model._wrap_env(env, model.verbose)
        model.n_envs = model.env.num_envs
        try:
            check_for_correct_spaces(model.env, model.observation_space, model.action_space)
        except ValueError as error:
            raise RunError(f"The run '{path}' was trained on other spaces than the environment has. {error}") from error
        if not allow_changes:
            _refuse_changes(path, _changes(saved, state, model.env, asked))
    check_batches(model.n_steps, model.n_envs, model.batch_size)
    model._setup_model()
    policy = cast(VLAPolicy, model.policy)
    if policy.backbone.processor.fingerprint() != base["fingerprint"]:
        raise RunError(
            f"The run '{path}' was trained on another base model than '{policy_kwargs['model']}' is now: tokenizer or "
            "action statistics differ. Give the right one with policy_kwargs=dict(model=...)."
        )
    _restore_policy(policy, path)
    _restore_optimizer(policy, path)
    _restore_state(model, state)
    return model


def _changes(saved: dict[str, Any], state: dict[str, Any], env: VecEnv, given: dict[str, Any]) -> list[str]:
    """What would be otherwise than in the saved run, as "name: saved, not given"."""
    before = saved["arguments"] | {f"policy_kwargs {key}": value for key, value in saved["policy_kwargs"].items()}
    now = {key: value for key, value in given.items() if key not in ("policy_kwargs", *INCONSEQUENTIAL)}
    now |= {f"policy_kwargs {key}": value for key, value in given.get("policy_kwargs", {}).items() if key != "model"}
    now = {key: to_json(key, value, 1.0) for key, value in now.items()}
    before["n_envs"], now["n_envs"] = saved["n_envs"], env.num_envs
    if state["environments"] is not None and is_restorable(env):
        before |= {f"environments' {key}": value for key, value in state["environments"]["settings"].items()}
        now |= {f"environments' {key}": value for key, value in cast("VLAVecEnv", env).settings.items()}
    changed = [key for key in now if now[key] != before.get(key)]
    return [f"{key}: {reprlib.repr(before.get(key))}, not {reprlib.repr(now[key])}" for key in changed]


def _refuse_changes(path: Path, changes: list[str]) -> None:
    if changes:
        raise RunError(
            f"The run '{path}' was made otherwise ({'; '.join(changes)}). Give what it was made with, or "
            "allow_changes=True to go on as asked; it is then another run than without the stop."
        )


def _read_hyperparameters(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunError(f"There is no saved run at '{path}'; expected a folder with {', '.join(FILES)}.")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise RunError(f"The folder '{path}' is no complete run: it lacks {', '.join(missing)}.")
    saved = _read_json(path, HYPERPARAMETERS)
    if saved.get("format") != FORMAT:
        raise RunError(f"The run '{path}' has format {saved.get('format')}; this version reads format {FORMAT}.")
    return saved


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((path / name).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"'{path / name}' is damaged ({error}).") from error


def _read_tensors(path: Path, name: str) -> dict[str, th.Tensor]:
    try:
        return load_file(path / name)
    except SafetensorError as error:
        raise RunError(f"'{path / name}' is damaged ({error}).") from error


def _restore_policy(policy: VLAPolicy, path: Path) -> None:
    tensors = _read_tensors(path, POLICY)
    wanted = policy_tensors(policy)
    wrong = sorted(set(tensors) ^ set(wanted))
    wrong += [name for name in set(tensors) & set(wanted) if tensors[name].shape != wanted[name].shape]
    if wrong:
        raise RunError(f"The weights in '{path}' are not those of this policy: {', '.join(wrong[:5])} differ.")
    policy.load_state_dict(tensors, strict=False)


def _restore_optimizer(policy: VLAPolicy, path: Path) -> None:
    saved = _read_json(path, OPTIMIZER_GROUPS)
    optimizer = policy.optimizer
    if saved["class"] != type(optimizer).__name__:
        warnings.warn(
            f"The run used {saved['class']}, and this one {type(optimizer).__name__}: it starts afresh.", stacklevel=4
        )
        return
    parameters = dict(policy.named_parameters())
    for key, value in (_read_tensors(path, OPTIMIZER) | saved["scalars"]).items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        if isinstance(value, th.Tensor) and value.ndim:
            value = value.to(parameter.device)
        optimizer.state[parameter][entry] = value
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        group.update({key: value for key, value in settings.items() if key != "params"})


def _restore_state(model: VLAPPO, state: dict[str, Any]) -> None:
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
    model.callback_states = state["callbacks"]
    model.run = state.get("run")  # runs saved before there were identities have none
    _restore_environments(model, state)
    restore_generators(state["generators"], model.device)  # last: what came before may have drawn


def _restore_environments(model: VLAPPO, state: dict[str, Any]) -> None:
    """Put the environments back to where they were; where that cannot be, let them draw episodes of their own."""
    if model.env is None:
        return
    env, saved = cast("VLAVecEnv", model.env), state["environments"]
    can_go_on = saved is not None and is_restorable(env)
    if can_go_on and env.settings == saved["settings"] and env.num_envs == len(saved["lengths"]):
        model._last_obs = env.restore(saved)
        model._last_episode_starts = np.array(state["episode_starts"])
    elif model.seed is not None:
        model.env.seed(model.seed + model.num_timesteps)  # not the episodes of the run's beginning again

"""Runs on disk: a folder or zip of JSON and safetensors, published in one rename. Nothing in it is ever unpickled.

| file | content |
| --- | --- |
| `hyperparameters.json` | constructor arguments, spaces, the base model's id, fingerprint and action statistics |
| `policy.safetensors` | adapters and value head; without adapters, all weights |
| `optimizer.safetensors`, `optimizer.json` | the optimizer's moments by parameter name, and its groups |
| `state.json` | what else going on depends on: counters, random generators, environments, callbacks |
| `checksums.json` | SHA-256 of the others |
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import reprlib
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.checks import did_you_mean, flag
from vla_agent.algorithms.buffers import check_batches
from vla_agent.atomic import ZIP, destination, save_tensors, writing, writing_zip, zip_destination
from vla_agent.hashes import hash_file
from vla_agent.policy.arguments import check_names
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.documents import fault
from vla_agent.runs.moments import Contents, Moment, own_containers
from vla_agent.runs.optimizer_state import pack_optimizer, restore_optimizer
from vla_agent.runs.run_files import (
    CHECKSUMS,
    FILES,
    FORMAT,
    HYPERPARAMETERS,
    OPTIMIZER,
    OPTIMIZER_GROUPS,
    POLICY,
    RUN,
    STATE,
    DamagedRunError,
    RunError,
    RunFiles,
    check_whole,
    damage,
    find,
    is_foreign_zip,
    is_run,
    opened,
    read_json,
    read_tensors,
)
from vla_agent.runs.serialization import (
    from_json,
    generator_states,
    restore_generators,
    space_from_json,
    space_to_json,
    to_json,
)

if TYPE_CHECKING:
    from vla_agent.algorithms.ppo import VLAPPO
    from vla_agent.envs.vec_env import VLAVecEnv

SelfVLAPPO = TypeVar("SelfVLAPPO", bound="VLAPPO")

logger = logging.getLogger(__name__)

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


# What a run's documents must look like; see `documents.fault`.
_NOTHING = type(None)
_RATE = (float, bool, _NOTHING, {"LinearSchedule": [float]})
ARGUMENT_FORMS: dict[str, Any] = {
    "value_loss": str,
    "ratio_level": str,
    "tensorboard_log": (str, _NOTHING),
    "normalize_advantage": bool,
    "bootstrap_time_limits": bool,
}
_N_ENVS = range(1, 2**16)
HYPERPARAMETERS_FORM = {
    "policy": str,
    "arguments": dict.fromkeys(("n_steps", "batch_size", "n_epochs"), range(1, 2**31)),
    "policy_kwargs": {},
    "base_model": {"id": (str, _NOTHING), "class": str, "fingerprint": str},
    "n_envs": _N_ENVS,
    "observation_space": {},
    "action_space": {},
}
STATE_FORM = {
    "counters": {**dict.fromkeys(COUNTERS, int), "_current_progress_remaining": float},
    "episodes": [{"r": object, "l": object}],
    "successes": [bool],
    "generators": {"torch": str, "numpy": [object], "python": [object]},
    "environments": ({"settings": {}, "lengths": [object]}, _NOTHING),
    "episode_starts": ([bool], _NOTHING),
    "callbacks": {},
}
# What SB3's zips hold and loaders replace, but a run derives.
_SB3_ATTRIBUTES = ("policy_class", "lr_schedule", "_last_obs", "_last_episode_starts", "rollout_buffer")

# Arguments that change nothing of what is learned.
INCONSEQUENTIAL = ("verbose", "tensorboard_log")


def is_for_sb3(path: Any, unsafe_sb3_zip: bool) -> bool:
    """Whether SB3's own loader, which unpickles, is to read what is there.

    Raises:
        TypeError: If what is there is no path and no open file.
        ValueError: If ``unsafe_sb3_zip`` is no bool: "no" would be taken for yes.
        RunError: If only that could read it, and it was not asked for.
    """
    unsafe_sb3_zip = flag("unsafe_sb3_zip", unsafe_sb3_zip)
    is_path = isinstance(path, (str, Path))
    if not is_path and not hasattr(path, "read"):
        raise TypeError(f"path={path!r:.80}; expected the folder or zip of a saved run, as a str or Path.")
    found = find(path) if is_path else None
    if found is not None and not is_foreign_zip(found):
        return False
    if not unsafe_sb3_zip:
        what = f"'{found}' is a zip of SB3's" if is_path else f"A {type(path).__name__} would be read as a zip of SB3's"
        raise RunError(
            f"{what}, and loading it would unpickle it: whoever wrote it could run any code here. Give "
            "unsafe_sb3_zip=True if you wrote it yourself, or the folder or zip of a VLAPPO with 'VLAPolicy'."
        )
    return True


def check_free_for_sb3(path: Any) -> None:
    """Refuses a path at which SB3, which replaces any file, would replace something else than a zip of its own.

    Raises:
        FileExistsError: If there is such a file.
    """
    if isinstance(path, (str, Path)):
        if not Path(path).name:
            raise FileExistsError(f"'{path}' is a folder; give the model a file's name.")
        target = Path(path) if Path(path).suffix else Path(path).with_name(Path(path).name + ZIP)
        if target.exists() and not is_foreign_zip(target):
            raise FileExistsError(f"'{target}' is there, and no zip of SB3's; it stays. Give the model another name.")


# ------------------------------------------------------------------------------------------------ save


def save(model: VLAPPO, path: Path) -> None:
    """Writes a run: a folder, or one zip where the path ends in ``.zip``. A run that is there is exchanged in one step.

    What is written is of one moment: the run as it is, or from a rollout's first step to the end of its update, the run
    before that rollout, from which going on repeats it exactly.

    Raises:
        ValueError: If an argument of the policy cannot be written as JSON.
        RunError: In the middle of an update of more than the model's ``max_copy_bytes``.
        FileExistsError: If something else than a run is there.
        OSError: If it cannot be written.
    """
    is_zip = path.suffix == ZIP
    (zip_destination if is_zip else destination)(path, RUN)  # before anything is gathered
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
    with (writing_zip if is_zip else writing)(path, RUN) as folder:
        for name, content in tensors.items():
            save_tensors(content, folder / name)
        for name, document in documents.items():
            _write_json(folder / name, document)
        _write_json(folder / CHECKSUMS, {"sha256": {name: hash_file(folder / name) for name in FILES}})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def live_contents(policy: VLAPolicy) -> Contents:
    """What an update changes, as it is now; the tensors are the policy's own."""
    return Contents(policy_tensors(policy), *pack_optimizer(policy))


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


# ------------------------------------------------------------------------------------------------ load


def load(
    algorithm: type[SelfVLAPPO],
    path: Path,
    env: GymEnv | None,
    device: th.device | str,
    allow_changes: bool,
    custom_objects: dict[str, Any] | None = None,
    **changes: Any,
) -> SelfVLAPPO:
    """The run saved at `path`; see `VLAPPO.load`.

    Raises:
        RunError: If it is incomplete, damaged, of another format, does not fit ``env`` or the base model, or would go
            on otherwise than it was made, and that is not allowed.
    """
    _check_names(algorithm, changes)
    try:
        with opened(path) as files:
            return _load(algorithm, files, env, device, allow_changes, custom_objects or {}, changes)
    except DamagedRunError as error:
        raise DamagedRunError(f"{error}{_way_back(find(path))}") from error


def _load(
    algorithm: type[SelfVLAPPO],
    files: RunFiles,
    env: GymEnv | None,
    device: th.device | str,
    allow_changes: bool,
    custom_objects: dict[str, Any],
    changes: dict[str, Any],
) -> SelfVLAPPO:
    path = files.path
    if not check_whole(files):
        logger.info("'%s' is of before runs had checksums; only what it holds is checked.", path)
    saved, state = read_json(files, HYPERPARAMETERS, HYPERPARAMETERS_FORM), read_json(files, STATE, STATE_FORM)
    _check_environments(files, saved, state)
    _check_arguments(files, saved["arguments"])
    with _telling(files, HYPERPARAMETERS, ValueError):
        arguments, policy_kwargs = from_json(saved["arguments"]), from_json(saved["policy_kwargs"])
        spaces = {name: space_from_json(saved[name]) for name in ("observation_space", "action_space")}
    base = saved["base_model"]
    policy_kwargs = custom_objects.get("policy_kwargs", policy_kwargs) | (changes.get("policy_kwargs") or {})
    policy_kwargs.setdefault("model", base["id"])
    if policy_kwargs["model"] is None:
        raise RunError(
            f"The run '{path}' was made with a model object ({base['class']}), which no checkpoint names; "
            "give policy_kwargs=dict(model=...)."
        )
    arguments |= {name: value for name, value in custom_objects.items() if name in arguments}
    arguments |= changes | {"policy_kwargs": policy_kwargs}
    policy_class = custom_objects.get("policy_class") or _policy_class(algorithm, files, saved["policy"])
    with _telling(files, HYPERPARAMETERS, ValueError):
        taken_by = algorithm.policy_aliases[policy_class] if isinstance(policy_class, str) else policy_class
        check_names(taken_by, saved["policy_kwargs"])
    with _telling(files, HYPERPARAMETERS):
        model = algorithm(policy_class, cast(Any, None), device=device, _init_setup_model=False, **arguments)
    _check_custom_objects(model, custom_objects)
    model.observation_space = custom_objects.get("observation_space", spaces["observation_space"])
    model.action_space = custom_objects.get("action_space", spaces["action_space"])
    model.n_envs = saved["n_envs"]
    if env is not None:
        model.env = model._wrap_env(env, model.verbose)
        model.n_envs = model.env.num_envs
        try:
            check_for_correct_spaces(model.env, model.observation_space, model.action_space)
        except ValueError as error:
            raise RunError(f"The run '{path}' was trained on other spaces than the environment has. {error}") from error
        if not allow_changes:
            _refuse_changes(path, _changes(saved, state, model.env, changes))
    check_batches(model.n_steps, model.n_envs, model.batch_size)
    with _telling(files, HYPERPARAMETERS):
        model._setup_model()
    policy = cast(VLAPolicy, model.policy)
    if policy.backbone.processor.fingerprint() != base["fingerprint"]:
        given = policy_kwargs["model"]
        called = repr(str(given)) if isinstance(given, (str, Path)) else f"the {type(given).__name__} given"
        raise RunError(
            f"The run '{path}' was trained on another base model than {called} is now: tokenizer or action statistics "
            "differ. Give the right one with policy_kwargs=dict(model=...)."
        )
    _restore_policy(policy, files)
    restore_optimizer(policy, files)
    _restore_state(model, files, state)
    return model


def _check_names(algorithm: type[VLAPPO], changes: dict[str, Any]) -> None:
    """Refuses what is no argument, such as a typo, before anything is read."""
    known = inspect.signature(algorithm.__init__).parameters
    for name in changes:
        if name not in known:
            raise TypeError(f"{algorithm.__name__}.load has no argument {name!r}.{did_you_mean(name, known)}")


def _policy_class(algorithm: type[VLAPPO], files: RunFiles, name: str) -> type[VLAPolicy]:
    found = algorithm.policy_aliases.get(name)
    if found is None or not issubclass(found, VLAPolicy):
        raise RunError(
            f"The run '{files.path}' was made with the policy class {name}, which {algorithm.__name__} does not know; "
            "give custom_objects=dict(policy_class=...)."
        )
    return found


def _check_environments(files: RunFiles, saved: dict[str, Any], state: dict[str, Any]) -> None:
    if state["environments"] is not None:
        lengths = {len(state["environments"]["lengths"]), len(state["episode_starts"] or ()), saved["n_envs"]}
        if len(lengths) > 1:
            raise DamagedRunError(
                f"'{files.path / STATE}' is damaged: its environments are not the {saved['n_envs']} of the run."
            )


def _check_arguments(files: RunFiles, arguments: dict[str, Any]) -> None:
    where = f"'{files.path / HYPERPARAMETERS}'"
    unknown = sorted(set(arguments) - {*CONSTRUCTOR_ARGUMENTS, "stats_window_size"})
    if unknown:
        raise DamagedRunError(f"{where} is damaged: it has the argument {unknown[0]!r}, which VLAPPO has not.")
    for name, value in arguments.items():
        if wrong := fault(value, ARGUMENT_FORMS.get(name, _RATE), f"arguments.{name}"):
            raise DamagedRunError(f"{where} is damaged: {wrong}.")


def _check_custom_objects(model: VLAPPO, custom_objects: dict[str, Any]) -> None:
    """Warns of names that stand for nothing; SB3's own, such as ``lr_schedule``, are derived, and so need nothing."""
    known = inspect.signature(type(model).__init__).parameters
    for name in custom_objects:
        if name not in known and not hasattr(model, name) and name not in _SB3_ATTRIBUTES:
            warnings.warn(
                f"custom_objects has {name!r}, which no run holds.{did_you_mean(name, known)}",
                stacklevel=5,
            )


def _way_back(path: Path) -> str:
    """What else there is to go on from, as further sentences."""
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    found = {*run_dir.iterdir(), *run_dir.glob("checkpoints/*")} - {path}
    whole = [other for other in found if is_run(other) and damage(other) is None]
    whole.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    if not whole:
        return ""
    listed = ", ".join(f"'{other}'" for other in whole[:3])
    return (
        f" Beside it there are whole runs, newest first: {listed}. Go on from one of them: --resume '{whole[0]}', or "
        f"VLAPPO.load('{whole[0]}', env)."
    )


@contextlib.contextmanager
def _telling(files: RunFiles, name: str, *more: type[Exception]) -> Iterator[None]:
    """Tells what a document's content makes of raw errors, and of ``more``; errors that are sentences already pass."""
    raw: tuple[type[Exception], ...] = (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
        MemoryError,
        *more,
    )
    try:
        yield
    except raw as error:
        raise DamagedRunError(
            f"'{files.path / name}' is damaged, or does not fit what was given with it: {type(error).__name__} "
            f"({error})."
        ) from error


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


def _restore_policy(policy: VLAPolicy, files: RunFiles) -> None:
    tensors = read_tensors(files, POLICY)
    wanted = policy_tensors(policy)
    wrong = sorted(set(tensors) ^ set(wanted))
    wrong += [name for name in set(tensors) & set(wanted) if tensors[name].shape != wanted[name].shape]
    if wrong:
        raise RunError(f"The weights in '{files.path}' are not those of this policy: {', '.join(wrong[:5])} differ.")
    policy.load_state_dict(tensors, strict=False)


def _restore_state(model: VLAPPO, files: RunFiles, state: dict[str, Any]) -> None:
    for name in COUNTERS:
        setattr(model, name, state["counters"][name])
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
    model.callback_states = state["callbacks"]
    model.run = state.get("run")  # runs saved before there were identities have none
    with _telling(files, STATE, ValueError):
        _restore_environments(model, state)
    try:
        restore_generators(state["generators"], model.device)  # last: what came before may have drawn
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DamagedRunError(
            f"'{files.path / STATE}' is damaged: its generators are no states of random generators ({error})."
        ) from error


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

"""Saved runs read back: a learner of the class that is handed in, checked before anything of it is used."""

from __future__ import annotations

import contextlib
import itertools
import logging
import reprlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import did_you_mean
from libero_gym.equivalence.versions import with_fidelity
from vla_agent.policy.arguments import check_dict, check_names
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.choosing import is_run_folder
from vla_agent.runs.documents import fault
from vla_agent.runs.learner import Learner, RestorableEnv, is_restorable, live_policy
from vla_agent.runs.optimizer_state import restore_optimizer
from vla_agent.runs.run_files import (
    HYPERPARAMETERS,
    POLICY,
    STATE,
    DamagedRunError,
    RunError,
    RunFiles,
    check_whole,
    damage,
    find,
    is_run,
    opened,
    read_json,
    read_tensors,
)
from vla_agent.runs.run_folder import latest_run
from vla_agent.runs.saved_run import frozen_fingerprint, policy_tensors
from vla_agent.runs.serialization import class_name, from_json, restore_generators, space_from_json, to_json
from vla_agent.runs.signature import argument_forms, constructor_parameters

AnyLearner = TypeVar("AnyLearner", bound=Learner)

logger = logging.getLogger(__name__)

# What a run's documents must look like; see `documents.fault`.
_NOTHING = type(None)
HYPERPARAMETERS_FORM = {
    "policy": str,
    "arguments": {},
    "policy_kwargs": {},
    "base_model": {"id": (str, _NOTHING), "class": str, "fingerprint": str},
    "n_envs": range(1, 2**16),
    "observation_space": {},
    "action_space": {},
}
STATE_FORM = {
    "counters": {},
    "episodes": [{"r": object, "l": object}],
    "successes": [bool],
    "generators": {"torch": str, "numpy": [object], "python": [object]},
    "environments": ({"settings": {}, "lengths": [object]}, _NOTHING),
    "episode_starts": ([bool], _NOTHING),
    "callbacks": {},
}
# What SB3's zips hold and loaders replace, but a run derives.
_SB3_ATTRIBUTES = ("policy_class", "lr_schedule", "_last_obs", "_last_episode_starts", "rollout_buffer")

# Arguments that every run states, if its algorithm has them: a default in their place would be another run.
_SIZES = dict.fromkeys(("n_steps", "batch_size", "n_epochs"), range(1, 2**31))

# Arguments that change nothing of what is learned.
INCONSEQUENTIAL = ("verbose", "tensorboard_log", "teacher")  # of a teacher, its weights are compared


def load(
    algorithm: type[AnyLearner],
    path: Path,
    env: GymEnv | str | None,
    device: th.device | str,
    allow_changes: bool,
    custom_objects: dict[str, Any] | None = None,
    **changes: Any,
) -> AnyLearner:
    """The run saved at `path`, as a learner of a class; see `ResumableAlgorithm.load`.

    Raises:
        RunError: If it is incomplete, damaged, of another format, does not fit ``env`` or the base model, or would go
            on otherwise than it was made, and that is not allowed.
    """
    known = constructor_parameters(algorithm)
    for name in changes:  # a typo is told before anything is read
        if name not in known:
            raise TypeError(f"{algorithm.__name__}.load has no argument {name!r}.{did_you_mean(name, known)}")
    if changes.get("policy_kwargs", ()) is None:  # as the constructor takes it
        del changes["policy_kwargs"]
    check_dict("policy_kwargs", changes.get("policy_kwargs", {}))
    if is_run_folder(path):
        newest = latest_run(path)
        raise RunError(
            f"'{path}' is the folder of a run, which holds several saves. Load one of them, such as the newest: "
            f"{algorithm.__name__}.load('{newest}', env)."
        )
    try:
        with opened(path) as files:
            return _load(algorithm, files, env, device, allow_changes, custom_objects or {}, changes)
    except DamagedRunError as error:
        raise DamagedRunError(f"{error}{_way_back(algorithm, find(path))}") from error


def _load(
    algorithm: type[AnyLearner],
    files: RunFiles,
    env: GymEnv | str | None,
    device: th.device | str,
    allow_changes: bool,
    custom_objects: dict[str, Any],
    changes: dict[str, Any],
) -> AnyLearner:
    path = files.path
    if not check_whole(files):
        logger.info("'%s' is of before runs had checksums; only what it holds is checked.", path)
    saved = read_json(files, HYPERPARAMETERS, HYPERPARAMETERS_FORM)
    state = read_json(files, STATE, STATE_FORM | {"counters": algorithm.counters})
    _check_environments(files, saved, state)
    _check_arguments(algorithm, files, saved)
    arguments = _arguments(algorithm, files, saved, custom_objects, changes)
    with _telling(files, HYPERPARAMETERS, ValueError):
        spaces = {name: space_from_json(saved[name]) for name in ("observation_space", "action_space")}
    policy_class = custom_objects.get("policy_class") or _policy_class(algorithm, files, saved["policy"])
    with _telling(files, HYPERPARAMETERS, ValueError):
        taken_by = algorithm.policy_aliases[policy_class] if isinstance(policy_class, str) else policy_class
        check_names(taken_by, saved["policy_kwargs"])
    with _telling(files, HYPERPARAMETERS):
        model = cast(Any, algorithm)(policy_class, None, device=device, _init_setup_model=False, **arguments)
    _check_custom_objects(model, custom_objects)
    spaces = {name: custom_objects.get(name, space) for name, space in spaces.items()}
    with _environments(model, env) as wrapped:
        if wrapped is not None:
            _check_spaces(path, wrapped, spaces)
            if not allow_changes:
                _refuse_changes(path, _changes(saved, state, wrapped, changes, taken_by))
        with _telling(files, HYPERPARAMETERS):
            model.prepare(**spaces, n_envs=saved["n_envs"], env=wrapped)
        if not allow_changes:
            _refuse_changes(path, _others(saved.get("depends_on", {}), model.depends_on))
        policy = live_policy(model)
        _check_base_model(policy, path, saved["base_model"], arguments["policy_kwargs"]["model"])
        if not allow_changes:
            _check_frozen_weights(policy, path, saved["base_model"])
        _restore_policy(policy, files)
        restore_optimizer(policy, files, model.moments_device)
        if wrapped is None:
            model.without_env = {name: saved[name] for name in ("engine", "depends_on") if name in saved}
        _restore_state(model, files, state)
    return model


@contextlib.contextmanager
def _environments(model: Learner, env: GymEnv | str | None) -> Iterator[VecEnv | None]:
    """The environments as the learner takes them; what is made of an id is closed if loading fails."""
    wrapped = None if env is None else model.wrap_env(env)
    try:
        yield wrapped
    except BaseException:
        if wrapped is not None and isinstance(env, str):
            wrapped.close()
        raise


def _check_spaces(path: Path, env: VecEnv, spaces: dict[str, Any]) -> None:
    try:
        check_for_correct_spaces(env, **spaces)
    except ValueError as error:
        raise RunError(f"The run '{path}' was trained on other spaces than the environment has. {error}") from error


def _arguments(
    algorithm: type[Learner],
    files: RunFiles,
    saved: dict[str, Any],
    custom_objects: dict[str, Any],
    changes: dict[str, Any],
) -> dict[str, Any]:
    """What the learner is made with: what was saved, and what stands for it."""
    with _telling(files, HYPERPARAMETERS, ValueError):
        arguments, policy_kwargs = from_json(saved["arguments"]), from_json(saved["policy_kwargs"])
        algorithm.check_arguments({name: value for name, value in arguments.items() if class_name(value) is None})
    policy_kwargs = dict(custom_objects.get("policy_kwargs", policy_kwargs) or {}) | changes.get("policy_kwargs", {})
    base = saved["base_model"]
    policy_kwargs.setdefault("model", base["id"])
    if policy_kwargs["model"] is None:
        raise RunError(
            f"The run '{files.path}' was made with a model object ({base['class']}), which no checkpoint names; "
            "give policy_kwargs=dict(model=...)."
        )
    arguments |= {name: value for name, value in custom_objects.items() if name in arguments}
    arguments |= changes | {"policy_kwargs": policy_kwargs}
    _refuse_classes(algorithm, files, arguments, "{}=...")
    _refuse_classes(algorithm, files, policy_kwargs, "policy_kwargs=dict({}=...)")
    return arguments


def _refuse_classes(algorithm: type[Learner], files: RunFiles, given: dict[str, Any], how: str) -> None:
    """Refuses names of classes, which nobody imports; the message says ``how`` to give the class itself."""
    for name, value in given.items():
        if (called := class_name(value)) is not None:
            raise RunError(
                f"The run '{files.path}' was made with {name}={called}, a class that no file can hold; give it again, "
                f"as {algorithm.__name__}.load(path, {how.format(name)})."
            )


def _check_base_model(policy: VLAPolicy, path: Path, base: dict[str, Any], given: Any) -> None:
    if policy.backbone.processor.fingerprint() != base["fingerprint"]:
        called = repr(str(given)) if isinstance(given, (str, Path)) else f"the {type(given).__name__} given"
        raise RunError(
            f"The run '{path}' was trained on another base model than {called} is now: tokenizer or action statistics "
            "differ. Give the right one with policy_kwargs=dict(model=...)."
        )


def _check_frozen_weights(policy: VLAPolicy, path: Path, base: dict[str, Any]) -> None:
    """Complains about adapters on other weights than they were trained on; older runs do not tell theirs."""
    known, found = base.get("frozen"), frozen_fingerprint(policy)
    if known is not None and found is not None and known != found:
        raise RunError(
            f"The adapters of the run '{path}' were trained on other weights than '{policy.model_id}' has now. Give "
            "the right ones with policy_kwargs=dict(model=...), or allow_changes=True to go on with these."
        )


def _policy_class(algorithm: type[Learner], files: RunFiles, name: str) -> type[VLAPolicy]:
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


def _check_arguments(algorithm: type[Learner], files: RunFiles, saved: dict[str, Any]) -> None:
    where, forms = f"'{files.path / HYPERPARAMETERS}'", argument_forms(algorithm)
    forms |= {name: form for name, form in _SIZES.items() if name in forms}
    unknown = sorted(set(saved["arguments"]) - set(forms))
    lacking = [name for name in _SIZES if name in forms and name not in saved["arguments"]]
    if unknown:
        difference = f"it has the argument {unknown[0]!r}, which {algorithm.__name__} has not"
    elif lacking:
        difference = f"it has no {lacking[0]!r}, which every run of {algorithm.__name__} has"
    else:
        difference = ""
    if difference:
        made_by = saved.get("algorithm")
        if isinstance(made_by, str) and made_by != algorithm.__name__:
            raise RunError(f"The run '{files.path}' was made by {made_by}: {difference}. Load it with {made_by}.load.")
        raise DamagedRunError(f"{where} is damaged: {difference}.")
    for name, value in saved["arguments"].items():
        if wrong := fault(value, forms[name], f"arguments.{name}"):
            raise DamagedRunError(f"{where} is damaged: {wrong}.")


def _check_custom_objects(model: Learner, custom_objects: dict[str, Any]) -> None:
    """Warns of names that stand for nothing; SB3's own, such as ``lr_schedule``, are derived, and so need nothing."""
    known = constructor_parameters(type(model))
    for name in custom_objects:
        if name not in known and not hasattr(model, name) and name not in _SB3_ATTRIBUTES:
            warnings.warn(
                f"custom_objects has {name!r}, which no run holds.{did_you_mean(name, known)}",
                stacklevel=5,
            )


def _way_back(algorithm: type[Learner], path: Path) -> str:
    """What else there is to go on from, as further sentences."""
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    found = {*run_dir.iterdir(), *run_dir.glob("checkpoints/*")} - {path}
    newest_first = sorted(filter(is_run, found), key=lambda other: other.stat().st_mtime, reverse=True)
    whole = list(itertools.islice((other for other in newest_first if damage(other) is None), 3))  # it reads them whole
    if not whole:
        return ""
    listed = ", ".join(f"'{other}'" for other in whole)
    return (
        f" Beside it there are whole runs, newest first: {listed}. Go on from one of them: --resume '{whole[0]}', or "
        f"{algorithm.__name__}.load('{whole[0]}', env)."
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


def _changes(
    saved: dict[str, Any], state: dict[str, Any], env: VecEnv, given: dict[str, Any], policy_class: type
) -> list[str]:
    """What would be otherwise than in the saved run, as "name: saved, not given"."""
    defaults = {  # of what the run was made without
        f"policy_kwargs {name}": to_json(name, parameter.default, 1.0)
        for name, parameter in constructor_parameters(policy_class).items()
        if name in given.get("policy_kwargs", {}) and parameter.default is not parameter.empty
    }
    before = (
        defaults | saved["arguments"] | {f"policy_kwargs {key}": value for key, value in saved["policy_kwargs"].items()}
    )
    now = {key: value for key, value in given.items() if key not in ("policy_kwargs", "engine", *INCONSEQUENTIAL)}
    now |= {f"policy_kwargs {key}": value for key, value in given.get("policy_kwargs", {}).items() if key != "model"}
    now = {key: to_json(key, value, 1.0) for key, value in now.items()}
    before["n_envs"], now["n_envs"] = saved["n_envs"], env.num_envs
    engine = given.get("engine") or getattr(env.unwrapped, "engine", None)
    before["engine"], now["engine"] = saved.get("engine", {}), {} if engine is None else engine.settings
    if state["environments"] is not None and is_restorable(env):
        stated = with_fidelity(state["environments"]["settings"])
        before |= {f"environments' {key}": value for key, value in stated.items()}
        now |= {f"environments' {key}": value for key, value in cast(RestorableEnv, env).settings.items()}
    changed = [key for key in now if now[key] != before.get(key)]
    return [f"{key}: {_shown(before.get(key))}, not {_shown(now[key])}" for key in changed]


def _others(before: dict[str, Any], now: dict[str, str]) -> list[str]:
    """Models beside the policy that are others than the run's; what either lacks is not compared."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    return [f"{name}'s weights: {_shown(before[name])}, not {_shown(now[name])}" for name in changed]


def _shown(value: Any) -> str:
    return class_name(value) or reprlib.repr(value)


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


def restore_contents(policy: VLAPolicy, path: Path, moments_device: str | None = None) -> None:
    """Puts weights and optimizer of a saved run into a policy like the one that was saved.

    Args:
        policy: The policy.
        path: The run.
        moments_device: See `Learner`.

    Raises:
        RunError: If the run is damaged, or of another policy.
    """
    with opened(path) as files:
        _restore_policy(policy, files)
        policy.optimizer.state.clear()  # moments of parameters that had none then
        restore_optimizer(policy, files, moments_device)


def _restore_state(model: Learner, files: RunFiles, state: dict[str, Any]) -> None:
    with _telling(files, STATE, ValueError):
        model.load_state_dict(state)
    try:
        restore_generators(state["generators"], model.device)  # last: what came before may have drawn
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DamagedRunError(
            f"'{files.path / STATE}' is damaged: its generators are no states of random generators ({error})."
        ) from error

"""Checks of what `LiberoEnv` is given: each returns the value in its proper type, or raises one sentence."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from libero_gym.common.checks import choice, did_you_mean, sequence, whole_number
from libero_gym.compilation.draws import check_draw, check_seed
from libero_gym.compilation.placements import check_placement_seed
from libero_gym.dimensions import LAYERS
from libero_gym.rendering.posing import CAMERAS
from libero_gym.reward_model import RewardModel, find_reward_model
from libero_gym.tasks import Task, initial_states

RESET_OPTIONS = ("task_id", "init_state_id", "placement_seed", "fixture_seed", "fixture_draw")
# What LIBERO, robosuite and evaluations of published models call it, and we otherwise.
_FOREIGN_ARGUMENTS = {
    "camera_heights": "image_size",
    "camera_widths": "image_size",
    "resolution": "image_size",
    "camera_names": "cameras",
    "task_suite_name": "suite",
    "bddl_file_name": "task_id",
    "horizon": "max_episode_steps",
    "num_steps_wait": "settle_steps",
    "has_renderer": "render_mode",
    "render_gpu_device_id": "render_device",
}
_FOREIGN_CAMERAS = {
    stock + suffix: name for name, stock in CAMERAS.items() for suffix in ("", "_image") if stock + suffix != name
}


def refuse_unknown_arguments(unknown: Mapping[str, Any], function: Any) -> None:
    """Raise if there are keyword arguments that a function does not have.

    Raises:
        ValueError: If there are; the message offers the nearest name. `gym.make` would add words of its own to a
            TypeError.
    """
    if not unknown:
        return
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != "self"]
    name = next(iter(unknown))
    raise ValueError(
        f"Unknown argument {name!r}.{_hint(name, _FOREIGN_ARGUMENTS, names)} Arguments: {', '.join(names)}."
    )


def check_task_ids(task_id: int | Sequence[int] | None, n_tasks: int, suite: str) -> tuple[int, ...]:
    """The chosen task ids as a tuple; all of them for None.

    Raises:
        ValueError: If one is no whole number or out of range, or none is left.
    """
    if task_id is None:
        return tuple(range(n_tasks))
    several = isinstance(task_id, Iterable) and not isinstance(task_id, (str, bytes, dict)) and np.ndim(task_id) > 0
    ids = tuple(whole_number("task_id", index) for index in (task_id if several else (task_id,)))  # type: ignore[union-attr]
    for index in ids:
        if not 0 <= index < n_tasks:
            raise ValueError(f"task_id={index!r} is out of range; {suite} has tasks 0 to {n_tasks - 1}.")
    if not ids:
        raise ValueError(
            f"task_id={task_id!r} names no task; give one of 0 to {n_tasks - 1}, several, or None for all."
        )
    return ids


def check_instructions(tasks: Iterable[Task], space: spaces.Space[Any]) -> None:
    """Check that observations can show what these tasks say, if they show text.

    Raises:
        ValueError: If an instruction is not in its space.
    """
    words = space.get("instruction") if isinstance(space, spaces.Dict) else None
    for task in tasks:
        if isinstance(words, spaces.Text) and not words.contains(task.instruction):
            raise ValueError(
                f"The instruction of task {task.task_id} of {task.suite}, {task.instruction!r:.300}, is too long or "
                "has other than English characters; instruction='id' shows its number instead."
            )


def check_task_weights(weights: Sequence[float] | np.ndarray, n_tasks: int) -> np.ndarray:
    """Weights as probabilities, (n_tasks,).

    Raises:
        ValueError: If there is not one finite, non-negative weight per task, or all are zero.
    """
    expected = f"task weights {weights!r}: expected {n_tasks} finite weights >= 0, not all zero."
    try:
        values = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if values.shape != (n_tasks,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ValueError(expected)
    return values / values.sum()


def check_init_state_id(init_state_id: Any, task: Task) -> int:
    """The id of an official initial state, which the task has to have.

    Raises:
        ValueError: If it is no whole number, or the task has no such state.
    """
    index, n_states = whole_number("init_state_id", init_state_id), len(initial_states(task))
    if not n_states:
        raise ValueError(
            f"init_state_id={index!r}: task {task.task_id} of {task.suite} has no official initial states; leave it "
            "out, or give a placement_seed."
        )
    if not 0 <= index < n_states:
        raise ValueError(
            f"init_state_id={index!r} is out of range; task {task.task_id} of {task.suite} has official initial "
            f"states 0 to {n_states - 1}."
        )
    return index


def check_init_state_ids(
    init_state_ids: Any, tasks: Sequence[Task], placement_seeds: Sequence[int]
) -> tuple[int, ...] | None:
    """Ids of official initial states to draw from; None for all.

    Args:
        init_state_ids: The value to check.
        tasks: Tasks that all have to have each of these states.
        placement_seeds: Placements to draw from; without any, the ids must not be empty.

    Raises:
        ValueError: If a task lacks one of the states, or there is nothing to draw from.
    """
    if init_state_ids is None:
        return None
    ids = sequence("init_state_ids", init_state_ids)
    if not ids and not placement_seeds:
        raise ValueError("init_state_ids is empty; name official initial states, or None for all.")
    return tuple(min(check_init_state_id(index, task) for task in tasks) for index in ids)


def check_placement_seeds(placement_seeds: Any) -> tuple[int, ...]:
    """Seeds of placements to draw from, as a tuple."""
    return tuple(check_placement_seed(seed) for seed in sequence("placement_seeds", placement_seeds))


def check_cameras(cameras: Any) -> tuple[str, ...]:
    """Names of the cameras, each once."""
    if isinstance(cameras, (str, bytes, dict)) or not isinstance(cameras, Iterable):
        example = cameras if isinstance(cameras, str) else "agentview"
        raise ValueError(
            f"cameras={cameras!r} is no sequence; give a sequence, such as cameras=({example!r},), or () to draw none."
        )
    names = list(cameras)
    for name in names:
        if not isinstance(name, str) or name not in CAMERAS:
            raise ValueError(
                f"Unknown camera {name!r}.{_hint(str(name), _FOREIGN_CAMERAS, CAMERAS)} "
                f"Choices: {', '.join(map(repr, CAMERAS))}."
            )
    return tuple(dict.fromkeys(names))


def check_layers(layers: Any, cameras: tuple[str, ...]) -> tuple[str, ...]:
    """Names of what cameras show besides their images, each once.

    Raises:
        ValueError: If one is unknown, or there is no camera.
    """
    names = tuple(dict.fromkeys(choice("layer", name, LAYERS) for name in sequence("layers", layers)))
    if names and not cameras:
        raise ValueError(f"layers={names} are of cameras, and cameras=() draws none; give a camera, or layers=().")
    return names


def check_reward_model(
    reward: str, model: RewardModel | str | Path | None, cameras: tuple[str, ...]
) -> RewardModel | None:
    """The reward model of ``reward="process"``; None for other rewards."""
    if reward != "process":
        if model is not None:
            raise ValueError(f"reward_model is for reward='process', and reward is {reward!r}.")
        return None
    if not cameras:
        raise ValueError("reward='process' scores frames; give a camera.")
    return find_reward_model(model)


def check_render_mode(render_mode: Any, modes: Sequence[str]) -> str | None:
    """The render mode: one of the modes, or None."""
    return None if render_mode is None else choice("render_mode", render_mode, modes)


def check_render_threads(n_render_threads: Any, renderer: str) -> int:
    """The number of threads that draw a frame; only the fast renderer has several.

    Raises:
        ValueError: If it is no whole number of at least 1, or above 1 with another renderer.
    """
    n = whole_number("n_render_threads", n_render_threads, minimum=1)
    if n > 1 and renderer != "fast":
        raise ValueError(
            f"n_render_threads={n} with renderer={renderer!r}: OpenGL draws these frames and has its own threads; "
            "leave n_render_threads at 1, or choose renderer='fast'."
        )
    return n


def check_own_task(task_id: Any, task_ids: Sequence[int], tasks: Sequence[Task]) -> int:
    """The id of a task, which has to be one of the environment's.

    Args:
        task_id: The value to check.
        task_ids: The environment's tasks.
        tasks: All tasks of the suite.

    Raises:
        ValueError: If it is no whole number, or the suite or the environment has no such task.
    """
    index = whole_number("task_id", task_id)
    check_task_ids(index, len(tasks), tasks[0].suite)
    if index not in task_ids:
        raise ValueError(
            f"task_id={index} is none of this environment's tasks {list(task_ids)}; make it with "
            f"task_id={[*task_ids, index]}, or with None for all."
        )
    return index


def check_options(options: Any, task_ids: Sequence[int], tasks: Sequence[Task]) -> dict[str, Any]:
    """The options of a reset in their proper types, without those that are None.

    Args:
        options: The value to check.
        task_ids: The environment's tasks.
        tasks: All tasks of the suite.

    Raises:
        ValueError: If an option is unknown, out of range, or excludes another one.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"options={options!r}; expected a dict, such as options={{'task_id': 0, 'init_state_id': 3}}.")
    for name in options:
        if name not in RESET_OPTIONS:
            raise ValueError(
                f"Unknown reset option {name!r}.{did_you_mean(str(name), RESET_OPTIONS)} "
                f"Options: {', '.join(RESET_OPTIONS)}."
            )
    given = {name: value for name, value in options.items() if value is not None}
    if "init_state_id" in given and "placement_seed" in given:
        raise ValueError("Give either 'init_state_id' or 'placement_seed', not both.")
    if "task_id" in given:
        given["task_id"] = check_own_task(given["task_id"], task_ids, tasks)
    if "init_state_id" in given:  # for every task that may be drawn: once one is, the generator has moved
        possible = [given["task_id"]] if "task_id" in given else task_ids
        for index in possible:
            given["init_state_id"] = check_init_state_id(given["init_state_id"], tasks[index])
    if "placement_seed" in given:
        given["placement_seed"] = check_placement_seed(given["placement_seed"])
    if "fixture_draw" in given:
        given["fixture_draw"] = check_draw(given["fixture_draw"])
    if "fixture_seed" in given:
        given["fixture_seed"] = check_seed(given["fixture_seed"])
    return given


def check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The action as float64 of that shape.

    Raises:
        ValueError: If it is no array of numbers, has another shape, or is not finite.
    """
    values = _numbers("The action is", action, shape)
    if not np.isfinite(values).all():
        raise ValueError(f"The action holds NaN or infinity: {values.tolist()}; expected values in [-1, 1].")
    return values


def check_actions(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Actions of several environments, the first axis, as float64 of that shape.

    Raises:
        ValueError: If they are no array of numbers, have another shape, or are not finite; then it names the
            environments.
    """
    values = _numbers("The actions are", actions, shape)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1)).tolist()
        raise ValueError(f"The actions of environments {bad} hold NaN or infinity; expected values in [-1, 1].")
    return values


def limit_of_gym_make(env: gym.Env[Any, Any]) -> int | None:
    """The limit of the `gym.make` that is making an environment right now, through whatever entry point.

    Gymnasium keeps ``max_episode_steps`` for its ``TimeLimit``, which counts calls of `step` since its own reset: a
    chunk is one call, and a restored episode had steps before. It neither passes the argument on nor lets the
    environment see the wrapper, so the only way to learn of the limit is to look at the caller.

    Args:
        env: The environment, which is being constructed.

    Returns:
        Control steps; -1 if `gym.make` was told to set no limit; None if `gym.make` is not making this environment, or
        neither it nor the id has a limit.

    Raises:
        ValueError: If the limit is no whole number of at least 1.
    """
    frame, make = sys._getframe(1), inspect.unwrap(gym.make)
    while frame is not None and frame.f_code is not make.__code__:
        owner = frame.f_locals.get("self")
        is_wrapper_or_own = owner is env or isinstance(owner, gym.Wrapper)
        if isinstance(owner, (gym.Env, gym.vector.VectorEnv)) and not is_wrapper_or_own:
            return None  # another environment makes this one inside itself, and the limit is the other one's
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return None
    given, spec = frame.f_locals.get("max_episode_steps"), frame.f_locals.get("env_spec")
    if given is None:
        given = getattr(spec, "max_episode_steps", None)
    if given is None:  # so is the spec of an environment that was made with -1, though its id has a limit
        known = gym.registry.get(getattr(spec, "id", ""))
        return -1 if known is not None and known.max_episode_steps is not None else None
    if given == -1 and isinstance(given, int):
        return -1
    return whole_number("max_episode_steps", given, minimum=1)


def check_limits(
    max_episode_steps: Any, tasks: Sequence[Task], env: Any
) -> tuple[int | tuple[int, ...] | None, dict[int, int]]:
    """The limits at which the environment itself truncates episodes, and those that its episodes have.

    Args:
        max_episode_steps: The value to check.
        tasks: The environment's tasks.
        env: The `LiberoEnv`, which is being constructed; it has its suite and its chunk size.

    Returns:
        Control steps, as `one_or_all` states them, or None if the environment truncates none; and by task id.

    Raises:
        ValueError: If a limit is no whole number of at least 1, there are others than tasks, or a task has two.
    """
    limits = tuple(task.max_steps or env.suite.max_steps for task in tasks)
    truncates = env.chunk_size > 1 or env.suite.time_limit is None
    if max_episode_steps is not None:
        limits, truncates = check_max_episode_steps(max_episode_steps, len(tasks)), True
    elif (given := limit_of_gym_make(env)) == -1:
        truncates = False
    elif given is not None:
        limits, truncates = (given,) * len(tasks), True
    by_task = {task.task_id: limit for task, limit in zip(tasks, limits, strict=True)}
    for task, limit in zip(tasks, limits, strict=True):
        if limit != by_task[task.task_id]:
            both = f"{limit} and {by_task[task.task_id]}"
            raise ValueError(f"max_episode_steps has two limits for task {task.task_id}, {both}; give it one.")
    return one_or_all(limits) if truncates else None, by_task


def check_max_episode_steps(max_episode_steps: Any, n_tasks: int) -> tuple[int, ...]:
    """A limit of control steps for each task: one number for all, or a sequence with one for each.

    Raises:
        ValueError: If a limit is no whole number of at least 1, or their number is not that of the tasks.
    """
    if np.ndim(max_episode_steps) == 0:
        return (whole_number("max_episode_steps", max_episode_steps, minimum=1),) * n_tasks
    limits = sequence("max_episode_steps", max_episode_steps)
    if len(limits) != n_tasks:
        raise ValueError(
            f"max_episode_steps has {len(limits)} limits; expected one, or one for each of {n_tasks} tasks."
        )
    return tuple(whole_number("max_episode_steps", limit, minimum=1) for limit in limits)


def one_or_all(limits: Sequence[int]) -> int | tuple[int, ...]:
    """The tasks' limits as ``max_episode_steps`` states them: one number if they are all the same."""
    return limits[0] if len(set(limits)) == 1 else tuple(limits)


def _numbers(what_is: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The value as float64 of that shape; ``what_is`` begins the message."""
    try:
        values = np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of different lengths, a tensor on a GPU
        raise ValueError(f"{what_is} no array of numbers ({error}); expected shape {shape}.") from None
    if values.dtype.kind not in "biuf":
        came = f"of {values.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.200}"
        raise ValueError(f"{what_is} no array of numbers, but {came}; expected shape {shape}.")
    if values.shape != shape:
        what_has = what_is.replace(" is", " has").replace(" are", " have")
        raise ValueError(f"{what_has} shape {values.shape}; expected {shape}.")
    return values.astype(np.float64)


def _hint(word: str, foreign: Mapping[str, str], names: Iterable[str]) -> str:
    if word in foreign:
        return f" LIBERO's {word} is {foreign[word]!r} here."
    return did_you_mean(word, names)

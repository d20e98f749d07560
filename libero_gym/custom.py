"""``LIBERO-v0``: environments of BDDL files, which belong to no suite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libero_gym.common.checks import sequence, whole_number
from libero_gym.tasks import FILES_MAX_STEPS, Suite, Task

if TYPE_CHECKING:
    from libero_gym.env import LiberoEnv
    from libero_gym.vector import LiberoVectorEnv

ENV_ID = "LIBERO-v0"


def make_env(bddl_file: Any = None, **kwargs: Any) -> LiberoEnv:
    """What ``gym.make("LIBERO-v0", bddl_file=...)`` makes.

    Args:
        bddl_file: A task's definition, or several; one is drawn at each reset.
        **kwargs: Arguments of `LiberoEnv`, and those of `suite_of`.

    Raises:
        ValueError: If there is no BDDL file, or an argument is out of range.
    """
    from libero_gym.env import LiberoEnv

    suite, others = suite_of(bddl_file, **kwargs)
    return LiberoEnv(suite, **others)


def make_vector_env(num_envs: int = 1, *, bddl_file: Any = None, **kwargs: Any) -> LiberoVectorEnv:
    """What ``gym.make_vec("LIBERO-v0", bddl_file=..., vectorization_mode="vector_entry_point")`` makes."""
    from libero_gym.vector import LiberoVectorEnv

    suite, others = suite_of(bddl_file, **kwargs)
    return LiberoVectorEnv(num_envs, suite=suite, **others)


def suite_of(
    bddl_file: Any,
    *,
    init_states: Any = None,
    instruction: str | Sequence[str] = "text",
    max_episode_steps: int | None = None,
    **others: Any,
) -> tuple[Suite, dict[str, Any]]:
    """A suite of these files' tasks, and the arguments that an environment of it takes.

    Args:
        bddl_file: A path, or several.
        init_states: Of a task, an array or a file as `Task` has them, or a list with one for each task; None lets
            resets draw placements.
        instruction: What the robot is told instead of what the file says, a text or one for each task; or how
            observations show it, as `LiberoEnv` has it.
        max_episode_steps: Control steps that an episode may take, `FILES_MAX_STEPS` by default.
        **others: Further arguments of the environment.

    Raises:
        ValueError: If there is no BDDL file, or not one value for each, or an instruction is no text.
    """
    from libero_gym.observations import INSTRUCTION_KINDS  # slow to import

    if bddl_file is None:
        raise ValueError(f"{ENV_ID} needs bddl_file, a task's definition or several of them.")
    files = [bddl_file] if isinstance(bddl_file, (str, Path)) else sequence("bddl_file", bddl_file)
    states = init_states if isinstance(init_states, (list, tuple)) else [init_states] * len(files)
    shown_as = instruction if isinstance(instruction, str) and instruction in INSTRUCTION_KINDS else "text"
    if isinstance(instruction, str):
        told: list[str | None] = [None if instruction in INSTRUCTION_KINDS else instruction] * len(files)
    elif isinstance(instruction, (bytes, dict)) or not isinstance(instruction, Iterable):
        kinds = ", ".join(map(repr, INSTRUCTION_KINDS))
        raise ValueError(f"instruction={instruction!r}; expected a text, one for each BDDL file, or one of {kinds}.")
    else:
        told = list(instruction)
    for name, values in (("init_states", states), ("instruction", told)):
        if len(values) != len(files):
            raise ValueError(f"{name} has {len(values)} values for {len(files)} BDDL files; give one for each.")
    limit = FILES_MAX_STEPS if max_episode_steps is None else max_episode_steps
    steps = whole_number("max_episode_steps", limit, minimum=1)
    tasks = [Task.from_bddl(*each) for each in zip(files, states, told, strict=True)]
    return Suite("custom", ENV_ID, steps, tasks), others | {"instruction": shown_as}

"""What is to be recorded: the episodes of a plan, and the options that decide their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from libero_gym.common import videos
from libero_gym.common.checks import choice, flag, real_number, sequence, whole_number
from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.rendering.renderer import RENDERERS
from libero_gym.tasks import Task, get_tasks, initial_states

_FILE_NAME = re.compile(r"task(?P<task>\d{3,})_(?P<kind>init|place)(?P<number>\d{3,})_repeat(?P<repeat>\d{3,})\.npz")


class EpisodeKey(NamedTuple):
    """One episode of a plan.

    Attributes:
        task_id: The task in its suite.
        init_state_id: The official initial state; -1 if ``placement_seed`` draws the state.
        repeat: The number of the repetition from this state.
        placement_seed: The seed that draws the initial state; -1 if the state is official.
    """

    task_id: int
    init_state_id: int
    repeat: int
    placement_seed: int = -1

    @property
    def file_name(self) -> str:
        """The name of the episode's file in the staging folder."""
        if self.placement_seed >= 0:
            return f"task{self.task_id:03d}_place{self.placement_seed:05d}_repeat{self.repeat:03d}.npz"
        return f"task{self.task_id:03d}_init{self.init_state_id:03d}_repeat{self.repeat:03d}.npz"

    @classmethod
    def of_file(cls, name: str) -> EpisodeKey | None:
        """The episode whose `file_name` this is; None if it is none."""
        if (match := _FILE_NAME.fullmatch(name)) is None:
            return None
        task_id, number, repeat = (int(match[group]) for group in ("task", "number", "repeat"))
        return cls(task_id, -1, repeat, number) if match["kind"] == "place" else cls(task_id, number, repeat)

    @property
    def reset_options(self) -> dict[str, int]:
        """The options of the environment's reset."""
        state = "placement_seed" if self.placement_seed >= 0 else "init_state_id"
        return {name: getattr(self, name) for name in ("task_id", state)}


@dataclass(frozen=True)
class RecordingOptions:
    """What decides an episode's content besides its key; a recording keeps its options. `record` explains each.

    ``mujoco`` says how exact the simulation is, see `equivalence.versions.fidelity`. ``tasks`` has the suite's tasks in
    their order, see `describe_tasks`: files of one's own can change between two runs. ``source`` is the hash of
    the policy's code, see `common.sources.source_hash`; None if there is none or a ``name`` of the policy's stands for
    it, empty if nothing tells a lambda from another.

    Raises:
        ValueError: If an option is out of range.
    """

    suite: str
    policy: str
    cameras: tuple[str, ...]
    image_size: int
    renderer: str
    settle_steps: int
    max_steps: int | None
    action_noise: float
    noise_steps: int
    record_intended: bool
    random_prefix: int
    random_action_prob: float
    keep_failures: bool
    seed: int
    crf: int
    mujoco: str
    tasks: tuple[str, ...] = ()
    source: str | None = None

    def __post_init__(self) -> None:
        if self.image_size % 2:
            raise ValueError(f"image_size={self.image_size} cannot become H.264; choose an even size.")
        if self.max_steps is not None:  # each task's own
            whole_number("max_steps", self.max_steps, 1)
        whole_number("noise_steps", self.noise_steps, 1)
        for name in ("settle_steps", "random_prefix", "seed"):
            whole_number(name, getattr(self, name), 0)
        real_number("action_noise", self.action_noise, 0)
        real_number("random_action_prob", self.random_action_prob, 0, 1)
        whole_number("crf", self.crf, 0, videos.MAX_CRF)
        choice("renderer", self.renderer, RENDERERS)
        for name in ("record_intended", "keep_failures"):
            flag(name, getattr(self, name))
        for camera in self.cameras:
            choice("camera", camera, IMAGE_KEYS)
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras={self.cameras!r} names one of them twice.")


def describe_tasks(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Each task's name and a digest of what an episode of it depends on: its definition, words and initial states.

    Raises:
        OSError: If a file cannot be read.
    """

    def digest(task: Task) -> str:
        parts = (task.bddl_file.read_bytes(), task.instruction.encode(), initial_states(task).tobytes())
        return hashlib.blake2b(b"".join(hashlib.sha256(part).digest() for part in parts), digest_size=8).hexdigest()

    return tuple(f"{task.name} {digest(task)}" for task in tasks)


def plan_episodes(
    suite: str,
    task_ids: tuple[int, ...],
    init_state_ids: Iterable[int] | None,
    placement_seeds: Iterable[int],
    episodes_per_state: int,
) -> list[EpisodeKey]:
    """The episodes to record, in the dataset's order; `record` explains the arguments.

    Raises:
        ValueError: If a number is out of range, or there is nothing to record.
    """
    whole_number("episodes_per_state", episodes_per_state, 1)
    wanted = None if init_state_ids is None else _numbers("init_state_ids", init_state_ids)
    seeds = _numbers("placement_seeds", placement_seeds)
    keys = []
    for task_id in task_ids:
        n_states = len(initial_states(get_tasks(suite)[task_id]))
        for index in range(n_states) if wanted is None else wanted:
            if not n_states:
                raise ValueError(
                    f"init_state_ids: task {task_id} of {suite} has no official initial states; give init_state_ids=() "
                    "and placement_seeds."
                )
            if not 0 <= index < n_states:
                raise ValueError(f"init_state_id={index} is out of range; task {task_id} has 0 to {n_states - 1}.")
            keys += [EpisodeKey(task_id, index, repeat) for repeat in range(episodes_per_state)]
        keys += [EpisodeKey(task_id, -1, repeat, seed) for seed in seeds for repeat in range(episodes_per_state)]
    if not keys:
        raise ValueError("The plan has no episodes: init_state_ids and placement_seeds are empty.")
    return sorted(set(keys))


def _numbers(name: str, values: Iterable[int]) -> list[int]:
    return [whole_number(f"{name}[{index}]", value, 0) for index, value in enumerate(sequence(name, values))]

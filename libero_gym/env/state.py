"""What an environment knows of its episode beside the simulator's state, and how all of it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libero_gym.common.checks import real_number, whole_number
from libero_gym.dimensions import PRIVILEGED_KEY
from libero_gym.env.arguments import check_init_state_id, check_own_task
from libero_gym.equivalence.versions import fidelity
from libero_gym.observations import Observation
from libero_gym.privileged import SIZE as PRIVILEGED_SIZE
from libero_gym.simulation.snapshots import generator_from_json, state_from_json, state_to_json
from libero_gym.simulation.states import SimState
from libero_gym.tasks import Task

# What `info["init_state_id"]` is in an episode that starts from a placement.
PLACED = -1
_SNAPSHOT_KEYS = (
    "task_id",
    "fixture_draw",
    "init_state_id",
    "elapsed_steps",
    "phi",
    "privileged",
    "generator",
    "simulator",
)


@dataclass
class EpisodeState:
    """Where an episode is.

    Attributes:
        task: Its task.
        init_state_id: The official initial state that it started from; `PLACED` if it started from a placement.
        fixture_draw: Which draw of the fixtures it stands on, counted from 1.
        fixture_seed: Seed of those draws.
        fixture_resets: Resets before that seeding; see `compilation.draws.stock_draw`.
        elapsed_steps: Control steps so far.
        phi: Potential at the latest observation.
        privileged: The latest privileged observation; None if the environment shows none. It cannot be read from the
            simulator's state again: after a step, its kinematics are from before the last substep's end.
    """

    task: Task
    init_state_id: int
    fixture_draw: int
    fixture_seed: int
    fixture_resets: int = 0
    elapsed_steps: int = 0
    phi: float = 0.0
    privileged: np.ndarray | None = None

    @property
    def fixtures(self) -> tuple[int, int, int]:
        """Arguments of `compilation.draws.fixture_draw` behind the task."""
        return self.fixture_draw, self.fixture_seed, self.fixture_resets

    def note(self, phi: float, observation: Observation) -> None:
        """Take down what an observation has shown; the arrays in it are the caller's, to be changed at will."""
        self.phi, self.privileged = phi, _copy(observation.get(PRIVILEGED_KEY))

    def noted(self) -> Observation:
        """The part of the latest observation that cannot be observed again, as arrays of the caller's own."""
        privileged = _copy(self.privileged)
        return {} if privileged is None else {PRIVILEGED_KEY: privileged}

    def info(self, success: bool, reward_terms: dict[str, float]) -> dict[str, Any]:
        """What `LiberoEnv` tells of a step, or of a reset."""
        return {
            "is_success": success,
            "task_id": self.task.task_id,
            "task_name": self.task.name,
            "init_state_id": self.init_state_id,
            "instruction": self.task.instruction,
            "reward_terms": reward_terms,
            "elapsed_steps": self.elapsed_steps,
            "mujoco": fidelity(),
        }


def _copy(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.copy()


def snapshot_to_json(
    suite: str, reward: str, episode: EpisodeState, generator: np.random.Generator, state: SimState
) -> dict[str, Any]:
    """All that the future of an environment of this suite and reward depends on, as JSON can hold it."""
    return {
        "suite": suite,
        "reward": reward,
        "task_id": episode.task.task_id,
        "task_name": episode.task.name,
        "fixture_draw": episode.fixture_draw,
        "fixture_seed": episode.fixture_seed,
        "fixture_resets": episode.fixture_resets,
        "init_state_id": episode.init_state_id,
        "elapsed_steps": episode.elapsed_steps,
        "phi": episode.phi,
        "privileged": None if episode.privileged is None else episode.privileged.tolist(),
        "generator": _as_lists(generator.bit_generator.state),
        "simulator": state_to_json(state),
    }


def _as_lists(value: Any) -> Any:
    """A generator's state with lists for arrays."""
    if isinstance(value, dict):
        return {key: _as_lists(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def snapshot_from_json(
    snapshot: Any, suite: str, task_ids: Sequence[int], tasks: Sequence[Task], privileged: bool, reward: str
) -> tuple[EpisodeState, SimState, np.random.Generator]:
    """The episode, the simulator's state and the random generator of a snapshot.

    Args:
        snapshot: What `snapshot_to_json` gave.
        suite: Name of the environment's suite.
        task_ids: The environment's tasks.
        tasks: All tasks of the suite.
        privileged: Whether the environment shows privileged observations.
        reward: Name of the environment's reward.

    Raises:
        ValueError: If it is no snapshot of such an environment, or damaged.
    """
    _check_snapshot(snapshot, suite, privileged, reward)
    task = tasks[check_own_task(snapshot["task_id"], task_ids, tasks)]
    if (told := snapshot.get("task_name", task.name)) != task.name:  # earlier versions do not name it
        raise ValueError(
            f"The snapshot is of task {told!r}, and this environment's task {task.task_id} is {task.name!r}."
        )
    if snapshot["init_state_id"] != PLACED:
        check_init_state_id(snapshot["init_state_id"], task)
    generator, state = generator_from_json(snapshot["generator"]), state_from_json(snapshot["simulator"])
    episode = EpisodeState(
        task,
        snapshot["init_state_id"],
        snapshot["fixture_draw"],
        snapshot.get("fixture_seed", 0),  # snapshots of earlier versions know seed 0 only,
        snapshot.get("fixture_resets", 0),  # and no resets before it
        snapshot["elapsed_steps"],
        snapshot["phi"],
        np.array(snapshot["privileged"], dtype=np.float32) if privileged else None,
    )
    return episode, state, generator


def _check_snapshot(snapshot: Any, suite: str, privileged: bool, reward: str) -> None:
    """Check that this can be a snapshot, as far as one can tell without its parts.

    Args:
        snapshot: The value to check.
        suite: Name of the environment's suite; snapshots of earlier versions do not name theirs, and pass.
        privileged: Whether the environment shows privileged observations.
        reward: Name of the environment's reward; snapshots of earlier versions do not name theirs, and pass.

    Raises:
        ValueError: If it is none, or of another suite, or lacks what the environment shows or goes on from.
    """
    if not isinstance(snapshot, dict):
        raise ValueError(f"The snapshot is a {type(snapshot).__name__}; expected the dict that snapshot() gave.")
    missing = [key for key in _SNAPSHOT_KEYS if key not in snapshot]
    if missing:
        raise ValueError(f"The snapshot lacks {', '.join(map(repr, missing))}; expected the dict that snapshot() gave.")
    if snapshot.get("suite", suite) != suite:
        raise ValueError(f"The snapshot is of suite {snapshot['suite']!r}, and this environment of {suite!r}.")
    for key, minimum in {"task_id": 0, "fixture_draw": 1, "init_state_id": PLACED, "elapsed_steps": 0}.items():
        whole_number(f"The snapshot's {key}", snapshot[key], minimum=minimum)
    for key in ("generator", "simulator"):
        if not isinstance(snapshot[key], dict):
            raise ValueError(f"The snapshot's {key!r} is damaged: expected a dict, got {type(snapshot[key]).__name__}.")
    real_number("The snapshot's phi", snapshot["phi"])
    theirs = snapshot.get("reward", reward)
    if reward not in ("sparse", theirs):  # a sparse reward needs no potential
        raise ValueError(
            f"The snapshot is of reward={theirs!r}, and has no potential that this environment's reward={reward!r} "
            f"could go on from; make it with reward={theirs!r}."
        )
    if privileged and np.shape(snapshot["privileged"]) != (PRIVILEGED_SIZE,):
        raise ValueError(
            "The snapshot is of an environment without privileged=True, and this one has it; make it without."
        )

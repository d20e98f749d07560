"""What an environment knows of its episode beside the simulator's state, and how all of it is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from libero_gym.simulation.simulator import SimState
from libero_gym.simulation.snapshots import state_to_json
from libero_gym.tasks import Task


@dataclass
class EpisodeState:
    """Where an episode is.

    Attributes:
        task: Its task.
        init_state_id: The official initial state that it started from; -1 if it started from a placement.
        fixture_draw: Which draw of the fixtures it stands on, counted from 1.
        fixture_seed: Seed of those draws.
        elapsed_steps: Control steps so far.
        phi: Potential at the latest observation.
        privileged: The latest privileged observation; None if the environment shows none. It cannot be read from the
            simulator's state again: after a step, its kinematics are from before the last substep's end.
    """

    task: Task
    init_state_id: int
    fixture_draw: int
    fixture_seed: int
    elapsed_steps: int = 0
    phi: float = 0.0
    privileged: np.ndarray | None = None


def to_json(suite: str, episode: EpisodeState, generator: np.random.Generator, state: SimState) -> dict[str, Any]:
    """All that an environment's future depends on, as JSON can hold it."""
    return {
        "suite": suite,
        "task_id": episode.task.task_id,
        "fixture_draw": episode.fixture_draw,
        "fixture_seed": episode.fixture_seed,
        "init_state_id": episode.init_state_id,
        "elapsed_steps": episode.elapsed_steps,
        "phi": episode.phi,
        "privileged": None if episode.privileged is None else episode.privileged.tolist(),
        "generator": generator.bit_generator.state,
        "simulator": state_to_json(state),
    }


def episode_from_json(snapshot: dict[str, Any], task: Task, privileged: bool) -> EpisodeState:
    """The episode of a checked snapshot.

    Args:
        snapshot: What `to_json` gave.
        task: The task that it names.
        privileged: Whether the environment shows privileged observations.
    """
    return EpisodeState(
        task,
        snapshot["init_state_id"],
        snapshot["fixture_draw"],
        snapshot.get("fixture_seed", 0),  # snapshots of earlier versions know seed 0 only
        snapshot["elapsed_steps"],
        snapshot["phi"],
        np.array(snapshot["privileged"], dtype=np.float32) if privileged else None,
    )

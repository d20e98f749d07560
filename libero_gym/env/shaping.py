"""The reward of one environment: success, and what a potential adds to it.

`vla_agent.process_reward` scores the frames of many environments in one batch instead, and has more ways to add scores.
"""

from __future__ import annotations

import numpy as np

from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.observations import Observation
from libero_gym.reward_model import RewardModel, score_frame
from libero_gym.rewards import SCORE, TaskProgress, discounted_potential
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import Task


class Potential:
    """How far the current task is, as a number in [0, 1]; this one, of a sparse reward, does not know and says 0."""

    def begin(self, simulator: Simulator, task: Task) -> None:
        """Turn to a task, which this simulator runs."""

    def __call__(self, observation: Observation) -> float:
        """The potential phi of the simulator's state, of which this is the observation."""
        return 0.0

    def terms(self) -> dict[str, float] | None:
        """What phi is the sum of, by name, now; None if it is no sum."""
        return None


class ProgressPotential(Potential):
    """The mean progress of the goal's predicates, read from the simulator; see `rewards.TaskProgress`."""

    def begin(self, simulator: Simulator, task: Task) -> None:
        """Turn to a task, which this simulator runs."""
        self._simulator = simulator
        self._progress = TaskProgress(simulator.compiled.goal, simulator.model)
        self._shares: np.ndarray | None = None

    def __call__(self, observation: Observation) -> float:
        self._shares = self._measure()
        return float(self._progress.potential(self._shares)[0])

    def terms(self) -> dict[str, float]:
        """Reach, place and hold of each predicate, now."""
        # A restored episode has its phi from the snapshot, so nothing was measured.
        terms = self._progress.terms(self._measure() if self._shares is None else self._shares)
        return {name: float(value[0]) for name, value in terms.items()}

    def _measure(self) -> np.ndarray:
        return self._progress.shares(self._simulator.arrays, self._simulator.eef_pos()[None])


class ScorePotential(Potential):
    """A reward model's score of a frame under the task's instruction.

    Args:
        model: The reward model.
        image_key: Name of the observation that it scores.
    """

    def __init__(self, model: RewardModel, image_key: str) -> None:
        self._model, self._image_key = model, image_key

    def begin(self, simulator: Simulator, task: Task) -> None:
        """Turn to a task, whose instruction is scored."""
        self._instruction = task.instruction

    def __call__(self, observation: Observation) -> float:
        return score_frame(self._model, observation[self._image_key], self._instruction)


def make_potential(reward: str, model: RewardModel | None, cameras: tuple[str, ...]) -> Potential:
    """The potential of a reward.

    Args:
        reward: A name among `rewards.TERMS`.
        model: The reward model of ``"process"``; None for others.
        cameras: The environment's cameras, whose first is scored.
    """
    if model is not None:
        return ScorePotential(model, IMAGE_KEYS[cameras[0]])
    return ProgressPotential() if reward == "progress" else Potential()


def reward_terms(reward: str, phi: float, next_phi: float, success: bool) -> dict[str, float]:
    """The terms of a step's reward by name, as `rewards.TERMS` lists them.

    Args:
        reward: A name among `rewards.TERMS`.
        phi: Potential before the step.
        next_phi: Potential after it; counts as 0 after success, which ends the episode.
        success: Whether the goal holds after the step.
    """
    terms = {"success": float(success)}
    if reward != "sparse":
        terms[reward] = discounted_potential(phi, 0.0 if success else next_phi)
    if reward == "process":
        terms[SCORE] = next_phi
    return terms


def total_reward(terms: dict[str, float]) -> float:
    """The sum of a step's `reward_terms`, but for the reward model's score itself."""
    return sum(term for name, term in terms.items() if name != SCORE)

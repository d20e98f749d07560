"""Where a learner's rollouts are played and its gradients are summed: in this process, or in many.

`learn` is the same with every engine. What an engine does in other processes, it does with the functions that
`LocalEngine` calls in this one: `rollout.play`, and the learner's own update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.algorithms.rollout import Actor, Event, play


class Ranks(Protocol):
    """The learners that share each minibatch; all of them hold the same weights and take the same steps.

    Attributes:
        rank: Number of this one, from 0.
        size: How many there are.
    """

    rank: int
    size: int

    def sum(self, tensors: Sequence[th.Tensor]) -> None:
        """Replaces each tensor by its sum over all ranks, equal to the bit on each of them."""


class OneRank:
    """A learner that is alone."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[th.Tensor]) -> None:
        """Leaves the tensors as they are."""


class Engine(Protocol):
    """Where rollouts are played and gradients are summed.

    Attributes:
        ranks: The learners that share each minibatch, and which of them this process is.
        staleness: How many updates the policy that plays is behind the one that learns from it: 0, or 1.
        moments_device: Where the optimizer's moments are between updates; None for where its weights are.
    """

    ranks: Ranks
    staleness: int
    moments_device: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's result depends on, as JSON can hold it; {} where it is that of `LocalEngine`."""

    def check(self, learner: Any, env: VecEnv | None) -> None:
        """Complains about a learner, or environments, that it cannot serve, as ValueError."""

    def begin(self, learner: Any) -> None:
        """`learn` begins: the learner's weights and environments are those to start from."""

    def play(self, learner: Any, policy: Actor, env: VecEnv, n_steps: int, **how: Any) -> Iterator[Event]:
        """The events of a rollout, see `rollout.play`, whose keywords these are."""

    def update(self, learner: Any, train: Callable[[], None]) -> None:
        """Runs the learner's update on all ranks; ``train`` runs it here."""


class LocalEngine:
    """All in this process."""

    ranks: Ranks = OneRank()
    staleness = 0
    moments_device: str | None = None
    settings: dict[str, Any] = {}

    def check(self, learner: Any, env: VecEnv | None) -> None:
        """Serves everything, but environments of another engine."""
        if getattr(env, "engine", None) is not None:
            raise ValueError(
                "The environments belong to an engine; give the learner the same one, or leave its engine out."
            )

    def begin(self, learner: Any) -> None:
        """Nothing is to be done."""

    def play(self, learner: Any, policy: Actor, env: VecEnv, n_steps: int, **how: Any) -> Iterator[Event]:
        """Plays here."""
        return play(policy, env, n_steps, **how)

    def update(self, learner: Any, train: Callable[[], None]) -> None:
        """Updates here."""
        train()


LOCAL = LocalEngine()


def engine_of(engine: Engine | None, env: Any) -> Engine:
    """The engine that was given, else that of the environments, else this process."""
    found = engine if engine is not None else getattr(env, "engine", None)
    return LOCAL if found is None else found

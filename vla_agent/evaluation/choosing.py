"""Evaluations of policies that choose among candidates: what is asked for, and what scores say of episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from libero_gym.common.checks import whole_number
from vla_agent.envs.episodes import FinishedEpisode
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.evaluation.provenance import TrainingStates, read_training_states
from vla_agent.test_time.best_of_n import BestOfN
from vla_agent.test_time.loading import critic_folder, scorer_by_name
from vla_agent.test_time.scorers import ScorerMaker, candidate_policy

if TYPE_CHECKING:
    from vla_agent.engines import RayEngine


class Choosing(NamedTuple):
    """How many candidates each decision has, and what chooses among them.

    Attributes:
        n: Candidates.
        make_scorer: Function that makes what chooses.
        training_states: Official initial states that a critic was trained on; None for no critic, or if unknown.
    """

    n: int
    make_scorer: ScorerMaker
    training_states: TrainingStates | None = None

    def among(self, policy: Any, env: VLAVecEnv) -> Any:
        """The policy, or the one that chooses among its candidates.

        Raises:
            ScorerError: If the policy has no candidates, or the scorer does not fit it or its environments.
        """
        if self.n == 1:
            return policy
        return BestOfN(policy, self.n, self.make_scorer(candidate_policy(policy), env))


def check_choosing(n: int, scorer: str | ScorerMaker, engine: RayEngine | None) -> Choosing:
    """What an evaluation was asked for.

    Raises:
        ScorerError: If there is no such scorer.
        ValueError: If ``n`` is no whole number of at least 1, or other processes cannot make the scorer.
    """
    n = whole_number("best_of_n", n, 1)
    if callable(scorer):
        if engine is not None:
            raise ValueError("An engine's processes make scorers by their names: give scorer='agreement' or another.")
        return Choosing(n, scorer)
    make = scorer_by_name(scorer)
    folder = critic_folder(scorer)
    return Choosing(n, make, read_training_states(folder) if folder and n > 1 else None)


def noted_scores(policy: Any) -> Callable[[], Mapping[str, np.ndarray]] | None:
    """What `play_episodes` has to note so that `mean_score` finds the scores; None where nothing is chosen."""
    if not isinstance(policy, BestOfN) or policy.n == 1:
        return None
    return lambda: {"score": cast(np.ndarray, policy.chosen_scores)}


def mean_score(episode: FinishedEpisode) -> float | None:
    """Mean score of what was chosen in an episode; None where `noted_scores` is."""
    return float(np.mean(episode.notes["score"])) if "score" in episode.notes else None

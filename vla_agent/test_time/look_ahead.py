"""Oracles: scorers that try each candidate in the evaluation's own simulator, and go back.

No policy could act so outside of a simulator: a result by these is a bound for scorers, and is named an oracle's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th

from libero_gym.common.checks import real_number, whole_number
from vla_agent.common.tensors import on_host
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.policy.policy import VLAPolicy
from vla_agent.process_reward.interface import RewardModel, check_camera, checked_scores
from vla_agent.test_time.scorers import Question, ScorerError, candidate_policy


class Outcome(NamedTuple):
    """Where environments are after some decisions. B environments.

    Attributes:
        decisions: Decisions until success, counted from 1, int64 (B,); 0 where there was none.
        observations: The latest observation of each environment, or the last of its episode.
    """

    decisions: np.ndarray
    observations: list[dict[str, np.ndarray]]


class SuccessLookahead:
    """An oracle that sees success coming: gamma^(k - 1) if the goal holds after k decisions, 0 if it does not.

    The first decision is the candidate, later ones are the policy's greedy ones.

    Args:
        model: The policy, or a learner with one.
        env: The environments that it acts in; after scoring they are exactly where they were.
        horizon: Decisions to look ahead, the candidate's included.
        gamma: Discount of a later success.

    Raises:
        ScorerError: If the environments cannot branch.
        ValueError: If an argument is out of range.

    Non-obvious behaviours: it scores observations of all environments at once, never of one or of some.
    """

    is_oracle = True

    def __init__(self, model: Any, env: VLAVecEnv | None, horizon: int = 8, gamma: float = 0.99) -> None:
        self._branches = Branches(model, env, horizon)
        self.gamma = real_number("gamma", gamma, 0, 1)

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"success, {self._branches.horizon} decisions ahead"

    def score(self, question: Question) -> th.Tensor:
        """Discounted success of each candidate, float64 (B, n)."""
        scores = [
            np.where(outcome.decisions > 0, self.gamma ** np.maximum(outcome.decisions - 1, 0), 0.0)
            for outcome in self._branches.play(question.actions)
        ]
        return th.from_numpy(np.stack(scores, axis=1))


class ProcessLookahead:
    """An oracle that sees the frame that a candidate leads to, and asks a process reward model how good it is.

    Args:
        model: The policy, or a learner with one.
        env: The environments that it acts in; after scoring they are exactly where they were.
        reward_model: What scores the frames; success counts as 1.
        horizon: Decisions to look ahead, the candidate's included; later ones are the policy's greedy ones.

    Raises:
        ScorerError: If the environments cannot branch.
        RewardModelError: If the environments lack the reward model's camera, or show it in another size.
        ValueError: If an argument is out of range.
    """

    is_oracle = True

    def __init__(self, model: Any, env: VLAVecEnv | None, reward_model: RewardModel, horizon: int = 1) -> None:
        self._branches = Branches(model, env, horizon)
        self.reward_model = reward_model
        space = cast(Any, self._branches.env.observation_space)
        shapes = {key: tuple(part.shape or ()) for key, part in space.items()}
        self.camera = check_camera(reward_model, shapes)

    @property
    def name(self) -> str:
        """What reports call it."""
        horizon = self._branches.horizon
        return f"process reward, {horizon} {'decision' if horizon == 1 else 'decisions'} ahead"

    @property
    def weights_hash(self) -> str:
        """What tells the reward model from others: its fingerprint, or its class where it has none."""
        fingerprint = getattr(self.reward_model, "fingerprint", None)
        return str(fingerprint()) if callable(fingerprint) else type(self.reward_model).__name__

    def score(self, question: Question) -> th.Tensor:
        """Scores of the frames behind each candidate, float64 (B, n)."""
        instructions = self._branches.env.instructions()
        columns = []
        for outcome in self._branches.play(question.actions):
            frames = np.stack([on_host(obs[self.camera]) for obs in outcome.observations])
            scores = checked_scores(self.reward_model, frames, instructions)
            columns.append(np.where(outcome.decisions > 0, 1.0, scores))
        return th.from_numpy(np.stack(columns, axis=1))


class Branches:
    """Plays candidates, one after the other, from where environments are, and returns to there.

    Args:
        model: The policy, or a learner with one.
        env: The environments.
        horizon: Decisions to play.

    Raises:
        ScorerError: If the environments cannot branch.
        ValueError: If ``horizon`` is no whole number of at least 1.
    """

    def __init__(self, model: Any, env: VLAVecEnv | None, horizon: int) -> None:
        self.policy = cast(VLAPolicy, candidate_policy(model))
        self.horizon = whole_number("horizon", horizon, 1)
        if env is None or not callable(getattr(getattr(env, "venv", None), "snapshot", None)):
            what = "a recording's environments" if env is None else type(env).__name__
            raise ScorerError(
                f"An oracle tries candidates in the environments and goes back, which {what} cannot; take another "
                "scorer, or an evaluation in environments of make_vec_env in this process."
            )
        self.env = env
        if str(env.settings.get("mujoco")).startswith("batched"):
            raise ScorerError(
                'An oracle needs environments that go back to the bit, and those of backend="warp" do so but for '
                'rounding; take backend="processes", or another scorer.'
            )

    def play(self, candidates: np.ndarray) -> Iterator[Outcome]:
        """Where each candidate, of bins (B, n, N), leads to.

        Raises:
            ScorerError: If these are not candidates of all environments, or the environments cannot be saved.
        """
        if len(candidates) != self.env.num_envs:
            asked = "1 observation" if len(candidates) == 1 else f"{len(candidates)} observations"
            raise ScorerError(
                f"An oracle plays candidates in all of its {self.env.num_envs} environments at once, and was asked "
                f"about {asked}; give the observations of all environments, or take another scorer."
            )
        with self._branching() as go_back:
            for i in range(candidates.shape[1]):
                if i:
                    go_back()
                yield self._ahead(candidates[:, i])

    @contextlib.contextmanager
    def _branching(self) -> Iterator[Callable[[], Any]]:
        saved = self.env.snapshot()
        if saved is None:
            raise ScorerError("The environments cannot be saved, so no oracle can look ahead in them.")
        given: Any = self.env.unwrapped
        seeds, options = given._seeds, given._options
        try:
            yield lambda: self.env.restore(saved)
        finally:
            self.env.restore(saved)
            given._seeds, given._options = seeds, options  # which the next reset uses up; restore forgets them

    def _ahead(self, actions: np.ndarray) -> Outcome:
        n_envs = len(actions)
        decisions = np.zeros(n_envs, dtype=np.int64)
        observations: list[dict[str, np.ndarray]] = [{} for _ in range(n_envs)]
        under_way = np.ones(n_envs, dtype=bool)
        for k in range(1, self.horizon + 1):
            obs, _, dones, infos = self.env.step(actions)
            for i in np.flatnonzero(under_way):
                decisions[i] = k if infos[i]["is_success"] else 0
                shown = infos[i]["terminal_observation"] if dones[i] else cast(Any, obs)
                observations[i] = shown if dones[i] else {key: values[i] for key, values in shown.items()}
            under_way &= ~dones
            if k == self.horizon or not under_way.any():
                break
            actions = self.policy.predict(cast(Any, obs), deterministic=True)[0]
        return Outcome(decisions, observations)

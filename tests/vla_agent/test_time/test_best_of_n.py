"""Candidates are drawn, scored and chosen; a single one is the policy itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from evaluations import fake_model
from fakes import FakeBackbone, fake_env

from vla_agent import VLAPPO
from vla_agent.backbone import Abilities
from vla_agent.envs.episodes import EpisodeStart, play_episodes
from vla_agent.test_time import BestOfN, Question, ScorerError
from vla_agent.test_time.calibration import rank_correlation, success_auc


class Highest:
    """Likes a high first bin."""

    name, is_oracle = "highest", False

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def score(self, question: Question) -> th.Tensor:
        self.asked.append(question)
        return question.candidates.bins[..., 0].double()


class Answering(Highest):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def score(self, question: Question) -> th.Tensor:
        return th.as_tensor(self.answer)


@pytest.fixture(scope="module")
def learner() -> VLAPPO:
    return fake_model()


@pytest.fixture
def obs(learner: VLAPPO) -> dict[str, np.ndarray]:
    env = learner.get_env()
    assert env is not None
    return env.reset()  # type: ignore[return-value]


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_best_of_one_is_the_policy_to_the_bit(
    learner: VLAPPO, obs: dict[str, np.ndarray], deterministic: bool
) -> None:
    scorer = Highest()
    th.manual_seed(3)
    expected, _ = learner.predict(obs, deterministic=deterministic)
    th.manual_seed(3)
    found, _ = BestOfN(learner, 1, scorer).predict(obs, deterministic=deterministic)
    assert np.array_equal(found, expected)
    assert scorer.asked == []


def test_the_candidate_with_the_highest_score_is_taken(learner: VLAPPO, obs: dict[str, np.ndarray]) -> None:
    scorer = Highest()
    policy = BestOfN(learner, 16, scorer, seed=0)
    found, _ = policy.predict(obs)
    (question,) = scorer.asked
    assert question.actions.shape == (2, 16, 7)
    assert len({int(bin_) for bin_ in question.actions[0, :, 0]}) > 3, "candidates that are alike would prove nothing"
    for row in range(2):
        best = int(question.actions[row, :, 0].argmax())
        assert np.array_equal(found[row], question.actions[row, best])
    assert policy.chosen_scores.tolist() == found[:, 0].tolist()


def test_ties_go_to_the_first_which_is_the_greedy_chain(learner: VLAPPO, obs: dict[str, np.ndarray]) -> None:
    found, _ = BestOfN(learner, 5, Answering(np.zeros((2, 5)))).predict(obs, deterministic=True)
    assert np.array_equal(found, learner.predict(obs, deterministic=True)[0])


def test_a_seed_decides_the_draws(learner: VLAPPO, obs: dict[str, np.ndarray]) -> None:
    def play(seed: int | None) -> list[list[int]]:
        policy = BestOfN(learner, 4, Highest(), seed=seed)
        return [policy.predict(obs)[0].tolist() for _ in range(3)]

    assert play(5) == play(5)
    assert play(5) != play(6)
    th.manual_seed(9)
    first = play(None)
    th.manual_seed(9)
    assert play(None) == first


def test_candidates_are_drawn_at_the_policys_temperature(obs: dict[str, np.ndarray]) -> None:
    cold = fake_model(temperature=1e-6)
    scorer = Highest()
    BestOfN(cold, 8, scorer, seed=0).predict(obs)
    greedy, _ = cold.predict(obs, deterministic=True)
    assert (scorer.asked[0].actions == greedy[:, None]).all()


def test_a_single_observation_gets_a_single_action(learner: VLAPPO, obs: dict[str, np.ndarray]) -> None:
    single = {key: value[0] for key, value in obs.items()}
    assert BestOfN(learner, 3, Highest()).predict(single)[0].shape == (7,)


def test_it_plays_episodes_and_is_better_by_what_the_environment_rewards() -> None:
    """The fake environment rewards a high first bin in bright tasks, and `Highest` finds one."""
    starts = [EpisodeStart(task_id=1)] * 6

    def successes(n: int) -> int:
        policy = BestOfN(fake_model(), n, Highest(), seed=0)
        return sum(episode.success for episode in play_episodes(fake_env(2), policy, starts, deterministic=False))

    assert successes(1) < successes(16) == 6


def test_scores_of_the_chosen_can_be_noted(learner: VLAPPO) -> None:
    policy = BestOfN(learner, 4, Highest(), seed=0)
    env = fake_env(2, max_episode_steps=3)
    note = lambda: {"score": policy.chosen_scores}  # noqa: E731
    for episode in play_episodes(env, policy, [EpisodeStart(task_id=0)] * 3, note=note):
        assert episode.notes["score"].tolist() == episode.actions[:, 0].tolist()


def test_a_judge_is_asked_and_does_not_choose(learner: VLAPPO, obs: dict[str, np.ndarray]) -> None:
    class Lowest(Highest):
        def score(self, question: Question) -> th.Tensor:
            return -super().score(question)

    alone, judged = (BestOfN(learner, 6, Highest(), judge=judge, seed=1) for judge in (None, Lowest()))
    assert np.array_equal(alone.predict(obs)[0], judged.predict(obs)[0])
    assert judged.rank_correlations == [-1.0, -1.0]
    judged.predict(obs, playing=[1])
    assert len(judged.rank_correlations) == 3


def test_what_a_report_states(learner: VLAPPO) -> None:
    assert BestOfN(learner, 1).settings == {"best_of_n": 1}
    assert BestOfN(learner, 4, Highest()).settings == {"best_of_n": 4, "scorer": "highest", "oracle": False}


def test_auc_counts_pairs() -> None:
    # Of the four pairs of a success and a failure, (3, 1), (3, 2) and (1.5, 1) are in order, and (1.5, 2) is not.
    assert success_auc([3, 1.5, 1, 2], [True, True, False, False]) == 0.75
    assert success_auc([1, 1], [True, False]) == 0.5
    assert success_auc([1, 2], [True, True]) is None
    with pytest.raises(ValueError, match="Expected a finite score for each of 2 episodes"):
        success_auc([1, float("nan")], [True, False])


def test_rank_correlation_is_of_the_order_alone() -> None:
    assert rank_correlation(np.array([0.0, 1, 5]), np.array([1.0, 2, 2.5])) == pytest.approx(1)
    assert rank_correlation(np.array([0.0, 1, 5]), np.ones(3)) is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((2, 3)), r"'highest' gave shape \(2, 3\) for candidates \(2, 4\)"),
        (np.full((2, 4), np.nan), "gave scores that are not finite; nothing can be chosen by them"),
    ],
)
def test_answers_that_are_no_scores_are_named(
    learner: VLAPPO, obs: dict[str, np.ndarray], answer: Any, message: str
) -> None:
    with pytest.raises(ScorerError, match=message):
        BestOfN(learner, 4, Answering(answer)).predict(obs)


def test_wrong_arguments_are_named(learner: VLAPPO, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="n=0 is out of range; expected a whole number"):
        BestOfN(learner, 0)
    with pytest.raises(ScorerError, match=r"n=2 candidates need a scorer to choose by"):
        BestOfN(learner, 2)
    with pytest.raises(ScorerError, match=r"A Highest draws no action tokens, so there are no candidates"):
        BestOfN(Highest(), 2, Highest())
    with pytest.raises(ValueError, match="seed"):
        BestOfN(learner, 2, Highest(), seed=-1)
    monkeypatch.setattr(FakeBackbone, "abilities", Abilities())
    with pytest.raises(ScorerError, match=r"FakeBackbone draws one chain of an observation at a time"):
        BestOfN(learner, 2, Highest())

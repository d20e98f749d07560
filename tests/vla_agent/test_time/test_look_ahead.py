"""Oracles see what comes, and leave the environments exactly where they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch as th
from evaluations import fake_model
from fakes import FakeVectorEnv, fake_env

from vla_agent import VLAPPO, VLAPolicy, VLAVecEnv, make_vec_env
from vla_agent.envs.episodes import EpisodeStart, play_episodes
from vla_agent.process_reward import RewardModelError
from vla_agent.test_time import BestOfN, ProcessLookahead, Question, ScorerError, SuccessLookahead


class Brightness:
    """A reward model that likes light."""

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        return images.mean((1, 2, 3)) / 255


class Asked:
    """Candidates without a model."""

    def __init__(self, bins: np.ndarray) -> None:
        self.bins = th.from_numpy(bins)
        self.logits = self.hidden = th.zeros(0)


@pytest.fixture(scope="module")
def learner() -> VLAPPO:
    return fake_model()


@pytest.fixture(scope="module")
def real() -> Iterator[VLAVecEnv]:
    """Two environments of the real simulator, with the second task's episode under way."""
    env = make_vec_env(
        "LIBERO-Spatial-v0", 2, model="tiny-libero-few", renderer="fast", max_episode_steps=24, seed=0, task_id=[0, 3]
    )
    yield env
    env.close()


def candidates(n_envs: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_envs, n, 56))


def test_after_scoring_environments_are_where_they_were_to_the_bit(real: VLAVecEnv) -> None:
    policy = VLAPolicy(real.observation_space, real.action_space, lambda _: 0.0, "tiny-libero-few")
    model = type("Constant", (), {"score": lambda self, images, instructions: images.mean((1, 2, 3)) / 255})()
    first, then = candidates(2, 1)[:, 0], candidates(2, 2)

    def play(scorers: Sequence[Any]) -> list[Any]:
        real.seed(0)
        real.begin_episodes({i: {"task_id": 3 * i, "init_state_id": 20 + i} for i in range(2)})
        seen: list[Any] = [real.step(first)]
        for scorer in scorers:
            scores = scorer.score(Question({}, Asked(then)))  # type: ignore[arg-type]
            assert scores.shape == (2, 2)
        seen.append(real.snapshot())
        return [*seen, real.step(then[:, 0]), real.step(first), real.snapshot()]

    plain = play([])
    looked = play([ProcessLookahead(policy, real, model), SuccessLookahead(policy, real, horizon=2)])
    for expected, found in zip(plain, looked, strict=True):
        if isinstance(expected, dict):
            assert found == expected
            continue
        for key in expected[0]:
            assert np.array_equal(found[0][key], expected[0][key]), key
        assert found[1].tolist() == expected[1].tolist()
        assert found[2].tolist() == expected[2].tolist()
        for info, wanted in zip(found[3], expected[3], strict=True):
            kept = [key for key in wanted if key not in ("terminal_observation", "episode")]
            assert {key: info[key] for key in kept} == {key: wanted[key] for key in kept}
            assert info.get("episode", {}).get("r") == wanted.get("episode", {}).get("r")
    assert plain[3][2].all(), "the episodes end, so that their ends are compared, too"


def test_process_scores_are_those_of_the_frames_that_candidates_lead_to(real: VLAVecEnv) -> None:
    policy = VLAPolicy(real.observation_space, real.action_space, lambda _: 0.0, "tiny-libero-few")
    real.begin_episodes({i: {"task_id": 3 * i, "init_state_id": 20} for i in range(2)})
    asked = candidates(2, 2)
    saved = real.snapshot()
    scores = ProcessLookahead(policy, real, Brightness()).score(Question({}, Asked(asked)))  # type: ignore[arg-type]
    assert saved is not None
    for i in range(2):
        real.restore(saved)
        images = real.step(asked[:, i])[0]["image"]  # type: ignore[call-overload, index]
        assert scores[:, i].tolist() == pytest.approx(Brightness().score(images, ["", ""]).tolist(), abs=0)
    assert scores[0, 0] != scores[0, 1]


def bins_of(*signs: int) -> np.ndarray:
    """Candidates of two fake environments, whose first bin is high or low."""
    return np.tile(np.array([255 if sign > 0 else 0 for sign in signs])[None, :, None], (2, 1, 7))


def test_success_is_seen_when_it_comes_and_counts_more_the_sooner(learner: VLAPPO) -> None:
    env = fake_env(2, max_episode_steps=3)  # succeeds in the second step, if that is high where it is bright
    env.set_autoreset(False)
    env.begin_episodes({0: {"task_id": 1}, 1: {"task_id": 0}})
    env.step(np.zeros((2, 7), dtype=int))
    scores = SuccessLookahead(learner, env, horizon=1, gamma=0.9).score(Question({}, Asked(bins_of(-1, 1))))  # type: ignore[arg-type]
    assert scores.tolist() == [[0, 1], [1, 0]]
    env.begin_episodes({0: {"task_id": 1}, 1: {"task_id": 0}})
    later = SuccessLookahead(learner, env, horizon=2, gamma=0.9).score(Question({}, Asked(bins_of(-1, 1))))  # type: ignore[arg-type]
    greedy = learner.predict(env.begin_episodes({}), deterministic=True)[0][:, 0] >= 128
    expected = [[0.9 * (greedy[0] == 1)] * 2, [0.9 * (greedy[1] == 0)] * 2]
    assert later.tolist() == expected
    assert SuccessLookahead(learner, env, horizon=8).name == "success, 8 decisions ahead"
    assert SuccessLookahead(learner, env).is_oracle


def test_an_oracle_plays_episodes_beside_others_that_rest(learner: VLAPPO) -> None:
    """Five starts in three environments: some rest in the end, and look-ahead leaves them there."""
    env = fake_env(3, max_episode_steps=3)
    policy = BestOfN(learner, 16, SuccessLookahead(learner, env, horizon=1), seed=0)
    episodes = list(play_episodes(env, policy, [EpisodeStart(task_id=i % 2) for i in range(5)], deterministic=False))
    assert sorted(episode.number for episode in episodes) == [0, 1, 2, 3, 4]
    assert all(episode.success for episode in episodes)


def test_seeds_and_options_that_were_given_wait_for_the_next_reset(learner: VLAPPO) -> None:
    env = fake_env(2)
    obs = env.reset()
    policy = BestOfN(learner, 2, SuccessLookahead(learner, env, horizon=2), seed=0)
    env.seed(7)
    env.set_options({"task_id": 1})
    policy.predict(obs)  # type: ignore[arg-type]
    env.reset()
    assert (env.venv.seeds[-1], env.venv.options[-1]) == ([7, 8], {"task_id": [1, 1]})
    policy.predict(obs)  # type: ignore[arg-type]
    env.reset()
    assert (env.venv.seeds[-1], env.venv.options[-1]) == (None, None), "they are used up"


def test_an_oracle_is_asked_about_all_environments_or_says_so(learner: VLAPPO) -> None:
    env = fake_env(2)
    obs: Any = env.reset()
    policy = BestOfN(learner, 2, SuccessLookahead(learner, env, horizon=1), seed=0)
    some = r"in all of its 2 environments at once, and was asked about 1 observation; give the observations of all"
    for part in ({key: values[0] for key, values in obs.items()}, {key: values[:1] for key, values in obs.items()}):
        with pytest.raises(ScorerError, match=some):
            policy.predict(part)
    assert policy.predict(obs)[0].shape == (2, 7)


def test_where_environments_cannot_branch_one_sentence_says_so(learner: VLAPPO) -> None:
    env = fake_env(2)
    env.reset()
    real_venv = env.venv
    env.venv = object()
    with pytest.raises(ScorerError, match=r"goes back, which VLAVecEnv cannot; take another scorer"):
        SuccessLookahead(learner, env)
    env.venv = real_venv
    env.venv.settings["mujoco"] = "batched"
    with pytest.raises(ScorerError, match=r"those of backend=\"warp\" do so but for rounding"):
        ProcessLookahead(learner, env, Brightness())
    with pytest.raises(ValueError, match="horizon=0 is out of range"):
        SuccessLookahead(learner, fake_env(2), horizon=0)


def test_a_reward_model_of_another_camera_or_size_is_refused(learner: VLAPPO) -> None:
    model = Brightness()
    model.camera = "wrist_image"  # type: ignore[attr-defined]
    with pytest.raises(RewardModelError, match="looks at 'wrist_image', which the environment does not show"):
        ProcessLookahead(learner, fake_env(2), model)
    model = Brightness()
    model.image_size = 112  # type: ignore[attr-defined]
    with pytest.raises(RewardModelError, match="frames of 112 x 112 pixels, but 'image' has shape"):
        ProcessLookahead(learner, VLAVecEnv(FakeVectorEnv(2), learner.policy.backbone.processor), model)  # type: ignore[union-attr]

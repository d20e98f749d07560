"""Rewards made of a scorer's opinion: what is added, when, and what wrong scorers are told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from fakes import INSTRUCTIONS, FakeBackbone, fake_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnvWrapper

from vla_agent import VLAPPO, make_vec_env
from vla_agent.process_reward import RewardModelError, VecProcessReward, load_reward_model

GAMMA = 0.9


class Brightness:
    """Scores a frame by its brightness, or a third of it, by instruction; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        self.asked.append(list(instructions))
        share = np.array([1.0 if text == INSTRUCTIONS[1] else 1 / 3 for text in instructions])
        return share * images.mean(axis=(1, 2, 3)) / 255


class Clock:
    """Scores the n-th batch that it is given n / 100."""

    def __init__(self) -> None:
        self.n = 0

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        self.n += 1
        return np.full(len(images), self.n / 100)


def run(env: VecProcessReward, n_steps: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, list[Any]]]:
    rng = np.random.default_rng(seed)
    env.reset()
    return [env.step(rng.integers(0, 256, (env.num_envs, 7)))[1:] for _ in range(n_steps)]  # type: ignore[misc]


class Tensors(VecEnvWrapper):
    """Hands out images and states as tensors, as environments on a device do."""

    def reset(self) -> Any:
        obs = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        return _as_tensors(obs)

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = _as_tensors(info["terminal_observation"])
        return _as_tensors(obs), rewards, dones, infos


def _as_tensors(obs: Any) -> dict[str, Any]:
    return {key: th.as_tensor(values) if key in ("image", "state") else values for key, values in obs.items()}


@pytest.mark.parametrize("when", ["step", "gripper"])
def test_frames_on_a_device_are_scored_as_those_on_the_host(when: Any) -> None:
    scorer = Brightness()
    envs = [fake_env(3, max_episode_steps=4), Tensors(fake_env(3, max_episode_steps=4))]
    on_host, on_device = [VecProcessReward(env, scorer, gamma=GAMMA, every=2, when=when) for env in envs]
    expected, found = run(on_host, 9), run(on_device, 9)
    assert any(dones.any() for _, dones, _ in expected)
    for (rewards, dones, infos), (own_rewards, own_dones, own_infos) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(own_rewards, rewards)
        np.testing.assert_array_equal(own_dones, dones)
        assert [info["reward_terms"] for info in own_infos] == [info["reward_terms"] for info in infos]
    assert scorer.asked[: len(scorer.asked) // 2] == scorer.asked[len(scorer.asked) // 2 :]


@pytest.mark.parametrize("bootstrap", [True, False])
def test_potential_is_what_the_formula_says(bootstrap: bool) -> None:
    inner = fake_env(1, max_episode_steps=4)
    env = VecProcessReward(inner, Clock(), weight=2.0, gamma=GAMMA, bootstrap_time_limits=bootstrap)
    env.reset()  # phi = 0.01
    wrong_side = np.full((1, 7), 0 if env.venv.venv.tasks[0] == 1 else 255)  # type: ignore[attr-defined]
    added = []
    for expected_phi in (0.02, 0.03, 0.04, 0.05):
        _, rewards, dones, infos = env.step(wrong_side)
        terms = infos[0]["reward_terms"]
        assert terms["score"] == pytest.approx(expected_phi)
        assert rewards[0] == pytest.approx(terms["success"] + terms["process"])
        added.append(terms["process"])
    # The episode timed out: what would follow has its potential still, unless that is the end for the learner.
    assert dones[0]
    after = [0.02, 0.03, 0.04, 0.05 if bootstrap else 0.0]
    assert added == pytest.approx(
        [2 * (GAMMA * phi - before) for before, phi in zip([0.01, *after], after, strict=False)]
    )


def test_gain_is_what_the_score_has_risen_by_and_reads_no_success() -> None:
    """Whether an episode succeeds or times out, its return is the last score less the first, times the weight."""
    env = VecProcessReward(fake_env(1, max_episode_steps=4), Clock(), mode="gain", weight=2.0)
    env.reset()
    ended = {}
    for _ in range(8):
        bright = env.venv.venv.tasks[0] == 1  # type: ignore[attr-defined]
        right = bool(len(ended) % 2)
        first = env._phi[0]
        for _ in range(4):
            _, rewards, dones, infos = env.step(np.full((1, 7), 255 if bright == right else 0))
            assert set(infos[0]["reward_terms"]) == {"process", "score"}
            assert rewards[0] == pytest.approx(infos[0]["reward_terms"]["process"])
            if dones[0]:
                rise = infos[0]["reward_terms"]["score"] - first
                assert infos[0]["episode"]["r"] == pytest.approx(2 * rise)
                ended[len(ended)] = infos[0]["is_success"]
                break
    assert set(ended.values()) == {True, False}


def test_potential_ends_at_zero_where_the_task_is_done_and_telescopes() -> None:
    env = VecProcessReward(fake_env(2, max_episode_steps=4), Brightness(), gamma=GAMMA)
    env.reset()
    first = env.model.score(env.venv.venv._observe()["image"], env._instructions)  # type: ignore[attr-defined]
    totals, checked = np.zeros(2), 0
    for step in range(4):
        right_side = np.where(env.venv.venv.tasks == 1, 255, 0)[:, None].repeat(7, axis=1)  # type: ignore[attr-defined]
        _, _, dones, infos = env.step(right_side)
        for index, info in enumerate(infos):
            if checked < 2:
                totals[index] += GAMMA**step * info["reward_terms"]["process"]
            if dones[index] and info["is_success"] and checked < 2:
                assert totals[index] == pytest.approx(-first[index])
                checked += 1
    assert checked == 2


def test_bonus_is_the_score_itself() -> None:
    env = VecProcessReward(fake_env(3), Brightness(), mode="bonus", weight=0.5, gamma=0.5)
    for rewards, _, infos in run(env, 9):
        for reward, info in zip(rewards, infos, strict=True):
            terms = info["reward_terms"]
            assert terms["process"] == pytest.approx(0.5 * terms["score"])
            assert reward == pytest.approx(terms["success"] + terms["process"])


@pytest.mark.parametrize(("gamma", "every"), [(0.5, 1), (0.9, 1), (0.9, 3)])
def test_a_bonus_that_pays_for_waiting_is_warned_of(gamma: float, every: int) -> None:
    """Over all lengths of waiting, to the digit: the highest weight under which succeeding at once is best."""

    def worth(weight: float, n_waits: int) -> float:
        bonuses = sum(weight * gamma ** (every * i) for i in range(n_waits))
        return bonuses + gamma ** (every * n_waits) * (1 + weight)

    highest = (1 - gamma**every) / gamma**every
    kwargs: dict[str, Any] = {"mode": "bonus", "gamma": gamma, "every": every}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VecProcessReward(fake_env(1), Brightness(), weight=0.99 * highest, **kwargs)
        VecProcessReward(fake_env(1), Brightness(), weight=9.0, gamma=gamma)  # no bonus
    assert max(range(9), key=lambda n_waits: worth(0.99 * highest, n_waits)) == 0
    with pytest.warns(UserWarning, match=f"pays a policy that waits.*weight of at most {highest:.2g}"):
        VecProcessReward(fake_env(1), Brightness(), weight=1.01 * highest, **kwargs)
    assert max(range(9), key=lambda n_waits: worth(1.01 * highest, n_waits)) == 8


def test_last_frames_are_scored_under_their_own_instruction() -> None:
    scorer = Brightness()
    env = VecProcessReward(fake_env(4, max_episode_steps=3), scorer)
    for _, dones, infos in run(env, 12):
        for done, info in zip(dones, infos, strict=True):
            frame = info["terminal_observation"]["image"] if done else None
            if frame is not None:
                (expected,) = Brightness().score(frame[None], [info["instruction"]])
                assert info["reward_terms"]["score"] == pytest.approx(expected)


def test_all_environments_are_scored_in_one_batch() -> None:
    scorer = Brightness()
    env = VecProcessReward(fake_env(5, max_episode_steps=4), scorer)
    ended = [int(dones.sum()) for _, dones, _ in run(env, 6)]
    assert sum(ended) > 0
    # At the reset, then once per step: last frames, and with them the first ones of the next episodes.
    assert [len(batch) for batch in scorer.asked] == [5] + [5 + n for n in ended]


def test_in_between_the_last_score_stands() -> None:
    env = VecProcessReward(fake_env(1, max_episode_steps=7), Clock(), every=3, gamma=1.0)
    scores = [infos[0]["reward_terms"]["score"] for _, _, infos in run(env, 7, seed=1)]
    # Scored at the reset, after steps 3 and 6, and at the end.
    assert scores[:6] == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.02, 0.03])


def test_gripper_events_alone_are_scored() -> None:
    inner = fake_env(1, max_episode_steps=50)
    env = VecProcessReward(inner, Clock(), when="gripper")
    env.reset()
    opening, scores = [0.0, 0.004, 0.006, 0.008, 0.012, 0.012], []
    observe = inner.venv._observe
    for width in opening:
        inner.venv._observe = lambda width=width: observe() | {"state": np.array([[0] * 6 + [width, 0]], np.float32)}
        scores.append(env.step(np.zeros((1, 7), dtype=int))[3][0]["reward_terms"]["score"])
    assert scores == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.03, 0.03])


def test_returns_of_episodes_are_what_the_learner_sees() -> None:
    env = VecProcessReward(fake_env(2), Brightness(), mode="bonus", gamma=0.5)
    totals = np.zeros(2)
    for rewards, dones, infos in run(env, 12):
        totals += rewards
        for index in np.flatnonzero(dones):
            assert infos[index]["episode"]["r"] == pytest.approx(totals[index], abs=1e-5)
            totals[index] = 0.0


def test_snapshots_hold_the_potential() -> None:
    env = VecProcessReward(fake_env(2, max_episode_steps=5), Brightness(), every=2)
    run(env, 3)
    saved = env.snapshot()
    assert saved is not None
    actions = np.random.default_rng(5).integers(0, 256, (6, 2, 7))
    expected = [env.step(action)[1] for action in actions]
    other = VecProcessReward(fake_env(2, max_episode_steps=5), Brightness(), every=2)
    other.reset()
    other.restore(saved)
    np.testing.assert_array_equal([other.step(action)[1] for action in actions], expected)
    assert other.settings == env.settings != VecProcessReward(fake_env(2), Brightness(), weight=3).settings


def test_ppo_learns_from_it_and_logs_its_terms(tmp_path: Path) -> None:
    env = VecProcessReward(fake_env(4), Brightness(), weight=0.1)
    arguments: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "policy_kwargs": {"model": FakeBackbone()}, "seed": 0}
    model = VLAPPO("VLAPolicy", env, **arguments)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64)
    names = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {f"rollout/reward_{term}" for term in ("success", "process", "score")} < set(names)
    model.save(tmp_path / "run")
    kwargs: dict[str, Any] = {"policy_kwargs": {"model": FakeBackbone()}}
    again = VLAPPO.load(tmp_path / "run", VecProcessReward(fake_env(4), Brightness(), weight=0.1), **kwargs)
    assert again.num_timesteps == 64
    with pytest.raises(ValueError, match="process_reward"):
        VLAPPO.load(tmp_path / "run", VecProcessReward(fake_env(4), Brightness()), **kwargs)


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_what_is_no_score_is_named_and_refused(value: float) -> None:
    class Broken:
        def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
            return np.full(len(images), value)

    with pytest.raises(RewardModelError, match=r"Broken\.score gave .* expected scores in \[0, 1\]"):
        VecProcessReward(fake_env(2), Broken()).reset()


def test_scores_of_another_shape_are_refused() -> None:
    class Wide:
        def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
            return np.zeros((len(images), 1))

    with pytest.raises(RewardModelError, match=r"gave shape \(2, 1\) for 2 images"):
        VecProcessReward(fake_env(2), Wide()).reset()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "potentail"}, "Unknown mode"),
        ({"when": "never"}, "Unknown when"),
        ({"weight": -1}, "weight=-1"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"every": 0}, "every=0"),
        ({"weight": "a"}, "weight='a'; expected a number of at least 0"),
        ({"weight": True}, "weight=True; expected a number"),
        ({"gamma": None}, "gamma=None; expected a number from 0 to 1"),
        ({"every": 2.5}, r"every=2\.5; expected a whole number"),
        ({"bootstrap_time_limits": "no"}, "bootstrap_time_limits='no'; expected True or False"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VecProcessReward(fake_env(1), Clock(), **kwargs)


def test_a_scorer_for_other_frames_is_refused() -> None:
    small, elsewhere = Clock(), Clock()
    small.image_size = 64  # type: ignore[attr-defined]
    elsewhere.camera = "wrist_image"  # type: ignore[attr-defined]
    with pytest.raises(RewardModelError, match="trained for frames of 64 x 64"):
        VecProcessReward(fake_env(1), small)
    with pytest.raises(RewardModelError, match="looks at 'wrist_image', which the environment does not show"):
        VecProcessReward(fake_env(1), elsewhere)


def test_make_vec_env_says_what_process_rewards_need(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs reward_model"):
        make_vec_env("LIBERO-Spatial-v0", reward="process")
    with pytest.raises(ValueError, match="are for reward='process'"):
        make_vec_env("LIBERO-Spatial-v0", reward_model="tiny-scorer")
    with pytest.raises(RewardModelError, match="There is no reward model"):
        load_reward_model(tmp_path)


def test_a_single_environment_scores_its_own_frames() -> None:
    env = gym.make(
        "LIBERO-Spatial-v0", task_id=0, image_size=16, renderer="fast", reward="process", reward_model=Clock()
    )
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(7, dtype=np.float32))
    assert info["reward_terms"] == pytest.approx({"success": 0.0, "process": 0.99 * 0.02 - 0.01, "score": 0.02})
    assert reward == pytest.approx(0.99 * 0.02 - 0.01)
    with pytest.raises(ValueError, match="reward_model is for reward='process'"):
        gym.make("LIBERO-Spatial-v0", reward_model=Clock())
    with pytest.raises(ValueError, match="needs reward_model"):
        gym.make("LIBERO-Spatial-v0", reward="process")
    with pytest.raises(ValueError, match="give a camera"):
        gym.make("LIBERO-Spatial-v0", cameras=(), reward="process", reward_model=Clock())
    with pytest.raises(ValueError, match="into every worker"):
        gym.make_vec("LIBERO-Spatial-v0", 1, vectorization_mode="vector_entry_point", reward="process")
    env.close()


def test_episodes_that_a_replaced_worker_began_are_scored_from_their_first_frame() -> None:
    inner = fake_env(3, max_episode_steps=9)
    env = VecProcessReward(inner, Clock())  # type: ignore[arg-type]
    env.reset()
    for _ in range(2):
        env.step(np.zeros((3, 7), dtype=np.int64))
    reset = inner.venv.reset

    def with_restart(**kwargs: Any) -> Any:
        kwargs["options"]["reset_mask"][2] = True  # the worker of environment 2 is replaced, which begins it anew
        obs, infos = reset(**kwargs)
        restarted = np.array([False, False, True])
        return obs, infos | {"worker_restarted": restarted, "_worker_restarted": np.ones(3, dtype=bool)}

    inner.venv.reset = with_restart
    env.begin_episodes({0: {"task_id": 1}})
    assert env._totals.lengths.tolist() == [0, 2, 0]
    assert env._phi.tolist() == [0.04, 0.03, 0.04]  # the clock has been asked four times

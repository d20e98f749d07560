"""Groups of episodes from one state: who is in them, what they are worth, and what the policy learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from resuming import StopAt, assert_equal_runs, callbacks
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from vla_agent import VLAGRPO, LearningCurve, RunCheckpoints, RunError, make_vec_env, safe_learn
from vla_agent.algorithms import grpo, losses
from vla_agent.algorithms.groups import (
    Drawer,
    Group,
    Groups,
    decision_advantages,
    group_advantages,
    group_samples,
)
from vla_agent.algorithms.health import Stopwatch
from vla_agent.common.errors import NonFiniteError
from vla_agent.envs.episodes import EpisodeStart, FinishedEpisode, play_episodes
from vla_agent.envs.starts import draw_start
from vla_agent.process_reward import RewardModelError


def make(n_envs: int = 4, env: Any = None, **kwargs: Any) -> VLAGRPO:
    settings: dict[str, Any] = {"n_episodes": 8, "group_size": 4, "batch_size": 16, "learning_rate": 3e-3, "seed": 0}
    policy_kwargs = {"model": FakeBackbone()} | kwargs.pop("policy_kwargs", {})
    return VLAGRPO("VLAPolicy", env or fake_env(n_envs), policy_kwargs=policy_kwargs, **settings | kwargs)


def load(path: Path) -> VLAGRPO:
    return VLAGRPO.load(path, fake_env(4), device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)})


def episode(number: int, length: int, value: float = 0.0, success: bool = False) -> FinishedEpisode:
    """An episode whose observations and log-probabilities all are its number."""
    start, frames = EpisodeStart(0, number // 2), np.full((length + 1, 2), number)
    infos = [{"instruction": "stay"}] * length
    notes = {"log_probs": np.full((length, 7), -float(number), dtype=np.float32)}
    actions, rewards = np.full((length, 7), number), np.zeros(length, dtype=np.float32)
    return FinishedEpisode(number, start, success, length, value, actions, rewards, infos, {"image": frames}, [], notes)


def test_advantages_are_those_of_the_papers() -> None:
    returns = np.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(group_advantages(returns, "group"), [1, -1, -1, 1])
    np.testing.assert_allclose(group_advantages(returns, "leave_one_out"), [2 / 3, -2 / 3, -2 / 3, 2 / 3])
    np.testing.assert_allclose(group_advantages(np.array([1.0, 0.0, 0.0]), "leave_one_out"), [1, -0.5, -0.5])
    for equal in (np.ones(4), 1 + 5e-7 * np.arange(2)):  # but for rounding
        for kind in ("group", "leave_one_out"):
            assert not group_advantages(equal, kind).any()
            for baseline in ("episode", "decision", "time"):
                assert not decision_advantages(equal, np.arange(len(equal)) + 1, kind, baseline).any()


def test_a_baseline_over_decisions_prefers_nothing_on_average() -> None:
    """OPO's mean return is sum l R / sum l; that of the others leaves the episode's own decisions out."""
    returns, lengths = np.array([1.0, 0.0, 0.0, 1.0]), np.array([10, 28, 28, 14])
    found = group_advantages(returns, "group", lengths)
    assert found[0] == pytest.approx((1 - 24 / 80) / 0.5)
    assert (lengths * found).sum() == pytest.approx(0)
    assert (lengths * group_advantages(returns, "group")).sum() < -30, "long failures weigh more"
    others = group_advantages(returns, "leave_one_out", lengths)
    np.testing.assert_allclose(others, [1 - 14 / 70, -24 / 52, -24 / 52, 1 - 10 / 66])
    alike = np.full(4, 7)
    for kind in ("group", "leave_one_out"):
        np.testing.assert_allclose(group_advantages(returns, kind, alike), group_advantages(returns, kind))
    groups = [Group(0, [episode(0, 1), episode(1, 3)], np.array([1.0, 0.0]))]
    samples = group_samples(groups, "group", False, "decision")
    assert samples is not None
    assert samples.advantages.tolist() == [1.5, -0.5, -0.5, -0.5]


def test_a_baseline_over_time_compares_with_the_episodes_that_last() -> None:
    """Two successes of 1 and 2 decisions, two failures of 3 and 4; the last decision has nothing to compare with."""
    returns, lengths = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1, 2, 3, 4])
    found = decision_advantages(returns, lengths, "group", "time")
    means = [2 / 4, 1 / 3, 0, 0]
    expected = [(r - means[t]) / 0.5 for r, length in zip(returns, lengths, strict=True) for t in range(length)]
    np.testing.assert_allclose(found, expected)
    lasting = np.concatenate([np.arange(length) for length in lengths])
    np.testing.assert_allclose(np.bincount(lasting, found), 0, atol=1e-12, err_msg="nothing is preferred at any time")
    others = decision_advantages(returns, lengths, "leave_one_out", "time")
    np.testing.assert_allclose(others, [2 / 3, 2 / 3, 1, -2 / 3, -1 / 2, 0, -2 / 3, -1 / 2, 0, 0])
    alike = np.full(4, 3)
    for kind in ("group", "leave_one_out"):
        by_time, by_episode = (decision_advantages(returns, alike, kind, name) for name in ("time", "episode"))
        np.testing.assert_allclose(by_time, by_episode, err_msg="episodes of one length have one baseline")
    groups = [Group(0, [episode(0, 1), episode(1, 3)], np.array([1.0, 0.0]))]
    samples = group_samples(groups, "group", False, "time")
    assert samples is not None
    assert samples.advantages.tolist() == [1, -1, 0, 0]


def test_decisions_carry_their_episodes_advantage_and_weight() -> None:
    groups = [
        Group(1, [episode(2, 1), episode(3, 3)], np.array([0.0, 1.0])),
        Group(0, [episode(0, 2), episode(1, 2)], np.array([1.0, 0.0])),
    ]
    plain, normed = (group_samples(groups, "group", norm) for norm in (False, True))
    assert plain is not None
    assert normed is not None
    # Groups in the order in which they were begun; an observation for each decision, and none of the end.
    assert plain.actions[:, 0].tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
    assert plain.observations["image"][:, 0].tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
    assert plain.old_log_prob[:, 0].tolist() == [0, 0, -1, -1, -2, -3, -3, -3]
    assert plain.advantages.tolist() == [1, 1, -1, -1, -1, 1, 1, 1]
    assert plain.weights.flatten().tolist() == [1] * 8
    # The weighted mean over decisions is the mean over episodes of the mean over their decisions.
    per_decision = np.arange(8.0)
    by_episode = np.mean([per_decision[:2].mean(), per_decision[2:4].mean(), 4.0, per_decision[5:].mean()])
    assert (normed.weights.flatten() * per_decision).mean() == pytest.approx(by_episode)
    assert group_samples([], "group", False) is None


def test_episodes_began_with_their_first_step_though_environments_rest(tmp_path: Path) -> None:
    """Four of eight environments play an iteration's four episodes, which begin together."""
    model = make(8, n_episodes=4, drop_uninformative=False)
    curve = LearningCurve(tmp_path / "curve.png", window=4)
    model.learn(60, curve)
    iterations = [curve.history[first : first + 4] for first in range(0, len(curve.history), 4)]
    assert len(iterations) > 3
    begins = np.cumsum([0, *(sum(episode.length for episode in four) for four in iterations)])
    assert begins[-1] == model.num_timesteps
    assert [{episode.began for episode in four} for four in iterations] == [{began} for began in begins[:-1].tolist()]
    assert curve.began == [None] * 8
    assert [len(batch) for batch in curve.batches(4)] == [4] * len(iterations)


def test_groups_that_tell_nothing_are_replaced_until_there_are_enough_or_too_many() -> None:
    """Starts with an even state end with different returns, the others with equal ones."""
    returns = lambda episodes: np.array([e.number * (e.start.init_state_id % 2 == 0) for e in episodes], float)  # noqa: E731

    def play(max_groups: int, drop: bool = True) -> Groups:
        np.random.seed(1)  # noqa: NPY002 - runs draw from it
        groups = Groups(fake_env(2), 2, 3, max_groups, drop, returns)
        number, waiting = 0, []
        for start in groups.starts():
            if start is None:  # nothing for now: those under way end
                groups.add(waiting.pop())
                continue
            waiting.insert(0, episode(number, 2)._replace(start=start))
            number += 1
        assert not waiting
        return groups

    groups = play(50)
    assert len(groups.kept) == 2
    assert groups.dropped
    assert not any(e.observations or e.infos for group in groups.dropped for e in group.episodes)
    assert all(len({e.start for e in group.episodes}) == 1 for group in groups.kept + groups.dropped)
    assert len({group.episodes[0].start for group in groups.kept + groups.dropped}) > 1
    assert [e.number for e in groups.kept[0].episodes] == sorted(e.number for e in groups.kept[0].episodes)
    few = play(len(groups.kept + groups.dropped) - 1)
    assert len(few.kept) == 1
    every = play(50, drop=False)
    assert (len(every.kept), len(every.dropped)) == (2, 0)


def test_starts_are_drawn_as_resets_draw_them() -> None:
    env = fake_env(2)
    env.set_task_weights([0.0, 1.0])
    drawn = {draw_start(env) for _ in range(100)}
    assert drawn == {EpisodeStart(task_id=1, init_state_id=number) for number in range(5)}


def test_the_ratio_is_clipped_further_above_than_below() -> None:
    ratio, up, down = th.tensor([0.5, 0.9, 1.25, 2.0]), th.ones(4), -th.ones(4)
    # With A = 1, the minimum is clipped above; with A = -1, below.
    assert losses.clipped_surrogate(ratio, up, 0.2, None, 0.28).item() == pytest.approx(-(0.5 + 0.9 + 1.25 + 1.28) / 4)
    assert losses.clipped_surrogate(ratio, down, 0.2, None, 0.28).item() == pytest.approx((0.8 + 0.9 + 1.25 + 2.0) / 4)
    assert losses.clip_fraction(ratio, 0.2, 0.28).item() == 0.5
    assert losses.clip_fraction(ratio, 0.2).item() == 0.75


@pytest.mark.parametrize(
    ("advantage", "baseline"), [("group", "episode"), ("leave_one_out", "decision"), ("group", "time")]
)
def test_it_learns(advantage: Any, baseline: Any) -> None:
    """The image says which sign the first action must have; chance is one half."""
    settings: dict[str, Any] = {"n_episodes": 64, "group_size": 8, "batch_size": 64, "learning_rate": 1e-2}
    model = make(16, advantage=advantage, baseline=baseline, **settings)
    rates: list[float] = []
    for steps in (1, 6000):
        model.learn(steps)
        env = model.env
        assert env is not None
        played = play_episodes(env, model, [EpisodeStart(task, 0) for task in (0, 1)] * 50, deterministic=False)  # type: ignore[arg-type]
        rates.append(float(np.mean([ended.episode_return / len(ended.actions) for ended in played])))
    assert rates[0] < 0.7
    assert rates[1] > 0.9


def test_only_decisions_that_were_played_count_and_the_value_head_stays() -> None:
    model, history = make(3, n_episodes=4, drop_uninformative=False), callbacks()
    logged: dict[str, float] = {}
    model.set_logger(Logger(None, []))
    model.logger.record = lambda name, value, exclude=None: logged.update({name: value})  # type: ignore[method-assign, assignment]
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(1, history)
    episodes = history[1].history  # type: ignore[attr-defined]
    assert len(episodes) == 4
    assert model.num_timesteps == sum(one.length for one in episodes)
    earned = sum(one.episode_return for one in episodes)
    assert logged["rollout/reward_success"] == pytest.approx(earned / model.num_timesteps)
    changed = {name for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith("value_head") for name in changed)


def test_log_probabilities_are_those_of_the_drawn_actions() -> None:
    model = make(3)
    drawer = Drawer(model.policy, Stopwatch())  # type: ignore[arg-type]
    starts = [EpisodeStart(task, number) for number in range(2) for task in (0, 1)]
    keys = tuple(model.observation_space.spaces)  # type: ignore[attr-defined]
    for ended in play_episodes(model.env, drawer, starts, deterministic=False, record=keys, note=drawer.note):  # type: ignore[arg-type]
        obs = {key: th.as_tensor(values[:-1]) for key, values in ended.observations.items()}
        with th.no_grad():
            scores = model.policy.score(obs, th.as_tensor(ended.actions))  # type: ignore[operator]
        np.testing.assert_allclose(ended.notes["log_probs"], scores.token_log_probs, atol=1e-5)


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_epochs": 2, "max_groups": 2.5, "length_penalty": 0.1, "length_norm": True}
    whole, expected = make(**settings), callbacks()
    whole.learn(200, expected)
    cut = make(**settings)  # only now: its seed sets the generators
    cut.learn(200, [*callbacks(), StopAt(25)])
    cut.save(tmp_path / "a")
    resumed, result = load(tmp_path / "a"), callbacks()
    assert 0 < resumed.num_timesteps < cut.num_timesteps
    assert (resumed.max_groups, resumed.length_penalty, resumed.length_norm) == (2.5, 0.1, True)
    resumed.learn(200 - resumed.num_timesteps, result, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)  # type: ignore[arg-type]
    assert [one.history for one in expected] == [other.history for other in result]  # type: ignore[attr-defined]
    assert safe_learn(make(), 50, tmp_path / "run", RunCheckpoints(tmp_path / "run", every=1))


def test_a_scorer_and_time_tell_apart_what_success_does_not(tmp_path: Path) -> None:
    class Scorer:
        def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
            assert list(instructions) == ["stay"] * len(images)
            return images[:, 0] / 10.0

    model = make(length_penalty=0.2)
    model._scorer = Scorer()
    ended = [episode(0, 2, 1.0, True), episode(1, 4, 1.0, True), episode(2, 4), episode(3, 4)]
    # Successes lose 0.2 of their share of the longest episode; failures win half of their last frame's score.
    np.testing.assert_allclose(model._returns(ended), [0.9, 0.8, 0.1, 0.15])


def test_confidence_is_the_mean_log_probability_and_needs_no_reward() -> None:
    model = make(returns="confidence")
    assert model._returns([episode(0, 2, 1.0, True), episode(3, 4)]).tolist() == [0.0, -3.0]
    model.learn(1)
    assert model.n_iterations == 1


def test_nothing_to_learn_from_is_said_and_survived() -> None:
    model = make(n_episodes=4, max_groups=1.0)
    model._returns = lambda episodes: np.zeros(len(episodes))  # type: ignore[method-assign]
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.warns(UserWarning, match=r"Each of 1 groups of 4 episodes had equal returns, so there is nothing"):
        model.learn(1)
    assert all(th.equal(one, other) for one, other in zip(before, model.policy.parameters(), strict=True))
    assert model.n_iterations == 1


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n_episodes": 10}, ValueError, r"group_size=4 does not divide n_episodes=10, .*; give n_episodes=8 or 12\."),
    ({"n_episodes": 2}, ValueError, r"group_size=4 does not divide n_episodes=2, .*; give n_episodes=4 or 8\."),
    ({"group_size": 1}, ValueError, "group_size=1 is out of range"),
    ({"kl_ref_coef": 0.1}, ValueError, r"kl_ref_coef=0\.1 needs adapters"),
    ({"returns": "confidence", "length_penalty": 0.1}, ValueError, "returns='confidence' asks for no success"),
    ({"clip_range": 1.5}, ValueError, r"clip_range=1\.5"),
    ({"gradient_accumulation_steps": 32}, ValueError, "gradient_accumulation_steps=32 is more than batch_size=16"),
    ({"advantage": "gae"}, ValueError, "advantage"),
    ({"baseline": "state"}, ValueError, "baseline"),
    ({"baseline": "decision", "length_norm": True}, ValueError, "length_norm=True counts each episode the same, and b"),
    ({"failure_scorer": "tiny-scorer"}, RewardModelError, r"trained for frames of 64 x 64|trained for frames of"),
]


@pytest.mark.parametrize(("given", "error", "said"), WRONG)
def test_wrong_arguments_are_refused(given: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(**given)


class Scorer:
    """Likes every last frame alike."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, images: np.ndarray, instructions: list[str]) -> np.ndarray:
        return np.full(len(images), 0.5)

    def fingerprint(self) -> str:
        return self.name


def test_what_scores_failures_comes_with_the_environments_and_may_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "load_reward_model", Scorer)
    monkeypatch.setattr(grpo, "check_camera", lambda *args: None)
    make(failure_scorer="first").save(tmp_path / "a")
    failures = [episode(0, 3)]
    for given in (fake_env(4), None):
        model = VLAGRPO.load(tmp_path / "a", given, device="cpu", policy_kwargs={"model": FakeBackbone(seed=1)})
        if given is None:
            with monkeypatch.context() as patch:
                env = fake_env(4)
                patch.delattr(type(env.venv), "episode_starts")
                with pytest.raises(ValueError, match="do not say where they can begin"):
                    model.set_env(env)
            model.set_env(fake_env(4))
        assert model._returns(failures).tolist() == [0.25]
    monkeypatch.setattr(Scorer, "fingerprint", lambda self: "overwritten")
    with pytest.raises(RunError, match=r"failure_scorer's weights: 'first', not 'overwritten'"):
        load(tmp_path / "a")


def test_an_update_that_is_cut_short_counts() -> None:
    model = make(target_kl=1e-12, n_epochs=3)
    model.learn(1)
    assert model._n_updates == 1


def test_a_first_observation_that_is_no_number_is_told_by_its_key() -> None:
    env = fake_env(4)
    begin = env.begin_episodes

    def broken(options: Any) -> Any:
        obs = begin(options)
        return obs | {"state": np.full_like(obs["state"], np.nan)}

    env.begin_episodes = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="'state'"):
        make(env=env).learn(1)


def test_environments_and_policies_it_cannot_serve_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fake_env(2)
    with monkeypatch.context() as patch:
        patch.delattr(type(env.venv), "episode_starts")
        with pytest.raises(ValueError, match="these environments do not say where they can begin"):
            make(env=env)
    env.venv.settings["output"] = "torch"
    with pytest.raises(ValueError, match="make the environments without output='torch'"):
        make(env=env)
    with pytest.raises(ValueError, match="the policy is ActorCriticPolicy; give 'VLAPolicy'"):
        VLAGRPO(ActorCriticPolicy, env)


def test_a_group_begins_alike_in_the_simulator() -> None:
    """On LIBERO: one start per group, equal to the bit, over official states and placements."""
    env = make_vec_env(
        "LIBERO-Spatial-v0", 2, model="tiny-libero-few", task_id=[0, 3], init_state_ids=[20, 21], placement_seeds=[5],
        renderer="fast", max_episode_steps=16,
    )  # fmt: skip
    try:
        assert env.venv.episode_starts(3) == [
            {"task_id": 3, "init_state_id": 20},
            {"task_id": 3, "init_state_id": 21},
            {"task_id": 3, "placement_seed": 5},
        ]
        with pytest.raises(ValueError, match="task_id"):
            env.venv.episode_starts(1)
        model = VLAGRPO("VLAPolicy", env, n_episodes=6, group_size=3, seed=4, device="cpu", drop_uninformative=False)
        kept: list[Any] = []
        log = model._log_groups
        model._log_groups = lambda groups: (kept.extend(groups.kept), log(groups))[1]  # type: ignore[method-assign, func-returns-value]
        model.learn(1)
        for group in kept:
            first = [one.observations for one in group.episodes]
            assert len({one.start for one in group.episodes}) == 1
            for other in first[1:]:
                assert all(np.array_equal(other[key][0], first[0][key][0]) for key in first[0])
            assert any(not np.array_equal(other["image"][1], first[0]["image"][1]) for other in first[1:])
        assert len({group.episodes[0].start for group in kept}) == 2
    finally:
        env.close()


def test_a_stopped_run_goes_on_in_the_simulator(tmp_path: Path) -> None:
    """Also with a scorer's rewards: environments that rest after an iteration are saved and restored."""

    def learner(path: Path | None = None) -> VLAGRPO:
        env = make_vec_env(
            *("LIBERO-Spatial-v0", 2), model="tiny", task_id=[0, 3], renderer="fast", max_episode_steps=3, seed=0,
            reward="process", reward_model=Scorer(), reward_kwargs={"mode": "gain"},
        )  # fmt: skip
        if path is not None:
            return VLAGRPO.load(path, env, device="cpu")
        return VLAGRPO("VLAPolicy", env, n_episodes=3, group_size=3, learning_rate=1e-3, seed=0, device="cpu")

    class Scorer:
        def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
            return images.mean(axis=(1, 2, 3)) / 255

    whole = learner()
    whole.learn(27)
    cut = learner()
    cut.learn(27, StopAt(8))
    cut.save(tmp_path / "a")
    resumed = learner(tmp_path / "a")
    assert 0 < resumed.num_timesteps < cut.num_timesteps
    resumed.learn(27 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)  # type: ignore[arg-type]
    for model in (whole, cut, resumed):
        model.env.close()  # type: ignore[union-attr]

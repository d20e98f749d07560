"""Episodes from chosen starts: each once, from where it was asked for, whatever the number of environments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from evaluations import SimProcessor
from fakes import INSTRUCTIONS, fake_env

from libero_gym.vector import WorkerError
from vla_agent import VLAVecEnv, make_vec_env
from vla_agent.envs.episodes import EpisodeStart, PlayedStep, play_episodes
from vla_agent.process_reward import VecProcessReward

BRIGHT, DARK = EpisodeStart(task_id=1, init_state_id=4), EpisodeStart(task_id=0, init_state_id=2)


class Drawing:
    """Acts by chance, as the fake environments wish in half of the steps."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        return self.generator.integers(0, 2, (len(obs["state"]), 7)) * 255, None


class Patient:
    """Does right in its third step only, which is the last but one that the fake environments allow."""

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        bright = obs["image"][:, 0, 0, 0] > 100
        right = (obs["state"][:, 0] == 2) & bright
        wrong_side = np.where(bright, 0, 255)
        return np.tile(np.where(right, 255, wrong_side)[:, None], (1, 7)), None


@pytest.mark.parametrize("n_envs", [1, 2, 3, 5])
def test_every_start_is_played_once_whatever_the_number_of_environments(n_envs: int) -> None:
    starts = [BRIGHT, DARK, BRIGHT._replace(init_state_id=0), DARK]
    env = fake_env(n_envs, max_episode_steps=4)
    episodes = sorted(play_episodes(env, Patient(), starts, record=("image", "state")), key=lambda e: e.number)
    assert [episode.start for episode in episodes] == starts
    assert [episode.infos[-1]["init_state_id"] for episode in episodes] == [4, 2, 0, 2]
    # Bright ones succeed in the third step, with a reward of 1; dark ones run out of time after four.
    assert [(e.success, e.steps, e.episode_return) for e in episodes] == [(True, 3, 1.0), (False, 4, 0.0)] * 2
    for episode, brightness in zip(episodes, (200, 50, 200, 50), strict=True):
        assert episode.observations["state"][:, 0].tolist() == list(range(episode.steps + 1))
        assert (episode.observations["image"] == brightness).all()  # to the last frame, which is no other episode's
        assert episode.actions.shape == (episode.steps, 7)
        assert len(episode.infos) == episode.steps
    assert episodes[0].rewards.tolist() == [0, 0, 1]
    assert episodes[0].actions[:, 0].tolist() == [0, 0, 255]


def test_starts_in_turn_stay_with_their_environment() -> None:
    """Environment 0 plays starts 0, 2, 4, however long the others take."""
    env = fake_env(2, max_episode_steps=4)
    env.seed(0)
    drawn: dict[int, list[int]] = {0: [], 1: []}
    for episode in play_episodes(env, Patient(), [EpisodeStart()] * 6, in_turn=True):
        drawn[episode.number % 2].append(episode.infos[-1]["task_id"])
    for i in (0, 1):  # what each environment's own generator draws, one after the other
        generator = np.random.default_rng(i)
        assert drawn[i] == [generator.integers(2) for _ in range(3)]


def test_policies_are_given_what_their_predict_asks_for() -> None:
    class Reader(Patient):
        told: list[tuple[Any, list[bool], list[str]]] = []

        def predict(  # type: ignore[override]
            self, obs: Any, state: Any, episode_start: Any, instructions: list[str], deterministic: bool = False
        ) -> Any:
            self.told.append((state, episode_start.tolist(), instructions))
            return super().predict(obs)[0], (state or 0) + 1

    env = fake_env(2, max_episode_steps=4)
    list(play_episodes(env, Reader(), [BRIGHT, DARK, BRIGHT]))
    states, began, words = zip(*Reader.told, strict=True)
    assert states[:4] == (None, 1, 2, 3)
    # The first of the second environment's is under way when the first environment begins its second.
    assert began[:5] == ([True, True], [False, False], [False, False], [True, False], [False, False])
    assert words[0] == [INSTRUCTIONS[1], INSTRUCTIONS[0]]


def test_returns_are_those_of_the_reward_that_the_learner_sees() -> None:
    class Half:
        camera = "image"

        def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
            return np.full(len(images), 0.5)

    env = VecProcessReward(fake_env(2, max_episode_steps=4), Half(), mode="bonus", weight=0.001, gamma=0.5)  # type: ignore[arg-type]
    episodes = list(play_episodes(env, Patient(), [BRIGHT, DARK, DARK]))
    assert [episode.number for episode in episodes] == [0, 1, 2]
    assert [episode.episode_return for episode in episodes] == pytest.approx([1 + 3 * 0.0005, 0.002, 0.002])


def test_an_episode_whose_worker_always_dies_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fake_env(1, max_episode_steps=1)
    step_wait, ends = env.step_wait, []

    def dying() -> Any:
        obs, rewards, dones, infos = step_wait()
        ends.append(infos[0]["init_state_id"])
        for info in infos:
            info["worker_restarted"] = info["init_state_id"] == 2 or len(ends) < 3
        return obs, rewards, dones, infos

    monkeypatch.setattr(env, "step_wait", dying)
    played = play_episodes(env, Patient(), [BRIGHT, DARK])
    assert next(played).start == BRIGHT  # in its third attempt
    with pytest.raises(WorkerError, match=r"from task_id=0, init_state_id=2 died in each of 3 attempts"):
        next(played)
    assert ends == [4, 4, 4, 2, 2, 2]


def _simulated(n_envs: int) -> VLAVecEnv:
    return make_vec_env(
        "LIBERO-Spatial-v0", n_envs, model=SimProcessor(), task_id=[0, 1], cameras=(), max_episode_steps=2
    )


def test_groups_begin_alike_and_then_go_their_own_ways() -> None:
    """As a group-relative learner needs it: n rollouts of each start, on the real simulator."""
    states = [EpisodeStart(0, 4), EpisodeStart(1, 7), EpisodeStart(1, placement_seed=3)]
    size = 3
    env = _simulated(4)
    try:
        episodes = list(play_episodes(env, Drawing(), [s for s in states for _ in range(size)], record=("state",)))
    finally:
        env.close()
    assert sorted(episode.number for episode in episodes) == list(range(9))
    firsts = []
    for group, start in enumerate(states):
        members = [episode for episode in episodes if episode.number // size == group]
        assert {episode.start for episode in members} == {start}
        first, last = (np.stack([e.observations["state"][step] for e in members]) for step in (0, -1))
        assert (first == first[0]).all()
        assert len(np.unique(last, axis=0)) == size
        firsts.append(first[0])
    assert len(np.unique(firsts, axis=0)) == len(states)


def test_fewer_starts_than_environments_and_training_afterwards() -> None:
    env = _simulated(3)
    try:
        frames = iter(range(100))
        (episode,) = play_episodes(env, Drawing(), [EpisodeStart(1, 7)], watch=lambda: [next(frames)] * 3)
        assert (episode.steps, episode.frames) == (2, [0, 1, 2])
        env.reset()
        ends = [env.step(np.full((3, 7), 128))[2].tolist() for _ in range(4)]
        assert ends == [[False] * 3, [True] * 3] * 2  # one episode follows the other again
    finally:
        env.close()


def test_starts_are_taken_late_and_steps_are_seen() -> None:
    """An iterator may hold starts back; a step shows who played, and can end the play."""
    ended: list[int] = []

    def starts() -> Iterator[EpisodeStart | None]:
        yield BRIGHT
        while not ended:
            yield None
        yield DARK

    seen: list[PlayedStep] = []

    def watched(step: PlayedStep) -> bool:
        seen.append(step)
        return True

    env = fake_env(2, max_episode_steps=4)
    for episode in play_episodes(env, Patient(), starts(), on_step=watched):
        ended.append(episode.number)
    assert ended == [0, 1]
    # The second episode waits for the first one's end, though an environment is free.
    assert [step.playing for step in seen] == [[0]] * 3 + [[0]] * 4
    assert [step.dones.tolist() for step in seen][2:4] == [[True, False], [False, False]]
    assert all(step.infos[1] == {} and step.rewards[1] == 0 for step in seen)
    assert list(play_episodes(env, Patient(), [BRIGHT] * 9, on_step=lambda step: False)) == []
    assert env.reset_infos


def test_notes_are_kept_of_the_decisions_alone() -> None:
    class Noting(Patient):
        count = 0

        def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
            self.count += 1
            return super().predict(obs)

    policy = Noting()
    env = fake_env(3, max_episode_steps=4)
    note = lambda: {"number": np.full(3, policy.count), "env": np.arange(3)}  # noqa: E731
    episodes = sorted(play_episodes(env, policy, [BRIGHT, DARK, BRIGHT, DARK], note=note), key=lambda e: e.number)
    assert [e.notes["number"].tolist() for e in episodes] == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3], [4, 5, 6, 7]]
    assert [set(e.notes["env"].tolist()) for e in episodes] == [{0}, {1}, {2}, {0}]

"""Episodes from chosen starts: the one loop behind evaluations, recordings of a policy, and groups of rollouts."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np

from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.process_reward import VecProcessReward

_MAX_ATTEMPTS = 3  # to play an episode whose worker dies


class EpisodeStart(NamedTuple):
    """Where an episode begins. The environment draws what is None, as `LiberoEnv.reset` says.

    Attributes:
        task_id: Task of the suite.
        init_state_id: Official initial state of the task.
        placement_seed: Seed that places the objects instead of an official initial state.
        fixture_seed: Seed that cabinets, stoves and racks are drawn from.
        fixture_draw: Number of the draw from that seed, counted from 1.
    """

    task_id: int | None = None
    init_state_id: int | None = None
    placement_seed: int | None = None
    fixture_seed: int | None = None
    fixture_draw: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Options of the reset that begins the episode."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def agrees_with(self, reset_info: Mapping[str, Any]) -> bool:
        """Whether an episode with this info of its reset may have begun here."""
        # Infos name official states only; -1 stands for every placement.
        state = -1 if self.placement_seed is not None else self.init_state_id
        return self.task_id in (None, reset_info["task_id"]) and state in (None, reset_info["init_state_id"])


class FinishedEpisode(NamedTuple):
    """An episode from its start to its end, of T decisions.

    Attributes:
        number: Position of its start among those asked for, from 0.
        start: The start that it began from.
        success: Whether the goal held at the end.
        steps: Control steps, settling left out.
        episode_return: Sum of its rewards.
        actions: Decisions of the policy, (T, ...): bins, or actions as the environments take them.
        rewards: Rewards of its steps, float32 (T,).
        infos: Infos of its steps, T of them; the last one has `terminal_observation`.
        observations: Recorded observations by key, (T + 1, ...), from the first to the last.
        frames: Values that ``watch`` gave, T + 1 of them; empty without it.
        notes: What ``note`` gave of each decision, by key (T, ...); empty without it.
    """

    number: int
    start: EpisodeStart
    success: bool
    steps: int
    episode_return: float
    actions: np.ndarray
    rewards: np.ndarray
    infos: list[dict[str, Any]]
    observations: dict[str, np.ndarray]
    frames: list[Any]
    notes: dict[str, np.ndarray]


class PlayedStep(NamedTuple):
    """A step of all environments.

    Attributes:
        playing: Numbers of the environments whose episodes went on in it; the others rested.
        actions: Decisions of all environments, (n_envs, ...).
        observations: Observations after it, by key (n_envs, ...).
        rewards: Rewards, float32 (n_envs,); 0 where an environment rested.
        dones: Whether an episode ended, bool (n_envs,).
        infos: SB3's infos; {} where an environment rested.
    """

    playing: list[int]
    actions: np.ndarray
    observations: dict[str, np.ndarray]
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


def play_episodes(
    env: VLAVecEnv | VecProcessReward,
    policy: Any,
    starts: Iterable[EpisodeStart | None],
    *,
    deterministic: bool = True,
    continuous: bool = False,
    in_turn: bool = False,
    record: Sequence[str] = (),
    watch: Callable[[], Sequence[Any]] | None = None,
    note: Callable[[], Mapping[str, np.ndarray]] | None = None,
    on_step: Callable[[PlayedStep], bool] | None = None,
) -> Iterator[FinishedEpisode]:
    """Play an episode from every start, several side by side.

    Each start is played exactly once, whatever the number of environments: an environment whose episode has ended
    takes the next start, and an episode that a failing worker cut short is played again, twice at most. For a
    group-relative learner, give each start as often as the group is large; ``number // size`` is then the group's.
    Starts are taken when an environment is free, so an iterator may decide late what comes next.

    While the episodes are played, environments without one rest. Abandon the iterator, or let it end, before you step
    the environments otherwise.

    Args:
        env: The environments; episodes under way are abandoned.
        policy: Object with SB3's ``predict(obs, deterministic=)``, which returns actions and a state. If `predict` also
            takes ``state`` and ``episode_start``, it is given them; if it takes ``instructions``, it is given the words
            that each environment shows; if it takes ``playing``, the numbers of those whose actions count.
        starts: Starts of the episodes, in the order in which they are begun. An iterator may give None: nothing for
            now; it is asked again after the next step.
        deterministic: Whether the policy takes its likeliest actions.
        continuous: Whether the policy gives actions for `VLAVecEnv.step_actions` instead of bins.
        in_turn: Whether environment i plays the starts i, i + n_envs, i + 2 n_envs, ... alone. What environments draw
            themselves then does not depend on which episode ends first.
        record: Keys of observations to keep.
        watch: Function that gives a value per environment to keep as `frames`, such as ``env.get_images``. It is called
            after resets and steps.
        note: Function that gives arrays (n_envs, ...) by key, to keep of each decision as `notes`. It is called after
            the policy has decided.
        on_step: Function that is called after each step, before the episodes that end in it are given. If it returns
            False, no further step is played.

    Yields:
        Episodes as they end; those that end in the same step in the order of environments.

    Raises:
        WorkerError: If workers cut an episode short in each of three attempts.
    """
    player = _Player(env, policy, deterministic, continuous, record, watch, note)
    player.line_up(starts, in_turn)
    env.set_autoreset(False)  # nothing is simulated or drawn in vain
    try:
        while player.begin_where_free():
            step, ended = player.step()
            go_on = on_step is None or on_step(step)
            yield from ended
            if not go_on:
                return
    finally:
        with contextlib.suppress(gym.error.ClosedEnvironmentError):
            env.set_autoreset(True)


class _Playing:
    """An episode under way."""

    def __init__(self, number: int, start: EpisodeStart, record: Sequence[str]) -> None:
        self.number, self.start = number, start
        self.observations: dict[str, list[np.ndarray]] = {key: [] for key in record}
        self.frames: list[Any] = []
        self.notes: dict[str, list[np.ndarray]] = {}
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.infos: list[dict[str, Any]] = []

    def see(self, obs: Mapping[str, np.ndarray]) -> None:
        """Keep an observation of this episode's environment."""
        for key, rows in self.observations.items():
            rows.append(np.array(obs[key]))

    def finish(self) -> FinishedEpisode:
        info = self.infos[-1]
        return FinishedEpisode(
            self.number,
            self.start,
            bool(info["is_success"]),
            int(info["elapsed_steps"]),
            float(info["episode"]["r"]),
            np.stack(self.actions),
            np.array(self.rewards, dtype=np.float32),
            self.infos,
            {key: np.stack(rows) for key, rows in self.observations.items()},
            self.frames,
            {key: np.stack(rows) for key, rows in self.notes.items()},
        )


class _Queue:
    """Episodes that wait for an environment, with their numbers."""

    def __init__(self, starts: Iterable[tuple[int, EpisodeStart | None]]) -> None:
        self.again: deque[tuple[int, EpisodeStart]] = deque()  # cut short, to be played first
        self.coming = iter(starts)

    def take(self) -> tuple[int, EpisodeStart] | None:
        """The next episode; None if there is none, or none for now."""
        if self.again:
            return self.again.popleft()
        number, start = next(self.coming, (0, None))
        return None if start is None else (number, start)


def _numbered(starts: Iterable[EpisodeStart | None]) -> Iterator[tuple[int, EpisodeStart | None]]:
    """The starts with their numbers; None, which is no start, has that of the next."""
    number = 0
    for start in starts:
        yield number, start
        number += start is not None


class _Player:
    """Which environment plays what, and what the policy remembers."""

    def __init__(
        self,
        env: VLAVecEnv | VecProcessReward,
        policy: Any,
        deterministic: bool,
        continuous: bool,
        record: Sequence[str],
        watch: Callable[[], Sequence[Any]] | None,
        note: Callable[[], Mapping[str, np.ndarray]] | None,
    ) -> None:
        self.env: Any = env
        self.adapter = cast(VLAVecEnv, env.unwrapped)
        self.policy, self.deterministic, self.continuous = policy, deterministic, continuous
        self.record, self.watch, self.note = record, watch, note
        accepted = inspect.signature(policy.predict).parameters
        self.remembers = "episode_start" in accepted  # SB3's whole interface
        self.reads_words = "instructions" in accepted
        self.asks_who_plays = "playing" in accepted
        self.state: Any = None
        self.playing: dict[int, _Playing] = {}
        self.cut_short: Counter[int] = Counter()  # attempts, by the episode's number
        self.began = np.zeros(env.num_envs, dtype=bool)
        self.obs: dict[str, np.ndarray] = {}
        self.frames: Sequence[Any] = ()

    def line_up(self, starts: Iterable[EpisodeStart | None], in_turn: bool) -> None:
        """Queue the starts: one queue for each environment, or the same one for all."""
        n_envs = self.env.num_envs
        if in_turn:
            waiting = list(_numbered(starts))
            self.queues = [_Queue(waiting[i::n_envs]) for i in range(n_envs)]
        else:
            self.queues = [_Queue(_numbered(starts))] * n_envs

    def begin_where_free(self) -> bool:
        """Begin the next episodes in all environments that have none; False if nothing is played any more."""
        beginning: dict[int, tuple[int, EpisodeStart]] = {}
        for i in range(self.env.num_envs):
            if i not in self.playing and (episode := self.queues[i].take()) is not None:
                beginning[i] = episode
        self.began[:] = False
        if beginning:
            self._begin(beginning)
        return bool(self.playing)

    def _begin(self, beginning: dict[int, tuple[int, EpisodeStart]]) -> None:
        """Begin episodes, and begin those again whose worker was replaced meanwhile."""
        wanted = beginning | {i: (episode.number, episode.start) for i, episode in self.playing.items()}
        options = {i: start.options for i, (_, start) in beginning.items()}
        # An environment cannot be stepped before its first reset, even if there is nothing for it to play.
        idle = [i for i in range(self.env.num_envs) if i not in wanted and not self.adapter.reset_infos[i]]
        options |= {i: next(iter(options.values())) for i in idle}
        while options:
            before = list(self.adapter.reset_infos)
            self.obs = self.env.begin_episodes(options)
            infos = self.adapter.reset_infos
            for i in options:
                self.began[i] = True
            unasked = {i for i in wanted if infos[i] is not before[i]} - set(options)
            again = {i for i in wanted if i in unasked or not wanted[i][1].agrees_with(infos[i])}
            options = {i: wanted[i][1].options for i in again}
        for i, (number, start) in wanted.items():
            if self.began[i]:
                self.playing[i] = _Playing(number, start, self.record)
        if self.watch is not None:
            self.frames = self.watch()

    def step(self) -> tuple[PlayedStep, list[FinishedEpisode]]:
        """Decide and step; gives the step, and the episodes that have ended."""
        for i, episode in self.playing.items():
            episode.see({key: self.obs[key][i] for key in self.record})
            episode.frames += [self.frames[i]] if self.watch is not None else []
        actions = self._decide()
        for key, values in self.note().items() if self.note is not None else ():
            for i, episode in self.playing.items():
                episode.notes.setdefault(key, []).append(np.array(values[i]))
        if self.continuous:
            self.adapter.step_actions_async(actions)
        else:
            self.env.step_async(actions)
        self.obs, rewards, dones, infos = self.env.step_wait()
        if self.watch is not None:
            self.frames = self.watch()
        playing = sorted(self.playing)
        rests = np.isin(np.arange(len(infos)), playing, invert=True)
        told = [{} if rests[i] else info for i, info in enumerate(infos)]
        step = PlayedStep(playing, actions, self.obs, np.where(rests, 0, rewards), dones & ~rests, told)
        ended: list[FinishedEpisode] = []
        for i, episode in list(self.playing.items()):
            episode.actions.append(actions[i])
            episode.rewards.append(rewards[i])
            episode.infos.append(infos[i])
            if not dones[i]:
                continue
            del self.playing[i]
            if infos[i].get("worker_restarted", False) and not infos[i]["is_success"]:
                # A worker that had to be replaced cut the episode short.
                self._count_attempt(episode)
                self.queues[i].again.appendleft((episode.number, episode.start))
                continue
            episode.see(infos[i]["terminal_observation"])
            episode.frames += [self.frames[i]] if self.watch is not None else []
            ended.append(episode.finish())
        return step, ended

    def _count_attempt(self, episode: _Playing) -> None:
        from libero_gym.vector.pool import WorkerError

        self.cut_short[episode.number] += 1
        if self.cut_short[episode.number] >= _MAX_ATTEMPTS:
            where = ", ".join(f"{name}={value}" for name, value in episode.start.options.items()) or "a drawn start"
            raise WorkerError(
                f"The worker of the episode from {where} died in each of {_MAX_ATTEMPTS} attempts; leave the episode "
                "out, or look for the cause in the warnings about workers."
            )

    def _decide(self) -> np.ndarray:
        further: dict[str, Any] = {}
        if self.remembers:
            further |= {"state": self.state, "episode_start": self.began.copy()}
        if self.reads_words:
            further["instructions"] = self.adapter.instructions()
        if self.asks_who_plays:
            further["playing"] = sorted(self.playing)
        actions, self.state = self.policy.predict(self.obs, deterministic=self.deterministic, **further)
        return cast(np.ndarray, actions)

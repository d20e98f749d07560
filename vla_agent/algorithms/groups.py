"""Groups of episodes from one initial state each, and what their returns say about every episode of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.algorithms.finite import check_observations
from vla_agent.algorithms.health import Stopwatch
from vla_agent.envs.episodes import EpisodeStart, FinishedEpisode
from vla_agent.envs.starts import draw_start
from vla_agent.policy.policy import VLAPolicy

Advantage = Literal["group", "leave_one_out"]
Baseline = Literal["episode", "decision", "time"]
Returns = Literal["environment", "confidence"]

# Returns of a group that differ by less are equal: rewards are sums of float32.
SAME_RETURN = 1e-6


class Group(NamedTuple):
    """G episodes from one start.

    Attributes:
        number: How many groups were begun before it.
        episodes: The episodes, in the order in which they were begun.
        returns: Their returns, float64 (G,).
    """

    number: int
    episodes: list[FinishedEpisode]
    returns: np.ndarray

    @property
    def is_informative(self) -> bool:
        """Whether the returns differ, so that there is something to prefer."""
        return bool(np.ptp(self.returns) > SAME_RETURN)


class Groups:
    """Plays groups until enough of them tell something: dynamic sampling (DAPO, arXiv 2503.14476, section 3.2).

    Args:
        env: Environments whose starts are drawn.
        n_groups: Number of groups that are wanted.
        size: Episodes of each, G.
        max_groups: Number of groups that are begun at most.
        drop: Whether groups whose episodes all have the same return do not count.
        returns_of: Function of a group's episodes that gives their returns, float64 (G,).

    Attributes:
        kept: Groups to learn from, in the order in which they ended.
        dropped: Groups that tell nothing, without what was observed.
    """

    def __init__(
        self,
        env: VecEnv,
        n_groups: int,
        size: int,
        max_groups: int,
        drop: bool,
        returns_of: Callable[[list[FinishedEpisode]], np.ndarray],
    ) -> None:
        self.env, self.n_groups, self.size, self.max_groups, self.drop = env, n_groups, size, max_groups, drop
        self.returns_of = returns_of
        self.kept: list[Group] = []
        self.dropped: list[Group] = []
        self._playing: dict[int, list[FinishedEpisode]] = {}
        self._begun = 0

    def starts(self) -> Iterator[EpisodeStart | None]:
        """Starts for `play_episodes`; None while it depends on the groups under way whether another is needed."""
        while True:
            missing = self.n_groups - len(self.kept) - len(self._playing)
            if missing > 0 and self._begun < self.max_groups:
                start = draw_start(self.env)
                self._playing[self._begun] = []
                self._begun += 1
                for _ in range(self.size):
                    yield start
            elif self._playing:
                yield None
            else:
                return

    def add(self, episode: FinishedEpisode) -> None:
        """Puts an episode that has ended into its group."""
        number = episode.number // self.size
        episodes = self._playing[number]
        episodes.append(episode)
        if len(episodes) < self.size:
            return
        del self._playing[number]
        episodes.sort(key=lambda ended: ended.number)
        group = Group(number, episodes, self.returns_of(episodes))
        if group.is_informative or not self.drop:
            self.kept.append(group)
        else:  # of which nobody learns, so that their frames need no memory
            light = [ended._replace(observations={}, infos=[]) for ended in episodes]
            self.dropped.append(group._replace(episodes=light))


class GroupSamples(NamedTuple):
    """M decisions of some groups, or B of a minibatch, with N action tokens each."""

    observations: dict[str, Any]  # by key, (M, ...)
    actions: Any  # bins (M, N)
    old_log_prob: Any  # float32 (M, N)
    advantages: Any  # float32 (M,)
    weights: Any  # float32 (M, 1), of the policy loss

    def rows(self, rows: np.ndarray, device: th.device) -> GroupSamples:
        """Some decisions, as tensors on a device."""
        observations: Any = obs_as_tensor({key: values[rows] for key, values in self.observations.items()}, device)
        return GroupSamples(observations, *(th.as_tensor(values[rows], device=device) for values in self[1:]))


def group_advantages(returns: np.ndarray, kind: Advantage, counts: np.ndarray | None = None) -> np.ndarray:
    """Advantages of G episodes from one state, float64 (G,).

    * "group": (R - mean R) / std R (GRPO, Shao et al., 2024, arXiv 2402.03300, section 4.1.2).
    * "leave_one_out": R_i - mean of the others' R, an unbiased baseline (RLOO, Kool et al., 2019; Ahmadian et al.,
      2024, arXiv 2402.14740, eq. 7). If all count the same, it is G / (G - 1) (R_i - mean R).

    Args:
        returns: Returns R, (G,), G at least 2.
        kind: Which of the two.
        counts: How much each episode counts in these means, above 0, (G,); None for the same. With the episodes'
            lengths, "group" advantages sum to zero over decisions, not over episodes, and the mean is OPO's baseline
            (Hao et al., 2025, arXiv 2505.23585): that of least variance where each decision has a like share in it.
    """
    if np.ptp(returns) <= SAME_RETURN:  # of rounding alone
        return np.zeros(len(returns))
    counts = np.ones(len(returns)) if counts is None else counts
    total, counted = counts.sum(), (counts * returns).sum()
    if kind == "leave_one_out":
        return returns - (counted - counts * returns) / (total - counts)
    return (returns - counted / total) / float(returns.std())


def decision_advantages(returns: np.ndarray, lengths: np.ndarray, kind: Advantage, baseline: Baseline) -> np.ndarray:
    """Advantages of the decisions of G episodes from one state, episode after episode, float64 (sum of T,).

    With the "episode" and the "decision" baseline, all decisions of an episode have the same. With "time", decision t
    is compared with the episodes that have a decision t:

        A_t = R - mean R of these episodes,    over std R of the group if ``kind`` is "group".

    Such a baseline is an estimate of the value at t that needs no critic (time-dependent baselines: Peters and Schaal,
    2008, "Reinforcement learning of motor skills with policy gradients"). It may depend on who lasts until t, which is
    settled before decision t. Where all that last will fail, A_t = 0.

    Args:
        returns: Returns R, (G,), G at least 2.
        lengths: Number of decisions T of each, (G,).
        kind: As of `group_advantages`. An episode that is alone at t has A_t = 0 in both kinds.
        baseline: What counts the same in the mean: an "episode", a "decision", or at each "time" what lasts until then.
    """
    if np.ptp(returns) <= SAME_RETURN:
        return np.zeros(int(lengths.sum()))
    if baseline != "time":
        counts = lengths if baseline == "decision" else None
        return np.repeat(group_advantages(returns, kind, counts), lengths)
    lasts = np.arange(lengths.max()) < lengths[:, None]  # (G, longest T)
    n_lasting = lasts.sum(axis=0)
    above_mean = returns[:, None] - returns @ lasts / n_lasting
    if kind == "leave_one_out":
        advantages = above_mean * n_lasting / np.maximum(n_lasting - 1, 1)
    else:
        advantages = above_mean / float(returns.std())
    return advantages[lasts]


def group_samples(
    groups: list[Group], kind: Advantage, length_norm: bool, baseline: Baseline = "episode"
) -> GroupSamples | None:
    """The decisions of groups, episode after episode, as arrays; None without groups.

    Args:
        groups: The groups. Their episodes have ``notes["log_probs"]``, (T, N), and recorded observations.
        kind: Of the advantages.
        length_norm: Whether each episode counts the same, by 1 / T for each of its T decisions (GRPO, eq. 3); else each
            decision counts the same, and long episodes count more (DAPO, section 3.3).
        baseline: Of the advantages; see `decision_advantages`.
    """
    groups = sorted(groups, key=lambda group: group.number)
    episodes = [episode for group in groups for episode in group.episodes]
    if not episodes:
        return None
    advantages = np.concatenate(
        [decision_advantages(group.returns, _lengths(group.episodes), kind, baseline) for group in groups]
    )
    lengths = _lengths(episodes)
    # The mean over all decisions of weight * x is the mean over episodes of the mean over their own decisions.
    weights = lengths.mean() / lengths if length_norm else np.ones(len(lengths))
    keys = episodes[0].observations
    return GroupSamples(
        {key: np.concatenate([episode.observations[key][:-1] for episode in episodes]) for key in keys},
        np.concatenate([episode.actions for episode in episodes]),
        np.concatenate([episode.notes["log_probs"] for episode in episodes]),
        advantages.astype(np.float32),
        np.repeat(weights, lengths).astype(np.float32)[:, None],
    )


def _lengths(episodes: list[FinishedEpisode]) -> np.ndarray:
    return np.array([len(episode.actions) for episode in episodes])


class Drawer:
    """A policy that draws its actions and remembers how likely each token was; for `play_episodes`.

    Args:
        policy: The policy.
        stopwatch: Counts its seconds as "decode".
        num_timesteps: Environment steps of the run so far, for messages.
    """

    def __init__(self, policy: VLAPolicy, stopwatch: Stopwatch, num_timesteps: int = 0) -> None:
        self.policy, self.stopwatch, self.num_timesteps = policy, stopwatch, num_timesteps
        self._log_probs = np.zeros((0, 0), dtype=np.float32)

    def predict(self, obs: dict[str, Any], playing: list[int], deterministic: bool = False) -> tuple[np.ndarray, None]:
        """Bins (n_envs, N); those of environments that rest are 0, and cost nothing.

        Raises:
            NonFiniteError: If an observation is not finite, as an episode's first may be.
        """
        n_envs = len(obs["input_ids"])
        check_observations(obs, None, self.num_timesteps)
        with self.stopwatch("decode"), th.no_grad():
            rows = {key: values[playing] for key, values in obs.items()}
            decision = self.policy.act(obs_as_tensor(rows, self.policy.device), deterministic)
            drawn = decision.actions.cpu().numpy()
            log_probs = decision.token_log_probs.float().cpu().numpy()
        actions = np.zeros((n_envs, drawn.shape[1]), dtype=drawn.dtype)
        self._log_probs = np.zeros((n_envs, drawn.shape[1]), dtype=np.float32)
        actions[playing], self._log_probs[playing] = drawn, log_probs
        return actions, None

    def note(self) -> dict[str, np.ndarray]:
        """The tokens' log-probabilities, float32 (n_envs, N), of the last decision."""
        return {"log_probs": self._log_probs}

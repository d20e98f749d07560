"""Group-relative policy optimisation: episodes from one initial state are each other's baseline; there is no critic.

In the order of an iteration: `VLAGRPO.collect_tokens` plays groups (`groups.Groups`), `groups.group_samples` turns
their returns into advantages, and `VLAGRPO.train` takes clipped steps (`VLAGRPO._losses`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import real_number, whole_number
from vla_agent.algorithms import arguments, health, losses
from vla_agent.algorithms.arguments import check_reference
from vla_agent.algorithms.critic_free import NO_CRITIC, CriticFree
from vla_agent.algorithms.engine import LOCAL, engine_of
from vla_agent.algorithms.finite import check_observations, check_rewards
from vla_agent.algorithms.groups import Advantage, Baseline, Drawer, Groups, GroupSamples, Returns, group_samples
from vla_agent.algorithms.minibatch import Losses
from vla_agent.envs.episodes import FinishedEpisode, PlayedStep, play_episodes
from vla_agent.envs.starts import names_starts
from vla_agent.policy.policy import VLAPolicy
from vla_agent.process_reward import RewardModel, load_reward_model
from vla_agent.process_reward.interface import check_camera, checked_scores

# DAPO (arXiv 2503.14476): clip range (0.2, 0.28), no KL term. SimpleVLA-RL (arXiv 2509.09674) has groups of 8.
GRPO_DEFAULTS: dict[str, Any] = {"learning_rate": 2e-5, "batch_size": 256, "max_grad_norm": 1.0}


class VLAGRPO(CriticFree):
    """GRPO for a `VLAPolicy`; with ``advantage="leave_one_out"``, RLOO.

    An iteration plays ``n_episodes / group_size`` groups of episodes, each from one initial state, by the policy's own
    temperature. With R the return of an episode (success, for sparse rewards) and r the ratio of new to old
    probability, its decisions have the loss

        L = -E[w min(r A, clip(r, 1 - eps, 1 + eps_high) A)],    A = (R - mean R) / std R  over the group.

    A group whose episodes all have the same return has A = 0 and is replaced by another. The value head of the policy
    is not trained. The environments' states are those of LIBERO to the bit, so that all episodes of a group begin
    alike.

    Args:
        policy: "VLAPolicy", or a subclass.
        env: What `make_vec_env` gives. Each step of theirs is a decision; resting environments do not count.
        n_episodes: Episodes to learn from in an iteration.
        group_size: Episodes from one initial state, G.
        max_groups: Groups that an iteration plays at most, as a multiple of those it wants; it then learns from what it
            has.
        drop_uninformative: Whether groups with equal returns are replaced. False learns nothing from them, either.
        advantage: "group" (GRPO) or "leave_one_out" (RLOO); see `groups.group_advantages`.
        baseline: What a return is compared with: the mean over a group's episodes ("episode"), over their decisions
            ("decision", OPO, arXiv 2505.23585), or at each decision over the episodes that last until then ("time"; see
            `groups.decision_advantages`). Failures that last until the time limit have most of the decisions. Against
            the mean over episodes these are worse than nothing on average, and what was drawn becomes less likely,
            whatever it was.
        batch_size: Decisions per minibatch, about: minibatches of a rollout are equally large.
        n_epochs: Passes over each rollout.
        clip_range, clip_range_high: How far the ratio may fall and rise, eps and eps_high.
        ratio_level: "token" for one ratio per token, each clipped on its own, or "action" for one per action.
        length_norm: Whether each episode counts the same, whatever its length; see `groups.group_samples`.
        length_penalty: Subtracted from a success's return, times its length over that of its group's longest episode:
            the faster of two successes is then the better.
        returns: What an episode is worth: "environment" sums its rewards; "confidence" is the mean log-probability of
            its tokens when they were drawn, which asks for no reward (self-certainty: Zhao et al., 2025, arXiv
            2505.19590, has the divergence from uniform instead).
        failure_scorer: A process reward model, by name or folder, whose score of a failure's last frame is added to its
            return, times ``failure_weight``: groups without success then tell something, too (SRPO, arXiv 2511.15605,
            has distances to successes instead).
        failure_weight: See above; below 1 - ``length_penalty``, a failure is never worth a success.
        kl_ref_coef: Weight of the KL divergence to the policy with its adapters off. It needs ``lora``.
        ent_coef: Weight of the entropy.
        policy_warmup_iterations: Iterations over which the learning rate rises.
        ratio_tolerance, gradient_accumulation_steps, target_kl: As in `VLAPPO`.

    The other arguments are SB3's.

    Raises:
        ValueError: If an argument is out of range, or the environments cannot begin where they are told.
    """

    token_defaults = GRPO_DEFAULTS

    n_episodes: int
    group_size: int
    batch_size: int
    clip_range: float
    clip_range_high: float
    advantage: Advantage
    baseline: Baseline
    ratio_level: losses.RatioLevel
    max_groups: float
    drop_uninformative: bool
    length_norm: bool
    length_penalty: float
    returns: Returns
    failure_scorer: str | None
    failure_weight: float
    kl_ref_coef: float

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None = None,
        n_episodes: int = 64,
        group_size: int = 8,
        batch_size: int | None = None,
        n_epochs: int = 1,
        clip_range: float = 0.2,
        clip_range_high: float = 0.28,
        ent_coef: float = 0.0,
        max_grad_norm: float | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        advantage: Advantage = "group",
        baseline: Baseline = "episode",
        ratio_level: losses.RatioLevel = "token",
        max_groups: float = 3.0,
        drop_uninformative: bool = True,
        length_norm: bool = False,
        length_penalty: float = 0.0,
        returns: Returns = "environment",
        failure_scorer: str | None = None,
        failure_weight: float = 0.5,
        kl_ref_coef: float = 0.0,
        gradient_accumulation_steps: int = 1,
        policy_warmup_iterations: int = 0,
        ratio_tolerance: float | None = None,
    ) -> None:
        given = self._checked(locals())
        self._samples: GroupSamples | None = None
        self._scorer: RewardModel | None = None
        with self._environments(env, given) as environments:
            super().__init__(policy, environments, **given, **NO_CRITIC, n_steps=1)
            if _init_setup_model:
                self._setup_model()

    def collect_tokens(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """Plays groups of episodes; False if the callback stopped it."""
        policy = cast(VLAPolicy, self.policy)
        policy.set_training_mode(False)
        callback.on_rollout_start()
        wanted = self.n_episodes // self.group_size
        groups = Groups(
            env,
            wanted,
            self.group_size,
            max(wanted, int(wanted * self.max_groups)),
            self.drop_uninformative,
            self._returns,
        )
        drawer, before = Drawer(policy, stopwatch, self.num_timesteps), self.num_timesteps
        self._go_on, self._reward_terms = True, Counter[str]()
        for episode in play_episodes(
            cast(Any, env),
            drawer,
            groups.starts(),
            deterministic=False,
            record=tuple(cast(spaces.Dict, env.observation_space).spaces),
            note=drawer.note,
            on_step=lambda step: self._follow(step, callback),
        ):
            groups.add(episode)
        if not self._go_on:
            return False
        self._samples = group_samples(groups.kept, self.advantage, self.length_norm, self.baseline)
        self._log_groups(groups)
        for name, total in self._reward_terms.items():
            self.logger.record(f"rollout/reward_{name}", total / (self.num_timesteps - before))
        callback.update_locals({"n_steps": 1})
        callback.on_rollout_end()
        return True

    def _follow(self, step: PlayedStep, callback: BaseCallback) -> bool:
        """Counts a step's decisions, and shows it to the callbacks, as SB3's loop does."""
        n_envs, n_playing = len(step.infos), len(step.playing)
        self.num_timesteps += n_playing
        for info in step.infos:
            self._reward_terms.update(info.get("reward_terms", {}))  # a Counter adds up where a dict would replace
        check_rewards(step.rewards, step.infos, self.num_timesteps)
        check_observations(step.observations, step.infos, self.num_timesteps)
        for bar in self._progress_bars:
            bar.pbar.update(n_playing - n_envs)  # SB3's bar counts all environments
        self._last_obs, self._last_episode_starts = step.observations, step.dones
        seen = {"infos": step.infos, "dones": step.dones, "rewards": step.rewards, "actions": step.actions}
        seen |= {"new_obs": step.observations, "playing": step.playing}
        callback.update_locals({"self": self, "callback": callback, **seen})
        self._go_on = callback.on_step()
        if self._go_on:
            self._update_info_buffer(step.infos, step.dones)
        return self._go_on

    def _returns(self, episodes: list[FinishedEpisode]) -> np.ndarray:
        """What each of some episodes is worth, float64 (G,)."""
        if self.returns == "confidence":
            return np.array([episode.notes["log_probs"].mean(dtype=np.float64) for episode in episodes])
        returns = np.array([episode.episode_return for episode in episodes])
        success = np.array([episode.success for episode in episodes])
        if self.length_penalty:
            lengths = np.array([len(episode.actions) for episode in episodes])
            returns -= self.length_penalty * success * lengths / lengths.max()
        if self._scorer is not None and not success.all():
            camera = getattr(self._scorer, "camera", "image")
            failed = [episode for episode in episodes if not episode.success]
            last = np.stack([episode.observations[camera][-1] for episode in failed])
            told = [str(episode.infos[-1]["instruction"]) for episode in failed]
            returns[~success] += self.failure_weight * checked_scores(self._scorer, last, told)
        return returns

    def _log_groups(self, groups: Groups) -> None:
        every = groups.kept + groups.dropped
        self.logger.record("rollout/groups", len(every))
        self.logger.record("rollout/groups_dropped", len(groups.dropped) / len(every))
        self.logger.record("rollout/group_return_std", float(np.mean([group.returns.std() for group in every])))
        solved = np.mean([all(episode.success for episode in group.episodes) for group in every])
        self.logger.record("rollout/groups_solved", float(solved))
        if self._samples is None:
            warnings.warn(
                f"Each of {len(every)} groups of {self.group_size} episodes had equal returns, so there is nothing to "
                "learn from this iteration. If all fail, start from a better model, draw at a higher temperature, or "
                "give failure_scorer; if all succeed, take harder tasks.",
                stacklevel=2,
            )

    def train(self) -> None:
        """Updates the policy from the groups: epochs of minibatches, until the KL is too large."""
        stopwatch, log, samples = health.Stopwatch(), health.UpdateLog(), self._samples
        with stopwatch("update"):
            self._begin_update()
            if samples is not None:
                self._take_steps(lambda: self._minibatches(samples), self._losses, log)
            metrics = log.means()
        if samples is not None:
            self._monitor.check_policy_moves(metrics, self.policy.optimizer)
            self.logger.record("train/decisions", len(samples.actions))
        self._log_update(metrics, stopwatch.seconds["update"])
        self._samples = None
        self._end_update()

    def _minibatches(self, samples: GroupSamples) -> Iterator[GroupSamples]:
        """Minibatches of an epoch, in random order."""
        n_samples = len(samples.actions)
        order = np.random.permutation(n_samples)  # noqa: NPY002 - SB3 shuffles with it, and runs save it
        for rows in np.array_split(order, max(1, round(n_samples / self.batch_size))):
            yield samples.rows(rows, self.device)

    def _losses(self, part: GroupSamples) -> Losses:
        """Policy loss of a micro-batch, eq. 3 of GRPO (arXiv 2402.03300) with DAPO's clip range."""
        policy = cast(VLAPolicy, self.policy)
        scores = policy.score(part.observations, part.actions)
        differences = scores.token_log_probs - part.old_log_prob
        log_ratio = differences.sum(dim=1)
        ratio = th.exp(differences if self.ratio_level == "token" else log_ratio)
        weights = part.weights if ratio.ndim == 2 else part.weights.flatten()
        clip = self.clip_range, self.clip_range_high
        policy_loss = losses.clipped_surrogate(ratio, part.advantages, clip[0], weights, clip[1])
        entropy_loss = losses.entropy_loss(scores.token_entropies.sum(dim=1), log_ratio)
        loss = policy_loss + self.ent_coef * entropy_loss
        with th.no_grad():
            metrics = {
                "policy_gradient_loss": policy_loss,
                "entropy_loss": entropy_loss,
                "clip_fraction": losses.clip_fraction(ratio, *clip),
                "approx_kl": losses.approximate_kl(log_ratio),
            }
        metrics |= health.entropy_by_dim(scores.token_entropies)
        if self.kl_ref_coef > 0:
            reference = policy.reference_log_probs(part.observations, part.actions)
            metrics["kl_ref"] = losses.reference_kl(scores.log_probs, reference)
            loss = loss + self.kl_ref_coef * metrics["kl_ref"]
        return Losses(loss, log_ratio, metrics | {"loss": loss})

    # --------------------------------------------------------------------------------------------- set-up

    def _check_together(self, given: Mapping[str, Any], n_envs: int | None) -> None:
        real_number("clip_range", given["clip_range"], above=0, below=1)
        n_episodes, size = given["n_episodes"], whole_number("group_size", given["group_size"], 2)
        if n_episodes % size or n_episodes < size:
            below = max(1, n_episodes // size) * size
            raise ValueError(
                f"group_size={size} does not divide n_episodes={n_episodes}, the episodes of an iteration; give "
                f"n_episodes={below} or {below + size}."
            )
        if given["length_norm"] and given["baseline"] == "decision":
            raise ValueError(
                "length_norm=True counts each episode the same, and baseline='decision' each decision; leave one out."
            )
        parts, batch_size = given["gradient_accumulation_steps"], given["batch_size"]
        if parts > batch_size:
            raise ValueError(f"gradient_accumulation_steps={parts} is more than batch_size={batch_size} decisions.")
        check_reference(given)
        if given["returns"] == "confidence" and (given["failure_scorer"] or given["length_penalty"]):
            raise ValueError(
                "returns='confidence' asks for no success, and failure_scorer and length_penalty do; leave them out."
            )

    def _setup_model(self) -> None:
        _check_plays_here(self.env)
        super()._setup_model()
        if self.env is not None:  # to act, a run that was loaded needs no scorer
            self._scorer = _scorer_for(self.env, self.failure_scorer)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's.

        Raises:
            ValueError: If the environments are others than the policy is for, or cannot begin groups.
        """
        arguments.check_made(env)
        _check_plays_here(env)
        scorer = _scorer_for(self._wrap_env(env, self.verbose), self.failure_scorer)
        super().set_env(env, force_reset)
        self._scorer = scorer

    @property
    def depends_on(self) -> dict[str, str]:
        """The weights of what scores failures: its folder may hold others by now."""
        fingerprint = getattr(self._scorer, "fingerprint", None)
        return {"failure_scorer": str(fingerprint())} if callable(fingerprint) else {}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_samples", "_scorer", "_reward_terms"]


def _check_plays_here(env: Any) -> None:
    """Complains about environments of an engine, as ValueError."""
    if engine_of(None, env) is not LOCAL:
        raise ValueError("VLAGRPO plays in this process; make the environments with vla_agent.make_vec_env.")


def _scorer_for(env: VecEnv, failure_scorer: str | None) -> RewardModel | None:
    """What scores failures in some environments, if anything does.

    Raises:
        ValueError: If they cannot begin groups, or the scorer is for others.
    """
    if not names_starts(env):
        raise ValueError(
            "VLAGRPO begins groups of episodes from one initial state, and these environments do not say where "
            "they can begin; give what vla_agent.make_vec_env makes."
        )
    if getattr(env, "settings", {}).get("output") == "torch":
        raise ValueError("VLAGRPO keeps episodes in the host's memory; make the environments without output='torch'.")
    if failure_scorer is None:
        return None
    scorer = load_reward_model(failure_scorer)
    parts = cast(spaces.Dict, env.observation_space).spaces
    check_camera(scorer, {key: tuple(space.shape or ()) for key, space in parts.items()})
    return scorer

"""PPO with what a vision-language-action model needs; with every addition off it is SB3's, parameter for parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch as th
from gymnasium.spaces import Dict
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance

from vla_agent.algorithms import arguments, health, losses, proximal
from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.buffers import Batch, MixedRolloutBuffer, TokenRolloutBuffer, compute_targets
from vla_agent.algorithms.engine import Engine, engine_of
from vla_agent.algorithms.minibatch import Losses, step_on
from vla_agent.algorithms.rollout import Rollout
from vla_agent.policy.policy import VLAPolicy

# VLA-RL (arXiv 2505.18719): 128 steps, one epoch, no advantage normalisation, gradient norm 1, five iterations of
# critic warm-up. Its minibatch is the GPU's; 32 divides 128 steps of any number of environments.
VLA_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "n_steps": 128,
    "batch_size": 32,
    "n_epochs": 1,
    "normalize_advantage": False,
    "max_grad_norm": 1.0,
    "critic_warmup_iterations": 5,
}


class VLAPPO(VLALearner, PPO):
    """SB3's `PPO` plus gradient accumulation, critic warm-up, a reference policy, and health checks.

    Arguments that are None take SB3's default with SB3's policies, and VLA-RL's with `VLAPolicy`:

    | | SB3 | VLAPolicy |
    | --- | --- | --- |
    | learning_rate, value_learning_rate | 3e-4, the same | 2e-5, ten times that |
    | n_steps, batch_size, n_epochs | 2048, 64, 10 | 128, 32, 1 |
    | normalize_advantage, max_grad_norm | True, 0.5 | False, 1.0 |
    | critic_warmup_iterations | 0 | 5 |

    Args:
        policy: "VLAPolicy", or one of SB3's.
        env: What `make_vec_env` gives. With `VLAPolicy`, an id such as "LIBERO-Spatial-v0" makes one environment of it.
        policy_kwargs: Arguments of the policy. If a `VLAPolicy` gets no ``model``, it takes the environments'.
        gradient_accumulation_steps: Number of parts in which a minibatch goes through the network; the gradient is that
            of the whole.
        critic_warmup_iterations: Number of first iterations in which only the value head learns. `VLAPolicy` only.
        value_loss: "mse", or "huber" with ``huber_delta``.
        ratio_level: "action" for one ratio per action, "token" for one per token, each clipped on its own. "token" is
            for `VLAPolicy` only.
        value_learning_rate: Learning rate of the value head. `VLAPolicy` only.
        kl_ref_coef: Weight of the KL divergence to the policy with its adapters off. It needs ``policy_kwargs`` with
            ``lora``.
        ratio_tolerance: Largest mean |ratio - 1| before the first step that counts as rounding; None takes one for the
            type that the policy computes in. Beyond it `VLAPolicy` raises `RatioError`, and other policies warn.
        bootstrap_time_limits: Whether the critic's value stands for what would follow a time limit. True is right if
            the limit is no part of the task. False makes running out of time a failure, as in LIBERO's evaluation;
            with True, a critic that expects success would reward it like one. False is for `VLAPolicy` only.
        value_gae_lambda: Lambda of the returns that the critic learns; None takes ``gae_lambda``. `VLAPolicy` only.
        n_value_epochs: Number of passes over a rollout that train the value head alone, before the update, on the
            hidden states that the backbone gave when it acted. `VLAPolicy` only.
        policy_warmup_iterations: Number of iterations after the critic's warm-up over which the policy's learning rate
            rises linearly. `VLAPolicy` only.
        engine: Where rollouts are played and gradients are summed, such as `vla_agent.RayEngine`; None for the
            environments' engine, or this process. `VLAPolicy` only.

    The other arguments are SB3's.

    Raises:
        ValueError: If an argument is out of range, or is not for this policy; before anything starts.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, **VLALearner.policy_aliases}
    token_defaults = VLA_DEFAULTS
    sb3 = PPO
    shares_updates = True

    gradient_accumulation_steps: int
    value_loss: losses.ValueLoss
    huber_delta: float
    ratio_level: losses.RatioLevel
    kl_ref_coef: float
    bootstrap_time_limits: bool
    value_gae_lambda: float | None
    n_value_epochs: int

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | None = None,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        gradient_accumulation_steps: int = 1,
        critic_warmup_iterations: int | None = None,
        value_loss: losses.ValueLoss = "mse",
        huber_delta: float = 10.0,
        ratio_level: losses.RatioLevel = "action",
        value_learning_rate: float | Schedule | None = None,
        kl_ref_coef: float = 0.0,
        ratio_tolerance: float | None = None,
        bootstrap_time_limits: bool = True,
        value_gae_lambda: float | None = None,
        n_value_epochs: int = 0,
        policy_warmup_iterations: int = 0,
        engine: Engine | None = None,
    ) -> None:
        given = self._checked(locals())
        with self._environments(env, given) as environments:
            super().__init__(policy, environments, **given)
            self.rollout_value_inputs: th.Tensor | None = None  # (n_steps, n_envs, D + K)
            if _init_setup_model:
                self._setup_model()

    def train(self) -> None:
        """Updates the policy from the rollout buffer, as SB3's: epochs of minibatches, until the KL is too large."""
        self._before_update()  # the whole policy, of which an engine may give the learners shares
        self._engine.update(self, self._train)

    def _train(self) -> None:
        stopwatch, log = health.Stopwatch(), health.UpdateLog()
        with stopwatch("update"):
            self._begin_update()
            clip_range, clip_range_vf = self._clip_ranges()
            if self._engine.staleness:
                rows = self.batch_size // self.gradient_accumulation_steps
                buffer, by_token = cast(TokenRolloutBuffer, self.rollout_buffer), self.ratio_level == "token"
                proximal.score_again(cast(VLAPolicy, self.policy), buffer, by_token, rows, self._engine.ranks, log)
            # The advantages are computed already, so this does not change what the policy learns from them.
            if self.n_value_epochs:
                self._fit_value_head()
            # A critic that knows nothing gives advantages that are noise (VLA-RL, arXiv 2505.18719, critic warm-up).
            warmup = self.n_iterations < self.critic_warmup_iterations
            self.scoring.freeze(self.policy, warmup)
            for epoch in range(self.n_epochs):
                log.restart("approx_kl")  # SB3 logs the last epoch's
                go_on = True
                for number, batch in enumerate(self.rollout_buffer.get(self.batch_size)):
                    is_first = epoch == 0 and number == 0
                    with health.advice_on_memory():
                        go_on = self._update_minibatch(batch, clip_range, clip_range_vf, is_first, log)
                    if not go_on:
                        break
                self._n_updates += 1
                if not go_on:
                    break
            self.scoring.freeze(self.policy, False)
            metrics = log.means()
        self._log_update(metrics, warmup, clip_range, clip_range_vf)
        self.logger.record("time/update_s", stopwatch.seconds["update"])
        self._end_update()

    def _losses(self, part: Batch, clip_range: float, clip_range_vf: float | None) -> Losses:
        """Policy, value and entropy losses of a micro-batch, eq. 9 of PPO (arXiv 1707.06347)."""
        values, log_prob, entropy, tokens = self.scoring.score(self.policy, part)
        old_log_prob = part.old_log_prob
        # The KL's estimate and the health checks are of whole actions, also if tokens are clipped one by one.
        log_ratio = log_prob - (old_log_prob.sum(dim=1) if old_log_prob.ndim == 2 else old_log_prob)
        ratio = th.exp(log_ratio)
        if self.ratio_level == "token":
            # Each factor of the chain has its ratio: the product of seven leaves the clip range sooner than one does.
            assert tokens is not None
            ratio = th.exp(tokens.token_log_probs - old_log_prob)
        weights = getattr(part, "weights", None)
        if weights is not None and ratio.ndim == 1:
            weights = weights.flatten()
        policy_loss = losses.clipped_surrogate(ratio, part.advantages, clip_range, weights)
        values = losses.clip_values(values, part.old_values, clip_range_vf)
        value_loss = losses.value_loss(values, part.returns, self.value_loss, self.huber_delta)
        entropy_loss = losses.entropy_loss(entropy, log_prob)
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with th.no_grad():
            metrics = {
                "policy_gradient_loss": policy_loss,
                "value_loss": value_loss,
                "entropy_loss": entropy_loss,
                "clip_fraction": losses.clip_fraction(ratio, clip_range),
                "approx_kl": losses.approximate_kl(log_ratio),
            }
        if tokens is not None:
            metrics |= health.entropy_by_dim(tokens.token_entropies)
        if self.kl_ref_coef > 0:
            # Exact over the bins, where GRPO (arXiv 2402.03300, eq. 4) estimates it from the drawn action alone.
            assert tokens is not None
            reference = cast(VLAPolicy, self.policy).reference_log_probs(part.observations, part.actions)
            kl_ref = losses.reference_kl(tokens.log_probs, reference)
            loss = loss + self.kl_ref_coef * kl_ref
            metrics["kl_ref"] = kl_ref
        return Losses(loss, log_ratio, metrics | {"loss": loss})

    def _update_minibatch(
        self,
        batch: Batch,
        clip_range: float,
        clip_range_vf: float | None,
        is_first: bool,
        log: health.UpdateLog,
    ) -> bool:
        """One optimizer step; False if the KL divergence forbids it and what would follow."""
        # Over the whole minibatch, before it is split, so that accumulation does not change the result. One sample
        # stays as it is (SB3, GH issue 325).
        if self.normalize_advantage:
            batch = batch._replace(advantages=losses.normalize(batch.advantages))
        return step_on(self, batch, lambda part: self._losses(part, clip_range, clip_range_vf), is_first, log)

    def _fit_value_head(self) -> None:
        """Passes over the rollout that train the value head alone.

        The backbone is not run: the head reads what was kept while acting.
        """
        assert self.rollout_value_inputs is not None
        head, optimizer = cast(VLAPolicy, self.policy).value_head, self.policy.optimizer
        inputs, ranks = self.rollout_value_inputs.flatten(0, 1), self._engine.ranks
        returns = th.as_tensor(self.rollout_buffer.returns.reshape(-1), device=inputs.device)
        for _ in range(self.n_value_epochs):
            for rows in th.randperm(len(inputs)).split(self.batch_size):
                own = rows[ranks.rank :: ranks.size]
                loss = losses.value_loss(head(inputs[own]).flatten(), returns[own], self.value_loss, self.huber_delta)
                loss = loss * (len(own) / len(rows))
                optimizer.zero_grad()
                (self.vf_coef * loss).backward()
                ranks.sum([*health.gradients(head.parameters()), loss.detach()])
                norm = th.nn.utils.clip_grad_norm_(head.parameters(), self.max_grad_norm)
                if self._monitor.is_finite(loss.detach(), norm):
                    optimizer.step()  # the backbone has no gradient, so its parameters and their moments stay
                else:
                    self.n_skipped_steps += 1

    def _clip_ranges(self) -> tuple[float, float | None]:
        """Clip ranges of the policy's ratio and of the value, at this point of training."""
        progress = self._current_progress_remaining
        clip_range = cast(FloatSchedule, self.clip_range)(progress)
        if self.clip_range_vf is None:
            return clip_range, None
        return clip_range, cast(FloatSchedule, self.clip_range_vf)(progress)

    def _log_update(
        self, metrics: dict[str, float], warmup: bool, clip_range: float, clip_range_vf: float | None
    ) -> None:
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/value_std", float(values.std()))
        if self.n_iterations > 0:  # the first rollout's critic has not learned anything yet
            seen = self.scoring.informative(self.rollout_buffer.observations)
            self._monitor.check_critic(values, returns, seen)
        if not warmup:
            self._monitor.check_policy_moves(metrics, self.policy.optimizer)
        if self.critic_warmup_iterations:
            self.logger.record("train/critic_warmup", int(warmup))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/skipped_steps", self.n_skipped_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    # ------------------------------------------------------------------------------- set-up and rollout

    def _check_together(self, given: Mapping[str, Any], n_envs: int | None) -> None:
        arguments.check_together(given)
        self.scoring.check_batches(given["n_steps"], n_envs, given["batch_size"])

    def _setup_model(self) -> None:
        self.scoring.check_batches(self.n_steps, self.n_envs, self.batch_size)  # a loaded run may have other n_envs
        staleness = engine_of(self.engine, self.env).staleness
        if self.ratio_level == "token" or staleness:
            self.rollout_buffer_class = TokenRolloutBuffer
        elif self.rollout_buffer_class is None and self.scoring.saves_runs and isinstance(self.observation_space, Dict):
            self.rollout_buffer_class = MixedRolloutBuffer
        if staleness and self.normalize_advantage:
            raise ValueError("normalize_advantage=True does not go with an engine's stale=True; leave one out.")
        super()._setup_model()

    def _collecting(self) -> dict[str, Any]:
        return {
            "time_limit_gamma": self.gamma if self.bootstrap_time_limits else None,
            "keep_value_inputs": self.n_value_epochs > 0,
        }

    def _take_rollout(self, rollout: Rollout) -> None:
        assert rollout.last_values is not None
        buffer = cast(DictRolloutBuffer, self.rollout_buffer)
        compute_targets(buffer, rollout.last_values, rollout.dones, self.value_gae_lambda)
        self.rollout_value_inputs = rollout.value_inputs

"""PPO with what a vision-language-action model needs; with every addition off it is SB3's, parameter for parameter."""

from __future__ import annotations

import inspect
import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv

from vla_agent import checkpointing, health, losses
from vla_agent.callbacks import SuccessCallback, as_callbacks
from vla_agent.moments import Moment
from vla_agent.policy import Evaluation, VLAPolicy
from vla_agent.rollout import Batch, TokenRolloutBuffer, check_batches, collect_rollouts, split_batch
from vla_agent.vec_env import VLAVecEnv

SelfVLAPPO = TypeVar("SelfVLAPPO", bound="VLAPPO")

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
# The head starts from nothing and the backbone from a trained model (RL4VLA: 3e-3 against 1e-4).
VALUE_RATE_FACTOR = 10.0


class Losses(NamedTuple):
    """Of one micro-batch of B samples."""

    loss: th.Tensor  # what is minimised
    log_ratio: th.Tensor  # (B,), of whole actions
    metrics: dict[str, th.Tensor]  # means over the batch, for the log


class VLAPPO(PPO):
    """SB3's `PPO` plus gradient accumulation, critic warm-up, a reference policy, and health checks.

    Arguments that are None take SB3's default with SB3's policies, and VLA-RL's with `VLAPolicy`:

    | | SB3 | VLAPolicy |
    | --- | --- | --- |
    | learning_rate, value_learning_rate | 3e-4, the same | 2e-5, ten times that |
    | n_steps, batch_size, n_epochs | 2048, 64, 10 | 128, 32, 1 |
    | normalize_advantage, max_grad_norm | True, 0.5 | False, 1.0 |
    | critic_warmup_iterations | 0 | 5 |

    Args:
        gradient_accumulation_steps: Each minibatch goes through the network in so many parts; the gradient is that of
            the whole.
        critic_warmup_iterations: For so many first iterations only the value head learns. `VLAPolicy` only.
        value_loss: "mse", or "huber" with ``huber_delta``.
        ratio_level: One ratio per "action", or one per "token" (each clipped on its own). `VLAPolicy` only.
        value_learning_rate: Of the value head. `VLAPolicy` only.
        kl_ref_coef: Weight of the KL divergence to the policy with its adapters off. Needs ``policy_kwargs`` with
            ``lora``.
        ratio_tolerance: Mean |ratio - 1| before the first step that is still taken for rounding; by the weights' type
            where None. Beyond it `VLAPolicy` raises `RatioError`, and other policies warn.
        bootstrap_time_limits: Whether the critic's value stands for what would follow a time limit, as is right where
            the limit is not part of the task. Where success is to come within it, as in LIBERO's evaluation, False
            makes running out of time a failure: with True, a critic that expects success pays failures like it.
        value_gae_lambda: Lambda of the returns that the critic learns, where it is not to be ``gae_lambda``: a small
            lambda takes noise out of the advantages, and with it the critic would learn what it already says
            ("decoupled GAE"; Yuan et al., 2025, arXiv 2503.01491). `VLAPolicy` only.
        n_value_epochs: Further passes over each rollout before its update that train the value head alone, on what the
            backbone made of the observations when they were met: cheap, for the backbone is not run. `VLAPolicy` only.
        policy_warmup_iterations: After the critic's warm-up, raise the policy's learning rate linearly over so many
            iterations: Adam's first steps are the signs of single minibatches' gradients, which are mostly noise, and
            go as far as twenty later ones. `VLAPolicy` only.

    The other arguments are SB3's.

    Raises:
        ValueError: If an argument is out of range, or is not for this policy.
    """

    max_copy_bytes: int = 16 * 2**30
    """Weights and optimizer are copied to the host's memory before each update, if they take no more than this, so that
    a run can be saved in the middle of it. Adapters of a 7B model take 1 GiB, all of its weights 80."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, "VLAPolicy": VLAPolicy}

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
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
        ratio_level: Literal["action", "token"] = "action",
        value_learning_rate: float | Schedule | None = None,
        kl_ref_coef: float = 0.0,
        ratio_tolerance: float | None = None,
        bootstrap_time_limits: bool = True,
        value_gae_lambda: float | None = None,
        n_value_epochs: int = 0,
        policy_warmup_iterations: int = 0,
    ) -> None:
        self.is_vla = policy == "VLAPolicy" or (isinstance(policy, type) and issubclass(policy, VLAPolicy))
        defaults = _defaults(self.is_vla)
        batch_size = defaults["batch_size"] if batch_size is None else batch_size
        n_steps = defaults["n_steps"] if n_steps is None else n_steps
        if self.is_vla:
            check_batches(n_steps, getattr(env, "num_envs", None), batch_size)
        super().__init__(
            policy,
            env,
            learning_rate=defaults["learning_rate"] if learning_rate is None else learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=defaults["n_epochs"] if n_epochs is None else n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=defaults["normalize_advantage"] if normalize_advantage is None else normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=defaults["max_grad_norm"] if max_grad_norm is None else max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        warmup = critic_warmup_iterations
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.critic_warmup_iterations = defaults["critic_warmup_iterations"] if warmup is None else warmup
        self.value_loss: losses.ValueLoss = value_loss
        self.huber_delta = huber_delta
        self.ratio_level = ratio_level
        self.value_learning_rate = value_learning_rate
        self.kl_ref_coef = kl_ref_coef
        self.ratio_tolerance = ratio_tolerance
        self.bootstrap_time_limits = bootstrap_time_limits
        self.value_gae_lambda = value_gae_lambda
        self.n_value_epochs = n_value_epochs
        self.policy_warmup_iterations = policy_warmup_iterations
        self.rollout_value_inputs: th.Tensor | None = None  # (n_steps, n_envs, D + K)
        self.n_iterations = 0
        self.n_skipped_steps = 0
        self.boundary: Moment | None = None  # the run before the rollout or update that is under way
        self.run: dict[str, Any] | None = None  # identity and attempt, see `run_folder.Claim`
        self._past: Moment | None = None  # the boundary before the last update, until there is a new one
        self.stateful_callbacks: dict[str, checkpointing.StatefulCallback] = {}
        self._progress_bars: list[ProgressBarCallback] = []
        self.callback_states: dict[str, Any] = {}  # of a loaded run, for the callbacks that it goes on with
        self._check_additions()
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------- set-up

    def _check_additions(self) -> None:
        k = self.gradient_accumulation_steps
        if k < 1 or self.batch_size % k:
            raise ValueError(f"gradient_accumulation_steps={k} does not divide batch_size={self.batch_size}.")
        if self.value_loss not in ("mse", "huber"):
            raise ValueError(f"value_loss={self.value_loss!r}; choices: 'mse', 'huber'.")
        if self.ratio_level not in ("action", "token"):
            raise ValueError(f"ratio_level={self.ratio_level!r}; choices: 'action', 'token'.")
        if self.ratio_level == "token" and self.rollout_buffer_class is not None:
            raise ValueError("ratio_level='token' brings its own rollout buffer; leave rollout_buffer_class out.")
        if self.critic_warmup_iterations < 0 or self.kl_ref_coef < 0:
            raise ValueError(
                f"critic_warmup_iterations={self.critic_warmup_iterations}, kl_ref_coef={self.kl_ref_coef}; "
                "expected both to be at least 0."
            )
        if self.n_value_epochs < 0 or self.policy_warmup_iterations < 0 or not 0 <= (self.value_gae_lambda or 0) <= 1:
            raise ValueError(
                f"n_value_epochs={self.n_value_epochs}, policy_warmup_iterations={self.policy_warmup_iterations}, "
                f"value_gae_lambda={self.value_gae_lambda}; expected at least 0, at least 0, and 0 to 1."
            )
        if self.kl_ref_coef > 0 and self.policy_kwargs.get("lora") is None:
            raise ValueError(
                f"kl_ref_coef={self.kl_ref_coef} needs adapters, which are switched off to get the reference policy; "
                "give policy_kwargs=dict(lora={})."
            )
        only_vla = {
            "critic_warmup_iterations": self.critic_warmup_iterations > 0,
            "ratio_level='token'": self.ratio_level == "token",
            "value_learning_rate": self.value_learning_rate is not None,
            "bootstrap_time_limits=False": not self.bootstrap_time_limits,
            "value_gae_lambda": self.value_gae_lambda is not None,
            "n_value_epochs": self.n_value_epochs > 0,
            "policy_warmup_iterations": self.policy_warmup_iterations > 0,
        }
        wrong = [name for name, given in only_vla.items() if given and not self.is_vla]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: only for 'VLAPolicy', and the policy is {self.policy_class.__name__}."
            )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As SB3's, but images of a `VLAVecEnv` stay in the order that the model wants, and uncopied."""
        if isinstance(env, VecEnv) and isinstance(env.unwrapped, VLAVecEnv):
            check_for_nested_spaces(env.observation_space)
            return env
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self.is_vla:
            self.policy_kwargs = {**self.policy_kwargs, "device": str(self.device)}
        if self.ratio_level == "token":
            self.rollout_buffer_class = TokenRolloutBuffer
        super()._setup_model()
        rate = self.value_learning_rate
        self._value_lr_schedule = None if rate is None else FloatSchedule(rate)
        self._monitor = health.Monitor(self._tolerance(), strict=self.is_vla)
        if self.is_vla and self.env is not None and isinstance(self.env.unwrapped, VLAVecEnv):
            ours, theirs = cast(VLAPolicy, self.policy).backbone.processor, self.env.unwrapped.processor
            if ours.fingerprint() != theirs.fingerprint():
                raise ValueError(
                    "The environment tokenises instructions or decodes actions for another model than the policy's; "
                    "give make_vec_env and policy_kwargs the same model."
                )

    def _tolerance(self) -> float:
        if self.ratio_tolerance is not None:
            return self.ratio_tolerance
        if self.is_vla:
            return health.ratio_tolerance(cast(VLAPolicy, self.policy).compute_dtype)
        return health.ratio_tolerance(next(self.policy.parameters()).dtype)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """As SB3's, but the parameter group "value" keeps a rate of its own, and the other's may have to rise first."""
        super()._update_learning_rate(optimizers)
        if not self.is_vla:
            return
        risen = self.n_iterations - self.critic_warmup_iterations + 1
        share = min(max(risen, 1) / max(self.policy_warmup_iterations, 1), 1.0)
        progress = self._current_progress_remaining
        schedule = self._value_lr_schedule
        rate = VALUE_RATE_FACTOR * self.lr_schedule(progress) if schedule is None else schedule(progress)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = rate if group.get("name") == "value" else share * group["lr"]
        self.logger.record("train/learning_rate", share * self.lr_schedule(progress))
        self.logger.record("train/value_learning_rate", rate)

    # -------------------------------------------------------------------------------------------- rollout

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer; False if the callback stopped it. Logs the seconds of each phase."""
        if self.is_vla:
            self._take_boundary()
        stopwatch = health.Stopwatch()
        with stopwatch("rollout"):
            if self.is_vla:
                buffer = cast(DictRolloutBuffer, rollout_buffer)
                go_on = collect_rollouts(self, env, callback, buffer, n_rollout_steps, stopwatch)
            else:
                go_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        for phase, seconds in stopwatch.seconds.items():
            self.logger.record(f"time/{phase}_s", seconds)
        rate = n_rollout_steps * env.num_envs / max(stopwatch.seconds["rollout"], 1e-9)
        self.logger.record("time/env_steps_per_s", rate)
        return go_on

    def _take_boundary(self) -> None:
        # An error may come while the environments are asked for their state, or a signal have ended them: then the
        # moment before the last update, of which everything is known, goes on to count.
        self.boundary = past = self._past
        now = Moment(checkpointing.training_state(self))
        known = past is not None and past.contents is not None and past.state["environments"] is not None
        if not known or now.state["environments"] is not None:
            self.boundary = now
        self._past = None

    # --------------------------------------------------------------------------------------------- update

    def train(self) -> None:
        """Update the policy from the rollout buffer."""
        stopwatch, log = health.Stopwatch(), health.UpdateLog()
        with stopwatch("update"):
            self._copy_what_changes()
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            clip_range = cast(FloatSchedule, self.clip_range)(self._current_progress_remaining)
            clip_range_vf = None
            if self.clip_range_vf is not None:
                clip_range_vf = cast(FloatSchedule, self.clip_range_vf)(self._current_progress_remaining)
            if self.n_value_epochs:
                self._fit_value_head()
            warmup = self.n_iterations < self.critic_warmup_iterations
            if self.is_vla:
                cast(VLAPolicy, self.policy).backbone_frozen = warmup  # so that losses reach the value head alone
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
            if self.is_vla:
                cast(VLAPolicy, self.policy).backbone_frozen = False
            metrics = log.means()
        self._log_update(metrics, warmup, clip_range, clip_range_vf)
        self.logger.record("time/update_s", stopwatch.seconds["update"])
        self.n_iterations += 1
        self.boundary, self._past = None, self.boundary

    def _copy_what_changes(self) -> None:
        """So that a save holds one moment, also in the middle of the update or after one that failed."""
        if self.boundary is None or self.boundary.contents is not None:
            return
        fixed = {name for name, p in self.policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
        live = checkpointing.live_contents(cast(VLAPolicy, self.policy))
        self.boundary = self.boundary.before_update(live, fixed, self.max_copy_bytes)

    def _fit_value_head(self) -> None:
        """Passes over the rollout that train the value head alone."""
        assert self.rollout_value_inputs is not None
        head, optimizer = cast(VLAPolicy, self.policy).value_head, self.policy.optimizer
        inputs = self.rollout_value_inputs.flatten(0, 1)
        returns = th.as_tensor(self.rollout_buffer.returns.reshape(-1), device=inputs.device)
        for _ in range(self.n_value_epochs):
            for rows in th.randperm(len(inputs)).split(self.batch_size):
                loss = losses.value_loss(head(inputs[rows]).flatten(), returns[rows], self.value_loss, self.huber_delta)
                optimizer.zero_grad()
                (self.vf_coef * loss).backward()
                norm = th.nn.utils.clip_grad_norm_(head.parameters(), self.max_grad_norm)
                if self._monitor.is_finite(loss.detach(), norm):
                    optimizer.step()  # the backbone has no gradient, so its parameters and their moments stay
                else:
                    self.n_skipped_steps += 1

    def _update_minibatch(
        self,
        batch: Batch,
        clip_range: float,
        clip_range_vf: float | None,
        is_first: bool,
        log: health.UpdateLog,
    ) -> bool:
        """One optimizer step; False if the KL divergence forbids it and what would follow."""
        if self.normalize_advantage:
            batch = batch._replace(advantages=losses.normalize(batch.advantages))
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        totals: dict[str, th.Tensor] = {}
        log_ratios = []
        for part in split_batch(batch, self.gradient_accumulation_steps):
            weight = len(part.advantages) / len(batch.advantages)
            result = self._losses(part, clip_range, clip_range_vf)
            (result.loss * weight).backward()
            log_ratios.append(result.log_ratio.detach())
            for name, value in result.metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * weight
        norms = health.gradient_norms(optimizer)
        norms["grad_norm"] = th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        if not self._monitor.is_finite(totals["loss"], norms["grad_norm"]):
            optimizer.zero_grad()
            self.n_skipped_steps += 1
            return True
        for name, value in totals.items():
            log.add(name, value)
        log_ratio = th.cat(log_ratios)
        ratio_error = (log_ratio.exp() - 1).abs().mean()
        log.add("first_ratio_error" if is_first else "ratio_deviation", ratio_error)
        if is_first:
            log.add("log_prob_gap", log_ratio.mean())
            self._monitor.check_first_ratio(log.last("first_ratio_error"), log.last("log_prob_gap"))
        if self.target_kl is not None and log.last("approx_kl") > 1.5 * self.target_kl:
            optimizer.zero_grad()
            return False
        for name, norm in norms.items():
            log.add(name, norm)
        optimizer.step()
        return True

    def _losses(self, part: Batch, clip_range: float, clip_range_vf: float | None) -> Losses:
        values, log_prob, entropy, tokens = self._evaluate(part)
        old_log_prob = part.old_log_prob
        log_ratio = log_prob - (old_log_prob.sum(dim=1) if old_log_prob.ndim == 2 else old_log_prob)
        ratio = th.exp(log_ratio)
        if self.ratio_level == "token":
            assert tokens is not None
            ratio = th.exp(tokens.token_log_probs - old_log_prob)
        policy_loss = losses.clipped_surrogate(ratio, part.advantages, clip_range)
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
        if self.kl_ref_coef > 0 and tokens is not None:
            observations = cast(dict[str, th.Tensor], part.observations)
            reference = cast(VLAPolicy, self.policy).reference_log_probs(observations, part.actions)
            kl_ref = losses.reference_kl(tokens.log_probs, reference)
            loss = loss + self.kl_ref_coef * kl_ref
            metrics["kl_ref"] = kl_ref
        return Losses(loss, log_ratio, metrics | {"loss": loss})

    def _evaluate(self, part: Batch) -> tuple[th.Tensor, th.Tensor, th.Tensor | None, Evaluation | None]:
        """Values, log-probabilities and entropies, each (B,), and a `VLAPolicy`'s full evaluation."""
        if self.is_vla:
            observations = cast(dict[str, th.Tensor], part.observations)
            scores = cast(VLAPolicy, self.policy).score(observations, part.actions)
            log_prob, entropy = scores.token_log_probs.sum(dim=1), scores.token_entropies.sum(dim=1)
            return scores.values.flatten(), log_prob, entropy, scores
        actions = part.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, maybe_entropy = self.policy.evaluate_actions(part.observations, actions)
        return values.flatten(), log_prob, maybe_entropy, None

    def _log_update(
        self, metrics: dict[str, float], warmup: bool, clip_range: float, clip_range_vf: float | None
    ) -> None:
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/value_std", float(values.std()))
        if self.n_iterations > 0:  # the first rollout's critic has not learned anything yet
            observations = cast(Any, self.rollout_buffer.observations)
            if self.is_vla:
                observations = {key: observations[key] for key in ("image", "input_ids")}
            self._monitor.check_critic(values, returns, observations)
        if not warmup:
            self._monitor.check_ratio_moves(metrics)
        if self.critic_warmup_iterations:
            self.logger.record("train/critic_warmup", int(warmup))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/skipped_steps", self.n_skipped_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    # ------------------------------------------------------------------------------- learn, save and load

    def learn(
        self: SelfVLAPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "VLAPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfVLAPPO:
        """As SB3's, but the metrics of the last update are logged too."""
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except BaseException:
            for bar in self._progress_bars:  # SB3 leaves them open, and they fail when the interpreter ends
                if hasattr(bar, "pbar"):
                    bar.pbar.close()
            raise
        self._past = None
        if log_interval is not None and self.logger.name_to_value:
            self.dump_logs()
        return self

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callbacks = as_callbacks(callback)
        if self.is_vla and not any(isinstance(part, SuccessCallback) for part in checkpointing.parts(callbacks)):
            callbacks = [*callbacks, SuccessCallback()]  # success per task is always in the log
        root = super()._init_callback(callbacks, progress_bar)
        self.stateful_callbacks = checkpointing.stateful_callbacks(root)
        self._progress_bars = [part for part in checkpointing.parts([root]) if isinstance(part, ProgressBarCallback)]
        return root

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self.boundary = self._past = None  # of an earlier `learn`
        if reset_num_timesteps:
            self.run = None  # another begins
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if not reset_num_timesteps:
            for name in self.callback_states.keys() & self.stateful_callbacks.keys():
                self.stateful_callbacks[name].load_state_dict(self.callback_states[name])
        self.callback_states = {}
        return result

    def _excluded_save_params(self) -> list[str]:
        own = ["boundary", "_past", "_progress_bars", "rollout_value_inputs", "stateful_callbacks", "callback_states"]
        return [*super()._excluded_save_params(), *own]

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save to a folder, see `vla_agent.checkpointing`; with SB3's policies, to SB3's zip."""
        if not self.is_vla:
            super().save(path, exclude, include)
        elif isinstance(path, (str, pathlib.Path)):
            checkpointing.save(self, pathlib.Path(path))
        else:
            raise TypeError(f"A VLAPPO is saved to a folder, so path must be a str or Path, got {type(path).__name__}.")

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfVLAPPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        *,
        allow_changes: bool = False,
        **kwargs: Any,
    ) -> SelfVLAPPO:
        """The model saved in a folder by `save`, or in SB3's zip.

        With an ``env`` like the one it was trained on, ``learn(n, reset_num_timesteps=False)`` goes on as if the run
        had never stopped: the environments are in the middle of the same episodes, callbacks that have a state
        (`checkpointing.StatefulCallback`) get it back, and on a CPU all is equal to the bit.

        Args:
            path: Folder or zip.
            env: To train on; not needed to predict.
            device: Where to put it.
            allow_changes: Train on though ``kwargs`` or ``env`` are not what the run was made with.
            kwargs: Constructor arguments to change; ``policy_kwargs`` are merged into the saved ones.

        Raises:
            RunError: If it is no complete run, does not fit the environment, or would go on otherwise than it was made
                without ``allow_changes``.
        """
        if isinstance(path, (str, pathlib.Path)) and not checkpointing.is_zip(pathlib.Path(path)):
            return checkpointing.load(cls, pathlib.Path(path), env, device, allow_changes, **kwargs)
        return super().load(path, env, device, **kwargs)


def _defaults(is_vla: bool) -> dict[str, Any]:
    """What arguments left at None become. SB3's own defaults are read off its constructor."""
    if is_vla:
        return VLA_DEFAULTS
    parameters = inspect.signature(PPO.__init__).parameters
    return {name: parameters[name].default if name in parameters else 0 for name in VLA_DEFAULTS}

"""PPO with what a vision-language-action model needs; with every addition off it is SB3's, parameter for parameter."""

from __future__ import annotations

import contextlib
import inspect
import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, get_system_info
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.checks import flag, whole_number
from vla_agent.algorithms import health, losses
from vla_agent.algorithms.buffers import Batch, TokenRolloutBuffer, check_batches, compute_targets, split_batch
from vla_agent.algorithms.rollout import Observations, RolloutHooks, collect
from vla_agent.callbacks.state import StatefulCallback, stateful_callbacks
from vla_agent.callbacks.success import SuccessCallback
from vla_agent.callbacks.tree import as_callbacks, parts
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.policy import arguments
from vla_agent.policy.policy import ActionScores, VLAPolicy
from vla_agent.runs import saved_run as checkpointing
from vla_agent.runs.moments import Moment

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
# What SB3's constructor takes besides policy and environment.
SB3_ARGUMENTS = [
    n for n in inspect.signature(PPO.__init__).parameters if n not in ("self", "policy", "env", "_init_setup_model")
]


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
        policy: "VLAPolicy", or one of SB3's.
        env: What `make_vec_env` gives. With `VLAPolicy`, an id such as "LIBERO-Spatial-v0" makes one environment of it.
        policy_kwargs: Arguments of the policy; for `VLAPolicy` without ``model``, it is that of the environments.
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
        ValueError: If an argument is out of range, or is not for this policy; before anything starts.
    """

    max_copy_bytes: int = 16 * 2**30
    """Weights and optimizer are copied to the host's memory before each update, if they take no more than this, so that
    a run can be saved in the middle of it. Adapters of a 7B model take 1 GiB, all of its weights 80."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, "VLAPolicy": VLAPolicy}

    def __new__(cls, *args: Any, **kwargs: Any) -> VLAPPO:
        """As `object`'s; an argument that `__init__` does not take is told with the nearest that it does."""
        arguments.check_own_arguments(cls, kwargs)
        return super().__new__(cls)

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
        ratio_level: Literal["action", "token"] = "action",
        value_learning_rate: float | Schedule | None = None,
        kl_ref_coef: float = 0.0,
        ratio_tolerance: float | None = None,
        bootstrap_time_limits: bool = True,
        value_gae_lambda: float | None = None,
        n_value_epochs: int = 0,
        policy_warmup_iterations: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        # SB3 takes no NumPy numbers in some places, such as its seed.
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        self.is_vla = policy == "VLAPolicy" or (isinstance(policy, type) and issubclass(policy, VLAPolicy))
        arguments.check_policy_class(policy, self.policy_aliases)
        arguments.check_env(env, needed=_init_setup_model)
        arguments.check_algorithm(given, loaded=not _init_setup_model)
        given |= {name: value for name, value in _defaults(self.is_vla).items() if given[name] is None}
        given["policy_kwargs"] = dict(policy_kwargs or {})
        arguments.check_together(given, self.is_vla)
        if self.is_vla:
            self._prepare_policy_kwargs(policy, env, given["policy_kwargs"])
            n_envs = 1 if isinstance(env, (str, gym.Env)) else getattr(env, "num_envs", None)
            check_batches(given["n_steps"], n_envs, given["batch_size"])
        with contextlib.ExitStack() as on_error:
            if self.is_vla and isinstance(env, str):
                env = _make_env(env, given["policy_kwargs"])
                on_error.callback(env.close)
            super().__init__(
                policy, cast(Any, env), **{name: given[name] for name in SB3_ARGUMENTS}, _init_setup_model=False
            )
            self.gradient_accumulation_steps = gradient_accumulation_steps
            self.critic_warmup_iterations: int = given["critic_warmup_iterations"]
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
            self.stateful_callbacks: dict[str, StatefulCallback] = {}
            self._progress_bars: list[ProgressBarCallback] = []
            self.callback_states: dict[str, Any] = {}  # of a loaded run, for the callbacks that it goes on with
            if _init_setup_model:
                self._setup_model()
            on_error.pop_all()

    # ------------------------------------------------------------------------------------------- set-up

    def _prepare_policy_kwargs(
        self, policy: str | type[BasePolicy], env: GymEnv | str | None, own: dict[str, Any]
    ) -> None:
        """Checks them, and takes the environments' model where they name none."""
        arguments.check_names(self.policy_aliases[policy] if isinstance(policy, str) else policy, own)
        arguments.check_policy(own)
        environments = env.unwrapped if isinstance(env, VecEnv) else None
        if "model" not in own and isinstance(environments, VLAVecEnv) and environments.model is not None:
            own["model"] = environments.model

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As SB3's, but images of a `VLAVecEnv` stay in the order that the model wants, and uncopied.

        Raises:
            ValueError: If the observations hold text, which no policy of SB3's interface takes.
        """
        parts = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {}
        texts = [key for key, part in parts.items() if isinstance(part, spaces.Text)]
        if texts:
            raise ValueError(
                f"The environment shows text ({', '.join(texts)}), which SB3 cannot take. Make it with "
                "vla_agent.make_vec_env(id, n_envs, model=...), which gives tokens instead; for a policy that needs "
                "none, leave the text out with gymnasium.wrappers.FilterObservation."
            )
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
        self._monitor = health.UpdateMonitor(self._tolerance(), strict=self.is_vla)
        self._check_same_model(self.env)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's.

        Raises:
            ValueError: If the environments are others than the policy is for.
        """
        arguments.check_env(env, needed=True)
        wrapped = self._wrap_env(env, self.verbose)
        if wrapped.num_envs != self.n_envs:
            raise ValueError(
                f"The environments are {wrapped.num_envs}, but the model has a buffer for {self.n_envs}; give as many, "
                f"or {type(self).__name__}.load(path, env)."
            )
        self._check_same_model(wrapped)
        super().set_env(wrapped, force_reset)

    def _check_same_model(self, env: VecEnv | None) -> None:
        """Whether prompts and bins of the environments are those of the policy's model."""
        if self.is_vla and env is not None and isinstance(env.unwrapped, VLAVecEnv):
            ours, theirs = cast(VLAPolicy, self.policy).backbone.processor, env.unwrapped.processor
            if ours.fingerprint() != theirs.fingerprint():
                raise ValueError(
                    "The environment tokenises instructions or decodes actions for another model than the policy's; "
                    "give make_vec_env the model, and leave it out of policy_kwargs, or give both the same."
                )

    def _tolerance(self) -> float:
        if self.ratio_tolerance is not None:
            return self.ratio_tolerance
        if self.is_vla:
            return health.ratio_tolerance(cast(VLAPolicy, self.policy).compute_dtype)
        return health.ratio_tolerance(next(self.policy.parameters()).dtype)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As SB3's, but not negative: a last rollout goes past the end, where ``lambda p: p * 2e-5`` would climb."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        if self.is_vla:
            self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

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
                go_on = self._collect_tokens(env, callback, buffer, n_rollout_steps, stopwatch)
            else:
                go_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        for phase, seconds in stopwatch.seconds.items():
            self.logger.record(f"time/{phase}_s", seconds)
        rate = n_rollout_steps * env.num_envs / max(stopwatch.seconds["rollout"], 1e-9)
        self.logger.record("time/env_steps_per_s", rate)
        return go_on

    def _collect_tokens(
        self, env: VecEnv, callback: BaseCallback, buffer: DictRolloutBuffer, n_steps: int, stopwatch: health.Stopwatch
    ) -> bool:
        """`OnPolicyAlgorithm.collect_rollouts` by `collect`, whose results become the learner's."""
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        buffer.reset()
        callback.on_rollout_start()
        rollout = collect(
            cast(VLAPolicy, self.policy),
            env,
            n_steps,
            last_obs=cast(Observations, self._last_obs),
            episode_starts=self._last_episode_starts,
            buffer=buffer,
            hooks=LearnerHooks(self, callback),
            time_limit_gamma=self.gamma if self.bootstrap_time_limits else None,
            keep_value_inputs=self.n_value_epochs > 0,
            num_timesteps=self.num_timesteps,
        )
        if rollout is None:
            return False
        assert rollout.last_values is not None
        compute_targets(buffer, rollout.last_values, rollout.dones, self.value_gae_lambda)
        self.rollout_value_inputs = rollout.value_inputs
        stopwatch.seconds.update(rollout.seconds)
        for name, total in rollout.reward_terms.items():
            self.logger.record(f"rollout/reward_{name}", total / (n_steps * env.num_envs))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

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
            self._monitor.watch(self.policy.optimizer)
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

    def _evaluate(self, part: Batch) -> tuple[th.Tensor, th.Tensor, th.Tensor | None, ActionScores | None]:
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
        """As SB3's, but the metrics of the last update are logged too.

        Raises:
            ValueError: If an argument is out of range, or the model has no environment.
        """
        if self.env is None:
            raise ValueError(
                "The model has no environment to learn in; give VLAPPO.load(path, env), or call set_env(env)."
            )
        steps: Any = total_timesteps
        if isinstance(steps, float) and steps.is_integer():
            steps = int(steps)  # such as 1e6, as SB3 takes it
        total_timesteps = whole_number("total_timesteps", steps, 0)
        if log_interval is not None:
            whole_number("log_interval", log_interval, 1)
        if not isinstance(tb_log_name, str):
            raise ValueError(f"tb_log_name={tb_log_name!r}; expected a string.")
        flag("reset_num_timesteps", reset_num_timesteps)
        flag("progress_bar", progress_bar)
        callback = as_callbacks(callback)
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
        if self.is_vla and not any(isinstance(part, SuccessCallback) for part in parts(callbacks)):
            callbacks = [*callbacks, SuccessCallback()]  # success per task is always in the log
        root = super()._init_callback(callbacks, progress_bar)
        self.stateful_callbacks = stateful_callbacks(root)
        self._progress_bars = [part for part in parts([root]) if isinstance(part, ProgressBarCallback)]
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
        self._monitor.check_trainable(self.policy, self.policy.optimizer)
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
        """Save to a folder, or to a zip of the same files where ``path`` ends in ``.zip``; see `checkpointing`.

        Models with SB3's policies go to SB3's own zip, which holds pickles.

        Args:
            path: Where to. A saved run that is there is replaced; anything else stays.
            exclude: SB3's, for its policies only.
            include: SB3's, for its policies only.

        Raises:
            FileExistsError: If something else than a saved run is there.
            OSError: If it cannot be written, as on a full disk; what was there stays.
        """
        if not self.is_vla:
            checkpointing.check_free_for_sb3(path)
            super().save(path, exclude, include)
        elif isinstance(path, (str, pathlib.Path)):
            checkpointing.save(self, pathlib.Path(path))
        else:
            raise TypeError(
                f"A VLAPPO is saved to a folder or zip, so path must be a str or Path, got {type(path).__name__}."
            )

    @classmethod
    def load(
        cls: type[SelfVLAPPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        allow_changes: bool = False,
        unsafe_sb3_zip: bool = False,
        **kwargs: Any,
    ) -> SelfVLAPPO:
        """The model that `save` wrote to a folder or zip; with or without the suffix ``.zip``. Nothing is unpickled.

        With an ``env`` like the one it was trained on, ``learn(n, reset_num_timesteps=False)`` goes on as if the run
        had never stopped: the environments are in the middle of the same episodes, callbacks that have a state
        (`vla_agent.callbacks.StatefulCallback`) get it back, and on a CPU all is equal to the bit.

        Args:
            path: Folder or zip.
            env: To train on; not needed to predict.
            device: Where to put it.
            custom_objects: Stand for what was saved under their names, such as ``{"learning_rate": 1e-5}``, as if the
                run had been made with them. Names that only SB3's zips hold, such as "lr_schedule", change nothing.
            print_system_info: Print versions of this system, as SB3 does.
            force_reset: As SB3's, with its zips. A run of ours has no stale observation: environments go back to where
                they were, or are reset.
            allow_changes: Train on though ``kwargs`` or ``env`` are not what the run was made with.
            unsafe_sb3_zip: Let SB3 load a zip that it wrote, as for models with SB3's policies. It unpickles, so that
                **whoever wrote the file can run any code here**: only for files of your own.
            kwargs: Constructor arguments to change; ``policy_kwargs`` are merged into the saved ones.

        Raises:
            RunError: If it is no complete run, does not fit the environment, or would go on otherwise than it was made
                without ``allow_changes``; or if it is SB3's zip, without ``unsafe_sb3_zip``.
            ValueError: If an argument is of another type: ``unsafe_sb3_zip="no"`` is no yes.
            TypeError: If ``path`` is no path, or ``kwargs`` has a name that is no argument.
        """
        print_system_info = flag("print_system_info", print_system_info)
        force_reset, allow_changes = flag("force_reset", force_reset), flag("allow_changes", allow_changes)
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise ValueError(f"custom_objects={custom_objects!r:.80}; expected a dict of values by name, or None.")
        if checkpointing.is_for_sb3(path, unsafe_sb3_zip):
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")  # as SB3's load
            get_system_info()
        return checkpointing.load(
            cls, pathlib.Path(cast(str, path)), env, device, allow_changes, custom_objects, **kwargs
        )


class LearnerHooks(RolloutHooks):
    """What a step of a rollout changes in the learner, in SB3's order."""

    def __init__(self, learner: OnPolicyAlgorithm, callback: BaseCallback) -> None:
        self.learner, self.callback = learner, callback

    def on_step(self, step: dict[str, Any]) -> bool:
        self.learner.num_timesteps += step["env"].num_envs
        self.callback.update_locals({"self": self.learner, "callback": self.callback} | step)
        if not self.callback.on_step():
            return False
        self.learner._update_info_buffer(step["infos"], step["dones"])
        return True

    def on_stored(self, obs: Observations, dones: np.ndarray) -> None:
        self.learner._last_obs, self.learner._last_episode_starts = obs, dones


def _make_env(env_id: str, policy_kwargs: dict[str, Any]) -> VLAVecEnv:
    """One environment of an id, for the policy's model."""
    model = policy_kwargs.get("model", "tiny")
    processor = model if isinstance(model, (str, pathlib.Path)) else model.processor
    return make_vec_env(env_id, model=processor, unnorm_key=policy_kwargs.get("unnorm_key"))


def _defaults(is_vla: bool) -> dict[str, Any]:
    """What arguments left at None become. SB3's own defaults are read off its constructor."""
    if is_vla:
        return VLA_DEFAULTS
    parameters = inspect.signature(PPO.__init__).parameters
    return {name: parameters[name].default if name in parameters else 0 for name in VLA_DEFAULTS}

"""What every learner of a vision-language-action model shares: set-up, the loop's additions, rates, callbacks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.algorithms import arguments, health
from vla_agent.algorithms.buffers import compute_targets
from vla_agent.algorithms.engine import Engine, engine_of
from vla_agent.algorithms.resumable import ResumableAlgorithm
from vla_agent.algorithms.rollout import Observations, Rollout, RolloutHooks, follow
from vla_agent.algorithms.scoring import Scoring, scoring_for
from vla_agent.callbacks.curriculum import draw_alike_again
from vla_agent.callbacks.state import give_states_back, stateful_callbacks
from vla_agent.callbacks.tree import as_callbacks, parts
from vla_agent.envs.vec_env import speaks_tokens
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.signature import attribute_of

# The value head starts from nothing and the backbone from a trained model (RL4VLA, arXiv 2505.19789: 3e-3 and 1e-4).
VALUE_RATE_FACTOR = 10.0


class LearnerHooks(RolloutHooks):
    """What a step of a rollout changes in the learner, in the order of SB3's `collect_rollouts`."""

    def __init__(self, learner: OnPolicyAlgorithm, callback: BaseCallback) -> None:
        self.learner, self.callback = learner, callback

    def on_step(self, step: dict[str, Any]) -> bool:
        """Counts the step, asks the callback, and notes ended episodes."""
        self.learner.num_timesteps += step["env"].num_envs
        self.callback.update_locals({"self": self.learner, "callback": self.callback} | step)
        if not self.callback.on_step():
            return False
        self.learner._update_info_buffer(step["infos"], step["dones"])
        return True

    def on_stored(self, obs: Observations, dones: np.ndarray) -> None:
        """Moves on to the next observations, from which another rollout would begin."""
        self.learner._last_obs, self.learner._last_episode_starts = obs, dones


class VLALearner(ResumableAlgorithm):
    """The base of learners; a subclass adds a constructor, `train`, and SB3's algorithm beside it if it builds on one.

    A constructor of a subclass reads

        given = self._checked(locals())
        with self._environments(env, given) as environments:
            super().__init__(policy, environments, **given)
            if _init_setup_model:
                self._setup_model()

    Attributes:
        token_defaults: What arguments left at None become with a `VLAPolicy`.
        sb3: SB3's algorithm, whose defaults they become with SB3's policies.
        shares_updates: Whether `train` updates through the engine, with `minibatch.step_on`, and weighs rollouts of an
            earlier policy: what several learners need, and stale ones.
        scoring: What depends on the kind of policy.
    """

    token_defaults: ClassVar[dict[str, Any]] = {}
    sb3: ClassVar[type] = OnPolicyAlgorithm
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"VLAPolicy": VLAPolicy}
    shares_updates: ClassVar[bool] = False

    scoring: Scoring[Any]
    # Arguments that a learner may take; these are their values in learners that do not.
    critic_warmup_iterations: int = 0
    policy_warmup_iterations: int = 0
    value_learning_rate: float | Schedule | None = None
    ratio_tolerance: float | None = None
    gradient_accumulation_steps: int = 1
    engine: Engine | None = None

    def __init__(self, policy: str | type[BasePolicy], env: GymEnv | str | None, **given: Any) -> None:
        # The next class in the order of inheritance is SB3's algorithm, such as PPO: its signature says what it takes.
        sb3_init = super().__init__
        taken = inspect.signature(sb3_init).parameters
        sb3_arguments = {name: value for name, value in given.items() if name in taken}
        sb3_init(cast(Any, policy), cast(Any, env), **sb3_arguments, _init_setup_model=False)
        for name, value in given.items():
            if attribute_of(name) not in vars(self):  # SB3 keeps its own
                setattr(self, name, value)
        self._begin_run()
        self._progress_bars: list[ProgressBarCallback] = []

    # ---------------------------------------------------------------------------------------------- set-up

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments besides policy and environment, checked and with defaults filled in.

        Args:
            given: The constructor's ``locals()``.

        Raises:
            ValueError: If an argument is out of range, or is not for this policy.
        """
        # SB3 takes no NumPy numbers in some places, such as its seed.
        given = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in given.items()
            if name not in ("self", "__class__")
        }
        policy, env, sets_up = (given.pop(name) for name in ("policy", "env", "_init_setup_model"))
        # A subclass may have further names for policies.
        self.scoring = scoring_for(self.policy_aliases.get(policy, policy) if isinstance(policy, str) else policy)
        arguments.check_policy_class(policy, self.policy_aliases)
        arguments.check_env(env, needed=sets_up)
        arguments.check_algorithm(given, loaded=not sets_up)
        defaults = self.scoring.defaults(self.token_defaults, self.sb3)
        given |= {name: value for name, value in defaults.items() if given[name] is None}
        given["policy_kwargs"] = dict(given["policy_kwargs"] or {})
        self.scoring.check(given, policy, self.policy_aliases, env)
        n_envs = 1 if isinstance(env, (str, gym.Env)) else getattr(env, "num_envs", None)
        self._check_together(given, n_envs)
        return given

    def _check_together(self, given: Mapping[str, Any], n_envs: int | None) -> None:
        """Complains about arguments that do not go together, as ValueError."""

    @contextlib.contextmanager
    def _environments(self, env: GymEnv | str | None, given: Mapping[str, Any]) -> Iterator[Any]:
        """The environments, made if an id is given; those that were made here are closed if the set-up fails."""
        made: Any = self.scoring.make_env(env, given["policy_kwargs"]) if isinstance(env, str) else env
        try:
            yield made
        except BaseException:
            if made is not env:
                made.close()
            raise

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
                "none, gym.make(id, instruction='none') leaves the text out, as does FilterObservation."
            )
        if isinstance(env, VecEnv) and speaks_tokens(env):
            check_for_nested_spaces(env.observation_space)
            return env
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        self.policy_kwargs = self.scoring.policy_kwargs(self.policy_kwargs, self.device)
        super()._setup_model()
        self._engine = engine_of(self.engine, self.env)
        self._engine.check(self, self.env)
        self.moments_device = self._engine.moments_device
        rate = self.value_learning_rate
        self._value_lr_schedule = None if rate is None else FloatSchedule(rate)
        tolerance = self.ratio_tolerance
        if tolerance is None:
            tolerance = health.ratio_tolerance(self.scoring.compute_dtype(self.policy))
        self._monitor = health.UpdateMonitor(tolerance, strict=self.scoring.strict)
        if self.env is not None:
            self.scoring.check_env(self.policy, self.env)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's.

        Raises:
            ValueError: If the environments are others than the policy is for.
        """
        arguments.check_made(env)
        wrapped = self._wrap_env(env, self.verbose)
        if wrapped.num_envs != self.n_envs:
            raise ValueError(
                f"The environments are {wrapped.num_envs}, but the model has a buffer for {self.n_envs}; give as many, "
                f"or {type(self).__name__}.load(path, env)."
            )
        self.scoring.check_env(self.policy, wrapped)
        engine = engine_of(self.engine, wrapped)
        engine.check(self, wrapped)
        self._engine, self.moments_device = engine, engine.moments_device
        super().set_env(wrapped, force_reset)

    @property
    def saves_runs(self) -> bool:
        """Whether `save` writes a run as `vla_agent.runs` does; models with SB3's policies go to SB3's own zips."""
        return self.scoring.saves_runs

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What the result depends on, of what plays and learns beside this process, as JSON can hold it."""
        return self._engine.settings

    # ----------------------------------------------------------------------------------------------- rates

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As SB3's, but not below the scoring's ``least_progress``."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, self.scoring.least_progress)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """As SB3's, but the value head has a rate of its own, and the policy's may have to rise first."""
        super()._update_learning_rate(optimizers)
        # Adam's first steps have the size of the rate whatever the gradient is: signs of single minibatches' noise
        # (Kingma and Ba, 2015, arXiv 1412.6980, section 2.1). So the rate rises over the first iterations.
        risen = self.n_iterations - self.critic_warmup_iterations + 1
        share = min(max(risen, 1) / max(self.policy_warmup_iterations, 1), 1.0)
        progress = self._current_progress_remaining
        rate = self.lr_schedule(progress)
        schedule = self._value_lr_schedule
        value_rate = VALUE_RATE_FACTOR * rate if schedule is None else schedule(progress)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for name, number in self.scoring.set_rates(optimizer, share * rate, value_rate).items():
                self.logger.record(name, number)

    # --------------------------------------------------------------------------------------------- rollout

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fills the buffer; False if the callback stopped it. Logs the seconds of each phase."""
        self._before_rollout()
        stopwatch, before = health.Stopwatch(), self.num_timesteps
        with stopwatch("rollout"):
            go_on = self.scoring.collect(self, env, callback, rollout_buffer, n_rollout_steps, stopwatch)
        for phase, seconds in stopwatch.seconds.items():
            self.logger.record(f"time/{phase}_s", seconds)
        rate = (self.num_timesteps - before) / max(stopwatch.seconds["rollout"], 1e-9)
        self.logger.record("time/env_steps_per_s", rate)
        return go_on

    def collect_tokens(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: DictRolloutBuffer,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """SB3's `collect_rollouts` for a `VLAPolicy`: the engine plays, and its results become the learner's."""
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        events = self._engine.play(
            self,
            cast(VLAPolicy, self.policy),
            env,
            n_rollout_steps,
            last_obs=cast(Observations, self._last_obs),
            episode_starts=self._last_episode_starts,
            buffer=rollout_buffer,
            num_timesteps=self.num_timesteps,
            stopwatch=stopwatch,
            **self._collecting(),
        )
        rollout = follow(events, LearnerHooks(self, callback))
        if rollout is None:
            return False
        self._take_rollout(rollout)
        for name, total in rollout.reward_terms.items():
            self.logger.record(f"rollout/reward_{name}", total / (n_rollout_steps * env.num_envs))
        # Only what SB3's locals have by now: callbacks keep them, and the rollout would stay in memory beside the next.
        callback.update_locals({"n_steps": n_rollout_steps, "values": rollout.last_values, "dones": rollout.dones})
        callback.on_rollout_end()
        return True

    def _collecting(self) -> dict[str, Any]:
        """Further arguments of `rollout.play`."""
        return {}

    def _take_rollout(self, rollout: Rollout) -> None:
        """Makes of a rollout what `train` needs; its arrays are the buffer's.

        Here, the buffer's advantages and returns by GAE, as in SB3's `collect_rollouts`; nothing without a critic.
        """
        if rollout.last_values is not None:
            compute_targets(cast(DictRolloutBuffer, self.rollout_buffer), rollout.last_values, rollout.dones, None)

    # ------------------------------------------------------------------------------------- update and learn

    def _begin_update(self) -> None:
        """What comes before every update, in SB3's order."""
        self._before_update()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._monitor.watch(self.policy.optimizer)

    def _end_update(self) -> None:
        self.n_iterations += 1
        self.moments.end_update()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As SB3's, but the metrics of the last update are logged too. The log is named after the class by default.

        Raises:
            ValueError: If an argument is out of range, or the model has no environment.
        """
        called = type(self).__name__
        if self.env is None:
            raise ValueError(
                f"The model has no environment to learn in; give {called}.load(path, env), or call set_env(env)."
            )
        total_timesteps = arguments.check_learn(
            total_timesteps, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
        given: Any = as_callbacks(callback)
        try:
            super().learn(
                total_timesteps, given, log_interval, tb_log_name or called, reset_num_timesteps, progress_bar
            )
        except BaseException:
            for bar in self._progress_bars:  # SB3 leaves them open, and they fail when the interpreter ends
                if hasattr(bar, "pbar"):
                    bar.pbar.close()
            if self.moments.boundary is not None or not self.saves_runs:
                self._last_obs = None  # a step may be under way, whose end nobody sees: another `learn` begins anew
            raise
        self.moments.past = None
        if log_interval is not None and self.logger.name_to_value:
            self.dump_logs()  # SB3 logs before each update, so it never shows the last one
        return self

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        given: Any = self.scoring.callbacks(as_callbacks(callback))
        root = super()._init_callback(given, progress_bar)
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
        self.moments.forget()  # those of an earlier `learn`
        if reset_num_timesteps:
            self.run = None  # another begins
            assert self.env is not None
            draw_alike_again(self.env, self.callback_states)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._engine.begin(self)
        if not reset_num_timesteps:
            give_states_back(self.callback_states, self.stateful_callbacks)
        self.callback_states = {}
        self._monitor.check_trainable(self.policy, self.policy.optimizer)
        return result

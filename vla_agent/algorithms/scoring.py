"""How a learner gets on with its kind of policy: asked for once, when it is made, instead of what the policy is."""

from __future__ import annotations

import inspect
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage, is_vecenv_wrapped

from vla_agent.algorithms import arguments, buffers, health
from vla_agent.callbacks.success import SuccessCallback
from vla_agent.callbacks.tree import parts
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.vec_env import VLAVecEnv, speaks_tokens
from vla_agent.policy.arguments import check_names, check_policy
from vla_agent.policy.policy import ActionScores, VLAPolicy

PolicyT = TypeVar("PolicyT", bound=ActorCriticPolicy)


class Scores(NamedTuple):
    """How a policy judges the actions of B samples."""

    values: th.Tensor  # (B,)
    log_probs: th.Tensor  # (B,), of whole actions
    entropies: th.Tensor | None  # (B,); None if the distribution has no closed form
    tokens: ActionScores | None  # a `VLAPolicy`'s scores of single tokens


class TokenCollector(Protocol):
    """A learner that collects rollouts of a `VLAPolicy`, see `VLALearner.collect_tokens`."""

    def collect_tokens(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """Fills the buffer; False if the callback stopped it."""


class Scoring(ABC, Generic[PolicyT]):
    """What depends on the kind of policy that a learner trains.

    Attributes:
        saves_runs: Whether runs are saved as `vla_agent.runs` does, instead of as SB3's zips.
        strict: Whether sampling and scoring are known to agree, so that a first ratio other than 1 is an error.
        least_progress: Least remaining share of training that schedules get.
    """

    saves_runs: bool
    strict: bool
    least_progress: float

    @abstractmethod
    def defaults(self, for_tokens: Mapping[str, Any], sb3: type) -> dict[str, Any]:
        """What arguments left at None become.

        Args:
            for_tokens: The learner's defaults with a `VLAPolicy`, by name.
            sb3: SB3's algorithm, whose defaults count with SB3's policies.
        """

    @abstractmethod
    def check(self, given: dict[str, Any], policy: Any, aliases: Mapping[str, type[BasePolicy]], env: Any) -> None:
        """Complains about arguments that do not suit the policy, and completes ``policy_kwargs``.

        Args:
            given: Arguments by name, defaults filled in.
            policy: The policy's class or name.
            aliases: Classes by name.
            env: The environments, or an id.

        Raises:
            ValueError: See the message.
        """

    @abstractmethod
    def check_batches(self, n_steps: int, n_envs: int | None, batch_size: int) -> None:
        """Complains if minibatches do not divide the rollout, unless SB3 does so by itself."""

    @abstractmethod
    def make_env(self, env_id: str, policy_kwargs: dict[str, Any]) -> Any:
        """One environment of an id, or the id if SB3 makes the environment."""

    @abstractmethod
    def check_env(self, policy: PolicyT, env: VecEnv) -> None:
        """Complains about environments of another model than the policy's, as ValueError."""

    @abstractmethod
    def policy_kwargs(self, given: dict[str, Any], device: th.device) -> dict[str, Any]:
        """What the policy is made with."""

    @abstractmethod
    def compute_dtype(self, policy: PolicyT) -> th.dtype:
        """Type that the policy computes in."""

    @abstractmethod
    def callbacks(self, given: list[BaseCallback]) -> list[BaseCallback]:
        """The given callbacks, and those that always run."""

    @abstractmethod
    def collect(
        self,
        learner: Any,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """Fills the learner's buffer; False if the callback stopped it."""

    @abstractmethod
    def score(self, policy: PolicyT, batch: buffers.Batch) -> Scores:
        """Scores the actions of a batch, and values its observations."""

    @abstractmethod
    def set_rates(self, optimizer: th.optim.Optimizer, policy_rate: float, value_rate: float) -> dict[str, float]:
        """Sets a learning rate for the policy and one for the value head; returns what to log."""

    @abstractmethod
    def freeze(self, policy: PolicyT, frozen: bool) -> None:
        """Whether losses reach the value head alone from now on."""

    @abstractmethod
    def informative(self, observations: Any) -> Any:
        """The observations that tell states apart, of those in a buffer."""


class SB3Scoring(Scoring[ActorCriticPolicy]):
    """SB3's policies are treated as SB3 treats them, so that with every addition off all is equal to the bit."""

    saves_runs = False
    strict = False
    least_progress = -float("inf")

    def defaults(self, for_tokens: Mapping[str, Any], sb3: type) -> dict[str, Any]:
        """SB3's own defaults, read off its constructor; 0 for arguments that SB3 does not have."""
        parameters = inspect.signature(sb3.__init__).parameters  # type: ignore[misc]
        return {name: parameters[name].default if name in parameters else 0 for name in for_tokens}

    def check(self, given: dict[str, Any], policy: Any, aliases: Mapping[str, type[BasePolicy]], env: Any) -> None:
        """Refuses the additions that need a `VLAPolicy`, and images in its order, which SB3's networks misread."""
        arguments.check_only_vla(given, policy)
        if isinstance(env, VecEnv) and speaks_tokens(env) and not is_vecenv_wrapped(env, VecTransposeImage):
            raise ValueError(
                "Environments of make_vec_env show images as VLAPolicy takes them, channels last. For SB3's policies, "
                "put SB3's VecTransposeImage around them, or take gym.make(id, instruction='none')."
            )

    def check_batches(self, n_steps: int, n_envs: int | None, batch_size: int) -> None:
        """Checks nothing: SB3 warns, and trains on a truncated minibatch."""

    def make_env(self, env_id: str, policy_kwargs: dict[str, Any]) -> Any:
        """The id; SB3 makes the environment."""
        return env_id

    def check_env(self, policy: ActorCriticPolicy, env: VecEnv) -> None:
        """Checks nothing: SB3 compares the spaces."""

    def policy_kwargs(self, given: dict[str, Any], device: th.device) -> dict[str, Any]:
        """The arguments as they were given."""
        return given

    def compute_dtype(self, policy: ActorCriticPolicy) -> th.dtype:
        """Type of the weights."""
        return next(policy.parameters()).dtype

    def callbacks(self, given: list[BaseCallback]) -> list[BaseCallback]:
        """The given callbacks alone."""
        return given

    def collect(
        self,
        learner: OnPolicyAlgorithm,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """SB3's own loop."""
        return OnPolicyAlgorithm.collect_rollouts(learner, env, callback, rollout_buffer, n_rollout_steps)

    def score(self, policy: ActorCriticPolicy, batch: buffers.Batch) -> Scores:
        """`evaluate_actions` of the policy; there are no single tokens."""
        actions = batch.actions
        if isinstance(policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()  # the buffer keeps them as floats
        values, log_probs, entropies = policy.evaluate_actions(batch.observations, actions)
        return Scores(values.flatten(), log_probs, entropies, None)

    def set_rates(self, optimizer: th.optim.Optimizer, policy_rate: float, value_rate: float) -> dict[str, float]:
        """Sets nothing: SB3 has set and logged its one rate."""
        return {}

    def freeze(self, policy: ActorCriticPolicy, frozen: bool) -> None:
        """Freezes nothing: SB3's policies have no warm-up of the critic."""

    def informative(self, observations: Any) -> Any:
        """All observations."""
        return observations


class TokenScoring(Scoring[VLAPolicy]):
    """A `VLAPolicy` acts in tokens, and its value head learns apart from its backbone."""

    saves_runs = True
    strict = True
    # A last rollout goes past the end of training, where a schedule such as ``lambda p: p * 2e-5`` would turn negative.
    least_progress = 0.0

    def defaults(self, for_tokens: Mapping[str, Any], sb3: type) -> dict[str, Any]:
        """The learner's own defaults."""
        return dict(for_tokens)

    def check(self, given: dict[str, Any], policy: Any, aliases: Mapping[str, type[BasePolicy]], env: Any) -> None:
        """Checks ``policy_kwargs``; a policy without a model gets that of the environments."""
        if given.get("use_sde"):
            raise ValueError("use_sde=True needs continuous actions; VLAPolicy's are bins. Leave it out.")
        policy_kwargs = given["policy_kwargs"]
        check_names(aliases[policy] if isinstance(policy, str) else policy, policy_kwargs)
        check_policy(policy_kwargs)
        named = getattr(env.unwrapped, "model", None) if isinstance(env, VecEnv) and speaks_tokens(env) else None
        if "model" not in policy_kwargs and named is not None:
            policy_kwargs["model"] = named

    def check_batches(self, n_steps: int, n_envs: int | None, batch_size: int) -> None:
        """Refuses a last minibatch that is smaller than the others."""
        buffers.check_batches(n_steps, n_envs, batch_size)

    def make_env(self, env_id: str, policy_kwargs: dict[str, Any]) -> VLAVecEnv:
        """One environment for the policy's model, with tokens and bins."""
        model = policy_kwargs.get("model", "tiny")
        processor = model if isinstance(model, (str, pathlib.Path)) else model.processor
        return make_vec_env(env_id, model=processor, unnorm_key=policy_kwargs.get("unnorm_key"))

    def check_env(self, policy: VLAPolicy, env: VecEnv) -> None:
        """Refuses environments whose prompts or bins are another model's."""
        if speaks_tokens(env):
            ours, theirs = policy.backbone.processor, cast(VLAVecEnv, env.unwrapped).processor
            if ours.fingerprint() != theirs.fingerprint():
                raise ValueError(
                    "The environment tokenises instructions or decodes actions for another model than the policy's; "
                    "give make_vec_env the model, and leave it out of policy_kwargs, or give both the same."
                )

    def policy_kwargs(self, given: dict[str, Any], device: th.device) -> dict[str, Any]:
        """The arguments with the learner's device, so that the backbone is loaded to where it is trained."""
        return {**given, "device": str(device)}

    def compute_dtype(self, policy: VLAPolicy) -> th.dtype:
        """Type that the backbone computes in."""
        return policy.compute_dtype

    def callbacks(self, given: list[BaseCallback]) -> list[BaseCallback]:
        """The given callbacks, and a `SuccessCallback`: success per task is always in the log."""
        if any(isinstance(part, SuccessCallback) for part in parts(given)):
            return given
        return [*given, SuccessCallback()]

    def collect(
        self,
        learner: TokenCollector,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        stopwatch: health.Stopwatch,
    ) -> bool:
        """The learner's `collect_tokens`."""
        return learner.collect_tokens(env, callback, rollout_buffer, n_rollout_steps, stopwatch)

    def score(self, policy: VLAPolicy, batch: buffers.Batch) -> Scores:
        """One teacher-forced pass; an action's log-probability and entropy are sums over its tokens."""
        tokens = policy.score(batch.observations, batch.actions)
        log_probs, entropies = tokens.token_log_probs.sum(dim=1), tokens.token_entropies.sum(dim=1)
        return Scores(tokens.values.flatten(), log_probs, entropies, tokens)

    def set_rates(self, optimizer: th.optim.Optimizer, policy_rate: float, value_rate: float) -> dict[str, float]:
        """Sets the rate of the parameter group "value" and that of the others."""
        for group in optimizer.param_groups:
            group["lr"] = value_rate if group.get("name") == "value" else policy_rate
        return {"train/learning_rate": policy_rate, "train/value_learning_rate": value_rate}

    def freeze(self, policy: VLAPolicy, frozen: bool) -> None:
        """Whether gradients reach the value head alone; the backbone then runs without a graph."""
        policy.backbone_frozen = frozen

    def informative(self, observations: Any) -> Any:
        """Images and prompts."""
        # Not the state of the robot, nor what only the critic knows: they change even if the model sees nothing.
        return {key: observations[key] for key in ("image", "input_ids")}


def scoring_for(policy: Any) -> Scoring[Any]:
    """The scoring of a policy's class; SB3's for anything else, which SB3 then judges."""
    return TokenScoring() if isinstance(policy, type) and issubclass(policy, VLAPolicy) else SB3Scoring()

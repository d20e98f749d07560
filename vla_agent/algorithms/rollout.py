"""Rollouts: a policy plays some steps of a vector environment, and nothing of a learner changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import whole_number
from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.finite import check_observations, check_rewards, check_values
from vla_agent.algorithms.health import Stopwatch
from vla_agent.common.tensors import stacked

Observations = dict[str, np.ndarray]  # by key, (n_envs, ...); tensors where environments keep them on a device


class Decided(Protocol):
    """What a policy decides on B observations with N action tokens; `vla_agent.policy.policy.Decision` is one."""

    @property
    def actions(self) -> th.Tensor:
        """Bins, int64 (B, N)."""

    @property
    def values(self) -> th.Tensor | None:
        """Values of the observations, float32 (B, 1); None for a policy without a critic."""

    @property
    def token_log_probs(self) -> th.Tensor:
        """Log-probabilities of the bins, float32 (B, N)."""

    @property
    def value_inputs(self) -> th.Tensor | None:
        """What the values were read from, float32 (B, D); None for a policy without a critic."""


class Actor(Protocol):
    """A policy that `collect` plays with; `VLAPolicy` is one."""

    @property
    def device(self) -> th.device:
        """Device of its tensors."""

    def set_training_mode(self, mode: bool) -> None:
        """Turns dropout on or off."""

    def act(self, obs: dict[str, th.Tensor]) -> Decided:
        """Draws actions."""

    def predict_values(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        """Values (B, 1); `collect` asks for them only if `act` gives values."""


class EndedEpisode(NamedTuple):
    """An episode that ended in a rollout.

    Attributes:
        step: Step of the rollout, from 0.
        env: Index of the environment.
        info: Information of its last step, without the last observation.
    """

    step: int
    env: int
    info: dict[str, Any]


class Rollout(NamedTuple):
    """n steps in B environments with N action tokens. Arrays are those of the buffer, if one was handed in."""

    observations: Observations  # what the actions were decided on, by key (n, B, ...)
    actions: np.ndarray  # bins (n, B, N)
    rewards: np.ndarray  # float32 (n, B), with what a time limit cut off if that was asked for
    episode_starts: np.ndarray  # float32 (n, B), 1 for the first step of an episode
    log_probs: np.ndarray  # float32 (n, B, N); (n, B) in a buffer with one log-probability per action
    values: np.ndarray | None  # float32 (n, B); None without a critic
    value_inputs: th.Tensor | None  # float32 (n, B, D), if they were to be kept
    last_obs: Observations  # observations after the last step
    dones: np.ndarray  # bool (B,), whether the last step ended an episode
    last_values: th.Tensor | None  # values of last_obs, float32 (B, 1); None without a critic
    episodes: list[EndedEpisode]  # in the order in which they ended
    reward_terms: dict[str, float]  # sums over all steps and environments, by term
    seconds: dict[str, float]  # duration of "decode" (the model) and "env" (the environments)


class Stepped(NamedTuple):
    """The environments have stepped, and nothing of the step is stored yet.

    Attributes:
        values: Names and values as in the ``locals`` of SB3's `collect_rollouts`, which callbacks read.
    """

    values: dict[str, Any]


class Stored(NamedTuple):
    """The step is stored; these are the observations after it, and whether it ended episodes."""

    obs: Observations
    dones: np.ndarray


Event = Stepped | Stored | Rollout  # of a rollout, in this order for each step; the whole rollout comes last


class RolloutHooks:
    """What happens beside the playing: a learner counts steps and calls its callbacks here. These do nothing."""

    def on_step(self, step: dict[str, Any]) -> bool:
        """Called after each step of the environments, before anything of it is stored.

        Args:
            step: Names and values as in the ``locals`` of SB3's `collect_rollouts`, which callbacks read.

        Returns:
            Whether to go on.
        """
        return True

    def on_stored(self, obs: Observations, dones: np.ndarray) -> None:
        """Called once the step is stored, with the observations after it."""


def collect(
    policy: Actor, env: VecEnv, n_steps: int, *, hooks: RolloutHooks | None = None, **how: Any
) -> Rollout | None:
    """Plays n steps of a vector environment, and changes nothing of a learner.

    Args:
        policy: The policy; it needs no critic.
        env: The environments.
        n_steps: Number n of steps in each environment.
        hooks: What happens beside the playing; a hook can stop it.
        how: Further keywords of `play`, which says what they are.

    Returns:
        The rollout; None if a hook stopped it.

    Raises:
        NonFiniteError: If a reward, an observation or a value is not finite.
        ValueError: If ``time_limit_gamma`` or ``keep_value_inputs`` is given for a policy without a critic.
    """
    return follow(play(policy, env, n_steps, **how), hooks or RolloutHooks())


def follow(events: Iterable[Event], hooks: RolloutHooks) -> Rollout | None:
    """The rollout at the end of its events; None if a hook stopped it."""
    for event in events:
        if isinstance(event, Rollout):
            return event
        if isinstance(event, Stored):
            hooks.on_stored(*event)
        elif not hooks.on_step(event.values):
            return None
    raise AssertionError("events end with a rollout")


def play(
    policy: Actor,
    env: VecEnv,
    n_steps: int,
    *,
    last_obs: Observations | None = None,
    episode_starts: np.ndarray | None = None,
    buffer: DictRolloutBuffer | None = None,
    time_limit_gamma: float | None = None,
    keep_value_inputs: bool = False,
    num_timesteps: int = 0,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Event]:
    """The events of a rollout, as they happen; nothing of a learner changes.

    The environments move on, a buffer that is handed in is filled, and the policy is put into evaluation mode.

    Args:
        policy: The policy; it needs no critic.
        env: The environments.
        n_steps: Number n of steps in each environment.
        last_obs: Observations to begin at; None resets the environments.
        episode_starts: Whether an episode begins at ``last_obs``, (n_envs,); None if one does in all environments.
        buffer: An empty buffer of n steps to fill; None makes a `TokenRolloutBuffer`.
        time_limit_gamma: Discount factor with which values stand for what time limits cut off, see
            `bootstrap_time_limits`; None adds no values.
        keep_value_inputs: Whether to keep what the values were read from.
        num_timesteps: Environment steps of the run before this rollout, for messages.
        stopwatch: Stopwatch that counts the seconds of "decode" and "env", also of a rollout that is stopped.

    Raises:
        NonFiniteError: If a reward, an observation or a value is not finite.
        ValueError: If ``time_limit_gamma`` or ``keep_value_inputs`` is given for a policy without a critic.
    """
    whole_number("n_steps", n_steps, 1)
    stopwatch = stopwatch or Stopwatch()
    policy.set_training_mode(False)
    if last_obs is None:
        last_obs = cast(Observations, env.reset())
    starts = np.ones(env.num_envs, dtype=bool) if episode_starts is None else episode_starts
    buffer = _empty_buffer(policy, env, n_steps) if buffer is None else buffer
    value_inputs: list[th.Tensor] = []
    episodes: list[EndedEpisode] = []
    reward_terms: Counter[str] = Counter()
    # Through GAE, one NaN reaches every advantage before it in its episode: it is told here, where its place is known.
    check_observations(last_obs, None, num_timesteps)

    for number in range(n_steps):
        with stopwatch("decode"), th.no_grad():
            decision = policy.act(_to_tensors(last_obs, policy))
            actions = decision.actions.cpu().numpy()  # waits for the device, so that the time is the model's
        values = _checked_values(decision, env.num_envs, num_timesteps, time_limit_gamma, keep_value_inputs)
        if keep_value_inputs and decision.value_inputs is not None:
            value_inputs.append(decision.value_inputs)
        # log pi(a|s) is the sum of its tokens' conditional terms.
        terms = decision.token_log_probs
        log_probs = terms if isinstance(buffer, TokenRolloutBuffer) else terms.sum(dim=1)
        with stopwatch("env"):
            stepped, rewards, dones, infos = env.step(actions)
        new_obs = cast(Observations, stepped)
        num_timesteps += env.num_envs
        check_rewards(rewards, infos, num_timesteps)
        check_observations(new_obs, infos, num_timesteps)
        step = {"env": env, "rollout_buffer": buffer, "n_rollout_steps": n_steps, "n_steps": number}
        step |= {"obs": last_obs, "actions": actions, "clipped_actions": actions, "values": values}
        step |= {"log_probs": log_probs, "new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
        yield Stepped(step)
        for info in infos:
            reward_terms.update(info.get("reward_terms", {}))  # a Counter adds up where a dict would replace
        episodes += _ended(number, dones, infos)
        # After the callbacks, as in SB3: they read the environments' own rewards.
        if time_limit_gamma is not None:
            with stopwatch("decode"):
                bootstrap_time_limits(policy, time_limit_gamma, rewards, dones, infos, num_timesteps)
        # The buffer copies the observations only now: environments must not write into those of the step before.
        buffer.add(last_obs, actions, rewards, starts, values, log_probs)
        last_obs, starts = new_obs, dones
        yield Stored(last_obs, dones)

    # An episode that goes on beyond the rollout is worth what the critic expects of it.
    last_values = None
    if decision.values is not None:
        with stopwatch("decode"), th.no_grad():
            last_values = policy.predict_values(_to_tensors(last_obs, policy))
    yield Rollout(
        observations=dict(buffer.observations),  # the buffer's own dict changes when minibatches are drawn
        actions=buffer.actions,
        rewards=buffer.rewards,
        episode_starts=buffer.episode_starts,
        log_probs=buffer.log_probs,
        values=None if last_values is None else buffer.values,
        value_inputs=th.stack(value_inputs) if value_inputs else None,
        last_obs=last_obs,
        dones=starts,
        last_values=last_values,
        episodes=episodes,
        reward_terms=dict(reward_terms),
        seconds=dict(stopwatch.seconds),
    )


def _empty_buffer(policy: Actor, env: VecEnv, n_steps: int) -> TokenRolloutBuffer:
    space = cast(spaces.Dict, env.observation_space)
    return TokenRolloutBuffer(n_steps, space, env.action_space, policy.device, n_envs=env.num_envs)


def _ended(step: int, dones: np.ndarray, infos: Sequence[Mapping[str, Any]]) -> list[EndedEpisode]:
    """The episodes that ended in a step; without their last observations, which would keep a frame of each."""
    return [
        EndedEpisode(step, i, {key: value for key, value in infos[i].items() if key != "terminal_observation"})
        for i in np.flatnonzero(dones).tolist()
    ]


def _checked_values(
    decision: Decided, n_envs: int, num_timesteps: int, time_limit_gamma: float | None, keep_value_inputs: bool
) -> th.Tensor:
    """Values (n_envs, 1) for the buffer: the decision's if they are finite, zeros for a policy without a critic."""
    if decision.values is not None:
        check_values(decision.values.flatten().cpu().numpy(), range(n_envs), num_timesteps)
        return decision.values
    if time_limit_gamma is not None:
        raise ValueError("time_limit_gamma needs the values of a critic, and the policy gives none. Leave it out.")
    if keep_value_inputs:
        raise ValueError("keep_value_inputs needs a critic, and the policy has none. Leave it out.")
    # SB3's buffer wants values. No advantage is computed from these: `Rollout.values` is None then.
    return th.zeros(n_envs, 1)


def bootstrap_time_limits(
    policy: Actor,
    gamma: float,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: Sequence[dict[str, Any]],
    num_timesteps: int = 0,
) -> None:
    """Adds gamma * V(last observation) to the reward of each episode that a time limit ended, in place.

    A time limit is not part of the task: the value of going on belongs to the return (Pardo et al., 2018, arXiv
    1712.00378; SB3, GH issue 633).

    Args:
        policy: Policy that gives the values, of all such episodes in one batch.
        gamma: Discount factor.
        rewards: Rewards of this step, (n_envs,).
        dones: Whether this step ended an episode, (n_envs,).
        infos: Information of this step, with `TimeLimit.truncated` and `terminal_observation`.
        num_timesteps: Environment steps of the run so far, for messages.

    Raises:
        NonFiniteError: If such a value is not finite.
    """
    cut = [
        i
        for i, (done, info) in enumerate(zip(dones, infos, strict=True))
        if done and info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
    ]
    if not cut:
        return
    last = [infos[i]["terminal_observation"] for i in cut]
    batch = {key: stacked([obs[key] for obs in last]) for key in last[0]}
    with th.no_grad():
        # SB3 runs the network once per episode; a VLA is too slow for that.
        values = policy.predict_values(_to_tensors(batch, policy)).flatten().cpu().numpy()
    check_values(values, cut, num_timesteps)
    # In place, as SB3 does it: the buffer copies these rewards next, and GAE then ends the episode there.
    rewards[cut] += gamma * values


def _to_tensors(obs: Observations, policy: Actor) -> dict[str, th.Tensor]:
    # Frames go to the device as bytes, a quarter of what they are as floats; the model scales them there. What is there
    # already stays as it is.
    return cast(dict[str, th.Tensor], obs_as_tensor(obs, policy.device))

"""A vector environment's rewards with a process reward, one batch of scores per step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from libero_gym.common.checks import choice, flag, real_number, whole_number
from libero_gym.dimensions import SHAPING_GAMMA
from libero_gym.gripper import FINGERS, gripper_opening
from vla_agent.common.tensors import on_host, stacked
from vla_agent.episode_totals import EpisodeTotals
from vla_agent.process_reward.interface import RewardModel, check_camera, checked_scores

Mode = Literal["potential", "bonus", "gain"]
When = Literal["step", "gripper"]

# Fingers that have moved this far since the last score have grasped, released, or tried to.
GRIPPER_EVENT = 0.005  # m


class VecProcessReward(VecEnvWrapper):
    """Adds a reward model's scores to the rewards of environments, which know nothing of the model.

    With phi(s) the score of a state's frame, and r the environment's own reward, which is success, a step from s to s'
    gives:

    * ``"potential"``: r + weight * (gamma * phi(s') - phi(s)), with phi = 0 where the episode is over for the learner.
      This leaves the optimal policy unchanged (Ng, Harada and Russell, 1999, Theorem 1).
    * ``"bonus"``: r + weight * phi(s'), as VLA-RL has it (arXiv 2505.18719, section 3.3). If weight exceeds
      (1 - gamma^every) / gamma^every, a policy gains by waiting where the score is near 1 instead of finishing. A
      warning says so, and `hacking.check_hacking` looks for it in a run's log.
    * ``"gain"``: weight * (phi(s') - phi(s)), without r. The return is what the score has risen by, and no reward tells
      of success: for learning where nobody says what succeeded, such as at test time. An episode still ends where the
      environment ends it.

    ``info["reward_terms"]`` gets ``process``, the part that is added, and ``score``, phi(s'), beside ``success``, which
    "gain" takes out. The ``r`` of ``info["episode"]`` is the sum of the rewards that the learner sees; ``is_success``
    is unchanged.

    Observations may be tensors on a device. Frames that are scored are then copied to the host: models read arrays.

    Args:
        venv: A `VLAVecEnv` with sparse rewards, or a vector environment with the same observations and infos.
        model: The reward model.
        mode: "potential", "bonus" or "gain".
        weight: Weight of the added part.
        gamma: The learner's discount factor.
        bootstrap_time_limits: The learner's argument of that name, see `VLAPPO`. For a learner to which running out of
            time is the end, the potential is 0 there as well; otherwise a high score without success would pay.
        every: Score every so many steps of an episode, and at its end; in between the last score is kept.
        when: "step", or "gripper" to score only if the fingers have moved by 5 mm since the last score.

    Raises:
        ValueError: If an argument is out of range.
        RewardModelError: If the model is for other frames than the environments show.
    """

    def __init__(
        self,
        venv: VecEnv,
        model: RewardModel,
        *,
        mode: Mode = "potential",
        weight: float = 1.0,
        gamma: float = SHAPING_GAMMA,
        bootstrap_time_limits: bool = True,
        every: int = 1,
        when: When = "step",
    ) -> None:
        super().__init__(venv)
        choice("mode", mode, get_args(Mode))
        choice("when", when, get_args(When))
        weight, gamma = real_number("weight", weight, 0), real_number("gamma", gamma, 0, 1)
        every = whole_number("every", every, 1)
        bootstrap_time_limits = flag("bootstrap_time_limits", bootstrap_time_limits)
        shapes = {key: tuple(space.shape or ()) for key, space in cast(spaces.Dict, venv.observation_space).items()}
        self.camera = check_camera(model, shapes)
        if when == "gripper" and "state" not in shapes:
            raise ValueError("when='gripper' needs the robot's state, which the observations lack; use 'step'.")
        self.model, self.mode, self.weight, self.gamma = model, mode, weight, gamma
        self.bootstrap_time_limits = bootstrap_time_limits
        self.every, self.when = every, when
        self._warn_where_waiting_pays()
        self._phi = np.zeros(self.num_envs)
        self._opening = np.zeros(self.num_envs)
        self._totals = EpisodeTotals(self.num_envs)
        self._instructions = [""] * self.num_envs

    def reset(self) -> dict[str, np.ndarray]:
        """Reset all environments and score their first observations."""
        obs = cast(dict[str, np.ndarray], self.venv.reset())
        self._score_and_begin(obs, np.arange(self.num_envs))
        return obs

    def begin_episodes(self, options: Mapping[int, Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Begin episodes as `VLAVecEnv.begin_episodes` does, and score their first observations."""
        before = list(self.venv.reset_infos)
        obs = cast(Any, self.venv).begin_episodes(options)
        # Also those that nobody asked for, whose worker had to be replaced.
        began = [index for index, info in enumerate(self.venv.reset_infos) if info is not before[index]]
        self._score_and_begin(obs, np.array(began, dtype=np.int64))
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """Step results of the environments with process rewards; all frames that are due are scored in one batch."""
        obs, rewards, dones, infos = self.venv.step_wait()
        observations = cast(dict[str, np.ndarray], obs)
        ended = np.flatnonzero(dones)
        # The vector environment has reset itself there: its observation is the next episode's.
        last = {index: info["terminal_observation"] for index, info in enumerate(infos) if dones[index]}
        opening = self._opening_of(observations)
        for index in last:
            opening[index] = self._opening_of({key: values[None] for key, values in last[index].items()})[0]
        phi, due = self._phi.copy(), self._due(dones, opening)
        told = [self._instructions[index] for index in due]
        self._note_instructions(ended)
        told += [self._instructions[index] for index in ended]
        frames = [last[index][self.camera] if index in last else observations[self.camera][index] for index in due]
        scores = self._scores(frames + [observations[self.camera][index] for index in ended], told)
        phi[due], first = scores[: len(due)], scores[len(due) :]
        self._opening[due] = opening[due]
        added = self._added(phi, due, np.array([bool(info.get("TimeLimit.truncated")) for info in infos]), dones)
        rewards = np.asarray(added if self.mode == "gain" else rewards + added, dtype=np.float32)
        self._totals.add(rewards)
        for i, info in enumerate(infos):
            terms = {} if self.mode == "gain" else info.get("reward_terms", {})
            info["reward_terms"] = terms | {"process": float(added[i]), "score": float(phi[i])}
            if dones[i] and "episode" in info:
                info["episode"]["r"] = self._totals.summary(i)["r"]
        self._phi = phi
        self._begin(observations, ended, first)
        return obs, rewards, dones, infos

    def snapshot(self) -> dict[str, Any] | None:
        """`VLAVecEnv.snapshot` with the scores that are kept; None if the environments cannot be saved."""
        inner = cast(Any, self.venv).snapshot()
        if inner is None:
            return None
        own = {
            "phi": self._phi.tolist(),
            "steps": self._totals.lengths.tolist(),
            "opening": self._opening.tolist(),
            "returns": self._totals.returns.tolist(),
        }
        return {"inner": inner, "lengths": inner["lengths"], "settings": self.settings, "process": own}

    def restore(self, snapshot: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go on from where `snapshot` was taken."""
        obs = cast(Any, self.venv).restore(snapshot["inner"])
        own = snapshot["process"]
        self._phi[:], self._opening[:] = own["phi"], own["opening"]
        self._totals.restore(own["returns"], own["steps"])
        self._note_instructions(np.arange(self.num_envs))
        return obs

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the rewards depend on, as JSON holds them."""
        fingerprint = getattr(self.model, "fingerprint", None)
        return {
            **getattr(self.venv, "settings", {}),
            "reward": "process",
            "reward_model": fingerprint() if callable(fingerprint) else type(self.model).__name__,
            "process_reward": [self.mode, self.weight, self.gamma, self.bootstrap_time_limits, self.every, self.when],
        }

    # ------------------------------------------------------------------------------------------- private

    def _warn_where_waiting_pays(self) -> None:
        """Warn if a bonus is worth more than what it costs to succeed that much later.

        Success now is worth 1 + weight. A score of 1 first, and success then, is worth
        weight + gamma^every * (1 + weight), which is more if weight > (1 - gamma^every) / gamma^every.
        """
        kept = self.gamma**self.every
        if self.mode == "bonus" and self.when == "step" and self.weight * kept > 1 - kept:
            cure = f"a weight of at most {(1 - kept) / kept:.2g}" if kept < 1 else "gamma below 1"
            warnings.warn(
                f"mode='bonus' with weight={self.weight:g} and gamma={self.gamma:g} pays a policy that waits where the "
                f"score is high for not succeeding. Use mode='potential', or {cure}.",
                UserWarning,
                stacklevel=3,
            )

    def _score_and_begin(self, obs: Mapping[str, np.ndarray], indices: np.ndarray) -> None:
        """Score the first frames of new episodes."""
        self._note_instructions(indices)
        told = [self._instructions[index] for index in indices]
        self._begin(obs, indices, self._scores([obs[self.camera][index] for index in indices], told))

    def _scores(self, frames: Sequence[Any], instructions: Sequence[str]) -> np.ndarray:
        """Scores of frames, arrays or tensors of a device, (H, W, 3)."""
        return checked_scores(self.model, on_host(stacked(frames)), instructions) if frames else np.zeros(0)

    def _begin(self, obs: Mapping[str, np.ndarray], indices: np.ndarray, scores: np.ndarray) -> None:
        """Begin episodes whose first frames have those scores."""
        self._phi[indices] = scores
        self._opening[indices] = self._opening_of(obs)[indices]
        self._totals.begin(indices)

    def _note_instructions(self, indices: np.ndarray) -> None:
        for index in indices:
            self._instructions[index] = self.venv.reset_infos[index]["instruction"]

    def _due(self, dones: np.ndarray, opening: np.ndarray) -> np.ndarray:
        """Which environments are scored now."""
        due = (self._totals.lengths + 1) % self.every == 0
        if self.when == "gripper":
            due &= np.abs(opening - self._opening) >= GRIPPER_EVENT
        return np.flatnonzero(due | dones)

    def _added(self, phi: np.ndarray, due: np.ndarray, timed_out: np.ndarray, dones: np.ndarray) -> np.ndarray:
        if self.mode == "bonus":
            bonus = np.zeros(self.num_envs)
            bonus[due] = self.weight * phi[due]
            return bonus
        if self.mode == "gain":
            return np.asarray(self.weight * (phi - self._phi))
        over = dones & ~timed_out if self.bootstrap_time_limits else dones
        next_phi = np.where(over, 0.0, phi)
        return np.asarray(self.weight * (self.gamma * next_phi - self._phi))

    def _opening_of(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Distance between the fingers in m, (n_envs,); 0 if the observations lack the state."""
        if "state" not in obs:
            return np.zeros(self.num_envs)
        return gripper_opening(on_host(obs["state"])[:, FINGERS]).astype(np.float64)

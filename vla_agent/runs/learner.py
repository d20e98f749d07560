"""What runs on disk ask of an algorithm and of its environments; this room knows neither."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.moments import Moment


class RestorableEnv(Protocol):
    """Environments that say where they are and go back there, such as `VLAVecEnv`."""

    num_envs: int

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that decide what happens in them, as JSON can hold them."""

    def snapshot(self) -> dict[str, Any] | None:
        """All that their future depends on, as JSON can hold it; None if they cannot be saved."""

    def restore(self, snapshot: dict[str, Any]) -> Any:
        """Goes back to a snapshot, and gives the observations there."""


def is_restorable(env: object) -> bool:
    """Whether environments have `RestorableEnv`'s methods; a wrapper must have its own."""
    return hasattr(type(env), "snapshot")


class Learner(Protocol):
    """An algorithm whose runs are saved and go on; `vla_agent.algorithms.resumable.ResumableAlgorithm` is one.

    Attributes:
        counters: Forms of the counters in `state_dict`, by name.
        policy_aliases: Policy classes by name.
        run: Identity of the run and number of the attempt, see `run_folder.Claim`; None if no folder is claimed.
        moments_device: Where the optimizer's moments are between updates; None for where its weights are.
        without_env: What a run that was loaded without environments says of them, and of what it learned with: its
            next save says so too, unless environments have come.
        n_iterations: Rollouts and updates done so far.
        num_timesteps: Environment steps done so far.
    """

    counters: ClassVar[dict[str, Any]]
    policy_aliases: ClassVar[dict[str, Any]]
    policy: Any
    policy_kwargs: dict[str, Any]
    env: VecEnv | None
    device: th.device
    n_envs: int
    observation_space: spaces.Space
    action_space: spaces.Space
    run: dict[str, Any] | None
    moments_device: str | None
    without_env: dict[str, Any]
    n_iterations: int
    num_timesteps: int

    @property
    def saves_runs(self) -> bool:
        """Whether `save` writes a run as this room does; models with SB3's policies go to SB3's zips."""

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What the result depends on, of what plays and learns beside this process, as JSON can hold it."""

    @property
    def depends_on(self) -> dict[str, str]:
        """Hashes of the models beside the policy that the result depends on, by name, such as a teacher's weights."""

    @property
    def progress_remaining(self) -> float:
        """Share of the training that remains, from 1 to 0."""

    @property
    def began_at_zero(self) -> bool:
        """Whether the `learn` under way began at timestep 0."""

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments of `signature.saved_arguments`, as they are now."""

    def moment(self) -> Moment:
        """What a save holds now."""

    def state_dict(self) -> dict[str, Any]:
        """All that going on depends on besides weights, optimizer and random generators, as JSON can hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of `state_dict`."""

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Complains about an argument of the constructor that is out of range, as ValueError."""

    def wrap_env(self, env: GymEnv | str) -> VecEnv:
        """Environments as the learner takes them; one is made of an id."""

    def prepare(
        self, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int, env: VecEnv | None
    ) -> None:
        """Builds policy and buffer of a learner that was made with ``_init_setup_model=False``.

        Args:
            observation_space: Space of the saved run.
            action_space: Space of the saved run.
            n_envs: Number of environments of the saved run; it counts if there are none now.
            env: Environments to go on with, from `wrap_env`; None only to predict.
        """

    def save(self, path: str | Path) -> None:
        """Saves the run."""

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any) -> Any:
        """Trains."""


def live_policy(learner: Learner) -> VLAPolicy:
    """The learner's policy; only learners that save runs are asked."""
    assert isinstance(learner.policy, VLAPolicy)
    return learner.policy

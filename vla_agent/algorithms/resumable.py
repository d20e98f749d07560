"""Algorithms whose runs are saved at any moment and go on as if they had never stopped."""

from __future__ import annotations

import io
import pathlib
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.checks import flag
from libero_gym.equivalence.versions import with_fidelity
from vla_agent.algorithms import arguments
from vla_agent.algorithms.buffers import MixedRolloutBuffer, TokenRolloutBuffer
from vla_agent.algorithms.scoring import Scoring
from vla_agent.callbacks.state import StatefulCallback
from vla_agent.runs import loading, saved_run, sb3_zips
from vla_agent.runs.learner import RestorableEnv, is_restorable
from vla_agent.runs.moments import Moment, Moments
from vla_agent.runs.signature import KeepsArguments, attribute_of, saved_arguments


class ResumableAlgorithm(OnPolicyAlgorithm, metaclass=KeepsArguments):
    """What `vla_agent.runs` asks of a learner, on top of SB3's on-policy algorithms.

    Non-obvious behaviours: every argument of a constructor must be kept as an attribute of its name, which the
    metaclass checks; it is then saved and given back without further code. A subclass may take ``*args, **kwargs`` for
    its parent's arguments.
    """

    max_copy_bytes: int = 16 * 2**30
    """Weights and optimizer are copied to the host's memory before each update, if they take no more than this, so that
    a run can be saved in the middle of it. Adapters of a 7B model take 1 GiB, all of its weights 80."""

    counters: ClassVar[dict[str, Any]] = {
        "num_timesteps": int,
        "_total_timesteps": int,
        "_num_timesteps_at_start": int,
        "_episode_num": int,
        "_n_updates": int,
        "_current_progress_remaining": float,
        "n_iterations": int,
        "n_skipped_steps": int,
    }
    """Attributes that going on depends on, and their forms in `state_dict`."""

    moments_device: str | None = None
    scoring: Scoring[Any]
    without_env: dict[str, Any]  # see `runs.learner.Learner`
    n_iterations: int
    n_skipped_steps: int
    run: dict[str, Any] | None  # identity and attempt, see `run_folder.Claim`

    def _begin_run(self) -> None:
        """Sets the attributes of this class; the constructor calls it."""
        self.n_iterations = 0
        self.n_skipped_steps = 0
        self.run = None
        self.without_env = {}
        self.moments = Moments()
        self.stateful_callbacks: dict[str, StatefulCallback] = {}
        self.callback_states: dict[str, Any] = {}  # of a loaded run, for the callbacks that it goes on with

    # --------------------------------------------------------------------------------- what runs on disk ask

    @property
    @abstractmethod
    def saves_runs(self) -> bool:
        """Whether `save` writes a run as `vla_agent.runs` does; models with SB3's policies go to SB3's own zips."""

    @property
    @abstractmethod
    def engine_settings(self) -> dict[str, Any]:
        """What the result depends on, of what plays and learns beside this process, as JSON can hold it."""

    @property
    def depends_on(self) -> dict[str, str]:
        """Hashes of the models beside the policy that the result depends on, by name; none here."""
        return {}

    @property
    def progress_remaining(self) -> float:
        """Share of the training that remains, from 1 to 0."""
        return self._current_progress_remaining

    @property
    def began_at_zero(self) -> bool:
        """Whether the `learn` under way began at timestep 0."""
        return self._num_timesteps_at_start == 0

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Complains about an argument of a saved run that is out of range, as ValueError."""
        arguments.check_algorithm(given, loaded=True)

    def constructor_arguments(self) -> dict[str, Any]:
        """What the learner was made with, as it is now, by the names in the constructor's signature."""
        values = {name: getattr(self, attribute_of(name)) for name in saved_arguments(type(self))}
        # Set-up replaces None by its own choice, and does so again on loading; any other class was given.
        if values.get("rollout_buffer_class") in (DictRolloutBuffer, MixedRolloutBuffer, TokenRolloutBuffer):
            values["rollout_buffer_class"] = None
        return values

    def moment(self) -> Moment:
        """What a save holds now: the run as it is, or as it was before the rollout or update under way."""
        return self.moments.boundary or Moment(saved_run.training_state(self))

    def state_dict(self) -> dict[str, Any]:
        """All that going on depends on besides weights, optimizer and random generators, as JSON can hold it."""
        starts = self._last_episode_starts
        can_tell = is_restorable(self.env) and self._last_obs is not None
        kept = ("environments", "episode_starts") if self.env is None else ()
        return {
            "run": self.run,
            "counters": {name: getattr(self, name) for name in self.counters},
            "episodes": list(self.ep_info_buffer or ()),
            "successes": [bool(success) for success in self.ep_success_buffer or ()],
            "environments": cast(RestorableEnv, self.env).snapshot() if can_tell else None,
            "episode_starts": None if starts is None else np.asarray(starts, dtype=bool).tolist(),
            # Until `learn` has handed them over, a loaded run's count: the callbacks themselves are as they were made.
            "callbacks": {name: callback.state_dict() for name, callback in self.stateful_callbacks.items()}
            | self.callback_states,
        } | {name: self.without_env[name] for name in kept if name in self.without_env}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of `state_dict`. Environments go back to where they were if they can.

        Raises:
            ValueError: If the environments' state is not as they wrote it; KeyError or TypeError, too.
        """
        for name in self.counters:
            setattr(self, name, state["counters"][name])
        self.ep_info_buffer = deque(state["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(state["successes"], maxlen=self._stats_window_size)
        self.callback_states = state["callbacks"]
        self.run = state.get("run")  # runs saved before there were identities have none
        if self.env is None:
            self.without_env |= {name: state[name] for name in ("environments", "episode_starts")}
            return
        env, saved = cast(RestorableEnv, self.env), state["environments"]
        can_go_on = saved is not None and is_restorable(env)
        same = can_go_on and with_fidelity(env.settings) == with_fidelity(saved["settings"])
        if same and env.num_envs == len(saved["lengths"]):
            self._last_obs = env.restore(saved)
            self._last_episode_starts = np.array(state["episode_starts"])
        elif self.seed is not None:
            self.env.seed(self.seed + self.num_timesteps)  # not the episodes of the run's beginning again

    def wrap_env(self, env: GymEnv | str) -> VecEnv:
        """Environments as the learner takes them; one is made of an id, as in the constructor."""
        made = self.scoring.make_env(env, self.policy_kwargs) if isinstance(env, str) else env
        return self._wrap_env(made, self.verbose)

    def prepare(
        self, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int, env: VecEnv | None
    ) -> None:
        """Builds policy and buffer of a learner that was made with ``_init_setup_model=False``."""
        self.observation_space, self.action_space = observation_space, action_space
        self.env, self.n_envs = env, n_envs if env is None else env.num_envs
        self._setup_model()

    # ------------------------------------------------------------------------------------- moments of a run

    def _before_rollout(self) -> None:
        if self.saves_runs:
            self.moments.begin_rollout(lambda: saved_run.training_state(self))

    def _before_update(self) -> None:
        """Copies what the update changes, so that a save holds one moment, also in its middle or after it failed."""
        if not self.saves_runs or not self.moments.is_live:
            return
        fixed = {name for name, p in self.policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
        self.moments.begin_update(saved_run.live_contents(cast(Any, self.policy)), fixed, self.max_copy_bytes)

    # --------------------------------------------------------------------------------------- save and load

    def _excluded_save_params(self) -> list[str]:
        """What SB3's zips leave out: it is made again on loading, or belongs to the training under way."""
        made_again = ["scoring", "engine", "_engine", "moments_device", "_monitor", "_value_lr_schedule"]
        under_way = ["moments", "_progress_bars", "rollout_value_inputs", "stateful_callbacks"]
        loaded = ["callback_states", "without_env"]
        return [*super()._excluded_save_params(), *made_again, *under_way, *loaded]

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves to a folder, or to a zip of the same files if ``path`` ends in ``.zip``; see `vla_agent.runs`.

        Models with SB3's policies go to SB3's own zip, which holds pickles.

        Args:
            path: Folder or zip. A saved run that is there is replaced; anything else stays.
            exclude: SB3's, for its policies only.
            include: SB3's, for its policies only.

        Raises:
            FileExistsError: If something else than a saved run is there.
            OSError: If it cannot be written, as on a full disk; what was there stays.
        """
        if not self.saves_runs:
            sb3_zips.check_free_for_sb3(path)
            super().save(path, exclude, include)
        elif isinstance(path, (str, pathlib.Path)):
            saved_run.save(self, pathlib.Path(path))
        else:
            raise TypeError(
                f"A {type(self).__name__} is saved to a folder or zip, so path must be a str or Path, got "
                f"{type(path).__name__}."
            )

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        allow_changes: bool = False,
        unsafe_sb3_zip: bool = False,
        **kwargs: Any,
    ) -> Self:
        """The model that `save` wrote to a folder or zip; with or without the suffix ``.zip``. Nothing is unpickled.

        With an ``env`` like the one it was trained on, ``learn(n, reset_num_timesteps=False)`` goes on as if the run
        had never stopped: the environments are in the middle of the same episodes, callbacks that have a state
        (`vla_agent.callbacks.StatefulCallback`) get it back, and on a CPU all is equal to the bit.

        Args:
            path: Folder or zip.
            env: Environments to train on, or an id of which one is made; not needed to predict.
            device: Device to put the model on.
            custom_objects: Values that stand for what was saved under their names, such as ``{"learning_rate": 1e-5}``,
                as if the run had been made with them. Names that only SB3's zips hold, such as "lr_schedule", change
                nothing.
            print_system_info: Whether to print the versions of this system, as SB3 does.
            force_reset: As SB3's, with its zips. A run of ours has no stale observation: environments go back to where
                they were, or are reset.
            allow_changes: Whether to train on though ``kwargs`` or ``env`` are not what the run was made with.
            unsafe_sb3_zip: Whether SB3 may load a zip that it wrote, as for models with SB3's policies. It unpickles,
                so that **whoever wrote the file can run any code here**: only for files of your own.
            kwargs: Constructor arguments to change; ``policy_kwargs`` are merged into the saved ones.

        Raises:
            RunError: If it is no complete run, does not fit the environment, or would go on otherwise than it was made
                without ``allow_changes``; or if it is SB3's zip, without ``unsafe_sb3_zip``.
            ValueError: If an argument is of another type: ``unsafe_sb3_zip="no"`` is no yes; or if ``env`` is none.
            TypeError: If ``path`` is no path, or ``kwargs`` has a name that is no argument.
        """
        print_system_info = flag("print_system_info", print_system_info)
        force_reset, allow_changes = flag("force_reset", force_reset), flag("allow_changes", allow_changes)
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise ValueError(f"custom_objects={custom_objects!r:.80}; expected a dict of values by name, or None.")
        arguments.check_env(env, needed=False)
        if sb3_zips.is_for_sb3(path, unsafe_sb3_zip):
            # Zips of before this was left out hold a class that has moved since; set-up makes another anyway.
            custom_objects = {"_monitor": None} | (custom_objects or {})
            env = None if env is None else maybe_make_env(env, verbose=0)  # of an id, as in SB3's constructor
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")  # as SB3's load
            get_system_info()
        return loading.load(cls, pathlib.Path(cast(str, path)), env, device, allow_changes, custom_objects, **kwargs)

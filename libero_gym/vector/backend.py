"""What simulates the environments of a `LiberoVectorEnv`: the interface, and the arrays that results are read from.

`LiberoVectorEnv` is Gymnasium's face: it checks what it is given, and turns arrays into observations and infos. A back
end knows where environments live and what steps them. To add one, implement `Backend` and name it in
`libero_gym.vector.vector.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from libero_gym.env import LiberoEnv
from libero_gym.rewards import TERMS
from libero_gym.tasks import Task
from libero_gym.vector.protocol import ENDED, FINAL, IDLE, INFO_KEYS, RUNNING, ResetRequests
from libero_gym.vector.shared_arrays import Layout

__all__ = ["ENDED", "FINAL", "IDLE", "INFO_KEYS", "RUNNING", "Backend", "BackendFactory", "Plan", "ResetRequests"]


@dataclass(frozen=True)
class Plan:
    """What a back end is asked to simulate.

    Attributes:
        num_envs: Number of environments.
        example: An environment like all of them, which was never reset: its spaces, tasks and settings hold.
        env_kwargs: The arguments of `LiberoEnv` that make another one. ``suite`` is the `Suite` itself, its tasks
            in hand, so they can be sent to a process that does not know it by name.
    """

    num_envs: int
    example: LiberoEnv
    env_kwargs: dict[str, Any]

    @property
    def tasks(self) -> list[Task]:
        """The tasks to simulate, in the order of ``example.task_ids``."""
        return [self.example.tasks[task_id] for task_id in self.example.task_ids]

    @property
    def layout(self) -> Layout:
        """Shape and dtype of each array that a back end shows; see `Backend`."""
        n = self.num_envs
        layout: dict[str, tuple[tuple[int, ...], str]] = {}
        for key, space in cast(spaces.Dict, self.example.observation_space).spaces.items():
            if not isinstance(space, spaces.Text):  # the face knows texts by their task
                assert space.shape is not None
                layout[key] = ((n, *space.shape), np.dtype(space.dtype).name)
        layout |= {"reward_terms": ((n, len(TERMS[self.example.reward])), "float64")}
        layout |= {key: ((n,), "bool" if key == "is_success" else "int64") for key in INFO_KEYS}
        layout = {prefix + key: value for prefix in ("", FINAL) for key, value in layout.items()}
        layout |= {"rewards": ((n,), "float64"), "terminated": ((n,), "bool"), "truncated": ((n,), "bool")}
        return layout | {"phase": ((n,), "int8")}


class Backend(Protocol):
    """Simulates environments that are numbered from 0.

    A back end never checks what it is asked for: actions are finite and of the right shape, options are those that
    `env.arguments.check_options` gives, and environments are stepped once they have an episode.

    Attributes:
        arrays: Results by name, as `Plan.layout` has them; they hold until the next call, so the face copies them.
            Observations may be anything whose ``copy`` gives what users get.
            Observations are under their keys, infos under `INFO_KEYS`, the terms of the reward, in the order of
            `rewards.TERMS`, under ``reward_terms``. Each of these is there twice: with `FINAL` in front it is what
            ended the environment's last episode. ``rewards``, ``terminated`` and ``truncated`` are the step's;
            ``phase`` says whether an environment is `IDLE`, `RUNNING` or `ENDED`.
        info_keys: Names of further arrays (num_envs,) that infos show.
        is_stepping: Whether a step has begun that nobody has ended.
        n_restarts: How many parts have failed and been replaced.
        render_devices: EGL device index per worker; None where EGL chooses.
        settings: What is other than the environments' own settings say, or beside it, as JSON can hold it.
    """

    settings: Mapping[str, Any]
    arrays: Mapping[str, Any]
    info_keys: tuple[str, ...]

    @property
    def is_stepping(self) -> bool:
        """Whether a step has begun that nobody has ended."""

    @property
    def n_restarts(self) -> int:
        """How many parts have failed and been replaced."""

    @property
    def render_devices(self) -> tuple[int | None, ...]:
        """EGL device index per worker; None where EGL chooses."""

    def reset(self, requests: ResetRequests) -> None:
        """Begin episodes in some environments, by number: each with its seed, or None, and its checked options.

        A step that nobody has ended is abandoned.
        """

    def begin_step(self, actions: np.ndarray) -> None:
        """Begin a step of all environments, with actions of the batched action space's shape, float64.

        One whose episode has ended takes no action: it begins the next episode, or rests with reward 0, as
        `set_autoreset` says. One whose episode ends now writes its last observation and infos under `FINAL`, and the
        next episode's first, or the last once more, without it.
        """

    def end_step(self) -> None:
        """Wait for the end of the step; a wait that an exception such as Ctrl-C interrupted can be repeated."""

    def set_autoreset(self, mode: AutoresetMode | None) -> None:
        """Set what follows an episode's end: Gymnasium's modes; or None, with which environments rest."""

    def set_task_weights(self, weights: np.ndarray) -> None:
        """Set the probability of each task in later resets, in the order of ``example.task_ids``."""

    def snapshot(self) -> dict[str, Any]:
        """All that the environments' future depends on except the task weights, as JSON can hold it.

        Under ``environments`` it holds a list with one entry per environment; the face refuses another number of them.
        """

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where `snapshot` was taken.

        Raises:
            ValueError: If this is no such snapshot. Environments may have been restored by then; reset them.
        """

    def hand_out(self, values: np.ndarray) -> Any:
        """Rewards or flags of a step, (num_envs,), as users get them: an array, or a tensor on a device."""

    def render(self) -> tuple[np.ndarray, ...]:
        """One frame per environment, uint8 (render_size, render_size, 3)."""

    def call(self, name: str, chosen: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Results of a method, or values of an attribute, of the chosen environments.

        After ``set_state`` or ``restore`` an environment goes on from there: `arrays` show it so, and its phase is
        `RUNNING`, whatever it was.
        """

    def close(self) -> None:
        """Free everything; may be called twice."""


# Makes a back end of a plan and of keyword arguments of its own, which `LiberoVectorEnv` passes on.
BackendFactory: TypeAlias = Callable[..., Backend]

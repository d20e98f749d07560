"""The options of commands that say where rollouts are played and gradients are summed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from libero_gym.common.checks import whole_number
from vla_agent.engines import RayEngine
from vla_agent.envs.make import make_vec_env


class EngineOptions(Protocol):
    """What a command with an engine has among its options."""

    engine: Literal["local", "ray"]
    learners: int
    policies: int
    placement: Literal["colocated", "split"]
    stale: bool
    shard: bool
    address: str


_DEFAULTS = {"learners": 1, "policies": 0, "placement": "colocated", "stale": False, "shard": False, "address": ""}


def check_engine(options: EngineOptions) -> None:
    """Complains about options of an engine that was not asked for, as ValueError."""
    given = [name for name, default in _DEFAULTS.items() if getattr(options, name) != default]
    if options.engine == "local" and given:
        raise ValueError(f"--{given[0]} is for several processes: add --engine ray, or leave it out.")


def engine_of(options: EngineOptions) -> AbstractContextManager[RayEngine | None]:
    """The engine that the options ask for, closed at the end; None for this process.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If the options do not go together.
        EngineError: If the cluster does not answer or is too small.
    """
    if options.engine == "local":
        return nullcontext()
    return RayEngine(
        options.learners,
        options.policies or None,
        placement=options.placement,
        stale=options.stale,
        shard=options.shard,
        address=options.address or None,
    )


def n_envs_of_each(options: EngineOptions, n_envs: int) -> int:
    """Environments that each process evaluates in: as many as each plays in for training, of ``n_envs`` in all."""
    n_players = options.learners if options.placement == "colocated" else max(options.policies, 1)
    return -(-n_envs // n_players)


def maker_of_environments(engine: RayEngine | None) -> Callable[..., Any]:
    """What makes environments for an engine."""
    return make_vec_env if engine is None else engine.make_vec_env


N_PROCESSES = 2  # that share episodes, unless another number is asked for


class SharingOptions(Protocol):
    """What a command whose episodes several processes share has among its options."""

    engine: Literal["local", "ray"]
    processes: int
    address: str


def check_sharing(options: SharingOptions) -> None:
    """Complains about processes out of range, or without an engine, or an address without one, as ValueError."""
    whole_number("--processes", options.processes, 1)
    if options.engine == "local" and options.processes != N_PROCESSES:
        raise ValueError(f"--processes {options.processes} are an engine's: add --engine ray, or leave it out.")
    if options.engine == "local" and options.address:
        raise ValueError("--address is for several processes: add --engine ray, or leave it out.")


def sharing_engine(options: SharingOptions) -> AbstractContextManager[RayEngine | None]:
    """The engine whose processes share episodes, closed at the end; None for this process.

    Raises:
        ImportError: If Ray is not installed.
        EngineError: If the cluster does not answer or is too small.
    """
    if options.engine == "local":
        return nullcontext()
    return RayEngine(options.processes, address=options.address or None)

"""Policies by their names: ``ws://host:port``, ``lerobot:folder``, ``expert``, ``python:module:Class``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch as th

from libero_gym.common.checks import whole_number
from vla_agent.actors.interface import is_actor

LEROBOT, PYTHON = "lerobot:", "python:"
EXPERT = "expert"


def names_actor(model: str | Path) -> bool:
    """Whether a name is one of `load_actor`'s, and so no checkpoint's."""
    return isinstance(model, str) and (model == EXPERT or model.startswith(("ws://", "wss://", LEROBOT, PYTHON)))


def load_actor(name: str, device: th.device | str = "auto", replan_steps: int | None = None) -> Any:
    """The policy of a name.

    Args:
        name: ``ws://host:port`` or ``wss://host:port``, a policy server; ``lerobot:`` and a folder or hub id of a
            policy that LeRobot saved; ``expert``, libero_gym's scripted one; ``python:`` and ``module:Class``, a class
            of yours on Python's path or in the working folder, which is called without arguments.
        device: Device of a policy that is read here.
        replan_steps: Actions of each chunk that are executed before the policy is asked again; None for its own number.

    Raises:
        ValueError: If the name is none of these, or the policy takes no ``replan_steps``.
        TypeError: If a class of yours does not act.
        PolicyError: If the policy cannot be had.
        ImportError: If a package is missing; the message names the extra that brings it.
    """
    if replan_steps is not None:
        replan_steps = whole_number("replan_steps", replan_steps, 1)
    if name.startswith(("ws://", "wss://")):
        from vla_agent.actors.remote import RemotePolicy

        return RemotePolicy(name, replan_steps=replan_steps, api_key=os.environ.get("LIBERO_VLA_API_KEY"))
    if name.startswith(LEROBOT):
        from vla_agent.actors.lerobot import LeRobotPolicy

        return LeRobotPolicy.from_pretrained(name.removeprefix(LEROBOT), device=device, replan_steps=replan_steps)
    if replan_steps is not None:
        raise ValueError(
            f"replan_steps={replan_steps} is for policy servers and LeRobot's policies; {name!r} has its own number, "
            "so leave it out."
        )
    if name == EXPERT:
        from vla_agent.envs.expert import ExpertPolicy

        return ExpertPolicy()
    if name.startswith(PYTHON):
        return _made_by(name.removeprefix(PYTHON))
    raise ValueError(
        f"{name!r} names no policy; expected ws://host:port, lerobot:folder, expert or python:module:Class."
    )


def _made_by(path: str) -> Any:
    """An object of a class, by ``module:Class``."""
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"'{PYTHON}{path}' names no class; expected python:module:Class, such as python:mine:Policy.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; it stays, for what the class imports later
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a package that the module itself lacks
        raise ValueError(f"There is no module {module_name!r} on Python's path or in '{here}'.") from error
    if not hasattr(module, class_name):
        raise ValueError(f"The module {module_name!r} has no {class_name!r}.")
    actor = getattr(module, class_name)()
    if not is_actor(actor) and not callable(getattr(actor, "predict", None)):
        raise TypeError(f"A {class_name} cannot act; give it act(observations, env_ids), see vla_agent.actors.Actor.")
    return actor

"""How an evaluation takes its actions: the likeliest ones, or some that are drawn at a temperature."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vla_agent.actors.playing import ActorPolicy
from vla_agent.bins import Sampling
from vla_agent.policy.policy import VLAPolicy
from vla_agent.test_time.best_of_n import BestOfN

# Settings of a report, "decoding": the policy alone knows whether it draws.
OWN = "own"


def decoding_settings(policy: Any, deterministic: bool, temperature: float | None) -> dict[str, Any]:
    """The settings of a report that say how actions are taken.

    Args:
        policy: What acts.
        deterministic: Whether it takes the likeliest actions.
        temperature: Temperature to draw at; None for the policy's own.

    Returns:
        ``deterministic``, and ``temperature``: None if nothing is drawn, or if the policy does not tell. A policy that
        chooses among candidates draws in either case. ``decoding`` for an `Actor`, which decides by itself whether it
        draws.

    Raises:
        ValueError: If the temperature is no number above 0, nothing is drawn, or the policy draws in its own way.
    """
    actor = _actor(policy)
    if isinstance(policy, ActorPolicy):
        if not deterministic or temperature is not None:
            raise ValueError(
                f"A {type(policy.actor).__name__} takes its actions in its own way; leave deterministic=False "
                "(--sample) and the temperature out."
            )
        return {"deterministic": True, "temperature": None, "decoding": OWN}
    chooses = isinstance(policy, BestOfN) and policy.n > 1
    if temperature is not None:
        if deterministic and not chooses:
            raise ValueError(
                f"temperature={temperature!r} is for actions that are drawn, and these are the likeliest; add "
                "deterministic=False (--sample), or leave the temperature out."
            )
        if actor is None:
            raise ValueError(
                f"temperature={temperature!r} needs a policy that draws action tokens; this {type(policy).__name__} "
                "does not, so leave the temperature out."
            )
        Sampling(temperature=temperature)  # complains
    own = None if actor is None else actor.temperature
    drawn_at = own if temperature is None else float(temperature)
    return {"deterministic": deterministic, "temperature": None if deterministic and not chooses else drawn_at}


@contextlib.contextmanager
def drawing_at(policy: Any, temperature: float | None) -> Iterator[None]:
    """Inside, the policy draws at a temperature; its own is put back at the end. None changes nothing."""
    actor = _actor(policy)
    if actor is None or temperature is None:
        yield
        return
    own = actor.sampling
    actor.sampling = dataclasses.replace(own, temperature=temperature)
    try:
        yield
    finally:
        actor.sampling = own


def describe_decoding(settings: Mapping[str, Any]) -> str:
    """How actions were taken in a report, such as "drawn at temperature 0.5"."""
    if settings.get("decoding") == OWN:
        return "taken in the policy's own way"
    if (n := settings.get("best_of_n", 1)) != 1:
        return _describe_choice(n, settings)
    if settings.get("deterministic", True):
        return "the likeliest (greedy)"
    if isinstance(temperature := settings.get("temperature"), (int, float)):
        return f"drawn at temperature {temperature:g}"
    return "drawn at a temperature that the report does not state"  # an older one, or a policy of another kind


def _describe_choice(n: Any, settings: Mapping[str, Any]) -> str:
    drawn = f"drawn at temperature {settings.get('temperature')}"
    candidates = f"the likeliest and others {drawn}" if settings.get("deterministic", True) else f"all {drawn}"
    oracle = "an oracle that looks ahead in the evaluation's own simulator: " if settings.get("oracle") else ""
    return f"the best of {n} candidates ({candidates}) by {oracle}{settings.get('scorer')}"


def _actor(policy: Any) -> VLAPolicy | None:
    """The policy with the temperature: the one given, or a learner's; None if it is of another kind."""
    actor = getattr(policy, "policy", policy)
    return actor if isinstance(actor, VLAPolicy) else None

"""The environments that an engine's processes hold: one set at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from vla_agent.engines.player import Player
from vla_agent.engines.rollouts import Rollouts
from vla_agent.engines.roster import RemotePart, Roster
from vla_agent.engines.vec_env import LocalPart, Part, PartedVecEnv


class Environments:
    """Makes and ends environments in several processes, this one among them.

    Non-obvious behaviours: a set that nobody holds any more frees its place without `close`.

    Args:
        roster: The processes.
        rollouts: What is played in the environments.
    """

    def __init__(self, roster: Roster, rollouts: Rollouts) -> None:
        self.roster, self.rollouts = roster, rollouts
        self._env: Callable[[], PartedVecEnv | None] = lambda: None
        self._parts: list[Part] = []

    def check_vacant(self) -> None:
        """Complains about environments that are open, as ValueError."""
        if self._env() is not None:
            gc.collect()  # a learner that was dropped may be part of a circle, and holds them until then
        if self._env() is not None:
            raise ValueError(
                "This engine's processes hold environments already, and others would take their place: close those "
                "first (env.close(), or engine.close_env()). To evaluate beside them, give EvaluationCallback an id, "
                "or take environments of vla_agent.make_vec_env."
            )

    def make(self, makes: Sequence[tuple[int | None, Callable[[], VecEnv]]]) -> tuple[list[Part], dict[str, Any]]:
        """Makes all parts at the same time.

        Args:
            makes: The process of each part, None for this one, and what makes its environments.

        Returns:
            The parts, and what `Player.describe` says of the first.

        Raises:
            EngineError: If a process fails; nothing is left open then.
        """
        self.close()  # those that nobody holds
        try:
            described = self.roster.make_envs({number: make for number, make in makes if number is not None})
            for number, make in makes:
                if number is None:
                    self._parts.append(LocalPart(Player(make())))
                else:
                    ahead, abandon = lambda: self.rollouts.is_ahead, self.rollouts.abandon
                    self._parts.append(RemotePart(self.roster, number, ahead, abandon))
            told, first = described(), self._parts[0]
        except BaseException:
            self.close()
            raise
        return list(self._parts), first.player.describe() if isinstance(first, LocalPart) else told[0]

    def hold(self, env: PartedVecEnv) -> None:
        """Takes what was made of the parts for the environments that are open."""
        self._env = weakref.ref(env)

    def close(self) -> None:
        """Ends the environments that are open, if any."""
        env, parts = self._env(), self._parts
        self._env, self._parts = lambda: None, []
        if env is not None:
            env.closed = True
        self.rollouts.abandon()
        self.roster.close_envs()
        for part in parts:
            if isinstance(part, LocalPart):
                part.player.env.close()

"""Wrappers that are useful around any environment with instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from libero_gym.common.checks import did_you_mean, sequence


class InstructionToId(gym.ObservationWrapper[dict[str, Any], Any, dict[str, Any]], RecordConstructorArgs):
    """Replaces a text among the observations by its place in a list, for policies that read numbers.

    LIBERO's environments do that themselves with ``instruction="id"``; this is for those of other packages, and for
    texts under another key. To leave a text out, use ``gymnasium.wrappers.FilterObservation``.

    Args:
        env: An environment with a `Dict` of observations that has a `Text`.
        instructions: Every text that can occur.
        key: Its key.

    Raises:
        ValueError: If the environment has no text under that key, or the list is empty or repeats itself.
    """

    def __init__(
        self, env: gym.Env[dict[str, Any], Any], instructions: Sequence[str], key: str = "instruction"
    ) -> None:
        RecordConstructorArgs.__init__(self, instructions=instructions, key=key)
        super().__init__(env)
        parts = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {}
        if not isinstance(parts.get(key), spaces.Text):
            raise ValueError(f"The observations have no Text under {key!r}: {env.observation_space}.")
        texts = sequence("instructions", instructions)
        if not texts or not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
            raise ValueError(f"instructions={instructions!r:.200}; expected several different texts.")
        self.key = key
        self._ids = {instruction: np.int64(index) for index, instruction in enumerate(texts)}
        self.observation_space = spaces.Dict({**parts, key: spaces.Discrete(len(self._ids))})

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with the text's place in the list, int64.

        Raises:
            ValueError: If the text is none of the list's.
        """
        text = observation[self.key]
        if text not in self._ids:
            raise ValueError(
                f"The environment shows {text!r}, which is none of the {len(self._ids)} instructions given."
                f"{did_you_mean(text, self._ids)}"
            )
        return {**observation, self.key: self._ids[text]}

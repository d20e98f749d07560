"""Registers every suite with Gymnasium; runs when Gymnasium loads its plugins, so it imports nothing slow."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry  # complete even while gymnasium itself is loading

from libero_gym.tasks import SUITES, Suite

_ENV = "libero_gym.env:LiberoEnv"
_VECTOR_ENV = "libero_gym.vector:LiberoVectorEnv"


def register_envs() -> None:
    """Register all ids of the README's table. Called by `libero_gym.plugin` and `libero_gym`."""
    for suite in SUITES.values():
        _register(suite.env_id, suite)
    _register("LIBERO-Long-v0", SUITES["libero_10"])


def _register(env_id: str, suite: Suite) -> None:
    if env_id in registry:
        return
    register(
        id=env_id,
        entry_point=_ENV,
        vector_entry_point=_VECTOR_ENV,
        max_episode_steps=suite.max_steps,
        kwargs={"suite": suite.name},
        # Gymnasium's checker forgets the first reset where that raised: every later step then fails with its own error.
        disable_env_checker=True,
    )

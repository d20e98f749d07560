"""Between an `Actor` and `VLAVecEnv`: frames, state and words in, motions out, no tokens and no bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces

from libero_gym.dimensions import ACTION_DIM, CAMERA_KEYS
from vla_agent.actors.interface import cameras_of, checked_actions, chunk_size_of, image_size_of, stated_of
from vla_agent.envs.vec_env import VLAVecEnv


class MotionCodec:
    """A codec whose decisions are the motions themselves, and whose prompts say nothing.

    Args:
        chunk_size: Actions of a decision.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.action_space = spaces.Box(-np.inf, np.inf, (chunk_size * ACTION_DIM,), np.float64)

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """The actions (n, 7 * chunk) as float64 (n, chunk, 7)."""
        return np.asarray(actions, dtype=np.float64).reshape(len(actions), self.chunk_size, ACTION_DIM)

    def encode_prompt(self, instruction: str, state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One token of padding: an `Actor` reads the words."""
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)


class ActorProcessor:
    """What environments have to know of a policy, as `BackboneProcessor` says it for models.

    Args:
        actor: The policy.

    Raises:
        ValueError: If it states cameras or sizes that are none, or what no report can hold.
    """

    unnorm_keys: Sequence[str] = ()

    def __init__(self, actor: Any) -> None:
        self.cameras = cameras_of(actor)
        self.image_size = image_size_of(actor)
        self._codec = MotionCodec(chunk_size_of(actor))
        for name in ("settings", "description"):
            stated_of(actor, name)  # complains now, and not when a report is written
        self.config = SimpleNamespace(
            num_images=len(self.cameras), use_state=True, action_chunk_size=self._codec.chunk_size
        )

    def codec(self, unnorm_key: str | None = None) -> MotionCodec:
        """The codec.

        Raises:
            ValueError: If statistics are named: there are none.
        """
        if unnorm_key is not None:
            raise ValueError(
                f"unnorm_key={unnorm_key!r} is for our models; this policy un-normalises its actions itself, so leave "
                "it out."
            )
        return self._codec

    def image_options(self, center_crop: bool | None, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `make_vec_env` for the frames that the policy asks for, as they are rendered.

        Args:
            center_crop: The caller's wish.
            env_kwargs: The caller's arguments of the environments.

        Raises:
            ValueError: If frames are to be cropped, or to be others than the policy asks for.
        """
        if center_crop is not None:
            raise ValueError("center_crop is for our models; this policy gets whole frames, so leave it out.")
        wanted = {"image_size": self.image_size, "cameras": self.cameras}
        for name, value in wanted.items():
            given = env_kwargs.get(name, value)
            if (tuple(given) if isinstance(given, list) else given) != value:
                raise ValueError(f"The policy asks for {name}={value!r}, not {given!r}; leave {name} out.")
        return {**wanted, "image_transform": None}


class ActorPolicy:
    """An `Actor` with the ``predict`` that `play_episodes` calls.

    Args:
        actor: The policy. If it has ``attach``, that is called with the environments.
        env: The environments.
    """

    def __init__(self, actor: Any, env: VLAVecEnv) -> None:
        self.actor, self.chunk_size = actor, env.codec.chunk_size
        if hasattr(actor, "attach"):
            actor.attach(env)

    @property
    def settings(self) -> dict[str, Any]:
        """What a report has to state of it."""
        return stated_of(self.actor, "settings")

    def predict(
        self,
        obs: Mapping[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        *,
        instructions: Sequence[str],
        playing: Sequence[int],
    ) -> tuple[np.ndarray, None]:
        """Motions of all environments, float64 (n_envs, 7 * chunk); zeros for those that play nothing.

        Raises:
            PolicyError: If the policy cannot be asked, or answers no actions.
        """
        chosen = list(playing)
        if episode_start is not None and hasattr(self.actor, "reset"):
            beginning = [i for i in chosen if episode_start[i]]
            if beginning:
                self.actor.reset(beginning)
        shown: dict[str, Any] = {key: obs[key][chosen] for key in (*CAMERA_KEYS, "state") if key in obs}
        shown["instruction"] = [instructions[i] for i in chosen]
        actions = checked_actions(
            self.actor.act(shown, chosen), type(self.actor).__name__, len(chosen), self.chunk_size
        )
        every = np.zeros((len(instructions), self.chunk_size * ACTION_DIM))
        every[chosen] = actions.reshape(len(chosen), -1)
        return every, None

"""What a report states of how it was made: the conditions of an evaluation, and the settings beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from libero_gym.dimensions import CAMERA_KEYS
from libero_gym.equivalence.versions import fidelity
from vla_agent.actors.playing import ActorPolicy
from vla_agent.envs.suites import SuiteDescription
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.evaluation.protocols import EvaluationProtocol
from vla_agent.evaluation.trials import Trial
from vla_agent.test_time.best_of_n import BestOfN

# Arguments of the back end that simulates on a device. Its settings call one of them as decoding is called.
_OF_WORLDS = ("nconmax", "njmax", "deterministic")


def conditions_of(
    protocol: EvaluationProtocol,
    suite: SuiteDescription,
    trials: Sequence[Trial],
    renderer: str,
    max_episode_steps: int | None,
    settle_steps: int,
    physics: str,
) -> dict[str, Any]:
    """The conditions of a report, which another has to share to be compared.

    Args:
        protocol: The protocol.
        suite: The suite.
        trials: The trials.
        renderer: "exact" or "fast".
        max_episode_steps: Control steps of an episode; None for the protocol's limits.
        settle_steps: Control steps before the first observation.
        physics: "exact", which older reports do not state, or another.
    """
    task_ids = sorted({trial.task_id for trial in trials})
    return {
        "suite": suite.name,
        "task_ids": task_ids,
        "init_state_ids": sorted({trial.init_state_id for trial in trials}),
        "protocol": protocol.name,
        "fixture_seed": protocol.fixture_seed,
        "fixture_draw": protocol.fixture_draw,
        "renderer": renderer,
        "settle_steps": settle_steps,
        "max_steps": max_episode_steps or protocol.max_steps(suite, task_ids),
        "task_files": suite.fingerprint(task_ids),
        **({} if physics == "exact" else {"physics": physics}),
    }


def settings_of(
    env_id: str, env: VLAVecEnv, policy: Any, unnorm_key: str | None, env_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What a report states of environments and policy, apart from its conditions and its frames.

    Args:
        env_id: Id of the environments.
        env: The environments.
        policy: What acts in them.
        unnorm_key: Key of the statistics that decode the actions.
        env_kwargs: The caller's further arguments of the environments.
    """
    worlds = {name: env_kwargs[name] for name in _OF_WORLDS if name in env_kwargs}
    return {
        "env_id": env_id,
        "mujoco": env.settings.get("mujoco", fidelity()),
        "image_size": env.processor.image_size,
        "cameras": [key for key in CAMERA_KEYS if key in cast(Any, env.observation_space).spaces],
        "chunk_size": env.codec.chunk_size,
        "unnorm_key": unnorm_key,
        "n_envs": env.num_envs,
        **({"worlds": worlds} if worlds else {}),
        **(policy.settings if isinstance(policy, (ActorPolicy, BestOfN)) else {}),
    }

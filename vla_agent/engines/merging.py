"""What parts of the environments give, as one; and one snapshot as theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer

from vla_agent.algorithms.rollout import EndedEpisode, Observations, Rollout

# What every part's snapshot has alike; all else is one entry for each environment.
_SHARED = ("settings", "task_weights")


def shares(n_envs: int, n_parts: int) -> list[slice]:
    """The environments of each part: as equal as can be, in order."""
    ends = [round(n_envs * (number + 1) / n_parts) for number in range(n_parts)]
    return [slice(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]


def sizes_by_node(nodes: Sequence[str], envs_per_node: int) -> list[int]:
    """How many environments each part has, if each machine has so many, shared by its parts.

    Args:
        nodes: The machine of each part.
        envs_per_node: Environments of a machine.
    """
    left = {node: [share.stop - share.start for share in shares(envs_per_node, nodes.count(node))] for node in nodes}
    return [left[node].pop(0) for node in nodes]


def slices(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of these sizes."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def merge_observations(parts: Sequence[Observations]) -> Observations:
    """Observations of all environments, by key (n_envs, ...)."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def merge_snapshots(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The snapshot that one vector of all environments would have given; None if a part has none."""
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    return {key: value if key in _SHARED else _merged([part[key] for part in whole]) for key, value in whole[0].items()}


def _merged(values: list[Any]) -> Any:
    return merge_snapshots(values) if isinstance(values[0], dict) else [item for value in values for item in value]


def split_snapshot(snapshot: dict[str, Any], share: slice) -> dict[str, Any]:
    """The snapshot of some of the environments."""
    return {key: value if key in _SHARED else _of_share(value, share) for key, value in snapshot.items()}


def _of_share(value: Any, share: slice) -> Any:
    return split_snapshot(value, share) if isinstance(value, dict) else value[share]


def with_task_weights(snapshot: dict[str, Any], weights: list[float] | None) -> dict[str, Any]:
    """A snapshot with other task weights; None leaves its own."""
    if weights is None:
        return snapshot
    inner = {key: with_task_weights(value, weights) for key, value in snapshot.items() if isinstance(value, dict)}
    return snapshot | inner | ({"task_weights": weights} if "task_weights" in snapshot else {})


def merge_steps(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What callbacks read of a step in all environments; frames stay where they were drawn."""
    together: dict[str, Any] = {
        key: np.concatenate([step[key] for step in steps]) for key in ("actions", "rewards", "dones")
    }
    together |= {key: th.cat([step[key] for step in steps]) for key in ("values", "log_probs")}
    return together | {
        "infos": [info for step in steps for info in step["infos"]],
        "clipped_actions": together["actions"],
        "n_steps": steps[0]["n_steps"],
    }


def told(step: dict[str, Any]) -> dict[str, Any]:
    """The part of a step that goes to another process: all but frames."""
    infos = [{key: value for key, value in info.items() if key != "terminal_observation"} for info in step["infos"]]
    numbers = {key: step[key] for key in ("actions", "rewards", "dones", "n_steps")}
    return numbers | {"infos": infos, "values": step["values"].cpu(), "log_probs": step["log_probs"].cpu()}


def fill(buffer: DictRolloutBuffer, parts: Sequence[Rollout], where: Sequence[slice]) -> None:
    """Writes rollouts of parts into an empty buffer of all environments."""
    for part, share in zip(parts, where, strict=True):
        for key, values in part.observations.items():
            buffer.observations[key][:, share] = values
        for name in ("actions", "rewards", "episode_starts", "log_probs"):
            getattr(buffer, name)[:, share] = getattr(part, name)
        if part.values is not None:
            buffer.values[:, share] = part.values
    buffer.pos, buffer.full = buffer.buffer_size, True


def merge_rollouts(
    buffer: DictRolloutBuffer, parts: Sequence[Rollout], where: Sequence[slice], device: th.device
) -> Rollout:
    """The rollout of all environments, in a buffer that `fill` has filled."""
    terms: Counter[str] = Counter()
    for part in parts:
        terms.update(part.reward_terms)
    episodes = [
        EndedEpisode(episode.step, share.start + episode.env, episode.info)
        for part, share in zip(parts, where, strict=True)
        for episode in part.episodes
    ]
    has_values = parts[0].last_values is not None
    inputs = [part.value_inputs.to(device) for part in parts if part.value_inputs is not None]
    return Rollout(
        observations=dict(buffer.observations),
        actions=buffer.actions,
        rewards=buffer.rewards,
        episode_starts=buffer.episode_starts,
        log_probs=buffer.log_probs,
        values=buffer.values if has_values else None,
        value_inputs=th.cat(inputs, dim=1) if inputs else None,
        last_obs=merge_observations([part.last_obs for part in parts]),
        dones=np.concatenate([part.dones for part in parts]),
        last_values=th.cat([part.last_values.to(device) for part in parts]) if has_values else None,  # type: ignore[union-attr]
        episodes=sorted(episodes, key=lambda episode: (episode.step, episode.env)),
        reward_terms=dict(terms),
        seconds={name: max(part.seconds.get(name, 0.0) for part in parts) for name in ("decode", "env")},
    )

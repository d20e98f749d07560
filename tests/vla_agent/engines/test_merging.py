"""Parts of the environments are one: snapshots, steps and rollouts are those of a single vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from fakes import fake_env

from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.rollout import EndedEpisode, Rollout
from vla_agent.engines.merging import (
    fill,
    merge_rollouts,
    merge_snapshots,
    shares,
    sizes_by_node,
    slices,
    split_snapshot,
    told,
    with_task_weights,
)


@pytest.mark.parametrize(("n_envs", "n_parts"), [(4, 1), (4, 2), (7, 3), (5, 5), (64, 6)])
def test_every_environment_is_in_one_part_and_parts_are_as_equal_as_can_be(n_envs: int, n_parts: int) -> None:
    where = shares(n_envs, n_parts)
    assert [index for share in where for index in range(share.start, share.stop)] == list(range(n_envs))
    sizes = [share.stop - share.start for share in where]
    assert max(sizes) - min(sizes) <= 1


def test_policies_of_a_machine_share_its_environments() -> None:
    sizes = sizes_by_node(["a", "a", "b", "a"], 8)
    assert sizes == [3, 2, 8, 3]
    assert slices(sizes) == [slice(0, 3), slice(3, 5), slice(5, 13), slice(13, 16)]


def test_a_snapshot_that_is_split_and_merged_is_the_same() -> None:
    env = fake_env(5)
    env.reset()
    snapshot = env.snapshot()
    assert snapshot is not None
    parts = [split_snapshot(snapshot, share) for share in shares(5, 2)]
    assert [len(part["returns"]) for part in parts] == [2, 3]
    assert merge_snapshots(parts) == snapshot
    assert merge_snapshots([parts[0], None]) is None


def test_task_weights_are_replaced_wherever_they_stand() -> None:
    snapshot = {"inner": {"venv": {"task_weights": [1.0, 1.0], "seeds": [3]}, "lengths": [2]}, "lengths": [2]}
    changed = with_task_weights(snapshot, [0.2, 0.8])
    assert changed["inner"]["venv"] == {"task_weights": [0.2, 0.8], "seeds": [3]}
    assert snapshot["inner"]["venv"]["task_weights"] == [1.0, 1.0]  # type: ignore[index, call-overload]
    assert with_task_weights(snapshot, None) is snapshot


def test_frames_do_not_travel_with_a_step() -> None:
    step = {
        "actions": np.zeros((1, 7)),
        "rewards": np.zeros(1),
        "dones": np.ones(1, dtype=bool),
        "n_steps": 0,
        "infos": [{"is_success": True, "terminal_observation": {"image": np.zeros((8, 8, 3))}}],
        "values": th.zeros(1, 1),
        "log_probs": th.zeros(1, 7),
        "new_obs": {"image": np.zeros((1, 8, 8, 3))},
    }
    assert told(step)["infos"] == [{"is_success": True}]
    assert "new_obs" not in told(step)


def test_rollouts_of_parts_fill_the_buffer_of_all_environments() -> None:
    env, where = fake_env(3), shares(3, 2)
    spaces = env.observation_space, env.action_space
    buffer = TokenRolloutBuffer(2, *spaces, "cpu", n_envs=3)
    rng = np.random.default_rng(0)
    parts = []
    for share in where:
        n = share.stop - share.start
        own = TokenRolloutBuffer(2, *spaces, "cpu", n_envs=n)
        for values in (own.actions, own.rewards, own.values, own.log_probs, own.episode_starts):
            values[:] = rng.integers(0, 9, values.shape)
        own.observations["image"][:] = rng.integers(0, 9, own.observations["image"].shape)
        last = {key: values[0] for key, values in own.observations.items()}
        ended = [EndedEpisode(share.start, 0, {"of": share.start})]
        parts.append(
            Rollout(
                *(own.observations, own.actions, own.rewards, own.episode_starts, own.log_probs, own.values),
                value_inputs=th.full((2, n, 4), float(share.start)),
                last_obs=last,
                dones=np.zeros(n, dtype=bool),
                last_values=th.full((n, 1), float(share.start)),
                episodes=ended,
                reward_terms={"success": 1.0},
                seconds={"decode": 1.0, "env": 2.0 + share.start},
            )
        )
    fill(buffer, parts, where)
    rollout = merge_rollouts(buffer, parts, where, th.device("cpu"))
    assert buffer.full
    for number, share in enumerate(where):
        np.testing.assert_array_equal(buffer.actions[:, share], parts[number].actions)
        np.testing.assert_array_equal(buffer.log_probs[:, share], parts[number].log_probs)
        np.testing.assert_array_equal(rollout.observations["image"][:, share], parts[number].observations["image"])
    assert rollout.value_inputs is not None
    assert rollout.value_inputs.shape == (2, 3, 4)
    assert rollout.last_values is not None
    expected = [float(share.start) for share in where for _ in range(share.start, share.stop)]
    assert rollout.last_values.flatten().tolist() == expected
    assert [(episode.step, episode.env) for episode in rollout.episodes] == [(0, 0), (where[1].start, where[1].start)]
    assert rollout.reward_terms == {"success": 2.0}
    assert rollout.seconds["env"] == 2.0 + where[1].start

"""What the critic may know: true to the simulator, and out of reach of everything else."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions

from libero_gym.env import LiberoEnv
from libero_gym.privileged import DISTANCE_UNIT, MAX_PREDICATES, N_FEATURES, SIZE
from libero_gym.simulation.goals import JointThreshold
from libero_gym.tasks import SUITES, get_tasks


# An object on another, objects in a basket, a drawer, a knob and something on the stove.
@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_spatial", 0), ("libero_10", 0), ("libero_goal", 3), ("libero_10", 2)]
)
def test_features_are_true_to_the_simulator(suite: str, task_id: int) -> None:
    env = LiberoEnv(suite, task_id=task_id, cameras=(), privileged=True, chunk_size=4, max_episode_steps=40)
    obs, _ = env.reset(seed=0)
    for step, chunk in enumerate(random_actions(12).reshape(3, 4, 7), start=1):
        obs, *_ = env.step(chunk)
        features = obs["privileged"]
        assert env.observation_space.contains(obs)
        assert features[0] == pytest.approx(1 - 4 * step / 40)
        np.testing.assert_allclose(features[1:7], obs["state"][:6])
        np.testing.assert_allclose(features[7:9], obs["state"][6:] * 100, rtol=1e-5)
        simulator = env.simulator
        for index, (predicate, holds) in enumerate(zip(simulator.compiled.goal, simulator.predicates(), strict=True)):
            part = features[9 + index * N_FEATURES :][:N_FEATURES]
            assert (part[0], part[1]) == (1.0, float(holds))
            np.testing.assert_allclose(part[8:11] - obs["state"][:3], part[2:5] * DISTANCE_UNIT, atol=1e-6)
            assert np.linalg.norm(part[11:]) == pytest.approx(1.0)
            if not isinstance(predicate, JointThreshold):
                name = getattr(predicate, "upper_body", getattr(predicate, "body", ""))
                np.testing.assert_allclose(part[8:11], simulator.data.body(name).xpos, atol=1e-6)
        assert not features[9 + len(simulator.compiled.goal) * N_FEATURES :].any()


def test_every_goal_fits() -> None:
    for suite in SUITES:
        for task in get_tasks(suite):
            goal = task.bddl_file.read_text().split("(:goal", 1)[1]
            assert 1 <= len(re.findall(r"\((?!And)\w+ [^()]*\)", goal, re.IGNORECASE)) <= MAX_PREDICATES


def test_it_is_there_only_when_asked_for_and_vector_environments_hand_it_on() -> None:
    plain = LiberoEnv("libero_spatial", task_id=0, cameras=())
    assert "privileged" not in plain.reset(seed=0)[0]
    kwargs = {"task_id": 0, "cameras": (), "privileged": True}
    single = LiberoEnv("libero_spatial", **kwargs)  # type: ignore[arg-type]
    vector = gym.make_vec("LIBERO-Spatial-v0", 2, vectorization_mode="vector_entry_point", **kwargs)
    obs, _ = vector.reset(seed=3)
    assert obs["privileged"].shape == (2, SIZE)
    np.testing.assert_array_equal(obs["privileged"][0], single.reset(seed=3)[0]["privileged"])
    action = np.full((2, 7), 0.3, dtype=np.float32)
    np.testing.assert_array_equal(vector.step(action)[0]["privileged"][0], single.step(action[0])[0]["privileged"])
    vector.close()


def test_what_is_shown_is_the_callers_to_change() -> None:
    env = LiberoEnv("libero_goal", task_id=3, cameras=(), privileged=True, settle_steps=0)
    observation = env.reset(seed=0, options={"init_state_id": 0})[0]
    for then in (lambda: env.step(np.zeros(7))[0], lambda: env.restore(env.snapshot())[0], lambda: env.snapshot()):
        before = env.snapshot()
        observation["privileged"][:] = 7
        assert env.snapshot() == before
        observation = then()

"""The progress reward: a bounded potential of named terms, whose shaping cannot be farmed."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import random_actions
from scripted import soup_into_basket

from libero_gym.compilation.compile import compile_task
from libero_gym.env import LiberoEnv
from libero_gym.rewards import TaskProgress, discounted_potential, nearness
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.tasks import get_tasks, initial_states

# One goal of each kind: on an object, in a basket, a joint, and joints together with a place.
TERMS = {
    ("libero_spatial", 0): ["on(akita_black_bowl_1, plate_1)"],
    ("libero_object", 0): ["in(alphabet_soup_1, basket_1_contain_region)"],
    ("libero_goal", 0): ["below(wooden_cabinet_1_middle_level, -0.14)"],
    ("libero_10", 2): ["above(flat_stove_1_button, 0.5)", "on(moka_pot_1, flat_stove_1_cook_region)"],
    ("libero_10", 3): [
        "above(white_cabinet_1_bottom_level, 0)",
        "in(akita_black_bowl_1, white_cabinet_1_bottom_region)",
    ],
}


def _settled(suite: str, task_id: int) -> tuple[Simulator, TaskProgress]:
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])
    for _ in range(20):
        simulator.step(SETTLE_ACTION)
    return simulator, TaskProgress(simulator.compiled.goal, simulator.model)


def _phi(progress: TaskProgress, simulator: Simulator) -> float:
    return float(progress(simulator.arrays, simulator.eef_pos()[None])[0])


def test_nearness_falls_from_one_over_a_half_at_ten_centimetres() -> None:
    assert nearness(0.0) == 1.0
    assert nearness(0.1) == pytest.approx(0.5, abs=1e-3)
    assert 0 < nearness(1.0) < nearness(0.2) < nearness(0.1)


def test_shaping_is_what_the_paper_says() -> None:
    assert discounted_potential(0.5, 0.75, gamma=0.9) == pytest.approx(0.9 * 0.75 - 0.5)
    assert discounted_potential(0.5, 0.5) == pytest.approx(-0.005)


@pytest.mark.parametrize(("suite", "task_id"), TERMS)
def test_terms_are_named_bounded_and_sum_to_the_potential(suite: str, task_id: int) -> None:
    simulator, progress = _settled(suite, task_id)
    labels = TERMS[suite, task_id]
    assert list(progress.names) == [f"{label}/{part}" for label in labels for part in ("reach", "place", "hold")]
    bounds = np.tile([0.3, 0.5, 0.2], len(labels)) / len(labels)
    for action in random_actions(30):
        simulator.step(action)
        shares = progress.shares(simulator.arrays, simulator.eef_pos()[None])
        phi, terms = _phi(progress, simulator), progress.terms(shares)
        values = np.concatenate(list(terms.values()))
        assert tuple(terms) == progress.names
        assert ((values >= 0) & (values <= bounds + 1e-12)).all()
        assert 0 < phi < 1
        assert values.sum() == pytest.approx(phi)
        holds = [bool(terms[f"{label}/hold"][0] > 0) for label in labels]
        assert holds == simulator.predicates()


def test_undiscounted_shaping_telescopes_over_an_episode() -> None:
    simulator, progress = _settled("libero_10", 2)
    phis = [_phi(progress, simulator)]
    total = 0.0
    for action in random_actions(40):
        simulator.step(action)
        phis.append(_phi(progress, simulator))
        total += discounted_potential(phis[-2], phis[-1], gamma=1.0)
    assert np.ptp(phis) > 0.01
    assert total == pytest.approx(phis[-1] - phis[0])


@pytest.mark.parametrize(("suite", "task_id"), TERMS)
def test_standing_still_pays_nothing(suite: str, task_id: int) -> None:
    simulator, progress = _settled(suite, task_id)
    phi = _phi(progress, simulator)
    for _ in range(10):
        simulator.step(SETTLE_ACTION)
        previous, phi = phi, _phi(progress, simulator)
        assert discounted_potential(previous, phi, gamma=1.0) == pytest.approx(0.0, abs=1e-4)
        assert discounted_potential(previous, phi) <= 0.0


def test_potential_rises_along_a_success_and_the_reward_says_so() -> None:
    env = LiberoEnv("libero_object", task_id=0, cameras=(), reward="progress")
    env.reset(options={"init_state_id": 5})
    progress = TaskProgress(env.simulator.compiled.goal, env.simulator.model)
    phis, terms, terminated = [_phi(progress, env.simulator)], [], False
    actions = soup_into_basket(env.simulator)
    while not terminated:
        _, reward, terminated, _, info = env.step(next(actions))
        phis.append(_phi(progress, env.simulator))
        terms.append(info["reward_terms"])
        assert reward == pytest.approx(sum(terms[-1].values()))
        assert -1 <= terms[-1]["progress"] <= 1
    assert phis[0] < 0.05
    assert np.diff(phis[::10]).min() > -0.005  # never clearly down
    assert phis[-2] > 0.4
    assert phis[-1] == pytest.approx(1.0)
    assert [term["success"] for term in terms] == [0.0] * (len(terms) - 1) + [1.0]
    # The last potential counts as 0, so that success itself is paid by the success term alone.
    assert terms[-1]["progress"] == pytest.approx(-phis[-2])
    shaped = sum(0.99**step * term["progress"] for step, term in enumerate(terms))
    assert shaped == pytest.approx(-phis[0])

"""Suites as agents and evaluations know them: LIBERO's own and those that somebody registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

import libero_gym
from libero_gym import get_tasks, initial_states, register_suite
from vla_agent.envs.suites import describe_suite, id_of, located
from vla_agent.evaluation import plan_trials


def test_suites_are_described_by_their_id() -> None:
    suite = describe_suite("LIBERO-Long-v0")
    assert (suite.name, suite.max_steps, len(suite.task_names)) == ("libero_10", 520, 10)
    assert suite.n_initial_states(9) == 50
    assert suite.instructions[2] == "turn on the stove and put the moka pot on it"
    with pytest.raises(ValueError, match="Did you mean 'LIBERO-Spatial-v0'"):
        describe_suite("LIBERO-Sptial-v0")


def test_other_packages_ids_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their arguments are: here a list, which cannot be looked up."""
    theirs = EnvSpec("Theirs-v0", "theirs:Env", kwargs={"suite": ["libero_goal"]})
    monkeypatch.setitem(gym.registry, "Theirs-v0", theirs)
    assert describe_suite("LIBERO-Goal-v0").name == "libero_goal"
    with pytest.raises(ValueError, match="Unknown id 'Theirs-v0'"):
        describe_suite("Theirs-v0")


@pytest.fixture
def described() -> Iterator[None]:
    """A suite of two tasks: one with three initial states, one without."""
    given, bare = get_tasks("libero_spatial")[:2]
    tasks = [
        dataclasses.replace(given, init_states=initial_states(given)[:3]),
        dataclasses.replace(bare, init_states=None, instruction="do as you like"),
    ]
    register_suite("described", tasks, env_id="Described-v0", max_steps=40)
    yield
    del gym.registry["Described-v0"]
    del libero_gym.tasks._registered["described"]
    get_tasks.cache_clear()


@pytest.mark.usefixtures("described")
def test_a_registered_suite_is_described_and_evaluated_where_it_has_states() -> None:
    suite = describe_suite("Described-v0")
    assert (suite.name, suite.max_steps) == ("described", 40)
    assert suite.instructions[1] == "do as you like"
    assert [suite.n_initial_states(task_id) for task_id in (0, 1)] == [3, 0]
    assert [trial.init_state_id for trial in plan_trials("Described-v0", [0], range(3))] == [0, 1, 2]
    with pytest.raises(ValueError, match="official initial states 0 to 2"):
        plan_trials("Described-v0", [0], [3])
    with pytest.raises(ValueError, match="Task 1 of described has no official initial states"):
        plan_trials("Described-v0", None, range(3))
    assert len(plan_trials("Described-v0", None, (), placement_seeds=[4])) == 2


def test_a_task_that_there_is_not_is_told() -> None:
    with pytest.raises(ValueError, match="task_ids has 12; libero_spatial has tasks 0 to 9"):
        describe_suite("LIBERO-Spatial-v0").states_by_source([0, 12], None)


def test_a_suites_name_and_its_id_are_one() -> None:
    assert describe_suite("libero_goal") == describe_suite("LIBERO-Goal-v0")
    assert (id_of("libero_goal"), located("libero_goal")) == ("LIBERO-Goal-v0", "LIBERO-Goal-v0")
    assert get_tasks("LIBERO-Goal-v0") == get_tasks("libero_goal")
    with pytest.raises(ValueError, match="Unknown suite 'LIBERO-Gaol-v0'"):
        get_tasks("LIBERO-Gaol-v0")

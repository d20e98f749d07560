"""Which episodes of a dataset are learned from: the first of each task by initial state, whose states are noted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recordings import synthetic

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter
from vla_agent.commands.chosen_episodes import first_of_each_task, states_of


def dataset(root: Path, *origins: dict[str, Any]) -> LeRobotReader:
    """A dataset of short episodes that began so."""
    writer = LeRobotWriter(root, cameras=())
    for seed, origin in enumerate(origins):
        writer.add(replace(synthetic(2, seed), images={}, **origin))
    writer.finish()
    return LeRobotReader(root)


def from_task(task_id: int, state: int = -1, placement: int = -1, suite: str = "libero_40") -> dict[str, Any]:
    return {"suite": suite, "task_id": task_id, "init_state_id": state, "placement_seed": placement}


def test_the_first_of_each_task_are_those_of_the_first_states(tmp_path: Path) -> None:
    places = [(1, 25), (0, 22), (0, 30), (1, 20), (0, 21), (1, 24), (0, 20)]
    reader = dataset(tmp_path, *(from_task(task, state) for task, state in places))
    assert first_of_each_task(reader, 2) == [3, 4, 5, 6]
    assert states_of(reader, [3, 4, 5, 6]) == ({"libero_spatial": [20, 21, 24]}, 0)
    assert first_of_each_task(reader, 1) == [3, 6]


def test_official_states_come_before_placements(tmp_path: Path) -> None:
    reader = dataset(tmp_path, from_task(0, placement=0), from_task(0, placement=1), from_task(0, 49), from_task(0, 48))
    assert first_of_each_task(reader, 3) == [0, 2, 3]
    assert states_of(reader, [0, 1]) == ({"libero_spatial": []}, 0)


def test_tasks_of_one_instruction_are_two_and_an_unnumbered_task_is_its_instruction(tmp_path: Path) -> None:
    words = {"instruction": "push"}
    numbered = [from_task(0, 9) | words, from_task(1, 9) | words, from_task(0, 9, suite="libero_goal") | words]
    unnumbered = [{"instruction": words} for words in ("pull", "lift", "pull")]
    reader = dataset(tmp_path, *numbered, *unnumbered)
    assert first_of_each_task(reader, 1) == [0, 1, 2, 3, 4]


def test_a_task_with_fewer_episodes_gives_all_and_is_told(tmp_path: Path) -> None:
    reader = dataset(tmp_path, from_task(0, 1), from_task(1, 1), from_task(1, 2))
    with pytest.warns(UserWarning, match="1 of 2 tasks have fewer than 2 episodes"):
        assert first_of_each_task(reader, 2) == [0, 1, 2]
    with warnings.catch_warnings(action="error"):
        first_of_each_task(reader, 1)


def test_a_damaged_row_is_left_out_with_a_warning(tmp_path: Path) -> None:
    reader = dataset(tmp_path, from_task(0, 1), from_task(0, 2))
    reader._rows[0]["libero/task_id"] = "zero"
    with pytest.warns(UserWarning, match=r"Episode 0 of .* is left out: .*'libero/task_id' is 'zero'"):
        assert first_of_each_task(reader, 1) == [1]
    assert states_of(reader, [0, 1]) == ({"libero_spatial": [2]}, 0)


def test_states_are_of_the_suite_that_a_task_comes_from(tmp_path: Path) -> None:
    reader = dataset(
        tmp_path, *(from_task(task, task) for task in (0, 10, 20, 30)), from_task(1, 7, suite="libero_goal")
    )
    expected = {"libero_spatial": [0], "libero_object": [10], "libero_goal": [7, 20], "libero_10": [30]}
    assert states_of(reader, range(5)) == (expected, 0)


@pytest.mark.parametrize(
    "unknown",
    [{}, from_task(0), from_task(-1, 3), from_task(40, 3), from_task(0, 3, suite="mine"), from_task(0, 3, suite="")],
)
def test_an_episode_of_unknown_origin_is_counted(tmp_path: Path, unknown: dict[str, Any]) -> None:
    reader = dataset(tmp_path, from_task(0, 5), unknown)
    assert states_of(reader, [0, 1]) == ({"libero_spatial": [5]}, 1)

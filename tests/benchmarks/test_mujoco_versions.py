"""The table of versions of MuJoCo, from results made up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mujoco_versions
import pytest
from measuring import refuse_other_mujoco
from mujoco_versions import offsets, paired, step_table, suite_table, sweep, table, write

from libero_gym.common.mujoco_import import mujoco
from libero_gym.tasks import get_tasks

# Two objects in two states; in the newer version, one object of the second state rests 3 mm and 4 mm aside.
EXACT: dict[str, Any] = {
    "settle": {"libero_goal[3]": {"0": [0, 0, 9000, 1000, 0, 9000], "1": [0, 0, 9000, 1000, 0, 9000]}},
    "expert": {"libero_goal[3]": {"0": [1, 90], "1": [1, 95], "2": [0, 300]}},
    "frames": {"libero_goal[3]": {"0": [None, None]}},
    "speed": {"libero_goal[3] exact": [2.0, 1.0, 3.0], "libero_goal[3] fast": [1.0]},
}
NEWER: dict[str, Any] = {
    "settle": {"libero_goal[3]": {"0": [0, 0, 9000, 1000, 0, 9000], "1": [0, 0, 9000, 1030, 40, 9000], "7": [0, 0, 0]}},
    "expert": {"libero_goal[3]": {"0": [1, 90], "1": [0, 300], "9": [1, 80]}},
    "frames": {"libero_goal[3]": {"0": [51.4, None]}},
    "speed": {"libero_goal[3] exact": [4.0]},
}


def test_offsets_are_of_the_farthest_object_in_states_that_both_settled() -> None:
    assert list(offsets(EXACT["settle"], NEWER["settle"])) == pytest.approx([0.0, 0.005])


def test_episodes_are_paired() -> None:
    assert paired({"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 0, "c": 1, "d": 1}) == (3, 2, 2, 1, 1)


def test_the_table_says_what_the_results_say() -> None:
    exact, newer = table({"3.10.0": NEWER, "3.3.2": EXACT}).splitlines()[2:]
    assert exact == "| 3.3.2 | exact | 2 | 0 | 0.00, 0 | 2/3 (2) | 1 | - | - | - | - | equal | 2.0 |"
    assert newer == "| 3.10.0 | equivalent (3.10.0) | 2 | 0 | 2.50, 5 | 1/2 (2) | 1 | - | - | - | - | 51.4 | 4.0 |"


def test_tables_of_steps_and_suites_say_what_the_results_say() -> None:
    exact = EXACT | {"replay": EXACT["expert"], "steps": {"libero_goal[3]": {"0": [90, 0, 0.0]}}, "policy": {"23/0": 1}}
    newer = NEWER | {
        "steps": {"libero_goal[3]": {"0": [90, 3, 48.0], "1": [95, 2, 5.5]}},
        "nudged": {"libero_goal[3]": {"0": [1, 90], "1": [0, 95]}},
        "policy": {"23/0": 0, "3/0": 1},
    }
    first, second = step_table({"3.10.0": newer, "3.3.2": exact, "4.0.0": NEWER}).splitlines()[2:]
    assert first == "| 3.3.2 | 90 | 0 | 0.0e+00 | - | - |"
    assert second == "| 3.10.0 | 185 | 5 | 4.8e-08 | 1/2 (2) | 1 |"
    suites = suite_table({"3.10.0": newer, "3.3.2": exact}).splitlines()[2:]
    assert [line.split(" | ")[1] for line in suites] == list(mujoco_versions.FOUR_SUITES)
    assert suites[2] == "| 3.10.0 | libero_goal | 2 | 0 | 1/2 (2) | 1 | 0/1 (1) | 1 |"
    assert suites[0] == "| 3.10.0 | libero_spatial | 0 | 0 | - | - | - | - |"


def test_written_results_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_versions, "RESULTS", tmp_path)
    write(EXACT, tmp_path / "mujoco_versions_3.3.2.json")
    assert mujoco_versions.read_all() == {"3.3.2": EXACT}
    assert json.loads((tmp_path / "mujoco_versions_3.3.2.json").read_text()) == EXACT


def test_results_of_another_version_are_not_gone_on_with() -> None:
    refuse_other_mujoco({})
    refuse_other_mujoco({"versions": {"mujoco": mujoco.__version__}})
    with pytest.raises(SystemExit, match=r"one equivalent \(3\.3\.3\).* Give another --out"):
        refuse_other_mujoco({"versions": {"mujoco": "3.3.3"}})


def test_a_section_that_goes_on_measures_what_is_missing_and_names_its_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "own.json", []
    tasks = get_tasks("libero_goal")[3:4]

    def run(commit: str, n_states: int) -> Any:
        content = json.loads(out.read_text()) if out.is_file() else {"provenance": {"speed": {"commit": "old+"}}}
        monkeypatch.setattr(mujoco_versions, "provenance", lambda: {"commit": commit})
        sweep(content, "settle", tasks, n_states, lambda task, state: measured.append(state) or [state], out)
        return json.loads(out.read_text())

    assert run("first", 1)["provenance"] == {"speed": {"commit": "old+"}, "settle": {"commit": "first"}}
    assert run("first", 2)["provenance"]["settle"] == {"commit": "first"}
    assert run("unused", 2)["provenance"]["settle"] == {"commit": "first"}, "nothing was missing"
    last = run("second", 3)
    assert last["provenance"] == {"speed": {"commit": "old+"}, "settle": {"commit": "first, second"}}
    assert last["settle"] == {"libero_goal[3]": {"0": [0], "1": [1], "2": [2]}}
    assert measured == [0, 1, 2]

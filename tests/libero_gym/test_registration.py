"""Every id of the table exists, with its suite, its limit and its files, without an import of ours."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from packaging.requirements import Requirement
from paths import ROOT

from libero_gym import doctor
from libero_gym.common.version import BENCHMARK, installed_version
from libero_gym.observations import observation_space
from libero_gym.tasks import SUITES, Suite, get_suite, get_tasks, initial_states

# As users write them.
IDS = {
    "LIBERO-Spatial-v0": "libero_spatial",
    "LIBERO-Object-v0": "libero_object",
    "LIBERO-Goal-v0": "libero_goal",
    "LIBERO-10-v0": "libero_10",
    "LIBERO-Long-v0": "libero_10",
    "LIBERO-90-v0": "libero_90",
    "LIBERO-40-v0": "libero_40",
    "LIBERO-Spatial-Language-v0": "libero_spatial_lan",
    "LIBERO-Spatial-Object-v0": "libero_spatial_object",
    "LIBERO-Spatial-Swap-v0": "libero_spatial_swap",
    "LIBERO-Spatial-Task-v0": "libero_spatial_task",
    "LIBERO-Object-Language-v0": "libero_object_lan",
    "LIBERO-Object-Object-v0": "libero_object_object",
    "LIBERO-Object-Swap-v0": "libero_object_swap",
    "LIBERO-Object-Task-v0": "libero_object_task",
    "LIBERO-Goal-Language-v0": "libero_goal_lan",
    "LIBERO-Goal-Object-v0": "libero_goal_object",
    "LIBERO-Goal-Swap-v0": "libero_goal_swap",
    "LIBERO-Goal-Task-v0": "libero_goal_task",
    "LIBERO-10-Language-v0": "libero_10_lan",
    "LIBERO-10-Object-v0": "libero_10_object",
    "LIBERO-10-Swap-v0": "libero_10_swap",
    "LIBERO-10-Task-v0": "libero_10_task",
}
LIMITS = {"Spatial": 220, "Object": 280, "Goal": 300, "10": 520, "90": 400, "Long": 520, "40": 520}


def test_there_are_these_23_ids_and_one_for_files_of_ones_own() -> None:
    assert len(IDS) == 23
    assert {env_id for env_id in gym.registry if env_id.startswith("LIBERO")} == {*IDS, "LIBERO-v0"}
    assert set(SUITES) == set(IDS.values())


@pytest.mark.parametrize("env_id", IDS)
def test_id_is_registered_with_the_limit_of_its_suite(env_id: str) -> None:
    spec = gym.spec(env_id)
    assert spec.kwargs == {"suite": IDS[env_id]}
    assert SUITES[IDS[env_id]].max_steps == LIMITS[env_id.split("-")[1]]
    one_for_all = env_id != "LIBERO-40-v0"  # whose environments count each task's own
    assert spec.max_episode_steps == (SUITES[IDS[env_id]].max_steps if one_for_all else None)


def test_gym_make_works_without_another_import(tmp_path: Path) -> None:
    code = (
        "import gymnasium as gym\n"
        "env = gym.make('LIBERO-Spatial-v0', cameras=())\n"
        "print(env.spec.max_episode_steps, 'robosuite' in __import__('sys').modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["220", "False"]
    assert result.stderr == ""


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_task_has_files_and_an_instruction_that_fits_the_space(suite: Suite) -> None:
    tasks = get_tasks(suite.name)
    space = observation_space((), 64)["instruction"]
    assert len(tasks) == suite.n_tasks
    for task in tasks:
        assert task.bddl_file.is_file()
        assert initial_states(task).ndim == 2
        assert space.contains(task.instruction), task.instruction


def test_instructions_are_those_of_the_evaluation_protocol() -> None:
    spatial, scene, reworded = get_tasks("libero_spatial"), get_tasks("libero_10"), get_tasks("libero_spatial_lan")
    assert (
        spatial[0].instruction == "pick up the black bowl between the plate and the ramekin and place it on the plate"
    )
    assert scene[2].instruction == "turn on the stove and put the moka pot on it"
    assert reworded[0].instruction == "lift the black bowl between the plate and ramekin and set it on the plate"


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Unknown suite 'libero_spatail'. Did you mean 'libero_spatial'\?"):
        get_suite("libero_spatail")


def test_no_text_is_no_suite_and_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.bddl").write_text(get_tasks("libero_spatial")[0].bddl_file.read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"Unknown suite ''. Suites: "):
        get_suite("")


def test_doctor_knows_the_versions_that_are_tested_here_and_those_that_are_required() -> None:
    """What `pip` has installed is what these tests run; CI installs what constraints.txt names."""
    installed = {name: str(installed_version(name)).split("+")[0] for name in doctor.TESTED}
    assert installed == doctor.TESTED
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].strip().splitlines()
    required = [Requirement(line) for line in lines if not line.startswith("#")]
    allowed = {one.name: one.specifier for one in required}
    for name, version in doctor.TESTED.items():
        assert version in allowed[name], name
        # MuJoCo may be newer, and is repaired then.
        assert (f"=={version}" == str(allowed[name])) == (name in BENCHMARK and name != "mujoco"), name


def test_doctor_finds_nothing_wrong_here() -> None:
    failures = [finding for finding in doctor.diagnose() if finding.level == "fail"]
    assert failures == []


def test_a_wrong_first_reset_does_not_spoil_the_environment() -> None:
    env = gym.make("LIBERO-Spatial-v0", cameras=(), task_id=0)
    with pytest.raises(ValueError, match="has official initial states 0 to 49"):
        env.reset(options={"init_state_id": 99})
    env.reset(seed=0)
    assert len(env.step(env.action_space.sample())) == 5
    env.close()

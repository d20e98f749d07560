"""A BDDL file of one's own, or a folder of them, goes wherever an id or a suite does: calls and commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from own_tasks import write_task

import libero_gym
from libero_gym import get_suite, get_tasks
from libero_gym.demonstrations import LeRobotReader
from libero_gym.tasks import register_files
from vla_agent import VLAPPO, EvaluationReport, make_vec_env
from vla_agent.commands import evaluate, record, render, train
from vla_agent.envs.suites import describe_suite, id_of, located

FAST: dict[str, Any] = {"renderer": "fast", "image_size": 32}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of one task; what it registers goes with it."""
    suites, ids = dict(libero_gym.tasks._registered), set(gym.registry)
    yield write_task(tmp_path / "my kitchen", "bowl_of_mine").parent
    for name in set(libero_gym.tasks._registered) - set(suites):
        del libero_gym.tasks._registered[name]
    for env_id in set(gym.registry) - ids:
        del gym.registry[env_id]
    get_tasks.cache_clear()


def test_a_file_and_a_folder_name_suites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert id_of(str(folder)) == id_of(str(folder)) == "my_kitchen-v0"
    assert id_of(f"{folder}/bowl_of_mine.bddl") == "bowl_of_mine-v0"
    assert describe_suite(str(folder)).task_names == ("bowl_of_mine",)
    assert get_suite(str(folder)).max_steps == 600
    monkeypatch.chdir(folder.parent)
    assert get_suite("my kitchen") is libero_gym.SUITES["my_kitchen"]
    assert located("my kitchen") == str(folder)
    assert id_of("LIBERO-Spatial-v0") == located("LIBERO-Spatial-v0") == "LIBERO-Spatial-v0"


def test_a_folder_called_as_a_suite_of_libero_is_told_apart(folder: Path) -> None:
    path = write_task(folder / "libero_spatial").parent
    assert register_files(path).name == "libero_spatial_files"
    assert get_suite("libero_spatial").n_tasks == 10
    write_task(path, "another")
    assert register_files(path).n_tasks == 2
    third = write_task(folder / "elsewhere/libero_spatial").parent
    for _ in range(2):
        with pytest.raises(ValueError, match="Suite 'libero_spatial_files' is registered already"):
            register_files(third)
    assert get_suite("libero_spatial_files").n_tasks == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/", "nowhere' has no BDDL file; expected a folder of tasks' definitions"),
        ("nowhere.bddl", "No such file or directory: '.*nowhere.bddl'"),
        ("LIBERO-v0", "LIBERO-v0 says no tasks by itself; give the BDDL file, or its folder, in the id's place"),
        ("LIBERO-Sptial-v0", "Unknown id 'LIBERO-Sptial-v0'. Did you mean .*; or a BDDL file, or a folder of such"),
    ],
)
def test_what_is_no_file_is_told(name: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        describe_suite(name)


def test_a_file_too_large_for_a_definition_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "task.bddl"
    with path.open("w") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match="10000000000 bytes; expected a BDDL file of at most 1000000"):
        libero_gym.Task.from_bddl(path)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync", "async"])
def test_every_vector_environment_takes_a_file(folder: Path, mode: str) -> None:
    """Those of Gymnasium's own, whose processes make the environment from its arguments, too."""
    own: dict[str, Any] = {"n_workers": 1} if mode == "vector_entry_point" else {"instruction": "none"}
    file = folder / "bowl_of_mine.bddl"
    envs = gym.make_vec("LIBERO-v0", 2, vectorization_mode=mode, bddl_file=file, cameras=(), privileged=True, **own)
    obs, infos = envs.reset(seed=0)
    assert list(infos["task_name"]) == ["bowl_of_mine"] * 2
    assert not np.array_equal(obs["privileged"][0], obs["privileged"][1])
    assert not envs.step(envs.action_space.sample())[2].any()
    envs.close()


@pytest.mark.parametrize("by", ["path", "argument"])
def test_ppo_learns_on_a_file(folder: Path, by: str) -> None:
    file = str(folder / "bowl_of_mine.bddl")
    where: dict[str, Any] = {"env_id": file} if by == "path" else {"env_id": "LIBERO-v0", "bddl_file": file}
    own = {"model": "tiny", "reward": "progress", "renderer": "fast", "max_episode_steps": 4}
    env = make_vec_env(**where, n_envs=1, n_workers=1, **own)
    model = VLAPPO("VLAPolicy", env, n_steps=4, batch_size=4, n_epochs=1, critic_warmup_iterations=0)
    before = [parameter.detach().clone() for parameter in model.policy.parameters() if parameter.requires_grad]
    model.learn(4)
    after = [parameter for parameter in model.policy.parameters() if parameter.requires_grad]
    assert any((old != new).any() for old, new in zip(before, after, strict=True))
    env.close()


def test_the_expert_is_recorded_on_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--suite", str(folder), "--image-size", "32", "--renderer", "fast", "--n-workers", "0"]
    with pytest.raises(ValueError, match="has official initial states; give drawn ones: --n-placements 20"):
        record.command([*options, "--out", str(folder / "none")])
    record.command([*options, "--n-placements", "1", "--out", str(folder / "data")])
    assert "1 of 1 episodes" in capsys.readouterr().out
    ((_, episode),) = LeRobotReader(folder / "data", cameras=()).enumerate()
    assert (episode.suite, episode.instruction, episode.success) == ("my_kitchen", "Put the bowl on the plate", True)


def test_a_folder_is_drawn(folder: Path) -> None:
    render.main(render.Options(suite=str(folder), steps=1, image_size=32, renderer="fast", out=folder / "film"))
    assert {path.name for path in (folder / "film").iterdir()} == {"my_kitchen-v0.mp4", "my_kitchen-v0.png"}


def test_a_folder_is_evaluated(folder: Path) -> None:
    options = ["--env-id", str(folder), "--model", "tiny", "--renderer", "fast", "--protocol", "training"]
    options += ["--max-episode-steps", "2", "--n-envs", "1", "--out", str(folder / "report")]
    with pytest.raises(ValueError, match="has official initial states; give drawn ones: --placement-seeds 0-19"):
        evaluate.command(options)
    evaluate.command([*options, "--placement-seeds", "0-1"])
    report = EvaluationReport.load(folder / "report")
    assert report.conditions["suite"] == "my_kitchen"
    assert [episode.init_state_id for episode in report.episodes] == [-1, -2]
    with pytest.raises(ValueError, match="--init-states 0 and --placement-seeds 0-1 are two evaluations"):
        evaluate.command([*options, "--placement-seeds", "0-1", "--init-states", "0"])
    for file in folder.glob("*.bddl"):
        file.write_text(file.read_text() + "\n")  # another task, for all that anyone knows
    with pytest.raises(ValueError, match="of another evaluation: task_files is"):
        evaluate.command([*options, "--placement-seeds", "0-1"])


def test_a_folder_is_trained_on_and_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env-id", str(folder), "--model", "tiny", "--n-placements", "2", "--eval-freq", "0"]
    options += ["--n-envs", "1", "--n-steps", "2", "--batch-size", "2", "--max-episode-steps", "2"]
    options += ["--critic-warmup-iterations", "0", "--out", str(folder / "run")]
    train.command([*options, "--total-timesteps", "2"])
    train.command([*options, "--total-timesteps", "4", "--resume", str(folder / "run")])
    assert "2 of 4 steps done" in capsys.readouterr().out
    assert VLAPPO.load(folder / "run" / "model").num_timesteps == 4


def test_files_change_the_defaults_of_training_and_options_win(folder: Path) -> None:
    given = train.parse_arguments(["--env-id", str(folder), "--n-eval-placements", "3"])
    assert (given.task_ids, given.init_states, given.eval_states, given.n_eval_placements) == ("", "", "", 3)
    stock = train.parse_arguments(["--env-id", "LIBERO-Goal-v0"])
    assert (stock.task_ids, stock.init_states, stock.n_eval_placements) == ("6,9", "20-49", 0)

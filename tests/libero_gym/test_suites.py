"""Suites of one's own: tasks are values, which simulate as LIBERO's do and go to processes that never heard of them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import equal_observations, random_actions
from gymnasium.envs.registration import EnvSpec
from recordings import record_pushes

import libero_gym
from libero_gym import Suite, Task, get_suite, get_tasks, initial_states, register_suite
from libero_gym.compilation import compile_task, draws
from libero_gym.compilation.draws import stock_draw
from libero_gym.compilation.records import task_key
from libero_gym.demonstrations import LeRobotReader
from libero_gym.env import LiberoEnv
from libero_gym.tasks import PLACEMENT_SEEDS, SUITES
from libero_gym.vector import LiberoVectorEnv
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.trials import plan_trials

SUITE, ENV_ID = "my_tasks", "MyTasks-v0"


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """LIBERO-Spatial's first two tasks under other names: one with initial states, one without."""
    stock = get_tasks("libero_spatial")
    files = [shutil.copy(task.bddl_file, tmp_path / f"mine_{task.task_id}.bddl") for task in stock[:2]]
    return [Task("first", "do this", Path(files[0]), stock[0].init_states), Task.from_bddl(files[1])]


@pytest.fixture
def suite(tasks: list[Task]) -> Iterator[Suite]:
    made = register_suite(SUITE, tasks, env_id=ENV_ID, max_steps=40)
    yield made
    del gym.registry[ENV_ID]
    del libero_gym.tasks._registered[SUITE]
    get_tasks.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder whose name no suite has."""
    path = tmp_path / "edited_tasks"
    path.mkdir()
    yield path
    for made in (dict(gym.registry), libero_gym.tasks._registered, libero_gym.tasks._from_files):
        for name in [name for name in made if name.startswith("edited_tasks")]:
            (gym.registry if name.endswith("-v0") else made).pop(name)


def test_a_folder_is_read_again_where_it_is_named_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = get_tasks("libero_spatial")
    monkeypatch.chdir(folder.parent)
    for index, name in enumerate("dcba"):
        shutil.copy(stock[index].bddl_file, folder / f"{name}.bddl")
        for suite in (f"{folder}/", str(folder), "edited_tasks", "edited_tasks/"):
            env = LiberoEnv(suite, cameras=())
            assert [task.name for task in env.tasks] == list("dcba"[: index + 1])[::-1]
            assert (env.suite.name, env.task_ids) == ("edited_tasks", tuple(range(index + 1)))
            assert [task.name for task in get_tasks(suite)] == [task.name for task in env.tasks]
    assert gym.make("edited_tasks-v0", cameras=()).unwrapped.suite.n_tasks == 4
    (folder.parent / "other/edited_tasks").mkdir(parents=True)
    shutil.copy(stock[0].bddl_file, folder.parent / "other/edited_tasks/x.bddl")
    assert get_suite("other/edited_tasks").name == "edited_tasks_files"
    assert get_suite("edited_tasks/").n_tasks == 4


def test_an_edited_file_is_compiled_and_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = get_tasks("libero_goal")[0], get_tasks("libero_spatial")[0]
    monkeypatch.setattr(draws, "_kept", {})
    monkeypatch.setattr(draws, "_read", lambda key: [])
    path, states = folder / "x.bddl", folder / "x.npz"
    for task, n_states in ((first, 3), (second, 4)):
        shutil.copy(task.bddl_file, path)
        np.savez(states, states=initial_states(task)[:n_states])
        mine = Task.from_bddl(path, states, "do it")
        assert compile_task(mine).goal == compile_task(task).goal
        assert len(initial_states(mine)) == n_states
        placed = stock_draw(mine, 1, seed=77).fixtures
        assert set(placed.body_ids) == set(compile_task(task).fixtures.body_ids)
        assert len(placed.warmstart) == compile_task(task).physics.nv
    assert compile_task(mine) is compile_task(mine)


def test_own_tasks_simulate_as_the_same_tasks_of_libero(suite: Suite) -> None:
    env = gym.make(ENV_ID, cameras=())
    stock = gym.make("LIBERO-Spatial-v0", cameras=())
    for options in ({"task_id": 0, "init_state_id": 3, "fixture_draw": 2}, {"task_id": 1, "placement_seed": 7}):
        obs, info = env.reset(seed=0, options=options)
        expected, _ = stock.reset(seed=0, options=options)
        assert info["task_name"] == suite.tasks[options["task_id"]].name
        np.testing.assert_array_equal(obs["state"], expected["state"])
        for action in random_actions(10).astype(np.float32):
            assert env.step(action)[1:4] == stock.step(action)[1:4]
        np.testing.assert_array_equal(env.unwrapped.get_state(), stock.unwrapped.get_state())
    assert (env.spec.max_episode_steps, env.unwrapped.settings["suite"]) == (40, SUITE)


def test_a_file_makes_an_environment_and_a_vector_environment(tmp_path: Path) -> None:
    stock = get_tasks("libero_spatial")[0]
    path = shutil.copy(stock.bddl_file, tmp_path / "mine.bddl")
    env = gym.make("LIBERO-v0", bddl_file=path, cameras=(), init_states=stock.init_states, instruction="do that")
    obs, info = env.reset(seed=0, options={"init_state_id": 3})
    assert (obs["instruction"], info["task_name"], env.unwrapped.tasks[0].max_steps) == ("do that", "mine", 600)
    expected, _ = gym.make("LIBERO-Spatial-v0", cameras=()).reset(seed=0, options={"task_id": 0, "init_state_id": 3})
    np.testing.assert_array_equal(obs["state"], expected["state"])
    other = get_tasks("libero_spatial")[1].bddl_file
    files = {"bddl_file": [path, other], "cameras": (), "instruction": ["first", "second"], "max_episode_steps": 2}
    envs = gym.make_vec("LIBERO-v0", num_envs=2, vectorization_mode="vector_entry_point", n_workers=1, **files)
    obs, infos = envs.reset(seed=0, options={"task_id": [0, 1]})
    assert list(obs["instruction"]) == ["first", "second"]
    assert list(infos["init_state_id"]) == [-1, -1]
    envs.step(envs.action_space.sample())
    assert envs.step(envs.action_space.sample())[3].all()
    envs.close()
    gym.make("LIBERO-v0", bddl_file=path, cameras=(), instruction="id").reset(seed=0)[0]["instruction"].item()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "LIBERO-v0 needs bddl_file"),
        ({"bddl_file": "nothing.bddl"}, "nothing.bddl"),
        ({"bddl_file": "{file}", "instruction": ["a", "b"]}, "instruction has 2 values for 1 BDDL files"),
        ({"bddl_file": ["{file}", "{file}"], "init_states": [None]}, "init_states has 1 values for 2 BDDL files"),
        ({"bddl_file": "{file}", "instruction": None}, "instruction=None; expected a text, one for each BDDL file, or"),
        (
            {"bddl_file": "{file}", "instruction": 5},
            "instruction=5; expected a text, .* or one of 'text', 'id', 'none'",
        ),
        ({"bddl_file": "{file}", "camera": ()}, "Unknown argument 'camera'"),
    ],
)
def test_what_makes_no_environment_of_files_is_told(kwargs: dict[str, Any], message: str) -> None:
    file = str(get_tasks("libero_spatial")[0].bddl_file)
    given = kwargs.get("bddl_file")
    if given is not None:
        kwargs = kwargs | {"bddl_file": given.format(file=file) if isinstance(given, str) else [file] * len(given)}
    with pytest.raises((ValueError, OSError), match=message):
        gym.make("LIBERO-v0", **kwargs)


def test_a_folder_is_a_suite(tmp_path: Path) -> None:
    stock = get_tasks("libero_spatial")
    for task, name in zip(stock, ("b", "a", "c"), strict=False):
        shutil.copy(task.bddl_file, tmp_path / f"{name}.bddl")
    assert isinstance(stock[0].init_states, Path)
    shutil.copy(stock[0].init_states, tmp_path / "b.pruned_init.npz")
    np.save(tmp_path / "c.npy", initial_states(stock[2])[:5])
    try:
        suite = register_suite("folder", tmp_path, max_steps=30)
        assert (suite.env_id, [task.name for task in suite.tasks]) == ("folder-v0", ["a", "b", "c"])
        assert [len(initial_states(task)) for task in get_tasks("folder")] == [0, 50, 5]
        gym.make("folder-v0", cameras=(), task_id=1).reset(seed=0)
    finally:
        gym.registry.pop("folder-v0", None)
        libero_gym.tasks._registered.pop("folder", None)
        get_tasks.cache_clear()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' has no BDDL file; expected a folder of tasks' definitions"):
        register_suite("folder", tmp_path / "empty", max_steps=30)


def test_a_suite_that_is_not_registered_tells_its_tasks_apart(tasks: list[Task]) -> None:
    made = Suite("unknown", "Unknown-v0", 40, tasks)
    env = LiberoEnv(made, cameras=(), settle_steps=0)
    for task_id, name in enumerate(("first", "mine_1")):
        _, info = env.reset(options={"task_id": task_id, "placement_seed": 3})
        assert (info["task_id"], info["task_name"]) == (task_id, name)
        assert env.simulator.compiled.task.name == name
    assert {(task.suite, task.task_id) for task in made.tasks} == {("unknown", 0), ("unknown", 1)}
    assert "unknown" not in SUITES


def test_instructions_are_the_given_one_and_that_of_the_file(suite: Suite) -> None:
    assert [task.instruction for task in get_tasks(SUITE)] == [
        "do this",
        "Pick the akita black bowl next to the ramekin and place it on the plate",
    ]


def test_a_task_without_initial_states_starts_from_placements(suite: Suite) -> None:
    assert initial_states(suite.tasks[1]).shape == (0, 0)
    env = LiberoEnv(SUITE, task_id=1, cameras=(), settle_steps=0)
    obs, info = env.reset(seed=0)
    assert info["init_state_id"] == -1
    rng, _ = gym.utils.seeding.np_random(0)
    rng.choice([1], p=[1.0])  # the task
    seed = PLACEMENT_SEEDS[int(rng.choice(50))]
    again, _ = LiberoEnv("libero_spatial", task_id=1, cameras=(), settle_steps=0).reset(
        options={"placement_seed": seed}
    )
    np.testing.assert_array_equal(obs["state"], again["state"])
    with pytest.raises(ValueError, match=r"init_state_id=0: task 1 of my_tasks has no official initial states; leave"):
        env.reset(options={"init_state_id": 0})
    with pytest.raises(ValueError, match="task 1 of my_tasks has no official initial states"):
        LiberoEnv(SUITE, init_state_ids=[0], cameras=())
    named = LiberoEnv(SUITE, task_id=1, cameras=(), placement_seeds=[7], settle_steps=0).reset(seed=1)[0]
    expected, _ = env.reset(options={"placement_seed": 7})
    assert equal_observations(named, expected)


def test_worker_processes_get_the_tasks_themselves(suite: Suite) -> None:
    """The template process imports `libero_gym` afresh: it knows LIBERO's suites alone."""
    vector = gym.make_vec(
        ENV_ID, num_envs=3, vectorization_mode="vector_entry_point", n_workers=2, cameras=(), settle_steps=2
    )
    env = LiberoEnv(SUITE, cameras=(), settle_steps=2)
    obs, infos = vector.reset(seed=4, options={"task_id": [0, 1, 0]})
    actions = random_actions(3).astype(np.float32)
    stepped, *_ = vector.step(actions)
    for index in range(3):
        expected, info = env.reset(seed=4 + index, options={"task_id": [0, 1, 0][index]})
        np.testing.assert_array_equal(obs["state"][index], expected["state"])
        assert infos["init_state_id"][index] == info["init_state_id"]
        np.testing.assert_array_equal(stepped["state"][index], env.step(actions[index])[0]["state"])
    assert obs["instruction"][0] == "do this"
    assert vector.settings["suite"] == SUITE
    vector.close()


def test_tasks_that_load_late_go_to_workers_as_they_are(tasks: list[Task]) -> None:
    """Workers can import neither this class nor what it would load the tasks with."""

    class Late(Sequence[Task]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Any:
            return (Task("late", "do that", tasks[1].bddl_file, tasks[0].init_states, "late", 0),)[index]

    vector = LiberoVectorEnv(1, suite=Suite("late", "Late-v0", 40, Late()), cameras=(), settle_steps=0)
    assert vector.reset(seed=0)[0]["instruction"] == ("do that",)
    assert vector.call("instructions") == (["do that"],)
    vector.close()


def test_evaluations_know_the_suite(suite: Suite) -> None:
    described = describe_suite(ENV_ID)
    assert (described.name, described.max_steps, described.task_names) == (SUITE, 40, ("first", "mine_1"))
    assert [described.n_initial_states(task_id) for task_id in (0, 1)] == [50, 0]
    assert [trial.task_id for trial in plan_trials(ENV_ID, [1], [], [7, 8])] == [1, 1]
    with pytest.raises(ValueError, match="Task 1 of my_tasks has no official initial states"):
        plan_trials(ENV_ID, None, [0])


def test_recordings_take_the_suite_to_their_workers(suite: Suite, tmp_path: Path) -> None:
    options = {"task_ids": 1, "init_state_ids": [], "placement_seeds": [7], "n_workers": 1}
    summary = record_pushes(tmp_path / "data", "recorded_policies:push", suite=SUITE, **options)
    assert (summary.n_recorded, summary.n_written) == (1, 1)
    (episode,) = LeRobotReader(tmp_path / "data")
    assert (episode.task_name, episode.instruction) == ("mine_1", suite.tasks[1].instruction)


def test_tasks_travel(suite: Suite) -> None:
    states = initial_states(get_tasks("libero_spatial")[0])
    by_array = Task("first", "do this", suite.tasks[0].bddl_file, states[:3])
    for task in (*suite.tasks, by_array):
        arrived = pickle.loads(pickle.dumps(task))
        assert arrived == task
        assert hash(arrived) == hash(task)
        assert not initial_states(arrived).flags.writeable
        np.testing.assert_array_equal(initial_states(arrived), initial_states(task))
    assert by_array != Task("first", "do this", suite.tasks[0].bddl_file, states[:4])
    assert pickle.loads(pickle.dumps(get_suite("libero_90"))).n_tasks == 90


def test_what_is_compiled_is_known_by_the_definition_alone(suite: Suite) -> None:
    for own, stock in zip(suite.tasks, get_tasks("libero_spatial"), strict=False):
        assert task_key(own) == task_key(stock)
    edited = suite.tasks[1].bddl_file
    edited.write_text(edited.read_text().replace("akita black bowl", "bowl"))
    assert task_key(suite.tasks[1]) != task_key(get_tasks("libero_spatial")[1])


def test_initial_states_come_from_files_and_arrays(tmp_path: Path, tasks: list[Task]) -> None:
    states = initial_states(tasks[0])
    np.save(tmp_path / "states.npy", states[:5])
    np.savez(tmp_path / "other.npz", positions=states)
    for given in (states[:5], tmp_path / "states.npy", str(tmp_path / "states.npy")):
        loaded = initial_states(Task("t", "i", tasks[0].bddl_file, given))  # type: ignore[arg-type]
        np.testing.assert_array_equal(loaded, states[:5])
        assert not loaded.flags.writeable
    with pytest.raises(ValueError, match=r"other.npz holds positions; expected an array 'states'"):
        initial_states(Task("t", "i", tasks[0].bddl_file, tmp_path / "other.npz"))
    with pytest.raises(ValueError, match=r"init_states of 't': shape \(3,\), or not finite"):
        Task("t", "i", tasks[0].bddl_file, np.zeros(3))


def test_registering_again_changes_nothing_and_other_tasks_are_refused(suite: Suite, tasks: list[Task]) -> None:
    assert register_suite(SUITE, tasks, env_id=ENV_ID, max_steps=40) == suite
    libero_gym.register_envs()
    with pytest.raises(ValueError, match=r"'my_tasks' is registered already, as MyTasks-v0 and with other tasks"):
        register_suite(SUITE, tasks[:1], env_id=ENV_ID, max_steps=40)
    with pytest.raises(ValueError, match="'libero_goal' is registered already, as LIBERO-Goal-v0"):
        register_suite("libero_goal", tasks, env_id="Mine-v0", max_steps=300)
    with pytest.raises(ValueError, match=r"The id 'LIBERO-Goal-v0' is taken, by libero_gym.env:LiberoEnv"):
        register_suite("mine", tasks, env_id="LIBERO-Goal-v0", max_steps=300)
    assert "mine" not in SUITES


def test_an_id_of_ours_that_is_taken_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So importing never fails, whatever has been registered before."""
    theirs = EnvSpec("LIBERO-Goal-v0", "libero_gym.env:LiberoEnv", max_episode_steps=5)
    monkeypatch.setitem(gym.registry, "LIBERO-Goal-v0", theirs)
    libero_gym.register_envs()
    assert gym.spec("LIBERO-Goal-v0") is theirs


WRONG = [
    ({"tasks": []}, ValueError, r"Suite 'wrong' has no tasks"),
    ({"tasks": ["a.bddl"]}, TypeError, r"Task 0 of 'wrong' is a str; expected a libero_gym.Task"),
    ({"tasks": 3}, TypeError, r"tasks=3; expected a list of Task"),
    ({"suite": 3}, TypeError, r"suite=3; expected a name"),
    ({"env_id": ""}, TypeError, r"env_id=''; expected a name"),
    ({"max_steps": 0}, ValueError, r"max_steps=0 is out of range"),
    ({"env_id": "Wrong v0"}, gym.error.Error, r"Malformed environment ID"),
    ({"tasks": [Task("lost", "", Path("/lost.bddl"))]}, ValueError, r"'lost', needs /lost.bddl, which is no file"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_registration_is_one_sentence(
    changes: dict[str, object], kind: type[Exception], message: str, tasks: list[Task]
) -> None:
    right = {"suite": "wrong", "tasks": tasks, "env_id": "Wrong-v0", "max_steps": 10}
    with pytest.raises(kind, match=message):
        register_suite(**(right | changes))  # type: ignore[arg-type]
    assert "wrong" not in SUITES
    assert "Wrong-v0" not in gym.registry


def test_an_instruction_that_no_observation_can_show_is_refused(tmp_path: Path, tasks: list[Task]) -> None:
    odd = Suite("odd", "Odd-v0", 10, (Task("t", "\u753b", tasks[0].bddl_file, tasks[0].init_states),))
    with pytest.raises(ValueError, match=r"is too long or has other than English characters; instruction='id'"):
        LiberoEnv(odd)
    assert LiberoEnv(odd, instruction="id").suite is odd

"""What a goal may say: stock LIBERO is the oracle, form by form. What it evaluates is taken and evaluates alike; what
ends in an error there is refused before, with the word and its line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_tasks import DEFINITION as ALONE
from own_tasks import write_task

from libero_gym import bddl
from libero_gym.compilation.extraction import _predicate
from libero_gym.env import LiberoEnv
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import StateArrays
from libero_gym.stock import as_libero, import_stock, make_stock_env, object_kinds, stock_env
from libero_gym.tasks import Suite, Task

DEFINITION = """(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language Put everything somewhere)
  (:regions
    (here (:target main_table) (:ranges ((-0.1 -0.1 -0.09 -0.09))))
    (there (:target main_table) (:ranges ((0.1 0.1 .11 .11))))
    (back (:target main_table) (:ranges ((0.0 -0.3 .01 -.29))) (:yaw_rotation ((3.14 3.14))))
    (side (:target main_table) (:ranges ((-0.2 0.2 -.19 .21))))
    (corner (:target main_table) (:ranges ((0.25 0.25 .26 .26))))
    (cook_region (:target flat_stove_1))
    (contain_region (:target basket_1))
    (top_region (:target wooden_cabinet_1))
    (top_side (:target wooden_cabinet_1)))
  (:fixtures main_table - table wooden_cabinet_1 - wooden_cabinet flat_stove_1 - flat_stove)
  (:objects bowl_1 - akita_black_bowl plate_1 - plate basket_1 - basket)
  (:obj_of_interest bowl_1 plate_1)
  (:init (On bowl_1 plate_1) (On plate_1 main_table_there) (On basket_1 main_table_corner)
    (On wooden_cabinet_1 main_table_back) (On flat_stove_1 main_table_side))
  (:goal {goal}))
"""
CABINET, BOWL_ON_PLATE = "wooden_cabinet_1", "(On bowl_1 plate_1)"
TAKEN = [
    BOWL_ON_PLATE,
    f"(And {BOWL_ON_PLATE})",
    f"(And {BOWL_ON_PLATE} (Up bowl_1) (True plate_1))",
    "(On plate_1 bowl_1)",
    f"(On bowl_1 {CABINET})",
    f"(On bowl_1 {CABINET}_top_side)",
    "(On plate_1 main_table_there)",
    f"(On {CABINET} main_table_back)",
    "(In bowl_1 basket_1_contain_region)",
    f"(In bowl_1 {CABINET}_top_region)",
    "(In plate_1 main_table_there)",
    "(Up bowl_1)",
    f"(Up {CABINET})",
    f"(Up {CABINET}_top_region)",
    "(Up basket_1_contain_region)",
    "(Up main_table_here)",
    f"(Open {CABINET})",
    f"(Open {CABINET}_top_region)",
    f"(Open {CABINET}_top_side)",
    f"(Close {CABINET})",
    f"(Close {CABINET}_top_region)",
    f"(Close {CABINET}_top_side)",
    "(TurnOn flat_stove_1)",
    "(TurnOff flat_stove_1)",
    "(True bowl_1)",
    "(True bowl_1 main_table_here)",
    "(False bowl_1)",
    f"(And {BOWL_ON_PLATE} (False bowl_1 plate_1))",
    f"(PrintJointState {CABINET})",
    "(PrintJointState flat_stove_1)",
]
CONNECTIVE = "a predicate, for LIBERO reads one And around all, and no And, Or or Not in it"
REFUSED = [
    (f"(Or {BOWL_ON_PLATE} (Up bowl_1))", "or", CONNECTIVE),
    (f"(Not {BOWL_ON_PLATE})", "not", CONNECTIVE),
    (f"(And (Not {BOWL_ON_PLATE}) (Up bowl_1))", "not", CONNECTIVE),
    (f"(And (And {BOWL_ON_PLATE} (Up bowl_1)))", "and", CONNECTIVE),
    ("(InContact bowl_1 plate_1)", "incontact", "a word of goals: close, false, in, on, open, printjointstate, true"),
    ("(Stack bowl_1 plate_1)", "stack", "a word of goals"),
    ("(In bowl_1 plate_1)", "plate_1", "a region, for LIBERO's objects contain nothing by themselves"),
    ("(In plate_1 bowl_1)", "bowl_1", "a region, for LIBERO's objects contain nothing by themselves"),
    ("(On bowl_1 main_table)", "main_table", "a region of it, for LIBERO's goals ask nothing of a table itself"),
    ("(In bowl_1 main_table)", "main_table", "a region of it"),
    ("(Up main_table)", "main_table", "a region of it"),
    ("(On main_table_here plate_1)", "main_table_here", "an object, for no region is on something"),
    (f"(In {CABINET}_top_region main_table_here)", f"{CABINET}_top_region", "an object, for no region is in something"),
    ("(Open bowl_1)", "bowl_1", "one of microwave, short_cabinet, short_fridge, .*, or a region of one"),
    ("(Open main_table_here)", "main_table_here", "one of microwave, .*, or a region of one"),
    ("(Close flat_stove_1)", "flat_stove_1", "one of microwave, .*, or a region of one"),
    ("(TurnOn bowl_1)", "bowl_1", "one of flat_stove, yellow_stove"),
    (f"(TurnOff {CABINET})", CABINET, "one of flat_stove, yellow_stove"),
    ("(TurnOn flat_stove_1_cook_region)", "flat_stove_1_cook_region", "one of flat_stove, yellow_stove"),
    ("(PrintJointState bowl_1)", "bowl_1", "one of basin_faucet, faucet, flat_stove, .*yellow_stove"),
    (f"(PrintJointState {CABINET}_top_region)", f"{CABINET}_top_region", "one of basin_faucet"),
    ("(True)", "true", "1 name after it"),
    ("(True bowl_1 plate_1 main_table_here)", "true", "1 name after it"),
]  # fmt: skip
# Stock holds the first for true from the start, and sees in the second, until both touch, that they do not.
STOCK_EVALUATES_BY_CHANCE = ["(And)", f"(In bowl_1 {CABINET})"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms") / "task.bddl"


@pytest.fixture(scope="module")
def stock(file: Path) -> Iterator[Any]:
    """The scene in stock LIBERO, by whose words other goals are judged in it."""
    import_stock()
    file.write_text(DEFINITION.format(goal=BOWL_ON_PLATE))
    with stock_env(file) as env:
        for _ in range(20):
            env.step([0.0] * 6 + [-1.0])
        yield env


def told(file: Path, goal: str) -> list[Any]:
    """A goal as LIBERO reads it."""
    with as_libero():
        from libero.libero.envs.bddl_utils import robosuite_parse_problem
    file.write_text(DEFINITION.format(goal=goal))
    return list(robosuite_parse_problem(str(file))["goal_state"])


def moments(domain: Any) -> Iterator[None]:
    """Puts the scene into states in which the predicates hold and do not; at last as it was."""
    model, data = domain.sim.model, domain.sim.data
    before = np.array(data.qpos)
    bowl, plate, basket = (model.get_joint_qpos_addr(f"{name}_joint0")[0] for name in ("bowl_1", "plate_1", "basket_1"))
    sites = [model.site_name2id(f"{CABINET}_{name}") for name in ("top_region", "top_side")]
    yield
    for joint in domain.get_object(CABINET).joints + domain.get_object("flat_stove_1").joints:
        for value in (-0.15, 0.9):
            data.qpos[:] = before
            data.qpos[model.get_joint_qpos_addr(joint)] = value
            domain.sim.forward()
            yield
    for body, lift in ((bowl, 0.3), (basket, 0.3), (plate, 0.06)):
        data.qpos[:] = before
        data.qpos[body + 2] += lift
        domain.sim.forward()
        yield
    places = [np.array(data.site_xpos[site]) for site in sites]
    for place in (*places, before[basket : basket + 3] + np.array([0, 0, 0.05])):
        data.qpos[:] = before
        data.qpos[bowl : bowl + 3] = place
        domain.sim.forward()
        yield
    data.qpos[:] = before
    domain.sim.forward()


def quiet(domain: Any, goal: list[Any]) -> Any:
    """What stock says of a goal."""
    domain.parsed_problem["goal_state"] = goal
    with contextlib.redirect_stdout(io.StringIO()):
        return domain._check_success()


def test_what_stock_evaluates_is_taken_and_evaluates_alike(stock: Any, file: Path) -> None:
    domain, held = stock.env, {}
    model = domain.sim.model._model
    for goal in TAKEN:
        words = told(file, goal)
        bddl.check(file, object_kinds())
        check = goals.bind_goal(tuple(_predicate(domain, word) for word in words), model)
        results = []
        for _ in moments(domain):
            expected = quiet(domain, words)
            assert isinstance(expected, (bool, np.bool_)), goal
            assert bool(check(StateArrays.of(domain.sim.data._data))[0]) == expected, goal
            results.append(bool(expected))
        held[goal] = {*results}
    both = sum(len(values) == 2 for values in held.values())
    assert both >= 14, held  # the others are what a table's region, no joint, True and False say


@pytest.mark.parametrize(("goal", "word", "expected"), REFUSED, ids=[goal for goal, _, _ in REFUSED])
def test_what_ends_in_an_error_is_refused_with_its_line(
    stock: Any, file: Path, goal: str, word: str, expected: str
) -> None:
    words, results = told(file, goal), []
    for _ in moments(stock.env):
        try:
            results.append(quiet(stock.env, words))
        except (TypeError, AttributeError, AssertionError, KeyError, NotImplementedError, IndexError):
            results.append(None)  # which stock also gives for other numbers of names
    assert None in results
    with pytest.raises(ValueError, match=f"task.bddl, line 19: found '{word}'; expected {expected}"):
        bddl.check(file, object_kinds())


@pytest.mark.parametrize("goal", STOCK_EVALUATES_BY_CHANCE)
def test_what_stock_evaluates_by_chance_is_refused(stock: Any, file: Path, goal: str) -> None:
    assert isinstance(quiet(stock.env, told(file, goal)), bool)
    with pytest.raises(ValueError, match="line 19: found"):
        bddl.check(file, object_kinds())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "(:goal {goal})",
            "(:goal (On bowl_1 plate_1_rim))",
            "line 20: found 'plate_1_rim'; expected a region that",
        ),
        (
            "(On bowl_1 plate_1)",
            "(On bowl_1 plate_1_rim)",
            "line 18: found 'plate_1_rim'; expected a region that",
        ),
    ],
)
def test_what_only_the_models_tell_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "task.bddl"
    text = DEFINITION.replace("(:regions", "(:regions\n    (rim (:target plate_1))")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new).replace("{goal}", BOWL_ON_PLATE))
    with pytest.raises(ValueError, match=f"task.bddl.*{message}"):
        make_stock_env(path)


def test_objects_that_find_no_place_are_told(tmp_path: Path) -> None:
    path = write_task(tmp_path, definition=ALONE.replace("plate_1 main_table_right", "plate_1 main_table_left"))
    with pytest.raises(ValueError, match=r"bowl_on_plate.bddl: LIBERO found no place for all objects"):
        make_stock_env(path)


def test_a_goal_of_several_forms_is_an_environments(tmp_path: Path) -> None:
    """As a whole: it is compiled, kept, rewarded and observed."""
    file = tmp_path / "forms.bddl"
    file.write_text(DEFINITION.format(goal=f"(And {BOWL_ON_PLATE} (Up basket_1_contain_region) (False bowl_1))"))
    task = Task.from_bddl(file)
    env = LiberoEnv(Suite("forms", "Forms-v0", 5, [task]), cameras=(), reward="progress", privileged=True)
    env.reset(options={"placement_seed": 0})
    _, _, terminated, _, info = env.step(np.zeros(7))
    assert not terminated
    names = {name.split("/")[0] for name in info["progress_terms"]}
    assert names == {"on(bowl_1, plate_1)", "up(basket_1_contain_region)", "false"}
    assert env.simulator.predicates() == [True, False, False]

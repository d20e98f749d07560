"""What BDDL files say: LIBERO's own reader is the truth, and mistakes are told with line, word and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_tasks import DEFINITION, write_task

from libero_gym import bddl
from libero_gym.bddl import read_problem
from libero_gym.compilation.compile import compile_task
from libero_gym.stock import import_stock, object_kinds
from libero_gym.tasks import SUITES, Task, get_tasks

GOOD = """; a comment ( that opens nothing
(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language Put the bowl on the plate)
  (:regions
    (here (:target main_table) (:ranges ((-0.1 -0.1 .1 1e-1))) (:yaw_rotation ((0.0 -1.57))))
    (top_region (:target wooden_cabinet_1)))
  (:fixtures main_table - table wooden_cabinet_1 - wooden_cabinet)
  (:objects akita_black_bowl_1 akita_black_bowl_2 - akita_black_bowl plate_1 - plate)
  (:obj_of_interest akita_black_bowl_1 plate_1)
  (:init (On akita_black_bowl_1 main_table_here) (Open wooden_cabinet_1_top_region))
  (:goal (And (On akita_black_bowl_1 plate_1) (Close wooden_cabinet_1_top_region))))
"""
MISTAKES = [
    ("(:domain robosuite)", "(:domain robosuite))", r"line 12: found '\)'; expected nothing, for nothing is open here"),
    ("1_top_region))))", "1_top_region)))", r"line 2: found '\('; expected a \) that closes it"),
    ("(define", "(defined", r"expected one \(define ...\), and nothing beside it"),
    ("Tabletop_Manip", "Tabletopp_Manip", "line 2: found 'libero_tabletopp_manipulation'; expected a scene: .*floor"),
    ("(:domain robosuite)", "(:domain kitchen)", r"line 3: found 'kitchen'; expected \(:domain robosuite\)"),
    ("(:domain robosuite)", "", r"has no \(:domain ...\)"),
    (" Put the bowl on the plate", "", "line 4: found ':language'; expected the instruction"),
    ("(:fixtures", "(:fixture", "line 8: found ':fixture'; expected a part: .*; did you mean ':fixtures'"),
    ("(:obj_of", "(:goal) (:obj_of", "line 12: found ':goal'; expected one such part, and line 10"),
    ("plate_1 - plate)", "plate_1)", "line 9: found 'plate_1'; expected a kind after it, such as plate_1 - plate"),
    ("- akita_black_bowl plate_1", "- akita_white_bowl plate_1", "line 9: found 'akita_white_bowl'; expected a kind"),
    ("akita_black_bowl_2 -", "akita_black_bowl_1 -", "line 9: found 'akita_black_bowl_1'; expected another name"),
    ("main_table - table", "main_table plate_1 - table", "line 9: found 'plate_1'; expected another name"),
    (":target main_table", ":targets main_table", "line 6: found ':targets'; expected an attribute of a region"),
    ("(:target main_table)", "", r"line 6: found 'here'; expected a region with one \(:target NAME\)"),
    ("(-0.1 -0.1 .1 1e-1)", "(-0.1 -0.1 .1)", "line 6: found '-0.1 -0.1 .1'; expected 4 numbers, in :ranges"),
    ("(0.0 -1.57)", "(0.0 9**9**9)", r"line 6: found '9\*\*9\*\*9'; expected a number, in :yaw_rotation"),
    ("(:yaw_rotation", "(:yaw_rotation ((0 a))) (:yaw_rotation", "line 6: found 'a'; expected a number"),
    ("((-0.1 -0.1 .1 1e-1))", "(-0.1 -0.1 .1 1e-1)", r"line 6: found ':ranges'; .*, as in \(:ranges \(\(x x y y\)\)\)"),
    ("((-0.1 -0.1 .1 1e-1))", "-0.1 -0.1 .1 1e-1", "line 6: found ':ranges'; expected numbers in parentheses after it"),
    ("((-0.1 -0.1 .1 1e-1))", "", "line 6: found ':ranges'; expected numbers in parentheses after it"),
    ("((-0.1 -0.1 .1 1e-1))", "((-0.1 -0.1 .1 1e-1)) ((0 0 1 1))", "line 6: found ':ranges'; expected numbers"),
    ("((-0.1 -0.1 .1 1e-1))", "((-0.1 -0.1 .1 1e-1) 0)", "line 6: found ':ranges'; expected numbers"),
    ("((-0.1 -0.1 .1 1e-1))", "((-0.1 -0.1 .1 1e400))", "line 6: found '1e400'; expected a number, in :ranges"),
    ("((0.0 -1.57))", "(0.0 -1.57)", r"line 6: found ':yaw_rotation'; .*, as in \(:yaw_rotation \(\(a b\)\)\)"),
    ("(0.0 -1.57)", "(0.0 01)", "line 6: found '01'; expected a number, in :yaw_rotation"),
    ("(0.0 -1.57)", "(0.0 \u0663)", "line 6: found '\u0663'; expected a number, in :yaw_rotation"),
    ("(:yaw_rotation", "(:rgba ((0 0 1 0))) (:yaw_rotation", r"line 6: found '\('; expected a number, in :rgba"),
    ("(:yaw_rotation", "(:rgba (0 0 1)) (:yaw_rotation", "line 6: found '0 0 1'; expected 4 numbers, in :rgba"),
    ("(here (:target", "(here there (:target", r"line 6: found 'there'; expected only what .*\(here ...\)"),
    ("(:init (On", "(:init On (On", r"line 11: found 'on'; expected only what stands in parentheses, in \(:init ...\)"),
    ("(:ranges ((-0.1 -0.1 .1 1e-1)))", "", r"line 11: found 'main_table_here'; expected a region with \(:ranges"),
    ("interest akita_black_bowl_1", "interest bowl_1", "line 10: found 'bowl_1'; expected an object"),
    ("(:init (On", "(:init (Onto", "line 11: found 'onto'; expected a state: close, in, on, open"),
    ("(Open wooden_cabinet_1_top", "(Open wooden_cabinet_2_top", "line 11: found 'wooden_cabinet_2_top_region'"),
    ("(On akita_black_bowl_1 plate_1)", "(On akita_black_bowl_1)", "line 12: found 'on'; expected 2 names after it"),
    ("(On akita_black_bowl_1 plate_1)", "(Near plate_1)", "line 12: found 'near'; expected a word of goals"),
    ("bowl_1 plate_1) (Close", "bowl_1 plate_2) (Close", "found 'plate_2'; .*; did you mean 'plate_1'"),
    ("(And (On akita_black_bowl_1 plate_1) (Close wooden_cabinet_1_top_region))", "", "line 12: found ':goal'"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "message"), MISTAKES)
def test_a_mistake_is_told_with_line_word_and_what_was_expected(
    good: str, bad: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "task.bddl"
    path.write_text(GOOD)
    bddl.check(path, object_kinds())
    assert GOOD.count(good) == 1
    path.write_text(GOOD.replace(good, bad))
    with pytest.raises(ValueError, match=f"task.bddl.*{message}"):
        bddl.check(path, object_kinds())


def test_comments_end_where_they_do_for_libero(tmp_path: Path) -> None:
    """Else LIBERO would see parts that nobody has looked at."""
    path = tmp_path / "task.bddl"
    path.write_text(GOOD.replace("opens nothing", "opens nothing \x0c ) \x85 ("))
    bddl.check(path, object_kinds())


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_lines_end_where_they_do_for_libero(end: str, tmp_path: Path) -> None:
    """A comment that ends there hides nothing: what follows is looked at, and LIBERO takes angles through ``eval``."""
    import_stock()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    path = tmp_path / "task.bddl"
    turned = f"(:target main_table) ; turned{end}(:yaw_rotation ((0.5 1)))"
    path.write_bytes(GOOD.replace("(:target main_table)", turned).encode())
    bddl.check(path, object_kinds())
    assert robosuite_parse_problem(str(path))["regions"]["main_table_here"]["yaw_rotation"] == [0.0, -1.57]
    path.write_bytes(GOOD.replace("(:target main_table)", turned.replace("0.5", "print")).encode())
    with pytest.raises(ValueError, match="line 7: found 'print'; expected a number, in :yaw_rotation"):
        bddl.check(path, object_kinds())


def test_compiling_looks_first(tmp_path: Path) -> None:
    path = tmp_path / "task.bddl"
    path.write_text(GOOD.replace("(0.0 -1.57)", "(0.0 [0]*10**12)"))  # LIBERO would compute that
    with pytest.raises(ValueError, match=r"found '\[0\]\*10\*\*12'; expected a number"):
        compile_task(Task.from_bddl(path))


def test_a_file_that_would_take_all_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "task.bddl"
    with path.open("w") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match="10000000000 bytes; expected a BDDL file of at most 1000000"):
        read_problem(path)


def test_scenes_are_those_of_libero() -> None:
    import_stock()
    from libero.libero.envs import TASK_MAPPING

    assert set(TASK_MAPPING) == set(bddl.SCENES)


def test_problems_are_those_that_libero_reads() -> None:
    import_stock()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    tasks = [task for suite in SUITES for task in get_tasks(suite)]
    assert len(tasks) > 300
    some, kinds = set(), object_kinds()
    for path in {task.bddl_file for task in tasks}:
        bddl.check(path, kinds)
        ours, stock = read_problem(path), robosuite_parse_problem(str(path))
        assert ours.domain == stock["problem_name"]
        assert ours.language == " ".join(stock["language_instruction"])
        assert ours.objects == tuple(name for names in stock["objects"].values() for name in names)
        assert list(ours.objects_of_interest) == stock["obj_of_interest"]
        drawn = [state for state in stock["initial_state"] if state[0] in ("open", "close", "turnon", "turnoff")]
        assert ours.draws_joints == bool(drawn)
        some.add(ours.draws_joints)
    assert some == {True, False}


def test_kinds_whose_files_libero_lacks_are_none_of_its_kinds(tmp_path: Path) -> None:
    kinds = object_kinds()
    assert {"akita_black_bowl", "wooden_cabinet", "flat_stove"} <= set(kinds)
    missing = {"cherries", "corn", "mayo", "red_sticker", "blue_red_sticker", "red_box", "libero_mug_green"}
    assert not (missing | {"target_zone"}) & set(kinds)
    path = tmp_path / "task.bddl"
    path.write_text(GOOD.replace("- plate)", "- corn)"))
    with pytest.raises(ValueError, match="line 9: found 'corn'; expected a kind"):
        bddl.check(path, kinds)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("(:language Open the drawer ; a note\n slowly)", "Open the drawer slowly"),
        ("; (:language old words)\n(:LANGUAGE Open it)", "Open it"),
        ("( :language\n\tOpen  it )", "Open it"),
    ],
)
def test_an_instruction_is_read_as_the_rest_of_the_file_is(tmp_path: Path, part: str, told: str) -> None:
    path = write_task(tmp_path, definition=DEFINITION.replace("(:language Put the bowl on the plate)", part))
    assert bddl.read_instruction(path) == told
    assert bddl.read_problem(path).language == told.lower()


@pytest.mark.parametrize("part", ["(:language open (the) drawer)", "(:language  )", "(:language"])
def test_what_is_no_instruction_is_told(tmp_path: Path, part: str) -> None:
    path = write_task(tmp_path, definition=DEFINITION.replace("(:language Put the bowl on the plate)", part))
    with pytest.raises(ValueError, match=r"line \d: found '[()]'; expected the words of the instruction"):
        bddl.read_instruction(path)


def test_a_folder_in_a_files_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="it is a folder; expected a BDDL file, such as one in it"):
        read_problem(tmp_path)

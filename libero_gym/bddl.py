"""What a task's BDDL file says, and whether LIBERO can make a scene of it.

LIBERO reads such files without looking: a misspelt name ends in a ``KeyError`` deep inside, and angles go through
``eval``. `check` finds mistakes first, and says where they are.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

from libero_gym.common.checks import did_you_mean

MAX_BYTES = 1_000_000  # LIBERO's largest has 10 kB
# LIBERO's scenes, and what stands for a table in each: regions there say by numbers where they are.
SCENES = {
    "libero_tabletop_manipulation": "table",
    "libero_kitchen_tabletop_manipulation": "kitchen_table",
    "libero_living_room_tabletop_manipulation": "living_room_table",
    "libero_study_tabletop_manipulation": "study_table",
    "libero_coffee_table_manipulation": "coffee_table",
    "libero_floor_manipulation": "floor",
}
# States that LIBERO's samplers draw joint positions for, and how many names follow each.
_DRAWN_STATES = {"open": 1, "close": 1, "turnon": 1, "turnoff": 1}
_STATES = {"on": 2, "in": 2} | _DRAWN_STATES
# Words of goals, likewise.
GOALS = _STATES | {"up": 1, "true": 1, "false": 1, "printjointstate": 1}
_OR_ONE_MORE = ("true", "false")
# LIBERO reads one ``And`` around all of a goal's predicates; it knows none of these in it.
_CONNECTIVES = ("and", "or", "not", "imply", "forall", "exists")
_PARTS = ("problem", ":domain", ":language", ":regions", ":fixtures", ":objects", ":obj_of_interest", ":init", ":goal")
_OPTIONAL = (":requirements", ":obj_of_interest")
# Of a region, and what stands after each: as many numbers together, in rows or not; a name is the target.
_ATTRIBUTES = {":target": "", ":ranges": "((x x y y))", ":yaw_rotation": "((a b))", ":rgba": "(r g b a)"}
# What ``eval`` takes for a number, as ``float`` does.
_NUMBER = re.compile(r"[+-]?((0+|[1-9]\d*)(e[+-]?\d+)?|(\d+\.\d*|\.\d+)(e[+-]?\d+)?)", re.ASCII)


class Word(str):
    """A word of a file. Attribute ``line``: the line that it stands in, from 1."""

    __slots__ = ("line",)
    line: int


class Group(list["Word | Group"]):
    """What stands in a pair of parentheses. Attribute ``line``: the line that it begins in, from 1."""

    line: int

    def words(self) -> list[Word]:
        """The words after the first one."""
        return [part for part in self[1:] if isinstance(part, Word)]

    def groups(self) -> list[Group]:
        """The groups in it."""
        return [part for part in self if isinstance(part, Group)]


Names: TypeAlias = "dict[Word, Word]"


@dataclass(frozen=True)
class Problem:
    """A BDDL file's own words, in lower case as LIBERO reads them.

    Attributes:
        domain: LIBERO's name of the scene, such as ``libero_tabletop_manipulation``.
        language: The instruction.
        objects: Names of what can be moved, in LIBERO's order.
        objects_of_interest: Names of what the task is about.
        draws_joints: Whether resets draw the position of a drawer or knob; each reset of a stock environment then draws
            them once more than the one before.
    """

    domain: str
    language: str
    objects: tuple[str, ...]
    objects_of_interest: tuple[str, ...]
    draws_joints: bool


def read_text(path: Path) -> str:
    """A BDDL file's text.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is too large to be one.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; expected a BDDL file, such as one in it", str(path))
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected a BDDL file of at most {MAX_BYTES}.")
    with path.open("rb") as file:  # a device file tells no size
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; expected a BDDL file.")
    text = content.decode("utf-8", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # LIBERO's lines, which end comments


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    """The parentheses and words of a file's text, without comments, each with its line from 1."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, which ends them at more characters
        for token in re.findall(r"[()]|[^\s()]+", line.partition(";")[0]):
            yield number, token


def read_instruction(path: Path) -> str:
    """The words of a file's ``(:language ...)``, as they are written.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it states none; the message says where.
    """
    before, begun, words = "", 0, list[str]()
    for number, token in _tokens(read_text(path)):
        if begun and token == ")" and words:
            return " ".join(words)
        if begun and token in "()":
            raise ValueError(f"{path}, line {number}: found {token!r}; expected the words of the instruction.")
        if begun:
            words.append(token)
        elif before == "(" and token.lower() == ":language":
            begun = number
        before = token
    raise ValueError(f"{path} states no (:language ...) instruction.")


def read_problem(path: Path) -> Problem:
    """The problem that a BDDL file states.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file; the message says where.
    """
    reader = _Reader(path)
    parts = reader.parts()
    objects = reader.instances(parts[":objects"])
    kinds = dict.fromkeys(objects.values())
    return Problem(
        domain=str(parts["problem"][1]),
        language=" ".join(parts[":language"].words()),
        objects=tuple(str(name) for kind in kinds for name, own in objects.items() if own == kind),
        objects_of_interest=tuple(map(str, parts[":obj_of_interest"].words())),
        draws_joints=any(state[0] in _DRAWN_STATES for state in parts[":init"].groups() if state),
    )


class _Region(NamedTuple):
    """A region: the name of what it belongs to; for one on a table, whether it says where it is."""

    owner: Word
    is_placed: bool | None


def check(path: Path, kinds: Mapping[str, Collection[str]]) -> None:
    """Check that LIBERO can make a scene of a BDDL file.

    Args:
        path: The file.
        kinds: Kinds of objects and fixtures that LIBERO has, and what each can be; see `stock.object_kinds`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is a mistake; the message gives the line, the word, and what was expected.
    """
    _Reader(path).check(kinds)


def asked_regions(path: Path) -> dict[str, int]:
    """The regions that a file's states and goals name, and the lines in which they first do; see `no_such_region`."""
    reader = _Reader(path)
    parts = reader.parts()
    regions = reader.regions(parts[":regions"], ())
    asked: dict[str, int] = {}
    for predicate in (*parts[":init"].groups(), *reader.goals(parts[":goal"])):
        for word in predicate.words():
            if word in regions:
                asked.setdefault(str(word), word.line)
    return asked


def no_such_region(path: Path, name: str, line: int) -> ValueError:
    """What is said of a region that LIBERO's model of its object lacks, which only the model itself tells."""
    return ValueError(f"{path}, line {line}: found {name!r}; expected a region that LIBERO's model of the object has.")


class _Reader:
    """Reads a file, and tells of mistakes by their lines.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = self._parse(read_text(path))

    def _parse(self, text: str) -> Group:
        stack = [Group()]
        for number, token in _tokens(text.lower()):
            if token == "(":
                stack.append(Group())
                stack[-1].line = number
            elif token != ")":
                word = Word(token)
                word.line = number
                stack[-1].append(word)
            elif len(stack) == 1:
                self.fail(number, ")", "nothing, for nothing is open here")
            else:
                closed = stack.pop()
                stack[-1].append(closed)
        if len(stack) > 1:
            self.fail(stack[-1].line, "(", "a ) that closes it")
        whole = stack[0]
        if len(whole) != 1 or not isinstance(whole[0], Group) or whole[0][:1] != ["define"]:
            raise ValueError(f"{self.path}: expected one (define ...), and nothing beside it.")
        return whole[0]

    def fail(self, line: int, word: object, expected: str) -> NoReturn:
        """Raise what is said of a mistake."""
        raise ValueError(f"{self.path}, line {line}: found {str(word)!r}; expected {expected}.")

    def known(self, word: Word, choices: Collection[str], what: str) -> None:
        """Fail if a word is none of these."""
        if word not in choices:
            listed = ", ".join(sorted(choices)) if len(choices) <= 12 else f"one of {len(choices)}"
            guess = did_you_mean(word, choices).strip(" ?")
            self.fail(word.line, word, f"{what}: {listed}{guess and f'; {guess[0].lower()}{guess[1:]}'}")

    def parts(self) -> dict[str, Group]:
        """The file's parts by their first words."""
        found: dict[str, Group] = {}
        for part in self.whole[1:]:
            if not isinstance(part, Group):
                self.fail(part.line, part, "a part in parentheses, such as (:objects ...)")
            name = self.first(part, "the name of a part")
            self.known(name, (*_PARTS, *_OPTIONAL), "a part")
            if name in found:
                self.fail(name.line, name, f"one such part, and line {found[name].line} has one")
            found[str(name)] = part
        missing = [part for part in _PARTS if part not in found and part not in _OPTIONAL]
        if missing:
            raise ValueError(f"{self.path} has no ({missing[0]} ...).")
        found.setdefault(":obj_of_interest", Group([Word(":obj_of_interest")]))
        if len(found["problem"]) != 2 or not isinstance(found["problem"][1], Word):
            self.fail(found["problem"].line, "problem", "one name after it")
        return found

    def first(self, group: Group, what: str) -> Word:
        """A group's first word."""
        if not group or not isinstance(group[0], Word):
            self.fail(group.line, "(" if group else "()", what)
        return group[0]

    def groups(self, part: Group) -> list[Group]:
        """What a part holds, of which LIBERO reads all as groups."""
        for word in part.words():
            self.fail(word.line, word, f"only what stands in parentheses, in ({part[0]} ...)")
        return part.groups()

    def instances(self, part: Group) -> Names:
        """By name, the kind, of ``a_1 a_2 - a b_1 - b``."""
        found: Names = {}
        waiting: list[Word] = []
        words = iter(part[1:])
        for word in words:
            if not isinstance(word, Word):
                self.fail(word.line, "(", "names and kinds, such as plate_1 - plate")
            if word != "-":
                if word in found or word in waiting:
                    self.fail(word.line, word, "another name, for this one is taken")
                waiting.append(word)
                continue
            kind = next(words, None)
            if not isinstance(kind, Word) or not waiting:
                self.fail(word.line, word, "names before it and a kind after it, such as plate_1 - plate")
            found |= dict.fromkeys(waiting, kind)
            waiting = []
        if waiting:
            self.fail(waiting[0].line, waiting[0], f"a kind after it, such as {waiting[0]} - plate")
        return found

    def check(self, kinds: Mapping[str, Collection[str]]) -> None:
        """See `bddl.check`."""
        parts = self.parts()
        scene = parts["problem"].words()[0]
        self.known(scene, SCENES, "a scene")
        if parts[":domain"].words() != ["robosuite"]:
            self.fail(parts[":domain"].line, " ".join(parts[":domain"].words()), "(:domain robosuite)")
        if not parts[":language"].words():
            self.fail(parts[":language"].line, ":language", "the instruction after it")
        fixtures, objects = self.instances(parts[":fixtures"]), self.instances(parts[":objects"])
        tables = [name for name, kind in fixtures.items() if kind == SCENES[scene]]
        for name in objects:
            if name in fixtures:
                self.fail(name.line, name, "another name, for a fixture has this one")
        for name, kind in (fixtures | objects).items():
            if name not in tables:
                self.known(kind, kinds, "a kind of object that LIBERO has")
        regions = self.regions(parts[":regions"], tables)
        names = {*map(str, fixtures), *map(str, objects), *regions}
        for word in parts[":obj_of_interest"].words():
            self.known(word, names, "an object, a fixture or a region of this file")
        for state in self.groups(parts[":init"]):
            for argument in self.predicate(state, _STATES, "a state", names):
                if str(argument) in regions and regions[str(argument)].is_placed is False:
                    self.fail(argument.line, argument, "a region with (:ranges ((x x y y))), for it lies on the table")
        things = {str(name): kinds[kind] for name, kind in (fixtures | objects).items() if name not in tables}
        for goal in self.goals(parts[":goal"]):
            word = self.first(goal, "a word of goals")
            if word in _CONNECTIVES:
                self.fail(
                    word.line, word, "a predicate, for LIBERO reads one And around all, and no And, Or or Not in it"
                )
            arguments = self.predicate(goal, GOALS, "a word of goals", names)
            self.fits(word, arguments, things, regions, kinds)

    def fits(
        self,
        word: Word,
        arguments: Sequence[Word],
        things: Mapping[str, Collection[str]],
        regions: Mapping[str, _Region],
        kinds: Mapping[str, Collection[str]],
    ) -> None:
        """Check that LIBERO can ask a goal's predicate of what it names; elsewhere its evaluation ends in an error.

        Args:
            word: The predicate.
            arguments: The names.
            things: What each object and fixture can be, by name; a table is none.
            regions: Regions by their full names.
            kinds: As `check` has them.
        """
        able = f"one of {', '.join(sorted(kind for kind, states in kinds.items() if word in states))}"
        for place, argument in enumerate(arguments):
            region = regions.get(str(argument))
            states = things.get(str(argument) if region is None else str(region.owner), ())
            if region is None and str(argument) not in things:
                self.fail(argument.line, argument, "a region of it, for LIBERO's goals ask nothing of a table itself")
            if word in ("on", "in") and place == 0 and region is not None:
                self.fail(argument.line, argument, f"an object, for no region is {word} something")
            if word == "in" and place == 1 and region is None:
                self.fail(argument.line, argument, "a region, for LIBERO's objects contain nothing by themselves")
            if word in ("turnon", "turnoff", "printjointstate") and (region is not None or word not in states):
                self.fail(argument.line, argument, able)
            if word in ("open", "close") and word not in states:
                self.fail(argument.line, argument, f"{able}, or a region of one")

    def regions(self, part: Group, tables: Collection[str]) -> dict[str, _Region]:
        """The regions by their full names."""
        found: dict[str, _Region] = {}
        for region in self.groups(part):
            name = self.first(region, "the name of a region")
            attributes: dict[str, Group] = {}
            for each in self.groups(region):  # LIBERO reads also those that a later one replaces
                attribute = self.first(each, "an attribute of a region")
                self.known(attribute, _ATTRIBUTES, "an attribute of a region")
                self.numbers(attribute, each)
                attributes[str(attribute)] = each
            targets = attributes.get(":target", Group()).words()
            if len(targets) != 1:
                self.fail(region.line, name, "a region with one (:target NAME)")
            is_placed = ":ranges" in attributes if targets[0] in tables else None
            found[f"{targets[0]}_{name}"] = _Region(targets[0], is_placed)
        return found

    def numbers(self, attribute: Word, values: Group) -> None:
        """Check an attribute's numbers, which LIBERO takes through ``eval`` in places."""
        if attribute == ":target":
            return
        shape = _ATTRIBUTES[attribute]
        count, in_rows = len(shape.split()), shape.startswith("((")
        whole = values.groups()
        rows: list[Word | Group] = (list(whole[0]) if in_rows else list(whole)) if whole else []
        if len(values) != 2 or not rows or not all(isinstance(row, Group) for row in rows):
            self.fail(attribute.line, attribute, f"numbers in parentheses after it, as in ({attribute} {shape})")
        for row in rows:
            assert isinstance(row, Group)
            for number in row:
                is_number = isinstance(number, Word) and _NUMBER.fullmatch(number) and math.isfinite(float(number))
                if not is_number:
                    self.fail(number.line, "(" if isinstance(number, Group) else number, f"a number, in {attribute}")
            if len(row) != count:
                self.fail(row.line, " ".join(map(str, row)), f"{count} numbers, in {attribute}")

    def goals(self, part: Group) -> Iterator[Group]:
        """The predicates of a goal: one, or several joined by ``And``."""
        (stated, *others) = self.groups(part) or [Group()]
        if others or not stated:
            self.fail(part.line, ":goal", "one expression after it, such as (And (On a_1 b_1) (Open c_1))")
        if stated[0] != "and":
            yield stated
            return
        predicates = self.groups(stated)
        if not predicates:
            self.fail(stated.line, "and", "predicates after it")
        yield from predicates

    def predicate(self, group: Group, words: dict[str, int], what: str, names: Collection[str]) -> list[Word]:
        """Check a predicate's word and names; the names."""
        word = self.first(group, what)
        self.known(word, words, what)
        arguments = group.words()
        counts = (words[word], words[word] + (word in _OR_ONE_MORE))
        if len(arguments) not in counts or len(group) != 1 + len(arguments):
            self.fail(word.line, word, f"{words[word]} name{'s' if words[word] > 1 else ''} after it")
        for argument in arguments:
            self.known(argument, names, "an object, a fixture or a region of this file")
        return arguments

"""What a task's BDDL file says, as far as Python code asks for it; the scene itself is compiled by LIBERO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Expression: TypeAlias = "list[str | Expression]"

# States that LIBERO's samplers draw joint positions for.
_DRAWN_STATES = ("open", "close", "turnon", "turnoff")


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


def read_problem(path: Path) -> Problem:
    """The problem that a BDDL file states.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If parentheses do not match, or a part is missing.
    """
    parts = {str(part[0]): part for part in _parse(path) if isinstance(part, list) and part}
    if "problem" not in parts or len(parts["problem"]) != 2:
        raise ValueError(f"{path} states no (problem NAME).")
    states = [state for state in parts.get(":init", []) if isinstance(state, list) and state]
    return Problem(
        domain=str(parts["problem"][1]),
        language=" ".join(_words(parts.get(":language", []))),
        objects=_instances(_words(parts.get(":objects", []))),
        objects_of_interest=tuple(_words(parts.get(":obj_of_interest", []))),
        draws_joints=any(state[0] in _DRAWN_STATES for state in states),
    )


def _words(part: Expression) -> list[str]:
    return [word for word in part[1:] if isinstance(word, str)]


def _instances(words: list[str]) -> tuple[str, ...]:
    """The names in ``a_1 a_2 - a b_1 - b``, grouped by kind in the order of kinds."""
    kinds: dict[str, list[str]] = {}
    names: list[str] = []
    tokens = iter(words)
    for word in tokens:
        if word == "-":
            kinds[next(tokens, "")] = names
            names = []
        else:
            names.append(word)
    kinds["object"] = kinds.get("object", []) + names
    return tuple(name for group in kinds.values() for name in group)


def _parse(path: Path) -> Expression:
    """What stands in the file's outermost parentheses."""
    stack: list[Expression] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8").lower().splitlines(), 1):
        for token in re.findall(r"[()]|[^\s()]+", line.partition(";")[0]):
            if token == "(":
                stack.append([])
            elif token != ")":
                stack[-1].append(token)
            elif len(stack) == 1:
                raise ValueError(f"{path}, line {number}: this ) closes nothing.")
            else:
                closed = stack.pop()
                stack[-1].append(closed)
    whole = stack[0]
    if len(stack) > 1 or len(whole) != 1 or not isinstance(whole[0], list):
        raise ValueError(f"{path}: expected one expression in parentheses; {len(stack) - 1} are left open.")
    return whole[0]

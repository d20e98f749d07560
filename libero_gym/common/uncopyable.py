"""Refuses copies of what cannot be copied: raw addresses, processes, OpenGL handles, file descriptors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn, SupportsIndex, TypeVar

_Thing = TypeVar("_Thing")


class Uncopyable:
    """Base of classes that hold such things: `copy` and `pickle` raise an error that says what to do instead.

    `copy.copy`, `copy.deepcopy` and `pickle` all end in ``__reduce_ex__``. A class that can be copied in one of these
    ways defines that method itself (``__deepcopy__``).

    Attributes:
        copy_instead: What to do instead, for the message.
    """

    copy_instead: ClassVar[str] = "make another one."

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"A {type(self).__name__} cannot be copied or pickled: {self.copy_instead}")


def deep_copy(thing: _Thing, memo: dict[int, Any], shared: Iterable[Any]) -> _Thing:
    """A deep copy of an `Uncopyable` for its ``__deepcopy__``, which has some attributes in common with the original.

    Args:
        thing: What to copy.
        memo: As ``__deepcopy__`` gets it.
        shared: Attributes that are not copied, wherever the copy refers to them.
    """
    twin = object.__new__(type(thing))
    memo[id(thing)] = twin
    memo |= {id(each): each for each in shared}
    vars(twin).update(copy.deepcopy(vars(thing), memo))
    return twin

"""What was used most recently is kept in memory, the rest made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def kept(things: OrderedDict[str, _T], key: str, make: Callable[[], _T], limit: int) -> _T:
    """What is kept under a key, made if need be; the least recently used one makes room if there are ``limit``."""
    if key not in things:
        made = make()
        while len(things) >= limit:
            things.popitem(last=False)
        things[key] = made
    things.move_to_end(key)
    return things[key]

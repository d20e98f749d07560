"""Refuses copies of what cannot be copied: raw addresses, processes, OpenGL handles, file descriptors."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex


class Uncopyable:
    """Base of classes that hold such things. `copy` and `pickle` say what to do instead of copying the numbers.

    `copy.copy`, `copy.deepcopy` and `pickle` all end in ``__reduce_ex__``. A class that can be copied in one of these
    ways defines that way itself (``__deepcopy__``).
    """

    copy_instead: ClassVar[str] = "make another one."

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"A {type(self).__name__} cannot be copied or pickled: {self.copy_instead}")

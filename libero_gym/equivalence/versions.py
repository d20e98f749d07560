"""What differs between versions of MuJoCo, as one table. Nothing here imports MuJoCo."""

from __future__ import annotations

from dataclasses import dataclass

from libero_gym.common.version import BENCHMARK

EXACT = BENCHMARK["mujoco"]
"""The version whose states, contacts and pixels are stock LIBERO's to the bit."""


@dataclass(frozen=True)
class Interface:
    """How a version of MuJoCo is spoken to, and what of it is repaired.

    Attributes:
        full_inertia_from_data: ``mj_fullM`` takes ``(model, data, dst)``; before 3.10 ``(model, dst, qM)``.
        sparse_rows: The inertia is ``data.M`` in compressed rows; before 3.11 ``data.qM``, by ancestors.
    """

    full_inertia_from_data: bool
    sparse_rows: bool


def interface(version: str) -> Interface:
    """The interface of a version, such as "3.8.1"."""
    number = parse(version)
    return Interface(full_inertia_from_data=number >= (3, 10), sparse_rows=number >= (3, 11))


def parse(version: str) -> tuple[int, ...]:
    """A version's leading numbers, (3, 8, 1) for "3.8.1"; what follows them, as in "4.1.0.dev3", is left out."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)

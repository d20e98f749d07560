"""What differs between versions of MuJoCo, as one table, and what a result of each is called. No MuJoCo is imported.

A result is "exact" (3.3.2: stock LIBERO's states, contacts and pixels to the bit) or "equivalent" (newer: repaired, see
`physics`, `box_contacts`). The two are different benchmarks in all that compares results.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libero_gym.common.version import BENCHMARK, UNKNOWN, installed_version

DISTRIBUTION = "mujoco"
EXACT = BENCHMARK[DISTRIBUTION]
NEWEST = (4, 0)
"""The newest minor version that the repairs were measured with."""


class UnsupportedMujocoError(ImportError):
    """The installed MuJoCo cannot run the benchmark."""


@dataclass(frozen=True)
class Traits:
    """How a version of MuJoCo is spoken to, and what of it is repaired.

    Attributes:
        full_inertia_from_data: ``mj_fullM`` takes ``(model, data, dst)``; before 3.10 ``(model, dst, qM)``.
        sparse_rows: The inertia is ``data.M`` in compressed rows; before 3.11 ``data.qM``, by ancestors.
        colour_spaces: sRGB textures are drawn darker than linear ones, from 3.3.3 on.
        whole_depths: Face contacts of two boxes have the whole depth, from 3.4.0 on; before that, half of it.
        brief_contacts: Collision functions fill ``mjPreContact``, from 3.9 on; before that, ``mjContact``.
        multiccd: Convex shapes meet in several points unless that is turned off, from 3.8 on.
        islands: Each group of bodies that touch is solved on its own, from 3.3.6 on, and stops on its own.
        early_exits: The solver stops earlier at the same tolerance, also at once, from 3.11 on (changelog of 3.11.0,
            items 28 and 29).
    """

    full_inertia_from_data: bool
    sparse_rows: bool
    colour_spaces: bool
    whole_depths: bool
    brief_contacts: bool
    multiccd: bool
    islands: bool
    early_exits: bool


def traits(version: str) -> Traits:
    """The traits of a version, such as "3.8.1"."""
    number = parse(version)
    return Traits(
        full_inertia_from_data=number >= (3, 10),
        sparse_rows=number >= (3, 11),
        colour_spaces=number >= (3, 3, 3),
        whole_depths=number >= (3, 4),
        brief_contacts=number >= (3, 9),
        multiccd=number >= (3, 8),
        islands=number >= (3, 3, 6),
        early_exits=number >= (3, 11),
    )


def parse(version: str) -> tuple[int, ...]:
    """A version's leading numbers, (3, 8, 1) for "3.8.1"; what follows them, as in "4.1.0.dev3", is left out."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


@functools.cache
def fidelity(version: str | None = None) -> str:
    """What states, frames and results of a version of MuJoCo are called, as settings, reports and data sets say it.

    Args:
        version: The version; None for the installed one.

    Returns:
        "exact", or for example "equivalent (4.0.0)"; "unmeasured (4.1.0)" if nothing is known of it, and "unknown" if
        MuJoCo is not installed.
    """
    version = version or installed_version(DISTRIBUTION)
    if version is None:
        return UNKNOWN
    if version == EXACT:
        return "exact"
    known = parse(EXACT) < parse(version) and parse(version)[:2] <= NEWEST
    return f"{'equivalent' if known else 'unmeasured'} ({version})"


def with_fidelity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say under "mujoco" how exact they are; those of earlier versions, which had 3.3.2 alone, are."""
    return {"mujoco": "exact", **settings}


SAME_VERSION = "make both with the same version of MuJoCo"


def refuse_to_mix(first: str, second: str, what: str = "results", way_out: str = SAME_VERSION) -> None:
    """Complain if two things are of different fidelity, so that nobody takes the simulator's doing for the model's.

    Args:
        first, second: What `fidelity` says of each.
        what: What they are, in the plural.
        way_out: What the message advises.

    Raises:
        ValueError: If they differ.
    """
    if first != second:
        raise ValueError(
            f"These {what} are of different simulations of LIBERO, one {first} and one {second}, and are not mixed; "
            f"{way_out}."
        )


def advice(version: str) -> str | None:
    """One sentence for who uses a version that is not exact; None for the exact one.

    Raises:
        UnsupportedMujocoError: If the version is older than the exact one.
    """
    if version == EXACT:
        return None
    way_out = f"For stock LIBERO's own states and frames: pip install mujoco=={EXACT}"
    if parse(version) < parse(EXACT):
        raise UnsupportedMujocoError(
            f"MuJoCo {version} is older than {EXACT}, the first that this package runs. pip install mujoco=={EXACT}"
        )
    if parse(version)[:2] > NEWEST:
        newest = ".".join(map(str, NEWEST))
        return (
            f"MuJoCo {version} is newer than {newest}, the newest that LIBERO was measured with; its results may be "
            f"those of another benchmark. {way_out}"
        )
    hook = " A function of this process's MuJoCo is replaced for that, for models of this package alone."
    return (
        f"MuJoCo {version} is repaired to be equivalent to LIBERO's {EXACT}, and is not exact: do not compare its "
        f"results with exact ones.{hook * traits(version).whole_depths} {way_out}"
    )

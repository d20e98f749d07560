"""Which processes of an engine fit on which machines: each is whole on one, and the first on this one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """What each process of an engine gets."""

    cpus: float
    gpus: float


class Room(NamedTuple):
    """What a machine has for processes."""

    cpus: float
    gpus: float
    is_here: bool = False  # whether this process belongs to it


def n_fitting(room: Room, place: Place) -> float:
    """How many processes fit on a machine."""
    # Ray counts in steps of 1e-4, and 0.3 // 0.1 is 2.
    return min((int(has / each + 1e-6) for has, each in zip(room[:2], place, strict=True) if each), default=math.inf)


def fits(rooms: Sequence[Room], n_processes: int, place: Place) -> bool:
    """Whether all processes fit on the machines at the same time."""
    found = [n_fitting(room, place) for room in rooms]
    return sum(found) >= n_processes and any(room.is_here and n for room, n in zip(rooms, found, strict=True))


def largest_share(rooms: Sequence[Room], n_processes: int, gpus: float) -> float:
    """The most whole CPUs that every process can have at the same time; 0 if not one.

    Args:
        rooms: The machines.
        n_processes: How many there are, this one among them.
        gpus: GPUs of each.
    """
    most = max((int(room.cpus) for room in rooms if room.is_here), default=0)
    return float(next((n for n in range(most, 0, -1) if fits(rooms, n_processes, Place(n, gpus))), 0))


def too_small(rooms: Sequence[Room], n_processes: int, place: Place) -> str:
    """What empty machines have too little of, as a sentence; "" if all processes fit."""
    on = f"{len(rooms)} machine{'s' * (len(rooms) != 1)}"
    for name, each, has in (("CPU", place.cpus, [r.cpus for r in rooms]), ("GPU", place.gpus, [r.gpus for r in rooms])):
        if n_processes * each > sum(has):
            return (
                f"{n_processes} processes of {each:g} {name}s each need {n_processes * each:g}, and the cluster "
                f"has {sum(has):g} {name}s on {on}. Ask for fewer, or add machines."
            )
    if fits(rooms, n_processes, place):
        return ""
    here, needs = next((room for room in rooms if room.is_here), Room(0, 0)), told_of(place)
    if not n_fitting(here, place):
        return (
            f"This process needs {needs} on its own machine, which has {told_of(Place(*here[:2]), bool(place.gpus))}. "
            "Give a smaller cpus_per_worker, or run it on a larger machine of the cluster."
        )
    have = ", ".join(told_of(Place(*room[:2]), bool(place.gpus)) for room in rooms)
    return (
        f"{n_processes} processes of {needs} each do not fit on {on}, since each is whole on one of them, and they "
        f"have {have}. Give a smaller cpus_per_worker, or add machines."
    )


def told_of(place: Place, with_gpus: bool | None = None) -> str:
    """CPUs and GPUs in words.

    Args:
        place: How many.
        with_gpus: Whether GPUs are told; by default, if there are any.
    """
    kinds = [("CPU", place.cpus)]
    if place.gpus if with_gpus is None else with_gpus:
        kinds.append(("GPU", place.gpus))
    return " and ".join(f"{number:g} {name}{'s' * (number != 1)}" for name, number in kinds)

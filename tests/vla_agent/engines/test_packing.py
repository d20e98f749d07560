"""How many CPUs each process of an engine gets, and what fits on no machine, worked by hand."""

from __future__ import annotations

import pytest

from vla_agent.engines.packing import Place, Room, fits, largest_share, too_small

HEAD, BIG = Room(1, 0, is_here=True), Room(5, 0)


@pytest.mark.parametrize(
    ("rooms", "n_processes", "gpus", "share"),
    [
        ([Room(8, 0, is_here=True)], 1, 0, 8),
        ([Room(8, 0, is_here=True)], 3, 0, 2),
        ([Room(8, 0, is_here=True), Room(8, 0)], 5, 0, 2),  # of 16 // 5 = 3, four fit
        ([HEAD, BIG], 2, 0, 1),  # 6 // 2 = 3 do not fit beside this process
        ([HEAD, BIG], 1, 0, 1),
        ([Room(4, 0, is_here=True), Room(7, 0)], 3, 0, 3),
        ([Room(8, 2, is_here=True), Room(96, 0)], 2, 1, 4),  # both where the GPUs are
        ([HEAD, Room(0, 0)], 2, 0, 0),
        ([Room(0, 0, is_here=True), BIG], 2, 0, 0),
        ([BIG], 1, 0, 0),
    ],
)
def test_each_process_gets_the_most_that_all_can_have(
    rooms: list[Room], n_processes: int, gpus: float, share: float
) -> None:
    assert largest_share(rooms, n_processes, gpus) == share
    if share:
        assert fits(rooms, n_processes, Place(share, gpus))
        assert not fits(rooms, n_processes, Place(share + 1, gpus))


def test_parts_of_a_cpu_are_counted_as_ray_counts_them() -> None:
    assert fits([Room(0.3, 0, is_here=True)], 3, Place(0.1, 0))
    assert not fits([Room(0.3, 0, is_here=True)], 4, Place(0.1, 0))


@pytest.mark.parametrize(
    ("rooms", "place", "message"),
    [
        ([HEAD, BIG], Place(4, 0), "2 processes of 4 CPUs each need 8, and the cluster has 6 CPUs on 2 machines."),
        ([HEAD, BIG], Place(1, 1), "2 processes of 1 GPUs each need 2, and the cluster has 0 GPUs on 2 machines."),
        ([HEAD, BIG], Place(3, 0), "This process needs 3 CPUs on its own machine, which has 1 CPU."),
        (
            [Room(4, 1, is_here=True), Room(3, 1)],
            Place(3.5, 1),
            "2 processes of 3.5 CPUs and 1 GPU each do not fit on 2 machines, since each is whole on one of them, and "
            "they have 4 CPUs and 1 GPU, 3 CPUs and 1 GPU.",
        ),
        ([HEAD, BIG], Place(1, 0), ""),
    ],
)
def test_what_fits_on_no_machine_is_told(rooms: list[Room], place: Place, message: str) -> None:
    assert too_small(rooms, 2, place).startswith(message)
    assert bool(too_small(rooms, 2, place)) == bool(message)

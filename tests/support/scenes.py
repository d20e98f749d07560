"""Scenes of the suites that tests of fidelity visit."""

from __future__ import annotations

# One task of each scene of the four suites; of LIBERO-Object two, which between them hold all its objects.
SCENES = [
    ("libero_spatial", 0),
    ("libero_object", 0),
    ("libero_object", 8),
    ("libero_goal", 3),
    *(("libero_10", task_id) for task_id in (0, 2, 3, 4, 5, 6, 7, 8, 9)),
]

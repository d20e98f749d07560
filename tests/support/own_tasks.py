"""A task of one's own: a bowl and a plate on an empty table, as no suite has it."""

from __future__ import annotations

from pathlib import Path

DEFINITION = """(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language Put the bowl on the plate)
  (:regions
    (left (:target main_table) (:ranges ((-0.06 -0.2 -0.04 -0.18))))
    (right (:target main_table) (:ranges ((-0.06 0.18 -0.04 0.2)))))
  (:fixtures main_table - table)
  (:objects akita_black_bowl_1 - akita_black_bowl plate_1 - plate)
  (:obj_of_interest akita_black_bowl_1 plate_1)
  (:init (On akita_black_bowl_1 main_table_left) (On plate_1 main_table_right))
  (:goal (And (On akita_black_bowl_1 plate_1))))
"""


def write_task(folder: Path, name: str = "bowl_on_plate", definition: str = DEFINITION) -> Path:
    """The file of the task, in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.bddl"
    path.write_text(definition)
    return path

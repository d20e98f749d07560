"""What robosuite groups a scene's geoms by, for segmentations: the thing that they are part of, and its class."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from libero_gym.common import cache
from libero_gym.compilation.records import task_key
from libero_gym.stock import stock_env
from libero_gym.tasks import Task


class GeomGroups(NamedTuple):
    """Groups of geoms in `compile.visual_model`.

    Attributes:
        names: Of the groups, in robosuite's order.
        of_geom: By a geom's id, the index of its group; geoms of none are left out.
    """

    names: tuple[str, ...]
    of_geom: dict[int, int]


def geom_groups(task: Task, kind: str) -> GeomGroups:
    """The groups of a task's geoms, from the cache, or from a stock environment, which takes seconds.

    Args:
        task: The task.
        kind: "instance" or "class".
    """
    key = f"{task_key(task)}-geom-groups"
    blob = cache.read(key)
    if blob is None:
        blob = json.dumps(_read(task)).encode()
        cache.write(key, blob)
    names, pairs = json.loads(blob)[kind]
    return GeomGroups(tuple(names), {geom: names.index(name) for geom, name in pairs})


def _read(task: Task) -> dict[str, Any]:
    with stock_env(task.bddl_file) as env:
        model = env.env.model
        return {
            "instance": (list(model.instances_to_ids), _pairs(model.geom_ids_to_instances)),
            "class": (list(model.classes_to_ids), _pairs(model.geom_ids_to_classes)),
        }


def _pairs(groups: dict[Any, str]) -> list[tuple[int, str]]:
    return [(int(geom), name) for geom, name in groups.items()]

"""What renderers draw: the model with all meshes and textures, or a scene packed for drawing without OpenGL."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from libero_gym.common import cache
from libero_gym.common.recent import kept
from libero_gym.compilation import records
from libero_gym.compilation.compile import (
    MAX_SCENES,
    cached_scene,
    load_visual_model,
    prepare_visual_model,
    visual_model,
)
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import Task

# The rasteriser is imported where it is needed: its kernels take 25 ms, which exact frames need not wait for.
if TYPE_CHECKING:
    from libero_gym.rendering.packing import PackedScene

# Raise it when packed scenes change, for they are cached.
VERSION = 3
# Textures are packed without levels of more texels on a side. Frames of up to 512 pixels are the same to the byte as
# with all levels; with 1024 those of the wrist's camera, which comes near, are not from 224 pixels on.
MAX_TEXTURE_SIDE = 2048

# Packed scenes that a process keeps: those mapped from files, whose memory is shared and the system's to take, and, at
# most `MAX_SCENES`, its own.
MAX_MAPPED = 64
_mapped: OrderedDict[str, PackedScene] = OrderedDict()
_own: OrderedDict[str, PackedScene] = OrderedDict()


def packed_scene(compiled: CompiledTask) -> PackedScene:
    """The scene packed for drawing without OpenGL, mapped from the cache, so that processes share its memory.

    Packing takes some 10 s once per scene.

    Raises:
        NotDrawnError: If the scene has something that is not drawn.
    """
    from libero_gym.rendering import first_frame

    key = compiled.visual_key
    for scenes in (_mapped, _own):
        if key in scenes:
            scenes.move_to_end(key)
            return scenes[key]
    first_frame.compile_kernels()  # here and not at the first frame, so that a template's forks have it done
    blob = cache.map_entry(_packed_key(key))
    if blob is None:
        made = _pack(compiled)
        blob = cache.map_entry(_packed_key(key))
        if blob is None:  # it could not be written
            return kept(_own, key, lambda: from_bytes(np.frombuffer(made, np.uint8)), MAX_SCENES)
    return kept(_mapped, key, lambda: from_bytes(blob.view(np.ndarray)), MAX_MAPPED)


def prepare(compiled: CompiledTask, renderer: str) -> None:
    """Write what a renderer draws to the cache on disk if it is not there, and keep nothing in memory."""
    if renderer == "exact":
        prepare_visual_model(compiled)
    elif not cache.contains(_packed_key(compiled.visual_key)):
        _pack(compiled)


def load(compiled: CompiledTask, renderer: str) -> None:
    """Keep what a renderer draws in this process's memory, and in that of its forks."""
    if renderer == "exact":
        visual_model(compiled)
    else:
        packed_scene(compiled)


def is_prepared(task: Task, renderer: str | None) -> bool:
    """Whether the cache has a task, and what the renderer draws if one is named."""
    if renderer is None:
        return cache.contains(records.task_key(task))
    scene = cached_scene(task)
    return scene is not None and cache.contains(
        records.visual_key(scene) if renderer == "exact" else _packed_key(scene)
    )


def _packed_key(scene: str) -> str:
    return f"{scene}-packed{VERSION}"


def _pack(compiled: CompiledTask) -> bytes:
    from libero_gym.rendering.packing import pack_scene

    blob = to_bytes(pack_scene(load_visual_model(compiled), MAX_TEXTURE_SIDE))
    cache.write(_packed_key(compiled.visual_key), blob)
    return blob


def to_bytes(packed: PackedScene) -> bytes:
    """A packed scene in safetensors' format, which can be mapped."""
    from safetensors.numpy import save

    arrays = {f"geometry.{name}": array for name, array in packed.geometry._asdict().items()}
    arrays |= {name: array for name, array in packed._asdict().items() if name != "geometry"}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


_TYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U32": np.uint32, "BOOL": np.bool_}


def from_bytes(blob: np.ndarray) -> PackedScene:
    """The packed scene of `to_bytes`, whose arrays are parts of the given one, uint8 (n,), not copies.

    (`safetensors.numpy.load` copies.)
    """
    from libero_gym.rendering.packing import Geometry, PackedScene

    start = 8 + int.from_bytes(blob[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(blob[8:start].tobytes())
    arrays = {
        name: blob[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        .view(_TYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
    }
    geometry = Geometry(**{name: arrays.pop(f"geometry.{name}") for name in Geometry._fields})
    return PackedScene(geometry=geometry, **arrays)

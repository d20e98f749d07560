"""Textures with their mip levels, as llvmpipe makes them, packed into one array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering.triangles import NotDrawnError


class Textures(NamedTuple):
    """All textures of a scene.

    Attributes:
        texels: uint32 (n,), red | green << 8 | blue << 16, level after level, row by row from the bottom as MuJoCo's.
        levels: int64 (n_levels, 3): where a level starts in `texels`, its width and height. A cube's six faces follow
            each other within a level.
        table: int32 (n_textures, 4): first level, number of levels, number of faces (1 or 6), MuJoCo's type.
    """

    texels: np.ndarray
    levels: np.ndarray
    table: np.ndarray


def pack_textures(model: mujoco.MjModel, used: set[int], max_side: int | None = None) -> Textures:
    """The textures with these indices, each with all its mip levels.

    Args:
        model: The model that holds them.
        used: Indices of those that are needed.
        max_side: Leave out levels with more texels on a side; a camera that never sees one closely does not need them.
    """
    texels: list[np.ndarray] = []
    levels: list[tuple[int, int, int]] = []
    table = np.zeros((max(model.ntex, 1), 4), np.int32)
    offset = 0
    for index in sorted(used):
        chain = _mip_chain(_faces(model, index))
        if max_side is not None:
            kept = [level for level in chain if max(level[0].shape[:2]) <= max_side]
            chain = kept or chain[-1:]
        table[index] = len(levels), len(chain), len(chain[0]), model.tex_type[index]
        for level in chain:
            height, width = level[0].shape[:2]
            levels.append((offset, width, height))
            for face in level:
                wide = face.astype(np.uint32)
                texels.append((wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16).reshape(-1))
                offset += texels[-1].size
    packed = np.concatenate(texels) if texels else np.zeros(1, np.uint32)
    return Textures(packed, np.array(levels or [(0, 1, 1)], np.int64), table)


def _faces(model: mujoco.MjModel, index: int) -> list[np.ndarray]:
    """The images of a texture, uint8 (height, width, 3): one, or a cube's six."""
    width, height, channels = (int(x[index]) for x in (model.tex_width, model.tex_height, model.tex_nchannel))
    if channels != 3:
        name = model.texture(index).name
        raise NotDrawnError(
            f"Texture {name!r} has {channels} channels; renderer='fast' draws those of 3. Use renderer='exact'."
        )
    start = model.tex_adr[index]
    data = model.tex_data[start : start + width * height * channels].reshape(height, width, channels)
    is_single = model.tex_type[index] == mujoco.mjtTexture.mjTEXTURE_2D or width == height
    return [data] if is_single else [data[face * width : (face + 1) * width] for face in range(6)]


def _mip_chain(faces: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Level by level, the faces at half the size of the one before, down to one texel."""
    chain = [faces]
    while max(chain[-1][0].shape[:2]) > 1:
        chain.append([_halved(face) for face in chain[-1]])
    return chain


def _halved(image: np.ndarray) -> np.ndarray:
    """An image of half the size, equal to the byte to what llvmpipe's glGenerateMipmap gives.

    Even sizes are averaged across, then down, each rounded up at one half; odd ones are sampled bilinearly.
    """
    if image.shape[0] % 2 == 0 and image.shape[1] % 2 == 0:
        wide = image.astype(np.uint16)
        across = (wide[:, 0::2] + wide[:, 1::2] + 1) >> 1
        return ((across[0::2] + across[1::2] + 1) >> 1).astype(np.uint8)
    y0, y1, fy = _half_positions(image.shape[0])
    x0, x1, fx = _half_positions(image.shape[1])
    rows = image[y0].astype(np.float32)
    rows += (image[y1].astype(np.float32) - rows) * fy[:, None, None]
    result = rows[:, x0]
    result = result + (rows[:, x1] - result) * fx[None, :, None]
    return (result + 0.5).astype(np.uint8)


def _half_positions(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each texel of the halved axis: its two neighbours in the full one, and how near it is to the second."""
    half = max(1, n // 2)
    positions = (np.arange(half) + 0.5) * n / half - 0.5
    first = np.floor(positions).astype(int)
    return np.clip(first, 0, n - 1), np.clip(first + 1, 0, n - 1), (positions - first).astype(np.float32)

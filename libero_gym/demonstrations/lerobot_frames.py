"""Frames of a LeRobot dataset, decoded from its videos or from images in its data files."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from libero_gym.common import videos
from libero_gym.demonstrations.episodes import MAX_PIXEL_BYTES, DamagedEpisodeError
from libero_gym.demonstrations.lerobot_fields import Feature

# The errors that Pillow raises for bytes that are no whole image.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def from_video(path: Path, feature: Feature, n_frames: int, start_s: float, fps: float) -> np.ndarray:
    """Decode an episode's frames from a video, uint8 (n_frames, H, W, 3).

    Raises:
        DamagedEpisodeError: If the video is damaged, missing or too short.
    """
    _check_size(feature, n_frames)
    try:
        return videos.decode(path, feature.shape, n_frames, start_s, fps)
    except RuntimeError as error:
        raise DamagedEpisodeError(f"{path} is damaged or missing ({error}).") from error


def from_cells(cells: list[Any], feature: Feature, path: Path) -> np.ndarray:
    """Decode an episode's frames from a data file's cells ``{"bytes": png, "path": None}``, uint8 (T, H, W, 3).

    Args:
        cells: The cells, one per frame.
        feature: The camera.
        path: The data file, for messages.

    Raises:
        DamagedEpisodeError: If a cell is no image, or an image of another size.
    """
    _check_size(feature, len(cells))
    frames = np.empty((len(cells), *feature.shape), np.uint8)
    for index, cell in enumerate(cells):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise DamagedEpisodeError(f"{path} holds no image bytes for frame {index} of {feature.name!r}.")
        try:
            frames[index] = _decode(content, feature.shape)
        except _DAMAGE as error:
            raise DamagedEpisodeError(f"{path} is damaged at frame {index} of {feature.name!r} ({error}).") from error
    return frames


def _decode(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if (image.height, image.width) != shape[:2]:  # known before a pixel is decoded
            raise ValueError(f"it has {image.width}x{image.height} pixels; expected {shape[1]}x{shape[0]}")
        return np.asarray(image.convert("RGB"))


def _check_size(feature: Feature, n_frames: int) -> None:
    size = n_frames * int(np.prod(feature.shape))
    if size > MAX_PIXEL_BYTES:
        raise DamagedEpisodeError(
            f"{n_frames} frames of {feature.shape} are {size / 2**30:.0f} GiB; at most "
            f"{MAX_PIXEL_BYTES / 2**30:.0f} are read."
        )

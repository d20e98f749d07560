"""Frames to H.264 and back, with the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

# Every second frame is a key frame, so that single frames are read quickly.
_KEY_FRAME_EVERY = 2
DEFAULT_CRF = 18
MAX_CRF = 51


def encode(frames: np.ndarray, fps: int, crf: int = DEFAULT_CRF) -> bytes:
    """An MP4 of frames.

    Args:
        frames: uint8 (T, H, W, 3); H and W must be even, for H.264 halves the colours' resolution.
        fps: Frames per second.
        crf: x264's constant rate factor; lower is better and larger.

    Returns:
        The file's bytes, the same for the same frames: one thread, no date.

    Raises:
        ValueError: If the size is odd.
        RuntimeError: If ffmpeg fails; the message holds what it said.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"Frames of {width}x{height} cannot become H.264; choose an even image_size.")
    with tempfile.TemporaryDirectory(prefix="libero-gym-") as folder:
        path = Path(folder) / "video.mp4"  # MP4 needs a file that can be sought
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-g", str(_KEY_FRAME_EVERY), "-bf", "0"]
        target = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", "-y"]
        _ffmpeg([*source, *codec, *target, str(path)], np.ascontiguousarray(frames).tobytes())
        return path.read_bytes()


def decode(path: Path, shape: tuple[int, int, int], n_frames: int, start_s: float, fps: float) -> np.ndarray:
    """Frames of a part of a video.

    Args:
        path: The video.
        shape: Its frames' (H, W, 3).
        n_frames: How many frames to read.
        start_s: Timestamp of the first, in s.
        fps: Frames per second.

    Returns:
        uint8 (n_frames, H, W, 3).

    Raises:
        RuntimeError: If the video cannot be read, is damaged in that part, or holds fewer frames or other sizes.
    """
    # Seeking discards frames before the time asked for; half a frame earlier is safe from rounding.
    seek = ["-ss", f"{max(0.0, start_s - 0.5 / fps):.6f}"]
    strict = ["-xerror", "-err_detect", "explode"]
    expected = n_frames * int(np.prod(shape))
    target = ["-frames:v", str(n_frames), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    target += ["-fs", str(expected + 1)]  # a video of larger frames than stated does not fill the memory
    raw = _ffmpeg([*strict, *seek, "-i", str(path), "-map", "0:v:0", *target, "-"])
    if len(raw) != expected:
        raise RuntimeError(f"it holds {len(raw)} bytes of pixels where {n_frames} frames of {shape} are {expected}")
    return np.frombuffer(raw, np.uint8).reshape(n_frames, *shape)


def info(shape: tuple[int, ...], fps: int) -> dict[str, Any]:
    """How LeRobot describes a video of `encode` in ``meta/info.json``."""
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def _ffmpeg(arguments: list[str], data: bytes | None = None) -> bytes:
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-nostdin", "-v", "error", *arguments]
    if data is not None:
        command.remove("-nostdin")
    result = subprocess.run(
        command, input=data, stdin=subprocess.DEVNULL if data is None else None, capture_output=True
    )
    if result.returncode != 0:
        lines = re.sub(r"\[[^]]* @ 0x[0-9a-f]+\] ", "", result.stderr.decode(errors="replace")).strip().splitlines()
        raise RuntimeError("; ".join(lines)[-500:] or f"ffmpeg ended {result.returncode}")
    return result.stdout

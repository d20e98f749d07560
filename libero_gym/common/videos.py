"""Frames to H.264 and back, by the ffmpeg program of imageio-ffmpeg."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from libero_gym.common.atomic import write_bytes

DATASET_CRF, FILM_CRF, MAX_CRF = 18, 23, 51
# LeRobot's choice for datasets: every second frame is a key frame, so that single frames are read quickly.
_DATASET_KEY_FRAMES = 2
_CONTAINERS = "mov,matroska"  # MP4 is the former's
_FILM_KEY_FRAMES = 250  # x264's default


def encode(frames: np.ndarray, fps: float, crf: int = DATASET_CRF, key_frame_every: int = _DATASET_KEY_FRAMES) -> bytes:
    """Encode frames as an MP4.

    Args:
        frames: uint8 (T, H, W, 3); H and W must be even, because H.264 halves the colours' resolution.
        fps: Frames per second.
        crf: x264's constant rate factor; a lower one gives a better and larger video.
        key_frame_every: Number of frames from one key frame to the next.

    Returns:
        The file's bytes. The same frames give the same bytes: ffmpeg runs one thread and writes no date.

    Raises:
        ValueError: If the size is odd.
        RuntimeError: If ffmpeg fails; the message holds what it said.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"Frames of {width}x{height} cannot become H.264; choose an even image_size.")
    with tempfile.TemporaryDirectory(prefix="libero-gym-") as folder:
        path = Path(folder) / "video.mp4"  # ffmpeg seeks in an MP4 that it writes
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-g", str(key_frame_every), "-bf", "0"]
        target = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", "-y"]
        _ffmpeg([*source, *codec, *target, str(path)], np.ascontiguousarray(frames).tobytes())
        return path.read_bytes()


def write_film(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames as an MP4 for people to watch; the file is there as a whole or not at all.

    Args:
        path: The file.
        frames: uint8 (T, H, W, 3) with even H and W.
        fps: Frames per second.

    Raises:
        ValueError: If the size is odd.
        OSError: If the file cannot be written.
        RuntimeError: If ffmpeg fails.
    """
    write_bytes(path, encode(frames, fps, FILM_CRF, _FILM_KEY_FRAMES))


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
    # A file that somebody sent may hold a playlist, whose addresses would be fetched.
    strict = ["-xerror", "-err_detect", "explode", "-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS]
    expected = n_frames * int(np.prod(shape))
    target = ["-frames:v", str(n_frames), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    target += ["-fs", str(expected + 1)]  # a video of larger frames than stated does not fill the memory
    raw = _ffmpeg([*strict, *seek, "-i", f"file:{path}", "-map", "0:v:0", *target, "-"])
    if len(raw) != expected:
        raise RuntimeError(f"it holds {len(raw)} bytes of pixels where {n_frames} frames of {shape} are {expected}")
    return np.frombuffer(raw, np.uint8).reshape(n_frames, *shape)


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

"""Films show every frame at its time, and appear as a whole."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from libero_gym.common.videos import decode, encode, write_film


def frames(n: int, height: int, width: int) -> np.ndarray:
    """Frames of one grey level each, 20 levels apart."""
    return np.stack([np.full((height, width, 3), 20 * i, np.uint8) for i in range(n)])


@pytest.mark.parametrize("fps", [20, 2.5])
def test_a_film_has_the_frames_the_size_and_the_rate_that_it_was_given(tmp_path: Path, fps: float) -> None:
    video = frames(6, 50, 34)  # sides that are no multiples of H.264's blocks of 16
    write_film(tmp_path / "new" / "film.mp4", video, fps)
    shown = iio.imread(tmp_path / "new" / "film.mp4")
    assert shown.shape == video.shape
    assert np.abs(shown.astype(int) - video).max() <= 3
    assert iio.immeta(tmp_path / "new" / "film.mp4")["fps"] == fps
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_a_film_of_odd_size_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"Frames of 33x50 cannot become H\.264"):
        write_film(path, frames(2, 50, 33), 20)
    assert path.read_bytes() == b"old"


def test_a_playlist_in_a_videos_place_is_not_followed(tmp_path: Path) -> None:
    write_film(tmp_path / "secret.mp4", np.zeros((4, 32, 32, 3), np.uint8), 20)
    (tmp_path / "file.mp4").write_text("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "other.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("file.mp4", "other.mp4"):
        with pytest.raises(RuntimeError, match=r"whitelist|Invalid data"):
            decode(tmp_path / name, (32, 32, 3), 4, 0.0, 20)


def test_a_part_of_a_video_is_read_from_its_time_on(tmp_path: Path) -> None:
    video = frames(9, 32, 32)
    (tmp_path / "video.mp4").write_bytes(encode(video, 20))
    part = decode(tmp_path / "video.mp4", (32, 32, 3), n_frames=3, start_s=4 / 20, fps=20)
    assert part[:, 0, 0, 0].round(-1).tolist() == [80, 100, 120]

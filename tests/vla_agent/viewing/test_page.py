"""The page of an episode: what it holds is the episode, it needs nothing else, and no name in it becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.common.videos import decode
from vla_agent.viewing import page as pages
from vla_agent.viewing.page import HEIGHT, WIDTH, episode_page, plot

N, SIDE = 6, 32
FRAMES = {
    name: np.repeat(np.arange(first, first + 20 * N, 20, dtype=np.uint8), SIDE * SIDE * 3).reshape(N, SIDE, SIDE, 3)
    for name, first in (("image", 20), ("wrist_image", 120))
}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
LINES = {"x": np.array([0, 1, 2, 3, 4, np.nan]), EVIL: np.zeros(N)}
WHOLE: dict[str, Any] = {"title": EVIL, "success": True, "fps": 20, "frames": FRAMES, "plots": {EVIL: LINES}}


def made(**changes: Any) -> str:
    return episode_page(**{**WHOLE, "facts": {EVIL: EVIL}, **changes})


def test_a_page_holds_the_film_and_the_values(tmp_path: Path) -> None:
    text = made()
    film = base64.b64decode(re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)[0])
    (tmp_path / "film.mp4").write_bytes(film)
    frames = decode(tmp_path / "film.mp4", (SIDE, 2 * SIDE, 3), N, 0.0, 20)
    side_by_side = np.concatenate(list(FRAMES.values()), axis=2).astype(int)
    assert np.abs(frames - side_by_side).max() <= 4, "both cameras, side by side"
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0])
    assert data == {"fps": 20, "n": N, "values": {EVIL: {"x": [0, 1, 2, 3, 4, None], EVIL: [0] * N}}}
    assert made() == text


def test_nothing_that_is_shown_becomes_markup_and_nothing_is_fetched() -> None:
    text = made()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert not re.search(r"https?:", text)
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0]
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; media-src data:; script-src 'sha256-{digest}'")


def test_a_line_goes_from_edge_to_edge_and_is_cut_where_there_is_no_value() -> None:
    shown = plot("p", {"up": np.array([1.0, np.nan, 3.0, 5.0]), "none": np.full(4, np.nan)})
    third, bottom, top = WIDTH / 3, HEIGHT - 5, 5
    assert shown.lines[0].pieces == [f"0.0,{bottom:.1f}", f"{2 * third:.1f},{HEIGHT / 2:.1f} {WIDTH:.1f},{top:.1f}"]
    assert (shown.lines[1].pieces, shown.low, shown.high) == ([], "1", "5")
    assert plot("level", {"a": np.full(2, 7.0)}).lines[0].pieces == [f"0.0,{HEIGHT / 2} {WIDTH:.1f},{HEIGHT / 2}"]


def test_what_fits_no_page_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="A line of a plot has another length than the 6 frames"):
        made(plots={"p": {"a": np.zeros(5)}})
    monkeypatch.setattr(pages, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"The page would have .* MB, .* take fewer cameras or a smaller image_size"):
        made()


def test_cameras_of_different_sizes_stand_side_by_side(tmp_path: Path) -> None:
    small = {"small": np.full((N, 16, 24, 3), 200, np.uint8)}
    text = made(frames=FRAMES | small)
    (tmp_path / "film.mp4").write_bytes(base64.b64decode(re.findall(r'base64,([^"]+)"', text)[0]))
    frames = decode(tmp_path / "film.mp4", (SIDE, 2 * SIDE + 24, 3), N, 0.0, 20)
    assert frames[:, 2:14, 2 * SIDE + 2 : -2].min() > 190
    assert frames[:, 18:, 2 * SIDE + 2 :].max() < 10
    assert re.findall(r"flex-grow: (\d+)", text) == ["32", "32", "24"]


def test_frames_of_odd_sides_get_a_black_edge(tmp_path: Path) -> None:
    text = made(frames={"odd": np.full((N, 31, 33, 3), 200, np.uint8)})
    (tmp_path / "film.mp4").write_bytes(base64.b64decode(re.findall(r'base64,([^"]+)"', text)[0]))
    frames = decode(tmp_path / "film.mp4", (32, 34, 3), N, 0.0, 20)
    assert frames[:, :31, :33].mean() > 190
    assert max(frames[:, 31].mean(), frames[:, :, 33].mean()) < 40

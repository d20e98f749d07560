"""Figures appear as a whole, with the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import pytest

from vla_agent.figures import new_figure, save_figure


@pytest.mark.parametrize("layout", ["constrained", "tight"])
def test_a_figure_has_the_size_that_was_asked_for_and_shows_what_was_drawn(tmp_path: Path, layout: str) -> None:
    figure = new_figure(3, 2, layout=layout)
    figure.subplots().imshow([[0.0, 1.0]], cmap="gray")
    save_figure(figure, tmp_path / "new" / "figure.png", dpi=50)
    image = iio.imread(tmp_path / "new" / "figure.png")[..., :3]
    assert image.shape == (100, 150, 3)
    assert image.min() == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="must be positive"):
        save_figure(new_figure(1, 1), path, dpi=-1)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

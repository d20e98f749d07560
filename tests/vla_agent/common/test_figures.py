"""Pictures are written whole, in the format of their suffix."""

from pathlib import Path

import pytest

from vla_agent.common.figures import new_figure, save_figure


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_suffix_chooses_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    figure, axes = new_figure(3, 2, rows=2)
    assert axes.shape == (2, 1)
    save_figure(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("before")
    figure, axes = new_figure(3, 2)
    axes[0, 0].set_title("$unfinished_{$")
    with pytest.raises(ValueError, match="unfinished"):
        save_figure(figure, tmp_path / "a.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]

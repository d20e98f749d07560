"""Pictures are written whole, in the format of their suffix."""

from pathlib import Path

import pytest

from vla_agent.common.figures import new_figure, picture_path, save_figure


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_suffix_chooses_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    figure, axes = new_figure(3, 2, rows=2)
    assert axes.shape == (2, 1)
    save_figure(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_without_a_suffix_is_a_png_and_other_files_are_none(tmp_path: Path) -> None:
    figure, _ = new_figure(3, 2)
    save_figure(figure, tmp_path / "a")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert picture_path(tmp_path / "no" / "folder" / "b.PDF") == tmp_path / "no" / "folder" / "b.PDF"
    with pytest.raises(ValueError, match=r"v1\.2' ends in '\.2'; expected a picture's name: \.png, \.pdf"):
        save_figure(figure, tmp_path / "v1.2")
    with pytest.raises(ValueError, match=r"lies below '.*a\.png', which is a file"):
        picture_path(tmp_path / "a.png" / "b" / "c.png")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(ValueError, match=r"d\.png' is a folder; give the name of a picture in it"):
        picture_path(tmp_path / "d")
    with pytest.raises(ValueError, match="is a folder; give the name of a picture in it"):
        picture_path(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "d.png"]


def test_a_picture_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("before")
    figure, axes = new_figure(3, 2)
    axes[0, 0].set_title("$unfinished_{$")
    with pytest.raises(ValueError, match="unfinished"):
        save_figure(figure, tmp_path / "a.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]

"""The sweep behind `benchmarks/frame_fidelity.py` measures what it says, and goes on after it was killed."""

from __future__ import annotations

from pathlib import Path

import frame_fidelity
import numpy as np
import pytest


def test_figures_of_two_pixels_of_four() -> None:
    """One of four pixels is off by 1 in one channel, one by 20 in all: squared errors 1 + 3 * 400 over 12 values."""
    exact = np.full((2, 2, 3), 100, np.uint8)
    fast = exact.copy()
    fast[0, 0, 1] += 1
    fast[1, 1] += 20
    assert frame_fidelity.figures(exact, fast) == {
        "psnr": pytest.approx(10 * np.log10(255**2 / (1201 / 12)), abs=0.005),
        "within_1": 0.75,
        "far": 0.25,
    }
    assert frame_fidelity.figures(exact, exact)["psnr"] == 99
    assert frame_fidelity.side_by_side(exact, fast)[0, 4:, 1].tolist() == [8, 0]


def test_a_sweep_skips_what_is_there_and_a_line_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "frames.jsonl"
    tasks = list(frame_fidelity.get_tasks("libero_spatial")[:3])
    frame_fidelity.append(rows, {"task": "libero_spatial 0", "step": 40})
    with rows.open("a") as stream:
        stream.write('{"task": "libero_spa')
    measured = []

    def measure(task: object, steps: list[int], folder: Path, keep_below: float) -> list[dict[str, object]]:
        name = frame_fidelity.name_of(task)  # type: ignore[arg-type]
        if name.endswith("2"):
            raise NotImplementedError("no such thing")
        measured.append((name, steps))
        return [{"task": name, "step": step} for step in steps]

    monkeypatch.setattr(frame_fidelity, "measure", measure)
    frame_fidelity.sweep(tasks, (40, 90, 0), rows, 50)
    assert measured == [("libero_spatial 1", [40]), ("libero_spatial 0", [0, 90]), ("libero_spatial 1", [0, 90])]
    found = frame_fidelity.read(rows)
    assert [row["task"] for row in found][:2] == ["libero_spatial 0", "libero_spatial 1"]
    assert found[-1]["error"] == "NotImplementedError: no such thing"

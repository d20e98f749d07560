"""The table of methods reads what the other benchmarks leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import best_of_n
import forty_tasks
import methods
import offline
import pytest
from gains import rate

BEFORE = {(0, state): state < 2 for state in range(10)}
AFTER = {(0, state): state < 7 for state in range(10)}
POINTS = {"points": 50.0, "bootstrap_95": [20.0, 80.0]}


def forty(**cells: dict[str, Any]) -> dict[str, Any]:
    """Two seeds of a group on Spatial."""
    side = {"seeds": [0, 1], "before": rate(BEFORE), "after": rate(AFTER), "gain": POINTS}
    group = {decoding: {"best": {"spatial": side}} for decoding in methods.DECODINGS}
    rows = {f"few-grpo/spatial/{seed}": {"seconds": {"train": 600.0}, "decisions": 7000 + seed} for seed in (0, 1)}
    return {"groups": {"few-grpo": group}, "cells": {name: {**row, **cells} for name, row in rows.items()}}


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_rows_say_before_after_and_what_it_took(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no results from tiny-libero-few; run forty_tasks.py, offline.py or"):
        methods.all_rows(tmp_path)
    write(tmp_path, "forty_tasks", forty(memory_mb={"train": 1400.0}))
    side = {"after": rate(AFTER), "gain": POINTS}
    table = {decoding: {"start": rate(BEFORE), "awr": side} for decoding in methods.DECODINGS}
    episodes = {"successes_and_episodes": {"0": [3, 30], "1": [9, 30]}, "seconds": {"record": 60.0}}
    trained = {"seconds": {"train": 300.0}, "memory_mb": {"train": 2000.0}}
    write(tmp_path, "offline", {"table": table, "episodes": episodes, "cells": {"awr/0": trained, "awr/2": trained}})
    greedy = {"scorer": "policy", "n": 1, "successes": 2, "n_episodes": 10, "ms_per_decision": 10.0}
    chosen = {"scorer": "success-oracle", "n": 8, "successes": 7, "n_episodes": 10, "ms_per_decision": 25.0, **POINTS}
    of_other_numbers = {**chosen, "n": 4}
    for row in (greedy, chosen):
        row["wilson_95"] = [0.1, 0.9]
    write(tmp_path, "best_of_n", {"rows": [greedy, of_other_numbers, chosen]})
    told = methods.markdown(methods.all_rows(tmp_path)).splitlines()
    assert len(told) == 5, "heads, their line, and a row of each"
    assert "| GRPO | 0, 1 | 20.0 %, 70.0 % (39.7 to 89.2) | +50.0 (+20.0 to +80.0) |" in told[2]
    assert "| 7,000 to 7,001 decisions | 10 | 1.4 | `python benchmarks/forty_tasks.py run --cells 'few-gr" in told[2]
    assert "| 60 recorded episodes | 6 | 2.0 | `python benchmarks/offline.py run --cells 'awr/*'` |" in told[3]
    assert "| best of 8, success oracle |  | 20.0 %, 70.0 % (10.0 to 90.0) | +50.0 (+20.0 to +80.0) |  |  |" in told[4]
    assert "| 2.5 times a greedy decision |" in told[4]


def test_cells_of_which_nobody_measured_memory_have_none(tmp_path: Path) -> None:
    write(tmp_path, "forty_tasks", forty())
    (row,) = methods.all_rows(tmp_path)
    assert row.memory_mb is None


def test_every_method_is_one_of_another_benchmark() -> None:
    groups = {name for name, group in forty_tasks.GROUPS.items() if group.start == methods.START}
    assert set(methods.TRAINED) == groups
    assert list(methods.OFFLINE) == list(offline.METHODS)
    assert methods.N in best_of_n.NUMBERS

"""Files of metrics: each run writes its own, and whoever reads them finds all."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vla_agent.commands.progress import make_logger
from vla_agent.process_reward.hacking import check_hacking


def write_rows(folder: Path, first: int, timesteps: range) -> None:
    logger = make_logger(folder, first)
    for number in timesteps:
        logger.record("time/total_timesteps", number)
        logger.record("rollout/reward_score", number / 100)
        logger.record("rollout/success_rate", 0.5)
        logger.dump(number)
    logger.close()


def test_a_run_that_goes_on_twice_from_one_save_keeps_the_rows_of_both(tmp_path: Path) -> None:
    for first, timesteps in ((0, range(4)), (4, range(4, 8)), (4, range(8, 12)), (4, range(12, 16))):
        make_logger(tmp_path, first).close()  # of a run that ended before its first row: its file is taken
        write_rows(tmp_path, first, timesteps)
    found = {path.name: list(csv.DictReader(path.open())) for path in tmp_path.glob("progress*.csv")}
    kept = {name: [int(row["time/total_timesteps"]) for row in rows] for name, rows in found.items()}
    assert kept == {
        "progress.csv": [0, 1, 2, 3],
        "progress_from_4.csv": [4, 5, 6, 7],
        "progress_from_4_2.csv": [8, 9, 10, 11],
        "progress_from_4_3.csv": [12, 13, 14, 15],
    }
    assert check_hacking(tmp_path).score == pytest.approx((0.015, 0.135))  # the first four rows, and the last

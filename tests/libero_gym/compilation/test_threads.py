"""Environments made in threads are those that one thread makes."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.stock import quiet, stock_env
from libero_gym.tasks import get_tasks


def test_tasks_compiled_in_two_threads_are_those_of_one() -> None:
    """Stock LIBERO draws from the process's generators, and is kept quiet by another ``sys.stdout``."""
    expected = [compile_task(get_tasks("libero_goal")[task_id]).fixtures for task_id in (0, 3)]
    stdout, random_state = sys.stdout, np.random.get_state()[1]  # noqa: NPY002 - LIBERO uses it
    start = threading.Barrier(2)

    def fixture_positions(task_id: int, body_ids: np.ndarray) -> np.ndarray:
        start.wait()
        with stock_env(get_tasks("libero_goal")[task_id].bddl_file) as env:
            return np.array(env.env.sim.model.body_pos[body_ids])

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(fixture_positions, (0, 3), [draw.body_ids for draw in expected]))
    assert sys.stdout is stdout
    np.testing.assert_array_equal(np.random.get_state()[1], random_state)  # noqa: NPY002
    for positions, draw in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(positions, draw.pos)


def test_what_other_threads_print_meanwhile_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        with quiet():
            kept = sys.stdout
            print("of the stock code", flush=True)
            pool.submit(print, "of another thread", flush=True).result()
        print("afterwards", file=kept)
    assert capsys.readouterr().out == "of another thread\nafterwards\n"

"""Initial states as LIBERO published them, for those who ``torch.load`` them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch as th

from libero_gym.benchmark import root
from libero_gym.stock_api import init_files


def test_torch_reads_the_states_and_the_benchmark_reads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "init_files"
    (source / "a_suite").mkdir(parents=True)
    path = next((root() / "init_files" / "libero_spatial").glob("*.pruned_init.npz"))
    (source / "a_suite" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path / "cache"))
    init_files.init_states_folder.cache_clear()
    folder = init_files.init_states_folder(str(source))
    expected = np.load(path)["states"]
    loaded = th.load(folder / "a_suite" / path.name.removesuffix(".npz"), weights_only=False)
    np.testing.assert_array_equal(loaded, expected)
    np.testing.assert_array_equal(np.load(folder / "a_suite" / path.name)["states"], expected)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]
    init_files.init_states_folder.cache_clear()


def test_where_no_folder_can_be_written_the_benchmarks_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path / "file" / "cache"))
    init_files.init_states_folder.cache_clear()
    assert init_files.init_states_folder(str(tmp_path)) == tmp_path
    init_files.init_states_folder.cache_clear()


def test_a_folder_without_states_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path / "cache"))
    init_files.init_states_folder.cache_clear()
    assert init_files.init_states_folder(str(tmp_path)) == tmp_path
    assert list((tmp_path / "cache").iterdir()) == []
    init_files.init_states_folder.cache_clear()


def test_torchs_container_is_torchs() -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(th.load(io.BytesIO(init_files.torch_file(array)), weights_only=False), array)

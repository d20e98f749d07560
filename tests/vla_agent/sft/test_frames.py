"""Frames in a file: the batches of arrays in memory, without the memory; a cache that may vanish at any time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import pickle
import re
import resource
import shutil
import signal
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from cloning import SIZE, demonstrations, episode, small_model

from libero_gym.demonstrations.episodes import Episode
from vla_agent.augmentation import Augmentation
from vla_agent.openvla.image import libero_image
from vla_agent.sft.data import ActionChunks, Examples, moving_frames
from vla_agent.sft.frames import FRAMES_FILE, TABLE_FILE, writing_frames
from vla_agent.sft.trainer import SupervisedTrainer


def noisy(seed: int, n_frames: int = 20, size: int = SIZE, cameras: tuple[str, ...] = ("image",)) -> Episode:
    """An episode in which the hand creeps and no two frames are alike."""
    generator = np.random.default_rng(seed)
    images = {key: generator.integers(0, 256, (n_frames, size, size, 3), np.uint8) for key in cameras}
    made = episode(f"push {seed}", 0.02 * seed, n_frames)
    made.state[:, :3] = 0.004 * np.arange(n_frames)[:, None]  # so slow that it seems to wait before it closes the hand
    return dataclasses.replace(made, images=images)


def read(episodes: Any, **arguments: Any) -> ActionChunks:
    return ActionChunks(episodes, **{"image_size": SIZE, "chunk_size": 2} | arguments)


def same(first: Examples, second: Examples) -> bool:
    assert first.instructions == second.instructions
    pairs = zip([*first.images, *first[1:]], [*second.images, *second[1:]], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs if isinstance(a, np.ndarray))


class InMemory:
    """Frames as arrays that are joined: what a batch must not differ from."""

    def __init__(self, episodes: list[Episode]) -> None:
        self.frames = np.concatenate([each.images["image"] for each in episodes])

    def __getitem__(self, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        return (self.frames[frames],)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", [SIZE, 2 * SIZE])
def test_a_batch_has_the_frames_of_arrays_in_memory(size: int, cached: bool, tmp_path: Path) -> None:
    cameras = ("image", "wrist_image")
    episodes = [noisy(seed, 20 + seed, size, cameras) for seed in range(3)]
    cache = {"cache": tmp_path / "frames", "cache_key": "mine"} if cached else {}
    for _ in range(2):  # the second one reads the cache, if there is one
        data = read(episodes, cameras=cameras, cut_waiting=True, **cache)
        kept = [moving_frames(each.state, np.sign(each.actions[:, 6])) for each in episodes]
        assert sum(map(np.sum, kept)) < 63
        for camera, images in enumerate(data[np.arange(len(data))].images):
            expected = np.concatenate([each.images[cameras[camera]][k] for each, k in zip(episodes, kept, strict=True)])
            if size != SIZE:
                expected = libero_image(expected, rotate=False, size=SIZE)
            assert images.flags.c_contiguous
            np.testing.assert_array_equal(images, expected)
            backwards = data[np.array([-1, 5, 5])].images[camera]
            np.testing.assert_array_equal(backwards, expected[[-1, 5, 5]])


def test_training_gives_the_weights_that_arrays_in_memory_give(tmp_path: Path) -> None:
    episodes = [noisy(seed) for seed in range(4)]
    trained = []
    for index, cache in enumerate(({}, {"cache": tmp_path / "frames", "cache_key": "mine"}, None)):
        data = read(episodes, **cache or {})
        if cache is None:
            data._frames = InMemory(episodes)  # type: ignore[assignment]
        trainer = SupervisedTrainer(
            small_model(tmp_path / str(index)),
            data,
            n_steps=3,
            batch_size=8,
            validation_share=0.25,
            augmentation=Augmentation(shift=2),
        )
        trainer.train()
        trained.append((trainer.validate(), trainer.export().state_dict()))
    for metrics, weights in trained[:2]:
        assert metrics == trained[2][0]
        assert all(th.equal(tensor, trained[2][1][name]) for name, tensor in weights.items())


@pytest.mark.parametrize("cached", [False, True])
def test_memory_holds_two_episodes_and_not_the_dataset(cached: bool, tmp_path: Path) -> None:
    n_episodes, size = 40, 112
    one = 100 * size * size * 3  # bytes of an episode's frames
    episodes = (noisy(seed, 100, size) for seed in range(n_episodes))
    cache = {"cache": tmp_path / "frames", "cache_key": "mine"} if cached else {}
    tracemalloc.start()
    try:
        data = read(episodes, image_size=size, **cache)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) == n_episodes * 100
    assert held < one
    assert peak < 8 * one  # an episode is drawn in 64 bits; the dataset is 40


def test_a_batch_of_32_takes_less_than_3_ms() -> None:
    data = read((noisy(seed, 100, 112) for seed in range(10)), image_size=112)
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(50):
        frames = generator.integers(0, len(data), 32)
        start = time.perf_counter()
        data[frames]
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.003


# ------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    read(demonstrations(), cache=tmp_path / "frames", cache_key="mine")
    return tmp_path / "frames"


def refusing() -> Iterator[Episode]:
    raise AssertionError("the episodes were read")
    yield


def test_a_cache_spares_reading_and_gives_the_same(cache: Path) -> None:
    first = read(demonstrations())
    again = read(refusing(), cache=cache, cache_key="mine")
    everything = np.arange(len(first))
    assert same(first[everything], again[everything])
    assert (first.instructions, first.n_episodes) == (again.instructions, again.n_episodes)
    assert first.statistics() == again.statistics()
    # How chunks are cut is no matter of the cache.
    longer = read(refusing(), cache=cache, cache_key="mine", chunk_size=5, pad_chunks=False)
    assert same(longer[everything], read(demonstrations(), chunk_size=5, pad_chunks=False)[everything])


@pytest.mark.parametrize(
    "other", [{"cache_key": "other"}, {"cut_waiting": True}, {"image_size": 2 * SIZE}, {"cameras": ("wrist_image",)}]
)
def test_a_cache_of_something_else_is_made_anew(cache: Path, other: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="were read"):
        read(refusing(), **{"cache": cache, "cache_key": "mine"} | other)
    read([noisy(7)], cache=cache, cache_key="other")
    data = read(refusing(), cache=cache, cache_key="other")
    np.testing.assert_array_equal(data[np.arange(20)].images[0], noisy(7).images["image"])


@pytest.mark.parametrize("name", [FRAMES_FILE, TABLE_FILE])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_cache_is_made_anew(cache: Path, name: str, damage: str) -> None:
    if damage == "missing":
        (cache / name).unlink()
    else:
        os.truncate(cache / name, (cache / name).stat().st_size - 1)
    with pytest.raises(AssertionError, match="were read"):
        read(refusing(), cache=cache, cache_key="mine")
    read(demonstrations(), cache=cache, cache_key="mine")
    read(refusing(), cache=cache, cache_key="mine")


def test_a_cache_may_be_deleted_and_replaced_while_it_is_read(cache: Path) -> None:
    data = read(refusing(), cache=cache, cache_key="mine")
    everything = np.arange(len(data))
    before = data[everything]
    read([noisy(7)], cache=cache, cache_key="other")
    assert same(data[everything], before)
    shutil.rmtree(cache)
    assert same(data[everything], before)


def test_a_file_that_is_cut_short_under_a_training_is_told(cache: Path) -> None:
    data = read(refusing(), cache=cache, cache_key="mine")
    os.truncate(cache / FRAMES_FILE, 1000)
    with pytest.raises(OSError, match="cut short while it was in use"):
        data[np.array([50])]


def test_a_folder_of_something_else_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.tex', which no cache of decoded frames has"):
        read(demonstrations(), cache=tmp_path, cache_key="mine")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_cache_may_lie_in_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    cache = tmp_path / "new/deeper/frames"
    written = read(demonstrations(), cache=cache, cache_key="mine")
    every = np.arange(len(written))
    assert same(read(refusing(), cache=cache, cache_key="mine")[every], written[every])


@pytest.mark.parametrize("cached", [False, True])
def test_frames_are_counted_as_pythons_lists_count(cached: bool, tmp_path: Path) -> None:
    data = read([noisy(0), noisy(1)], **{"cache": tmp_path / "frames", "cache_key": "mine"} if cached else {})
    assert same(data[np.array([-1, -40, -21])], data[np.array([39, 0, 19])])
    for frame in (40, -41):
        with pytest.raises(IndexError, match=rf"There is no frame {frame}; expected numbers from -40 to 39\."):
            data[np.array([0, frame])]
    with pytest.raises(TypeError, match=r"Frames are bool \(40,\); expected whole numbers \(B,\)\."):
        data[np.ones(40, bool)]
    with pytest.raises(TypeError, match=r"Frames are int64 \(\); expected whole numbers"):
        list(data)  # type: ignore[call-overload]


def test_a_cache_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_key=''; a cache needs words"):
        read(demonstrations(), cache=tmp_path / "frames")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[Episode]:
        yield from demonstrations()
        raise error

    with pytest.raises(error):
        read(interrupted(), cache=tmp_path / "frames", cache_key="mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk_is_one_sentence(cached: bool, tmp_path: Path) -> None:
    cache = {"cache": tmp_path / "frames", "cache_key": "mine"} if cached else {}
    message = rf"'{re.escape(str(tmp_path / 'frames'))}' was not written" if cached else "TMPDIR"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a file of a full disk ends as early
    try:
        with pytest.raises(OSError, match=message):
            read(demonstrations(), **cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_write_one_cache(tmp_path: Path) -> None:
    cache = tmp_path / "frames"

    def meanwhile() -> Iterator[Episode]:
        yield from demonstrations()
        read(demonstrations(), cache=cache, cache_key="mine")

    data = read(meanwhile(), cache=cache, cache_key="mine")
    assert same(data[np.arange(100)], read(refusing(), cache=cache, cache_key="mine")[np.arange(100)])
    assert list(tmp_path.iterdir()) == [cache]


def test_what_a_killed_writer_left_is_removed_and_a_living_one_spared(tmp_path: Path) -> None:
    cache = tmp_path / "frames"
    left = tmp_path / ".frames.abcd1234"
    left.mkdir()
    (left / FRAMES_FILE).write_bytes(b"half")
    with writing_frames(cache, 1, SIZE) as writer:
        [living] = set(tmp_path.glob(".frames.*")) - {left}
        for folder in (left, living):
            os.utime(folder / FRAMES_FILE, (0, 0))
        with writing_frames(cache, 1, SIZE):
            assert not left.exists()
            assert living.exists()
        writer.add([np.zeros((1, SIZE, SIZE, 3), np.uint8)])
        writer.finish({}, {"state": np.zeros((1, 8))})
    assert list(tmp_path.iterdir()) == [cache]


def test_folders_that_only_look_like_leftovers_stay(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".frames.backup", ".frames.abcd1234", ".ab.abcd1234")]
    for folder in kept:
        folder.mkdir()
        (folder / FRAMES_FILE).write_bytes(b"half")
        os.utime(folder / FRAMES_FILE, (0, 0))
    (kept[1] / "thesis.tex").write_text("mine")
    for name in ("frames", "a[b]"):
        read(demonstrations(), cache=tmp_path / name, cache_key="mine")
    assert all((folder / FRAMES_FILE).exists() for folder in kept)


def test_a_copy_reads_frames_of_its_own_when_the_original_is_gone(tmp_path: Path) -> None:
    data = read(demonstrations())
    expected, copies = data[np.array([3])].images[0], [copy.deepcopy(data), copy.copy(data._frames)]
    del data
    gc.collect()
    with contextlib.ExitStack() as stack:
        for number in range(8):  # they take the free descriptors
            other = stack.enter_context(open(tmp_path / f"{number}", "w+b"))
            other.write(b"7" * 100_000)
            other.flush()
        np.testing.assert_array_equal(copies[0][np.array([3])].images[0], expected)  # type: ignore[index]
        np.testing.assert_array_equal(copies[1][np.array([3])][0], expected)  # type: ignore[index]
    with pytest.raises(TypeError, match="A FrameFile cannot be copied or pickled: its file belongs to this process"):
        pickle.dumps(copies[0])


def test_a_fingerprint_tells_all_that_is_learned_apart() -> None:
    cameras = ("image", "wrist_image")
    episodes = [noisy(seed, 6, cameras=cameras) for seed in range(2)]
    black = dataclasses.replace(episodes[0], images={key: np.zeros_like(episodes[0].images[key]) for key in cameras})
    swapped = [dataclasses.replace(a, instruction=b.instruction) for a, b in zip(episodes, episodes[::-1], strict=True)]
    whole = dataclasses.replace(
        episodes[0],
        state=np.concatenate([each.state for each in episodes]),
        actions=np.concatenate([each.actions for each in episodes]),
        images={key: np.concatenate([each.images[key] for each in episodes]) for key in cameras},
    )
    others = [
        read(episodes, cameras=cameras[1:]),
        read([black, episodes[1]]),
        read(episodes, pad_chunks=False),
        read(swapped),
        read([whole]),
        read(episodes, chunk_size=1),
    ]
    first = read(episodes).fingerprint()
    assert read(episodes).fingerprint() == first
    assert len({first, *(data.fingerprint() for data in others)}) == 1 + len(others)


def test_arrays_of_other_lengths_than_the_actions_are_told() -> None:
    made = noisy(0, 6)
    with pytest.raises(ValueError, match=r"has states of shape \(5, 8\); expected \(6, 8\), a row for each action"):
        read([dataclasses.replace(made, state=made.state[:5])])

"""Episodes that nobody played, as datasets hold them, and short recordings of policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from recorded_policies import push

from libero_gym.demonstrations import LeRobotReader, LeRobotWriter
from libero_gym.demonstrations.episodes import Episode
from libero_gym.demonstrations.recording import RecordingSummary, record


def synthetic(n_frames: int, seed: int = 0, size: int = 32) -> Episode:
    """An episode of smooth frames, which H.264 keeps well."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, size)
    frames = np.stack([ramp[:, None] + ramp[None] * 0.2 + t for t in range(n_frames)]).astype(np.uint8)
    return Episode(
        instruction=f"do thing {seed % 2}",
        state=generator.normal(size=(n_frames, 8)).astype(np.float32),
        actions=generator.uniform(-1, 1, (n_frames, 7)).astype(np.float32),
        images={"image": np.repeat(frames[..., None], 3, axis=3)},
        task_name="thing",
        seed=seed,
    )


def write_dataset(root: Path) -> Path:
    """Write a dataset of three episodes with 5, 6 and 7 frames."""
    writer = LeRobotWriter(root, cameras=("image",))
    for index in range(3):
        writer.add(synthetic(5 + index, seed=index))
    writer.finish()
    return root


def record_pushes(root: Path, policy: Any = push, suite: str = "libero_spatial", **kwargs: Any) -> RecordingSummary:
    """Record short episodes of a suite, task 0 by default, with small frames."""
    options: dict[str, Any] = {"task_ids": 0, "init_state_ids": range(3), "cameras": ("agentview",), "n_workers": 0}
    options |= {"image_size": 32, "renderer": "fast", "max_steps": 5, "keep_failures": True, "settle_steps": 1}
    return record(root, suite, policy, **{**options, **kwargs}, progress_bar=False)


def same_episodes(first: Path, second: Path) -> bool:
    pairs = zip(LeRobotReader(first), LeRobotReader(second), strict=True)
    return all(
        np.array_equal(a.actions, b.actions)
        and np.array_equal(a.state, b.state)
        and all(np.array_equal(a.images[key], b.images[key]) for key in a.images)
        and a.description == b.description
        for a, b in pairs
    )

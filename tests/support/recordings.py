"""Episodes that nobody played, as datasets hold them."""

from __future__ import annotations

import numpy as np

from libero_gym.demonstrations.episodes import Episode


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

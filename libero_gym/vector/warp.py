"""How the back end "warp" is found: its code is in `libero_gym.gpu`, a layer above, and needs the extra ``[gpu]``."""

from __future__ import annotations

import importlib

from libero_gym.vector.backend import Backend, Plan


def warp(
    plan: Plan,
    *,
    device: str = "cuda",
    nconmax: int | None = None,
    njmax: int | None = None,
    deterministic: bool = False,
    output: str = "numpy",
) -> Backend:
    """Make a `libero_gym.gpu.vector.Warp`, which says what the arguments mean.

    Raises:
        ValueError: If depth or segmentation is asked for.
        ImportError: If MuJoCo Warp is missing; the message names the extra.
    """
    if layers := plan.example.layers:
        raise ValueError(f"layers={layers}: backend='warp' draws images alone; take backend='processes', or layers=().")
    importlib.import_module("libero_gym.gpu.requirements").require_warp()
    # By its name: `gpu` stands on `vector`, and Warp is imported by nobody who does not ask for it.
    made: Backend = importlib.import_module("libero_gym.gpu.vector").Warp(
        plan, device=device, nconmax=nconmax, njmax=njmax, deterministic=deterministic, output=output
    )
    return made

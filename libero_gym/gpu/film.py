"""Frames of a scene's worlds, drawn on the device from the batch's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from libero_gym.gpu.camera import BatchCamera, SceneOnDevice
from libero_gym.gpu.scene_batch import SceneBatch
from libero_gym.rendering.models import packed_scene
from libero_gym.simulation.compiled import CompiledTask


class Film:
    """Draws a scene's batches as ``renderer="fast"`` draws them; the scene is loaded at the first frame.

    Args:
        compiled: A task of the scene.
        device: Warp's name of the device.
    """

    def __init__(self, compiled: CompiledTask, device: str) -> None:
        self._compiled, self._device = compiled, device
        self._scene: SceneOnDevice | None = None
        self._cameras: dict[tuple[tuple[str, ...], int, int], BatchCamera] = {}

    def draw(self, batch: SceneBatch, worlds: Sequence[int], cameras: tuple[str, ...], size: int) -> np.ndarray:
        """Frames of some worlds, uint8 (k, number of cameras, size, size, 3), on the host; see `draw_on_device`."""
        frames = self.draw_on_device(batch, worlds, cameras, size).numpy()
        return frames.reshape(len(worlds), len(cameras), size, size, 3).copy()

    def draw_on_device(self, batch: SceneBatch, worlds: Sequence[int], cameras: tuple[str, ...], size: int) -> Any:
        """Frames of some worlds, uint8 (k * number of cameras, size, size, 3), until the next ones.

        Args:
            batch: The scene's worlds.
            worlds: Numbers of the k worlds.
            cameras: Names, as `rendering.renderer.render` takes them.
            size: Side in pixels.
        """
        camera = self._camera(batch, cameras, size)
        n_burners = len(self._compiled.burners)
        if n_burners:  # `goals.judge` writes what the next frame shows behind what burns
            camera.show_flames(batch.columns["flags"][:, 1 + n_burners :])
        return camera.draw(batch.shown_poses(), worlds)

    def _camera(self, batch: SceneBatch, cameras: tuple[str, ...], size: int) -> BatchCamera:
        key = cameras, size, batch.n_worlds
        if key not in self._cameras:
            if self._scene is None:
                self._scene = SceneOnDevice(packed_scene(self._compiled), self._device)
            self._cameras[key] = BatchCamera.of_task(self._compiled, self._scene, batch.n_worlds, cameras, size)
        return self._cameras[key]

"""Demonstrations and a model small enough to clone them in seconds."""

from __future__ import annotations

import dataclasses
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.demonstrations.episodes import Episode
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.tiny import chunked_config, write_tiny
from vla_agent.sft.trainer import SupervisedTrainer

SIZE = 28


def episode(instruction: str, direction: float, n_frames: int = 20, **changes: Any) -> Episode:
    """The hand goes one way, and its image is as bright as the direction; half-way the gripper closes."""
    generator = np.random.default_rng(zlib.crc32(f"{instruction} {direction}".encode()))
    actions = np.zeros((n_frames, 7), np.float32)
    actions[:, 0] = direction
    actions[:, 1:6] = generator.uniform(-0.1, 0.1, (n_frames, 5))
    actions[:, 6] = np.where(np.arange(n_frames) < n_frames // 2, -1, 1)
    state = np.zeros((n_frames, 8), np.float32)
    state[:, 0] = np.arange(n_frames) * direction
    state[:, 1:] = generator.uniform(-1, 1, (n_frames, 7))
    frames = np.full((n_frames, SIZE, SIZE, 3), int(128 + 100 * direction), np.uint8)
    return dataclasses.replace(Episode(instruction, state, actions, {"image": frames}), **changes)


def demonstrations() -> list[Episode]:
    return [episode("push the plate", direction) for direction in (-1.0, -0.5, 0.0, 0.5, 1.0)]


def small_model(folder: Path, **changes: Any) -> OpenVLA:
    config = dataclasses.replace(chunked_config(), action_chunk_size=2, image_sizes=[SIZE, SIZE], **changes)
    config.text_config["num_hidden_layers"] = 2
    write_tiny(folder, 0, config)
    return OpenVLA.from_pretrained(folder)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> None:
    """Ctrl-C comes within a step, once or again."""
    train_step = SupervisedTrainer._train_step

    def interrupted(trainer: SupervisedTrainer) -> Any:
        if trainer.step + 1 == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return train_step(trainer)

    monkeypatch.setattr(SupervisedTrainer, "_train_step", interrupted)

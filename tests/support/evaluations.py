"""Policies, environments and reports for tests of evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np
from fakes import FakeBackbone, FakeConfig, FakeProcessor, fake_env

from vla_agent import VLAPPO, EvaluationReport
from vla_agent.evaluation import EpisodeResult


class SimProcessor(FakeProcessor):
    """A fake one that real environments are made for."""

    def __init__(self, chunk_size: int = 1, num_images: int = 1) -> None:
        super().__init__(config=FakeConfig(num_images, action_chunk_size=chunk_size))


# Environments that draw nothing, and episodes of three steps.
BLIND: dict[str, Any] = {
    "cameras": (),
    "max_episode_steps": 3,
    "processor": SimProcessor(),
    "protocol": "fixed",
    "progress_bar": False,
}


# Frames of 16 pixels, which is what the fake models take.
SMALL: dict[str, Any] = {"protocol": "training", "renderer": "fast", "max_episode_steps": 3, "progress_bar": False}


def fake_model(
    chunk_size: int = 1, config: FakeConfig | None = None, temperature: float = 1.0, **kwargs: Any
) -> VLAPPO:
    """A small learner on fake environments, which real ones can evaluate."""
    backbone = FakeBackbone(7 * chunk_size, config=config)
    backbone.processor = SimProcessor(chunk_size, backbone.config.num_images)
    env = fake_env(2, chunk_size=chunk_size, wrist=backbone.config.num_images > 1)
    policy_kwargs = {"model": backbone, "temperature": temperature} | kwargs.pop("policy_kwargs", {})
    arguments: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "seed": 0, "device": "cpu"} | kwargs
    return VLAPPO("VLAPolicy", env, policy_kwargs=policy_kwargs, **arguments)


class Noise:
    """Acts at random, the same way in every run, and remembers what it saw."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.seen: list[dict[str, np.ndarray]] = []

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        self.seen.append(obs)
        return self.generator.integers(0, 256, (len(obs["state"]), 7)), None


def report_of(successes: str, first_state: int = 0, **conditions: Any) -> EvaluationReport:
    """Two tasks with an initial state per letter: "+" is a success."""
    states = range(first_state, first_state + len(successes) // 2)
    pairs = [(task_id, state) for task_id in (0, 1) for state in states]
    outcomes = zip(pairs, successes, strict=True)
    return EvaluationReport(
        conditions={"suite": "libero_goal", "task_ids": [0, 1], "init_state_ids": list(states), "protocol": "openvla"}
        | {"fixture_seed": 0, "fixture_draw": "trial", "renderer": "exact", "settle_steps": 10, "max_steps": 300}
        | conditions,
        settings={"seed": 0},
        episodes=[EpisodeResult(*pair, letter == "+", 100 if letter == "+" else 300) for pair, letter in outcomes],
        task_names={0: "open_the_drawer", 1: "push_the_plate"},
        task_suites=dict.fromkeys((0, 1), conditions.get("suite", "libero_goal")),
        timing={"wall_s": 1.5},
        manifest={"model": {"class": "OpenVLA", "name": "tiny", "sha256": {}}, "training_states": "unknown"},
    )

"""Recorded episodes tell a critic what played ones do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libero_gym.demonstrations import LeRobotReader, record
from vla_agent import make_vec_env
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.evaluation import StepwisePolicy
from vla_agent.evaluation.policies import as_policy
from vla_agent.policy.loading import load_backbone
from vla_agent.sft.data import ActionChunks
from vla_agent.test_time.decisions import play_decisions
from vla_agent.test_time.recorded import recorded_decisions

pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

MODEL, N_STEPS = "tiny-libero-few", 24


def test_recorded_decisions_are_the_played_ones(tmp_path: Path) -> None:
    policy = StepwisePolicy(MODEL, device="cpu")
    options: dict[str, Any] = {"task_ids": 0, "renderer": "fast", "n_workers": 0, "keep_failures": True, "crf": 1}
    options |= {"cameras": policy.cameras, "image_size": policy.image_size, "max_steps": N_STEPS, "progress_bar": False}
    record(tmp_path, "libero_spatial", policy, init_state_ids=[20, 21], **options)
    backbone = load_backbone(MODEL, device="cpu")
    data = ActionChunks(LeRobotReader(tmp_path), cameras=("image",), image_size=112, chunk_size=8)
    found = recorded_decisions(SimpleNamespace(backbone=backbone, unnorm_key=None), data)
    env = make_vec_env("LIBERO-Spatial-v0", 1, model=MODEL, task_id=[0], renderer="fast", max_episode_steps=N_STEPS)
    try:
        (played,) = play_decisions(env, as_policy(backbone, env, None), [EpisodeStart(0, 20)], deterministic=True)
    finally:
        env.close()
    assert found.episodes.tolist() == [0, 0, 0, 1, 1, 1]
    assert not found.success.any()
    # The first and last bins are the ends of the range, which the environment clips.
    assert np.mean(found.bins[:3].astype(int) == played.bins) > 0.9
    gaps = np.linalg.norm(found.hidden[:3] - played.hidden, axis=1)
    other = np.linalg.norm(found.hidden[3:] - played.hidden, axis=1)
    assert (gaps < 0.5 * other).all(), "what the video loses is less than what tells two episodes apart"


def test_episodes_without_rewards_are_refused() -> None:
    data = SimpleNamespace(outcomes=None)
    with pytest.raises(ValueError, match="these episodes record no rewards; record them anew"):
        recorded_decisions(SimpleNamespace(backbone=None, unnorm_key=None), data)  # type: ignore[arg-type]


def test_episodes_with_frames_left_out_are_refused() -> None:
    data = SimpleNamespace(outcomes=object(), cut_waiting=True)
    with pytest.raises(ValueError, match="as they were executed; read the episodes with cut_waiting=False"):
        recorded_decisions(SimpleNamespace(backbone=None, unnorm_key=None), data)  # type: ignore[arg-type]

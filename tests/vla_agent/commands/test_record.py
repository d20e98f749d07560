"""A policy's episodes are recorded at the control rate, as they are played in chunks, failures and rewards included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libero_gym.demonstrations import LeRobotReader, record
from vla_agent import make_vec_env
from vla_agent.commands import record as command
from vla_agent.envs import EpisodeStart, play_episodes
from vla_agent.evaluation import StepwisePolicy
from vla_agent.evaluation.policies import as_policy
from vla_agent.policy.loading import load_backbone

pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

MODEL, N_STEPS = "tiny-libero-few", 21  # three chunks of eight, the last one cut short


def record_model(root: Path, states: list[int], **kwargs: Any) -> list[Any]:
    policy = StepwisePolicy(MODEL, device="cpu", **kwargs)
    options: dict[str, Any] = {"task_ids": 0, "renderer": "fast", "n_workers": 0, "keep_failures": True, "crf": 1}
    options |= {"cameras": policy.cameras, "image_size": policy.image_size, "max_steps": N_STEPS, "progress_bar": False}
    record(root, "libero_spatial", policy, init_state_ids=states, **options)
    return list(LeRobotReader(root))


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An episode of the likeliest actions."""
    return record_model(tmp_path_factory.mktemp("greedy"), [20])[0]


def test_a_recorded_episode_is_the_one_that_is_played_in_chunks(greedy: Any) -> None:
    env = make_vec_env("LIBERO-Spatial-v0", 1, model=MODEL, task_id=[0], renderer="fast", max_episode_steps=N_STEPS)
    try:
        policy = as_policy(load_backbone(MODEL, device="cpu"), env, None)
        played = next(play_episodes(env, policy, [EpisodeStart(0, 20)], record=("state", "image")))
        env.begin_episodes({0: EpisodeStart(0, 20).options})
        again = [env.step_actions(chunk[None])[0]["state"][0] for chunk in (greedy.actions[:8], greedy.actions[8:16])]
    finally:
        env.close()
    actions = env.codec.decode(played.actions).reshape(-1, 7)[:N_STEPS]
    assert len(greedy) == N_STEPS
    assert len(played.actions) == 3
    np.testing.assert_array_equal(greedy.actions, np.clip(actions, -1, 1).astype(np.float32))
    np.testing.assert_array_equal(greedy.state[8:17:8], again)
    # A recording executes actions as it keeps them, in float32; a policy that plays executes float64.
    np.testing.assert_allclose(greedy.state[::8], played.observations["state"][:3], atol=1e-6)
    error = np.abs(greedy.images["image"][::8].astype(int) - played.observations["image"][:3])
    assert error.mean() < 2  # what H.264 loses


def test_a_failure_is_kept_with_no_reward_and_an_end(greedy: Any) -> None:
    assert not greedy.success
    assert greedy.rewards.dtype == np.float32
    assert greedy.rewards.tolist() == [0.0] * N_STEPS
    assert greedy.dones.dtype == np.bool_
    assert greedy.dones.tolist() == [False] * (N_STEPS - 1) + [True]


def test_draws_depend_on_seed_and_state_and_not_on_what_was_recorded_before(tmp_path: Path, greedy: Any) -> None:
    first, second = record_model(tmp_path / "both", [20, 21], sample=True, temperature=0.7)
    (alone,) = record_model(tmp_path / "one", [21], sample=True, temperature=0.7)
    np.testing.assert_array_equal(second.actions, alone.actions)
    assert (first.actions[:8] != greedy.actions[:8]).any()
    assert (first.actions[:8] != second.actions[:8]).any()


def test_a_recording_goes_on_with_the_same_policy_alone(tmp_path: Path) -> None:
    record_model(tmp_path, [20], sample=True, temperature=0.7)
    with pytest.raises(ValueError, match=r"temperature 0\.7' to 'tiny-libero-few .*, drawn at temperature 0\.5"):
        record_model(tmp_path, [20, 21], sample=True, temperature=0.5)


def test_the_best_of_several_candidates_is_recorded(tmp_path: Path, greedy: Any) -> None:
    chosen, again = (
        record_model(tmp_path / name, [20], best_of_n=4, temperature=0.7)[0].actions for name in ("one", "other")
    )
    np.testing.assert_array_equal(chosen, again)
    assert (chosen[:8] != greedy.actions[:8]).any()
    with pytest.raises(ValueError, match=r"best of 4 by agreement, others than the likeliest drawn at"):
        record_model(tmp_path / "one", [20, 21], temperature=0.7, sample=True)


def test_the_command_counts_successes_and_failures_of_each_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "record", lambda *args, **kwargs: record(*args, **kwargs, max_steps=9))
    arguments = f"--policy {MODEL} --task-ids 1 --init-states 20,21 --renderer fast --n-workers 0 --out {tmp_path}"
    command.command(arguments.split())
    out = capsys.readouterr().out
    assert "2 of 2 episodes are in" in out
    assert "1 pick up the black bowl next to the ramekin and place it on the plate: 0 successes, 2 failures" in out
    assert LeRobotReader(tmp_path)[0].images["image"].shape == (9, 112, 112, 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--sample", "--sample and --temperature are for a model's actions; leave them out, or name a model"),
        (f"--policy {MODEL} --temperature 0.5", "add sample=True"),
        (f"--policy {MODEL} --sample --temperature -1", "temperature=-1"),
        (f"--policy {MODEL} --image-size 256", "looks at frames of 112 pixels; leave it out"),
        (f"--policy {MODEL} --cameras wrist", "--cameras lacks agentview, which 'tiny-libero-few' looks at; add it"),
        ("--policy nowhere", "nowhere"),
        ("--best-of-n 2", "--best-of-n chooses among a model's actions; leave it out, or name a model"),
        (f"--policy {MODEL} --best-of-n 0", "best_of_n=0 is out of range"),
        (
            f"--policy {MODEL} --best-of-n 2 --scorer success-oracle",
            "which a recording's environments cannot",
        ),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, arguments: str, sentence: str) -> None:
    with pytest.raises((ValueError, OSError), match=sentence):
        command.command([*arguments.split(), f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("states", "expected"), [("", []), ("20,21", [20, 21])])
def test_without_official_states_only_placements_are_recorded(
    states: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(command, "record", lambda *args, **kwargs: asked.update(kwargs))
    options = command.Options(init_states=states, n_placements=2)
    command._record(options, "libero_gym.demonstrations:expert_policy", None)
    assert list(asked["init_state_ids"]) == expected
    assert list(asked["placement_seeds"]) == [0, 1]


def test_frames_of_another_size_or_none_are_not_decided_on() -> None:
    act = StepwisePolicy(MODEL, device="cpu")(
        SimpleNamespace(unwrapped=SimpleNamespace(np_random=np.random.default_rng(0)))
    )
    shown = {"state": np.zeros(8, dtype=np.float32), "instruction": "pick up the bowl"}
    with pytest.raises(ValueError, match=r"reads 'image' with 112 x 112 pixels, and it is 64 x 64 pixels; make"):
        act(shown | {"image": np.zeros((64, 64, 3), dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"it is not shown; .* image_size=112, cameras=\('agentview',\)\."):
        act(shown)

"""``libero-vla view``: episodes of the expert, of a model, of a data set and of an evaluation become pages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_tasks import write_task
from recordings import write_dataset

from libero_gym.demonstrations import LeRobotReader
from libero_gym.env import LiberoEnv
from vla_agent import EvaluationReport, evaluate_policy
from vla_agent.commands import cli, view
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.watching import WatchedEpisode, again, at_random, watch, watch_recorded
from vla_agent.evaluation.results import EpisodeResult

FAST: dict[str, Any] = {"renderer": "fast", "image_size": 32}


def test_an_episode_that_is_watched_is_the_environments_own() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (5, 7))
    start = EpisodeStart(2, init_state_id=4, fixture_seed=7, fixture_draw=2)
    cameras = ("agentview", "birdview")
    episode = watch("LIBERO-Goal-v0", start, again(actions), cameras=cameras, **FAST)
    env = LiberoEnv("libero_goal", reward="progress", cameras=cameras, **FAST)
    obs, _ = env.reset(options=start.options)
    for i in range(6):
        np.testing.assert_array_equal(episode.frames["image"][i], obs["image"])
        np.testing.assert_array_equal(episode.frames["birdview_image"][i], obs["birdview_image"])
        assert episode.plots["hand's position, m"]["z"][i] == obs["state"][2]
        if i == 5:
            break
        assert episode.plots["action: rotation"]["ry"][i] == actions[i, 4]
        obs, _, _, _, info = env.step(actions[i])
        assert episode.plots["reward terms"]["progress"][i + 1] == info["reward_terms"]["progress"]
        name, value = next(iter(info["progress_terms"].items()))
        assert episode.plots["progress of the goal"][name][i + 1] == value
    assert np.isnan(episode.plots["reward terms"]["progress"][0])
    assert np.isnan(episode.plots["action: gripper"]["gripper"][5])
    assert (episode.success, episode.n_frames, episode.facts["begins at"]) == (False, 6, "initial state 4")


def test_a_scorer_sees_its_own_size() -> None:
    class Scorer:
        image_size, camera = 16, "wrist_image"

        def score(self, images: np.ndarray, instructions: list[str]) -> np.ndarray:
            assert images.shape == (4, 16, 16, 3)
            return np.arange(len(instructions)) / 10

    start = EpisodeStart(0, init_state_id=0)
    options: dict[str, Any] = {**FAST, "cameras": ("agentview",), "max_steps": 3, "scorer": Scorer()}
    episode = watch("LIBERO-Spatial-v0", start, at_random, **options)
    assert list(episode.plots["score"]["score"]) == [0, 0.1, 0.2, 0.3]


def test_the_expert_on_a_task_of_ones_own_is_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write_task(tmp_path), tmp_path / "pages" / "episode.html"
    options = ["--env-id", str(file), "--placement-seed", "0", "--renderer", "fast", "--image-size", "32"]
    cli.main(["view", *options, "--reward-model", "tiny-scorer", "--out", str(out)])
    assert "success" in capsys.readouterr().out
    text = out.read_text()
    assert "<title>Put the bowl on the plate</title>" in text
    assert "placement seed 0" in text
    assert 'data-plot="score"' in text


def test_the_expert_is_shown_on_the_protocols_fixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def noting(_env_id: str, start: EpisodeStart, _choose: Any, **options: Any) -> WatchedEpisode:
        seen.append((start, options["settle_steps"]))
        return WatchedEpisode("", False, 20, {}, {})

    monkeypatch.setattr(view, "watch", noting)
    options = view.Options(task_id=3, init_state=4, protocol="openpi")
    view.played(options)
    view.played(dataclasses.replace(options, placement_seed=6, protocol="fixed"), settle_steps=2)
    official = EpisodeStart(3, init_state_id=4, fixture_seed=7, fixture_draw=5)
    assert seen == [(official, 10), (EpisodeStart(3, placement_seed=6, fixture_seed=0, fixture_draw=1), 2)]


def test_the_environment_is_closed_when_a_policy_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def clueless(_env: Any) -> Any:
        raise RuntimeError("no idea")

    closed: list[LiberoEnv] = []
    close = LiberoEnv.close
    monkeypatch.setattr(LiberoEnv, "close", lambda env: (closed.append(env), close(env))[1])
    with pytest.raises(RuntimeError, match="no idea"):
        watch("LIBERO-Spatial-v0", EpisodeStart(0, init_state_id=0), clueless, **FAST)
    assert closed


def test_an_episode_of_a_data_set_is_what_was_recorded(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    recorded, shown = LeRobotReader(root)[1], watch_recorded(str(root), 1)
    np.testing.assert_array_equal(shown.frames["image"], recorded.images["image"])
    np.testing.assert_array_equal(shown.plots["action: position"]["z"], recorded.actions[:, 2])
    assert view.look(view.Options(source=str(root), episode=1)).instruction == recorded.instruction
    with pytest.raises(ValueError, match=r"episode 9: '.*' has episodes 0 to "):
        watch_recorded(str(root), 9)


def test_an_evaluations_episode_is_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[str, Any] = {"task_ids": [6], "init_state_ids": [3], "trained_states": True, "n_envs": 1}
    how: dict[str, Any] = {"renderer": "fast", "protocol": "training", "max_episode_steps": 24}
    report = evaluate_policy("tiny-libero", "LIBERO-Spatial-v0", **where, **how, out=tmp_path, progress_bar=False)
    options = view.Options(source=str(tmp_path), image_size=32)
    shown = view.look(options)
    assert shown.facts["evaluation"] == "episode 0: failure after 24 steps; the same again"
    assert (shown.facts["policy"], shown.n_frames, shown.frames["image"].shape[1]) == ("tiny-libero", 25, 32)
    drawn = dataclasses.replace(report, settings=report.settings | {"deterministic": False})
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationReport, "load", lambda _folder: drawn)
        told = view.look(options).facts["evaluation"]
    assert told.endswith("its actions were drawn; the likeliest ones: failure after 24 steps")
    each = {"task_ids": [5, 6], "max_steps": [99, 16]}  # tasks with limits of their own
    with monkeypatch.context() as patch:
        shorter = dataclasses.replace(report, conditions=report.conditions | each)
        patch.setattr(EvaluationReport, "load", lambda _folder: shorter)
        assert view.look(options).n_frames == 17
    with pytest.raises(ValueError, match="--episode 1: the evaluation has episodes 0 to 0"):
        view.look(view.Options(source=str(tmp_path), episode=1))
    report.manifest["model"]["name"] = "python:os:abort"  # a file from elsewhere says that
    monkeypatch.setattr(EvaluationReport, "load", lambda _folder: report)
    with pytest.raises(ValueError, match="is of python:os:abort; say what plays: --policy"):
        view.look(options)


@pytest.mark.parametrize(
    ("name", "policy", "passed"),
    [
        ("tiny-libero", "tiny-libero", {"center_crop": False}),
        ("tiny-libero", "ws://localhost:8000", {}),
        ("ws://gone:1", "ws://localhost:8000", {"replan_steps": 5}),
        ("ws://gone:1", "tiny-libero", {}),
    ],
)
def test_an_evaluation_is_played_again_with_its_crop_its_physics_and_its_steps(
    name: str, policy: str, passed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def noted(_options: view.Options, **how: Any) -> WatchedEpisode:
        seen.append(how)
        return WatchedEpisode("", False, 20, {"image": np.zeros((9, 2, 2, 3))}, {})

    conditions = {"protocol": "openvla", "renderer": "fast", "settle_steps": 10, "max_steps": 8, "physics": "fast"}
    settings = {"env_id": "LIBERO-Spatial-v0", "center_crop": False, "replan_steps": 5}
    manifest = {"model": {"name": name}}
    report = EvaluationReport(conditions, settings, [EpisodeResult(6, 3, False, 8, 0.0)], {}, {}, manifest, True)
    monkeypatch.setattr(view, "played", noted)
    view.played_again(view.Options(policy=policy), report)
    assert seen == [{"unnorm_key": None, "settle_steps": 10, "physics": "fast", **passed}]


def test_an_episode_is_watched_in_the_physics_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(LiberoEnv, "__init__", lambda _env, _suite, **given: (seen.append(given["physics"]), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        view.played(view.Options(renderer="fast"), physics="fast")
    assert seen == ["fast"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "'nowhere' is no recording: expected a folder with meta/info.json .* or report.json"),
        ({"cameras": "front"}, r"Unknown camera 'front'\. Did you mean 'frontview'\?"),
        ({"cameras": ""}, r"cameras=\(\), image_size=256; expected a camera and an even size"),
        ({"image_size": 33}, "image_size=33; expected a camera and an even size"),
        ({"image_size": "256"}, "image_size='256' cannot be rendered; expected an integer"),
        ({"init_state": -2}, "--init-state=-2 is out of range"),
        ({"protocol": "opnvla"}, "Did you mean 'openvla'"),
        ({"task_id": 10}, "task_id=10 is out of range"),
        ({"policy": "expret"}, "expret"),
        ({"episode": -1}, "--episode=-1"),
        ({"max_steps": 10**6}, "max_steps=1000000 is out of range; expected a whole number from 1 to 5000"),
    ],
)
def test_what_cannot_be_looked_at_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view.look(view.Options(**options))

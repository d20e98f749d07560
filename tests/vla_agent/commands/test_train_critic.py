"""``libero-vla train-critic``: episodes of the real simulator, a critic, and what comes after a stop."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from recordings import synthetic
from safetensors.torch import load_file

from libero_gym.demonstrations import LeRobotWriter
from vla_agent import evaluate_policy
from vla_agent.commands import train_critic
from vla_agent.commands.train_critic import CRITIC, DECISIONS, METRICS_FILE, TRAINING, Options
from vla_agent.evaluation.provenance import write_training_states
from vla_agent.test_time.critic import WEIGHTS_FILE, CriticConfig
from vla_agent.test_time.decisions import Decisions

SHORT = Options(task_ids="1,3", init_states="20-21", max_episode_steps=16, n_envs=2, n_epochs=3, batch_size=4)


class Played(NamedTuple):
    options: Options
    config: CriticConfig
    decisions: Decisions


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Four episodes of two decisions."""
    options = dataclasses.replace(SHORT, out=tmp_path_factory.mktemp("critic"))
    config, decisions = train_critic.play(options)
    assert decisions.episodes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert decisions.hidden.shape == (8, 128)
    assert decisions.bins.shape == (8, 56)
    return Played(options, config, decisions)


def test_it_fits_a_critic_that_evaluations_take_and_goes_on_to_the_bit(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None succeeds in two decisions, so every other one is said to.
    told = played.decisions._replace(success=played.decisions.episodes % 2 == 1)
    monkeypatch.setattr(train_critic, "play", lambda options: (played.config, told))
    whole, stopped = (dataclasses.replace(SHORT, out=tmp_path / name) for name in ("whole", "stopped"))
    train_critic.main(whole)
    shown = capsys.readouterr().out
    assert "trained: 2 of 3 episodes succeed" in shown
    assert f"--best-of-n 8 --scorer critic:{whole.out / CRITIC}" in shown
    metrics = [json.loads(line) for line in (whole.out / METRICS_FILE).read_text().splitlines()]
    assert [row["epoch"] for row in metrics] == [1, 2, 3]
    assert {"critic/value_loss", "critic/rank_loss", "critic/rank_accuracy"} < set(metrics[0])
    assert json.loads((whole.out / "report.json").read_text())["held_out"] == {"episodes": 1, "successes": 0}
    train_critic.main(dataclasses.replace(stopped, n_epochs=1))
    assert (stopped.out / TRAINING).is_dir()
    train_critic.main(stopped)
    found, expected = (load_file(options.out / CRITIC / WEIGHTS_FILE) for options in (stopped, whole))
    assert all(th.equal(found[name], expected[name]) for name in expected)
    assert (stopped.out / METRICS_FILE).read_text() == (whole.out / METRICS_FILE).read_text()
    report = evaluate_policy(
        "tiny-libero-few",
        task_ids=[1],
        init_state_ids=[0],
        protocol="training",
        renderer="fast",
        max_episode_steps=8,
        best_of_n=4,
        scorer=f"critic:{whole.out / CRITIC}",
        progress_bar=False,
    )
    assert report.settings["scorer"] == "critic"
    assert {20, 21} <= set(report.manifest["training_states"]["libero_spatial"]), "the critic's among the model's"
    score = report.episodes[0].score
    assert score is not None
    assert 0 < score < 1


def test_states_that_a_critic_learned_from_are_not_evaluated(tmp_path: Path) -> None:
    """Those of an actor's own are known to its model; a critic has seen others."""
    write_training_states(tmp_path, {"libero_spatial": [0, 3]})
    how: dict[str, Any] = {"task_ids": [1], "init_state_ids": [3], "best_of_n": 4, "scorer": f"critic:{tmp_path}"}
    with pytest.raises(ValueError, match="the scorer's critic was trained on initial states 3 of libero_spatial"):
        evaluate_policy("tiny-libero-few", **how)


def test_a_critic_of_recordings_knows_their_states(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "told", cameras=())
    writer.add(dataclasses.replace(synthetic(4), images={}, suite="libero_spatial", task_id=1, init_state_id=7))
    writer.finish()
    assert train_critic.trained_states(Options(recordings=str(tmp_path / "told"))) == {"libero_spatial": [7]}
    writer = LeRobotWriter(tmp_path / "untold", cameras=())
    writer.add(dataclasses.replace(synthetic(4), images={}))
    writer.finish()
    assert train_critic.trained_states(Options(recordings=str(tmp_path / "untold"))) is None
    assert train_critic.trained_states(SHORT) == {"libero_spatial": [20, 21]}


def test_finished_tasks_are_read_and_a_missing_one_is_played_as_before(played: Played) -> None:
    folder = played.options.out / DECISIONS
    kept = folder / "task_1.safetensors"
    Decisions.load(kept)._replace(success=np.ones(4, dtype=bool)).save(kept)  # which nobody plays again
    (folder / "task_3.safetensors").unlink()
    _, decisions = train_critic.play(played.options)
    assert decisions.success.tolist() == [True] * 4 + [False] * 4
    assert np.array_equal(decisions.hidden, played.decisions.hidden)
    assert np.array_equal(decisions.bins, played.decisions.bins)


def test_decisions_of_other_episodes_are_refused(played: Played) -> None:
    with pytest.raises(ValueError, match=r"holds decisions of other episodes: temperature is 0\.5 and not 0\.7"):
        train_critic.play(dataclasses.replace(played.options, temperature=0.7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "--temperature=0.0"),
        ({"episodes_per_state": 0}, "--episodes-per-state=0"),
        ({"init_states": "20-x"}, "is no id; expected ids from 0"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_options_are_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_critic.play(dataclasses.replace(SHORT, out=tmp_path, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"task_ids": "0"}, {"init_states": "0-1"}])
def test_recordings_are_read_whole_and_no_option_chooses_among_them(change: dict[str, Any], tmp_path: Path) -> None:
    options = Options(recordings=str(tmp_path), out=tmp_path / "out", **change)
    with pytest.raises(ValueError, match=r"--(task-ids 0|init-states 0-1) is for episodes that are played, and --reco"):
        train_critic.main(options)


def test_a_folder_without_recordings_is_named(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path))):
        train_critic.main(Options(recordings=str(tmp_path), out=tmp_path / "out"))

"""The pieces together, on the real simulator: environments, model, learner, checkpoints, and the examples as users run
them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
from paths import EXAMPLES, without_opengl
from recordings import synthetic
from stable_baselines3 import PPO

import libero_gym
from libero_gym import Task, get_tasks, register_suite
from libero_gym.demonstrations import LeRobotWriter
from vla_agent import VLAPPO, Curriculum, EvaluationReport, VLAVecEnv, make_vec_env
from vla_agent.commands import render, train, train_scorer
from vla_agent.commands.train import check, parse_arguments
from vla_agent.evaluation.callback import EvaluatedEpisodes
from vla_agent.evaluation.policies import load_subject
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.openvla import load_processor
from vla_agent.process_reward import RewardModelError, ScorerConfig, TinyScorer

TRAIN = [
    sys.executable, str(EXAMPLES / "train_ppo.py"), "--task-ids", "0", "--n-envs", "2", "--n-steps", "8",
    "--batch-size", "8", "--max-episode-steps", "20", "--n-placements", "5", "--device", "cpu", "--eval-freq", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def env() -> Iterator[VLAVecEnv]:
    env = make_vec_env(
        "LIBERO-Spatial-v0", 2, task_id=[0, 1], reward="progress", max_episode_steps=6, renderer="fast", seed=0
    )
    yield env
    env.close()


def small_learner(env: VLAVecEnv) -> VLAPPO:
    return VLAPPO(
        "VLAPolicy", env, n_steps=8, batch_size=8, learning_rate=1e-3, critic_warmup_iterations=1, seed=0, device="cpu"
    )


def test_observations_are_arrays_that_the_space_holds(env: VLAVecEnv) -> None:
    obs = env.reset()
    size = load_processor("tiny").image_size
    assert obs["image"].shape == (2, size, size, 3)
    assert obs["input_ids"].dtype == np.int64
    for index in range(2):
        assert env.observation_space.contains({key: values[index] for key, values in obs.items()})


def test_bins_reach_the_simulator_through_the_checkpoints_table(env: VLAVecEnv) -> None:
    """The highest bin of x moves the hand forward, the lowest back; a high gripper bin opens, a low one closes."""
    ends = {}
    for name, x, gripper in (("forward", 255, 255), ("back", 0, 0)):
        env.seed(3)
        obs = env.reset()
        bins = np.full((2, 7), 127)
        bins[:, 0], bins[:, 6] = x, gripper
        start = obs["state"].copy()
        for _ in range(5):
            obs, *_ = env.step(bins)
        ends[name] = obs["state"] - start
    assert (ends["forward"][:, 0] > 0.02).all()
    assert (ends["back"][:, 0] < -0.02).all()
    assert (ends["forward"][:, 6] > ends["back"][:, 6] + 0.01).all()


def test_stable_baselines3_own_ppo_accepts_the_environments(env: VLAVecEnv) -> None:
    PPO("MultiInputPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8)


def test_training_moves_weights_and_a_saved_model_acts_alike(env: VLAVecEnv, tmp_path: Path) -> None:
    model = small_learner(env)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32)
    changed = {name for name, value in model.policy.state_dict().items() if not value.equal(before[name])}
    assert any("value" in name for name in changed)
    assert any("language_model" in name for name in changed)
    model.save(tmp_path / "model")
    loaded = VLAPPO.load(tmp_path / "model", device="cpu")
    obs = env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert not list(tmp_path.rglob("*.zip")) + list(tmp_path.rglob("*.pt*")) + list(tmp_path.rglob("*.pkl"))


def test_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    def trained() -> dict[str, np.ndarray]:
        env = make_vec_env(
            "LIBERO-Spatial-v0", 2, task_id=0, reward="progress", max_episode_steps=6, renderer="fast", seed=1
        )
        model = small_learner(env).learn(16)
        env.close()
        return {name: value.numpy() for name, value in model.policy.state_dict().items()}

    first, second = trained(), trained()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_the_learning_rate_stays_unless_an_end_is_given() -> None:
    assert train.learning_rate(parse_arguments(["--learning-rate", "2e-5"])) == 2e-5
    falling = train.learning_rate(parse_arguments(["--learning-rate", "2e-5", "--learning-rate-end", "0"]))
    assert callable(falling)
    assert [falling(left) for left in (1.0, 0.25, 0.0)] == pytest.approx([2e-5, 5e-6, 0])
    with pytest.raises(ValueError, match="--learning-rate-end"):
        check(parse_arguments(["--learning-rate-end", "-1"]))


def test_a_training_that_fell_at_its_end_names_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = train.Options(eval_freq=16, eval_states="0-1", out=tmp_path)
    evaluation = train.make_evaluation(options)
    for steps, successes in ((0, (False, False)), (16, (True, True)), (32, (True, True)), (48, (True, False))):
        episodes = [EpisodeResult(1, state, success, 9) for state, success in enumerate(successes)]
        evaluation.history.append(EvaluatedEpisodes(steps, episodes))
    assert evaluation.best is evaluation.history[1]  # whose model was kept; an equal one later is not
    train.report(options, Curriculum("uniform", 0.5), evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("before: 0 of 2 (0 to 66 %), after: 1 of 2")
    assert lines[-1] == "best: 2 of 2 (34 to 100 %), after 16 decisions; it is in best/"
    del evaluation.history[3]  # an equal one is left
    train.report(options, Curriculum("uniform", 0.5), evaluation)
    assert capsys.readouterr().out.splitlines()[-1].startswith("paired: ")


def test_the_main_job_writes_what_it_promises(tmp_path: Path) -> None:
    command = [*TRAIN, "--total-timesteps", "32", "--out", str(tmp_path)]
    command += ["--eval-freq", "16", "--eval-states", "0", "--critic-warmup-iterations", "0"]
    result = subprocess.run(command, env=without_opengl(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert "ep_rew_mean" in result.stdout
    assert "success_rate" in result.stdout
    last = result.stdout.splitlines()[-2:]
    assert re.fullmatch(r"before: [01] of 1 \(.* %\), after: [01] of 1 \(.* %\)", last[0])
    assert last[1].startswith("paired: ")
    assert iio.imread(tmp_path / "curve.png").std() > 0
    film = iio.imread(tmp_path / "episode.mp4")
    assert film.shape[1:] == (320, 512, 3)
    assert len(film) <= 7  # of at most 20 control steps, as in training: three decisions, and three frames of rest
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "times.json").read_text()).keys() >= {"environments", "model", "film"}
    model = VLAPPO.load(tmp_path / "model", device="cpu")
    assert model.num_timesteps == 32
    evaluations = model.callback_states["EvaluationCallback"]["history"]
    assert [steps for steps, _ in evaluations] == [0, 16, 32]
    assert VLAPPO.load(tmp_path / "best", device="cpu").num_timesteps == 0  # the first of equals, as it was evaluated
    assert EvaluationReport.load(tmp_path / "best_report").total.n == 1
    subject = load_subject(str(tmp_path), "cpu")
    assert subject.model.num_timesteps == 0
    assert subject.name == str(tmp_path / "best")
    assert "the best of the run's own evaluations (timestep 0)" in str(subject.choice)
    for name in ("model", "best"):
        noted = json.loads((tmp_path / name / "training.json").read_text())["training"]
        suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")  # tiny-libero's, and the run's own
        assert noted == {suite: list(range(20, 50)) for suite in suites}
        assert VLAPPO.load(tmp_path / name, device="cpu")

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert "already holds a run" in again.stderr
    assert f"--resume {tmp_path}" in again.stderr
    assert "--existing aside" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("given", [[], ["--gamma", "0.99"]])
def test_shaping_for_another_learner_is_refused(given: list[str]) -> None:
    with pytest.raises(ValueError, match=r"Add --gamma 0\.99 --bootstrap-time-limits\."):
        check(parse_arguments(["--reward", "progress", *given]))


def test_adapters_of_rank_one_have_an_effect(monkeypatch: pytest.MonkeyPatch, env: VLAVecEnv) -> None:
    """An alpha of 0 would scale them to nothing."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(train, "VLAPPO", lambda *_, policy_kwargs, **__: seen.append(policy_kwargs["lora"]))
    train.make_learner(parse_arguments(["--lora-rank", "1"]), env, None)
    assert seen == [{"r": 1, "alpha": 1, "target": "all-linear"}]


def test_long_changes_defaults_and_what_is_given_wins() -> None:
    assert parse_arguments(["--long"]).total_timesteps == 12288
    assert parse_arguments(["--long"]).env_id == "LIBERO-Spatial-v0"
    assert parse_arguments(["--long", "--total-timesteps", "5"]).total_timesteps == 5
    assert parse_arguments(["--long", "--env-id", "LIBERO-Goal-v0"]).task_ids == "0-2"


def test_ctrl_c_saves_a_run_of_adapters_which_goes_on_from_there(tmp_path: Path) -> None:
    train = [*TRAIN, "--lora-rank", "2", "--gradient-checkpointing", "--out", str(tmp_path)]
    command = [*train, "--total-timesteps", "100000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 200
    progress = tmp_path / "progress.csv"
    while not (progress.is_file() and progress.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output[-2000:]
    assert f"Stopped. --resume {tmp_path} goes on" in output
    interrupted = VLAPPO.load(tmp_path / "interrupted", device="cpu")
    assert interrupted.policy.lora.r == 2
    assert interrupted.policy.backbone.gradient_checkpointing
    saved = interrupted.num_timesteps
    assert saved > 0
    more = [*TRAIN[:2], "--resume", str(tmp_path), "--total-timesteps", str(saved + 16)]  # the rest as it was begun
    subprocess.run(more, check=True, capture_output=True, timeout=300)
    assert VLAPPO.load(tmp_path / "model", device="cpu").num_timesteps == saved + 16
    assert (tmp_path / f"progress_from_{saved}.csv").is_file()
    changed = subprocess.run([*more, "--learning-rate", "1"], capture_output=True, text=True, timeout=300)
    assert "learning_rate: 5e-05, not 1.0" in changed.stderr


def test_fine_tuning_records_learns_and_evaluates(tmp_path: Path) -> None:
    command = [
        sys.executable, str(EXAMPLES / "finetune.py"), "--task-ids", "0", "--init-states", "20-21", "--n-steps", "2",
        "--batch-size", "4", "--n-workers", "1", "--evaluate-states", "0", "--out", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, env=without_opengl(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "episodes succeeded" in result.stdout
    assert (tmp_path / "evaluation" / "report.json").is_file()
    config = load_processor(tmp_path / "model").config
    assert (config.action_chunk_size, config.decoding, config.use_state) == (8, "parallel", True)
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == {"training": {"libero_spatial": [20, 21]}}


def test_random_rollout_writes_a_captioned_video_and_a_contact_sheet(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "random_rollout.py"), "--steps", "1", "--image-size", "64"]
    subprocess.run(
        [*command, "--renderer", "fast", "--out", str(tmp_path)], check=True, capture_output=True, timeout=300
    )
    movie = iio.imread(tmp_path / "LIBERO-Spatial-v0.mp4")
    assert movie.shape == (20, 320, 256, 3)
    captions = movie[:, 256:].max(axis=-1) > 128  # white words on black, two frames a task
    assert captions.any(axis=(1, 2)).all()
    assert (captions[0::2] == captions[1::2]).mean() > 0.99
    assert all((captions[task] != captions[task + 2]).mean() > 0.01 for task in range(0, 18, 2))
    assert (tmp_path / "LIBERO-Spatial-v0.png").stat().st_size > 20_000


def test_random_rollout_names_the_ids() -> None:
    with pytest.raises(ValueError, match=r"Unknown id 'libero_spatail'\..*Ids: LIBERO-Spatial-v0"):
        render.main(render.Options(suite="libero_spatail"))


@pytest.fixture
def env_id_without_states() -> Iterator[str]:
    tasks = [Task.from_bddl(get_tasks("libero_spatial")[0].bddl_file)]
    suite = register_suite("without_states", tasks, env_id="WithoutStates-v0", max_steps=10)
    yield suite.env_id
    del gym.registry[suite.env_id]
    del libero_gym.tasks._registered[suite.name]


def test_a_suite_without_initial_states_is_trained_on_none(env_id_without_states: str, tmp_path: Path) -> None:
    for env_id, n_states in ((env_id_without_states, 0), ("LIBERO-Spatial-v0", 50)):
        options = train.Options(env_id=env_id, task_ids="", init_states="", model="tiny", out=tmp_path / env_id)
        train.note_training_states(options)
        noted = json.loads((tmp_path / env_id / "training.json").read_text())["training"]
        assert list(noted.values()) == [list(range(n_states))]


def test_a_model_for_other_environments_is_refused(env: VLAVecEnv) -> None:
    with pytest.raises(ValueError, match="process"):
        make_vec_env("LIBERO-Spatial-v0", 1, reward="process")
    with pytest.raises(ValueError, match="chunk_size=8"):
        make_vec_env("LIBERO-Spatial-v0", 1, chunk_size=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--evaluate-states", "oops"], "--evaluate-states 'oops': 'oops' is no id"),
        (["--evaluate-states", "60"], "--evaluate-states 60: there is no state 60. Task 0 of libero_spatial has"),
        (["--task-ids", "10"], "--task-ids=10 is out of range"),
        (["--init-states", "0-9"], "--init-states and --evaluate-states share 0-7"),
        (
            ["--suite", "libero_goal"],
            "libero_goal, and the policy libero_spatial. Give --env-id LIBERO-Goal-v0",
        ),
    ],
)
def test_a_scorers_training_checks_its_options_first(given: list[str], message: str, tmp_path: Path) -> None:
    options = train_scorer.parse_arguments([*given, "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=re.escape(message)):
        train_scorer.main(options)
    assert not (tmp_path / "out").exists(), "nothing has begun"


def test_given_demonstrations_teach_no_scorer_a_judged_state_or_another_task(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, cameras=("image",))
    for task_id, state in ((0, 3), (0, 20), (1, 20), (1, 3)):
        origin = {"suite": "libero_spatial", "task_id": task_id, "init_state_id": state}
        writer.add(dataclasses.replace(synthetic(4), **origin))
    writer.finish()
    options = train_scorer.Options(demonstrations=str(tmp_path))
    learned = train_scorer.expert_episodes(options, "demonstrations", "init_states")
    assert [(episode.task_id, episode.init_state_id) for episode in learned] == [(0, 20), (1, 20)]
    options.task_ids = "1"
    learned = train_scorer.expert_episodes(options, "demonstrations", "init_states")
    assert [(episode.task_id, episode.init_state_id) for episode in learned] == [(1, 20)]
    options.evaluate_states = "0-49"
    with pytest.raises(ValueError, match=r"All 2 episodes of .* are from states that are judged"):
        train_scorer.expert_episodes(options, "demonstrations", "init_states")


def test_kept_episodes_of_a_model_that_was_trained_again_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def kept(_path: Path, about: dict[str, Any]) -> list[Any]:
        asked.append(about)
        return []

    monkeypatch.setattr(train_scorer, "load_episodes", kept)
    options = train_scorer.Options(policy=str(tmp_path))
    for weights in (b"first", b"first", b"second"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        train_scorer.rollouts(options, "rollouts", "init_states", 4)
    assert asked[0] == asked[1] != asked[2]


def test_process_reward_example_trains_and_judges_a_scorer(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_process_reward.py"), "--out", str(tmp_path), "--task-ids", "0"]
    command += ["--init-states", "20", "--evaluate-states", "0", "--n-rollouts", "8", "--n-heldout-rollouts", "8"]
    command += ["--n-dropped", "8", "--n-epochs", "1", "--max-episode-steps", "24"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert (tmp_path / "labels.png").stat().st_size > 20_000
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["n_examples"]["keyframe"] > 0
    # Judged on the same episodes, which were kept.
    options = train_scorer.parse_arguments([*command[2:], "--evaluate", str(tmp_path / "scorer")])
    train_scorer.main(options)
    again = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (again["auc"], again["spearman"]) == (found["auc"], found["spearman"])
    for_others = TinyScorer(ScorerConfig(("pick up the bowl",), 64))
    with pytest.raises(RewardModelError, match=r"for frames of 64 x 64 pixels, but 'image' has shape \(112, 112, 3\)"):
        train_scorer.judge(options, for_others)
    env = make_vec_env(
        "LIBERO-Spatial-v0",
        2,
        model="tiny-libero",
        task_id=0,
        renderer="fast",
        reward="process",
        reward_model=tmp_path / "scorer",
    )
    env.reset()
    _, rewards, _, infos = env.step(np.full((2, 56), 128))
    env.close()
    for reward, info in zip(rewards, infos, strict=True):
        assert reward == pytest.approx(info["reward_terms"]["success"] + info["reward_terms"]["process"])
        assert 0 < info["reward_terms"]["score"] < 1

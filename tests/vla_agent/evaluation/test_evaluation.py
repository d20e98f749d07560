"""Evaluation on the real simulator: every pair once, the published image path, interruptions, learning beside it."""

from __future__ import annotations

import html
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch as th
from evaluations import BLIND, SMALL, Noise, SimProcessor, fake_model
from fakes import IMAGE_SIZE, FakeBackbone, FakeConfig
from PIL import Image
from scripted import soup_into_basket
from workers import worker_pids

from libero_gym.env import LiberoEnv
from libero_gym.tasks import get_tasks
from vla_agent import VLAPPO, EvaluationCallback, EvaluationReport, Evaluator, compare_reports, evaluate_policy
from vla_agent.commands import cli
from vla_agent.evaluation import EpisodeResult, ReportError, Trial, plan_trials
from vla_agent.evaluation.learning import read_curve
from vla_agent.evaluation.policies import RegressionPolicy, processor_of
from vla_agent.openvla import OpenVLA, load_processor
from vla_agent.openvla.files import TINY_FOLDER
from vla_agent.openvla.image import center_crop, libero_image
from vla_agent.openvla.processor import Processor


class Replay:
    """Plays one recorded episode wherever an episode begins as that did, and elsewhere rests with an open hand."""

    def __init__(self, first_state: np.ndarray, bins: np.ndarray, chunk_size: int) -> None:
        self.first_state = first_state
        padded = np.pad(bins, [(0, -len(bins) % chunk_size), (0, 0)], mode="edge")
        self.chunks = padded.reshape(-1, 7 * chunk_size)
        self.rest = np.tile([128, 128, 128, 128, 128, 128, 0], chunk_size)

    def predict(
        self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        knows = np.array([np.array_equal(first, self.first_state) for first in obs["state"]])
        step, playing = state or (np.zeros(len(knows), dtype=int), np.zeros(len(knows), dtype=bool))
        step, playing = np.where(episode_start, 0, step), np.where(episode_start, knows, playing)
        chunks = np.where(playing[:, None], self.chunks[np.minimum(step, len(self.chunks) - 1)], self.rest)
        return chunks, (step + 1, playing)


@pytest.fixture(scope="module")
def soup() -> tuple[np.ndarray, np.ndarray]:
    """The first state and the bins (T, 7) of an episode that solves LIBERO-Object task 0 from initial state 2."""
    env = LiberoEnv("libero_object", task_id=0, cameras=())
    obs, _ = env.reset(options={"init_state_id": 2})
    first, bins = obs["state"], []
    for action in soup_into_basket(env.simulator):
        bins.append(np.rint((action + 1) / 2 * 255).astype(int))
        if env.step(-1 + 2 * bins[-1] / 255)[2]:
            return first, np.stack(bins)
    pytest.fail("the script does not solve the task any more")


@pytest.fixture(scope="module")
def small() -> Iterator[Evaluator]:
    """A fake model on two environments that draw, two tasks from two states."""
    options = {name: value for name, value in SMALL.items() if name != "progress_bar"}
    with Evaluator(fake_model(), task_ids=[0, 1], init_state_ids=[0, 1], n_envs=2, **options) as evaluator:
        yield evaluator


def test_every_task_meets_every_initial_state_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vla_agent")
    seen = []
    for n_envs in (2, 3):
        policy = Noise()
        report = evaluate_policy(policy, task_ids=[3, 0], init_state_ids=[4, 7, 0], n_envs=n_envs, **BLIND)
        assert [episode[:2] for episode in report.episodes] == [(3, 4), (3, 7), (3, 0), (0, 4), (0, 7), (0, 0)]
        assert {episode.steps for episode in report.episodes} == {3}
        assert report.complete
        seen.append({tuple(state) for obs in policy.seen[::3] for state in obs["state"]})
    assert caplog.messages.count("6 of 6 episodes, success 0.0 %") == 2
    assert len(seen[0] & seen[1]) == 6  # the same six beginnings, whichever environment took them


def test_a_scripted_policy_succeeds_in_as_many_steps_as_alone(soup: tuple[np.ndarray, np.ndarray]) -> None:
    """In chunks of eight, the last of which success cuts short."""
    first, bins = soup
    chunk_size = 8
    assert len(bins) % chunk_size
    report = evaluate_policy(
        Replay(first, bins, chunk_size),
        "LIBERO-Object-v0",
        task_ids=[0],
        init_state_ids=[0, 2],
        n_envs=2,
        max_episode_steps=len(bins) + 3,
        cameras=(),
        protocol="fixed",
        processor=SimProcessor(chunk_size),
        progress_bar=False,
    )
    limit = len(bins) + 3
    assert report.episodes == [EpisodeResult(0, 0, False, limit), EpisodeResult(0, 2, True, len(bins))]
    assert report.tasks[0].successes == 1
    assert report.total.mean_success_steps == len(bins)


def test_images_take_the_published_path_or_trainings() -> None:
    frames = {}
    for size, draw in ((256, 7), (IMAGE_SIZE, 1)):
        env = LiberoEnv("libero_spatial", task_id=1, image_size=size, renderer="fast")
        frames[size] = env.reset(options={"init_state_id": 6, "fixture_draw": draw})[0]["image"]
    published = libero_image(frames[256], rotate=False, size=IMAGE_SIZE)
    options: dict[str, Any] = {"task_ids": [1], "init_state_ids": [6], "processor": SimProcessor()}
    for extra, expected in [
        ({"protocol": "openvla", "center_crop": True}, center_crop(published)),
        ({"protocol": "training"}, frames[IMAGE_SIZE]),
    ]:
        policy = Noise()
        report = evaluate_policy(policy, **options, **SMALL | extra | {"max_episode_steps": 1})
        np.testing.assert_array_equal(policy.seen[0]["image"][0], expected)
        assert report.conditions["protocol"] == extra["protocol"]
        assert report.settings["center_crop"] is extra.get("center_crop", False)


def test_same_seed_same_episodes_and_the_callers_randomness_is_left_alone(
    small: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    th.manual_seed(3)
    expected = th.rand(1)
    runs = []
    for seed in (0, 0, 1):
        spy = Spy(small.subject.model)
        monkeypatch.setattr(small, "policy", spy)
        th.manual_seed(3)
        report = small.run(deterministic=False, seed=seed, progress_bar=False)
        assert th.rand(1) == expected
        runs.append((report.episodes, np.concatenate(spy.actions)))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert (runs[0][1] != runs[2][1]).any()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": range(4), "n_envs": 1, "out": tmp_path, **BLIND}

    class Stopping(Noise):
        stop_at = 7  # within the third episode of three steps

        def fingerprint(self) -> str:
            return "noise of seed 0"

        def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            return super().predict(obs)

    with pytest.raises(KeyboardInterrupt):
        evaluate_policy(Stopping(), **options)
    partial = EvaluationReport.load(tmp_path)
    assert not partial.complete
    assert [episode.init_state_id for episode in partial.episodes] == [0, 1]
    # The third episode's decisions took time, too.
    assert not {"ms_per_action", "ms_per_decision"} & set(partial.timing)

    with (tmp_path / "episodes.jsonl").open("a") as journal:
        journal.write('{"task_id": 0, "init_')  # as a kill leaves it
    policy = Stopping()
    report = evaluate_policy(policy, **options | {"n_envs": 2})
    assert len(policy.seen) == 3  # two environments, one episode each
    assert report.complete
    assert report.timing["ms_per_action"] > 0
    assert [episode.init_state_id for episode in report.episodes] == [0, 1, 2, 3]
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 5
    fast = evaluate_policy(Noise(), **options | {"out": None, "physics": "fast"})
    assert fast.conditions["physics"] == "fast"
    assert "physics" not in report.conditions
    assert "physics: None against 'fast'." in compare_reports(report, fast).differences
    with pytest.raises(ReportError, match="of another evaluation: physics is None and not 'fast'"):
        evaluate_policy(policy, **options | {"physics": "fast"})
    with pytest.raises(ReportError, match="of another evaluation: max_steps is 3 and not 4"):
        evaluate_policy(policy, **options | {"max_episode_steps": 4})


@pytest.mark.filterwarnings("ignore:Worker")
def test_a_worker_that_dies_costs_no_episode() -> None:
    options = _without_bar(BLIND) | {"n_workers": 2}
    with Evaluator(Noise(), task_ids=[0, 1], init_state_ids=[0, 1, 2], n_envs=4, **options) as evaluator:

        class Murderer(Noise):
            def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
                if len(self.seen) in (1, 4):  # in the middle of an episode
                    os.kill(worker_pids(evaluator.env.venv)[3], signal.SIGKILL)
                return super().predict(obs)

        os.kill(worker_pids(evaluator.env.venv)[0], signal.SIGKILL)  # and before the first
        evaluator.policy = Murderer()
        report = evaluator.run(progress_bar=False)
        assert evaluator.env.venv.n_restarts == 3
    pairs = [(task_id, state) for task_id in (0, 1) for state in (0, 1, 2)]
    assert report.episodes == [EpisodeResult(*pair, False, 3) for pair in pairs]


def test_failures_are_filmed_as_the_model_saw_them(small: Evaluator, tmp_path: Path) -> None:
    small.run(progress_bar=False, out=tmp_path, film_failures=1)
    films = sorted(path.name for path in (tmp_path / "failures").iterdir())
    assert films == ["task00_init00.mp4", "task01_init00.mp4"]
    assert iio.imread(tmp_path / "failures" / films[0]).shape == (4, 224, 224, 3)  # three steps and what they led to
    assert iio.immeta(tmp_path / "failures" / films[0])["fps"] == 20
    assert (tmp_path / "report.html").read_text().count("<video ") == 2
    with pytest.raises(
        ValueError, match=r"film_failures needs an out folder, and environments with the agentview camera\.$"
    ):
        small.run(film_failures=1)


def test_films_of_before_count_when_an_evaluation_goes_on(small: Evaluator, tmp_path: Path) -> None:
    small.run(progress_bar=False, out=tmp_path, film_failures=1)
    journal, films = tmp_path / "episodes.jsonl", tmp_path / "failures"
    lines = journal.read_text().splitlines()
    first = next(line for line in lines if '"task_id": 0, "init_state_id": 0' in line)
    journal.write_text(lines[0] + "\n" + first + "\n")
    (films / "task01_init00.mp4").rename(films / "task01_init01.mp4")  # as one of another evaluation
    small.run(progress_bar=False, out=tmp_path, film_failures=1)
    names = sorted(path.name for path in films.iterdir())
    assert names == ["task00_init00.mp4", "task01_init00.mp4", "task01_init01.mp4"]
    assert (tmp_path / "report.html").read_text().count("<video ") == 2
    journal.unlink()
    (films / "task01_init00.mp4").write_bytes(b"another evaluation's")
    small.run(progress_bar=False, out=tmp_path)
    assert "<video " not in (tmp_path / "report.html").read_text()
    journal.unlink()
    small.run(progress_bar=False, out=tmp_path, film_failures=1)
    assert (films / "task01_init00.mp4").read_bytes() != b"another evaluation's"


def test_learning_is_the_same_with_an_evaluation_beside_it(tmp_path: Path) -> None:
    plain = fake_model().learn(96)
    model = fake_model()
    callback = EvaluationCallback(
        "LIBERO-Spatial-v0", eval_freq=30, folder=tmp_path, task_ids=[2], init_state_ids=[5], **_without_bar(SMALL)
    )
    model.learn(96, callback, log_interval=None)  # type: ignore[arg-type]
    for name, value in plain.policy.state_dict().items():
        assert value.equal(model.policy.state_dict()[name]), name
    assert list(callback.reports) == [32, 64]  # between iterations of 32
    assert callback.best_success_rate == 0
    logged = model.logger.name_to_value
    assert logged["eval/success_rate"] == logged["eval/success_task_2"] == 0
    assert logged["eval/success_high"] == pytest.approx(callback.reports[64].total.high)
    assert logged["eval/mean_ep_length"] == 3
    # The first of two equal ones is kept, with the weights that were evaluated.
    best = VLAPPO.load(tmp_path / "best", device="cpu", policy_kwargs={"model": _named_backbone()})
    assert best.num_timesteps == 32
    model.save(tmp_path / "model")
    curve = read_curve(tmp_path / "model")
    assert curve is not None
    assert curve.evaluations == callback.curve
    assert EvaluationReport.load(tmp_path / "best_report").conditions["task_ids"] == [2]


def test_evaluations_come_before_and_after_the_training_where_asked_for() -> None:
    trials: dict[str, Any] = {"task_ids": [2], "init_state_ids": [5], **_without_bar(SMALL)}
    callback = EvaluationCallback("LIBERO-Spatial-v0", eval_freq=64, at_start=True, at_end=True, **trials)
    model = fake_model()
    weights: list[dict[str, Any]] = []
    run = Evaluator.run

    def noting(self: Evaluator, **kwargs: Any) -> EvaluationReport:
        weights.append({name: value.clone() for name, value in model.policy.state_dict().items()})
        return run(self, **kwargs)

    initial = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "run", noting)
        model.learn(96, callback)
    assert [done.num_timesteps for done in callback.history] == [0, 64, 96]
    assert all(weights[0][name].equal(value) for name, value in initial.items())
    assert all(weights[-1][name].equal(value) for name, value in model.policy.state_dict().items())
    assert [point.num_timesteps for point in callback.curve] == [0, 64, 96]
    again = EvaluationCallback("LIBERO-Spatial-v0", eval_freq=64, **trials)
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert again.history == callback.history


def test_the_command_evaluates_a_checkpoint_where_it_was_not_trained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for package in ("vla_agent", "libero_gym"):
        caplog.set_level(logging.WARNING, package)  # as it is after this test, too
    caplog.handler.setLevel(logging.NOTSET)
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(TINY_FOLDER, checkpoint)
    (checkpoint / "training.json").write_text(json.dumps({"training": {"libero_spatial": list(range(49))}}))
    arguments = ["--model", str(checkpoint), "--init-states", "held-out", "--task-ids", "0", "--max-episode-steps", "1"]
    cli.main(["evaluate", *arguments, "--renderer", "fast", "--out", str(out)])
    assert "1 of 1 episodes, success 0.0 %" in caplog.messages  # pytest's output is no terminal
    report = EvaluationReport.load(out)
    assert [episode[:2] for episode in report.episodes] == [(0, 49)]
    assert report.manifest["model"]["sha256"].keys() >= {"config.json", "model.safetensors", "training.json"}
    assert (
        "trained on initial states 0-48 of this suite, and evaluated on none of them" in (out / "report.md").read_text()
    )
    with Image.open(out / "success.png") as chart:
        assert chart.format == "PNG"
    assert report.manifest["command"] in html.unescape((out / "report.html").read_text())
    cli.main(["evaluate", "--compare", str(out), str(out), "--out", str(out)])
    printed = capsys.readouterr().out
    assert (out / "comparison.html").is_file()
    assert "All 0/1" in printed
    assert "Comparable: yes." in printed
    assert "No significant difference" in printed


def test_the_whole_protocol_is_500_episodes() -> None:
    trials = plan_trials("LIBERO-Long-v0", None, range(50))
    assert len(set(trials)) == 500
    assert trials[50] == Trial(1, 0)


def test_drawn_initial_states_are_run_once_each() -> None:
    with Evaluator(
        Noise(), task_ids=[0], init_state_ids=(), placement_seeds=[5, 3], **_without_bar(BLIND)
    ) as evaluator:
        begun: list[dict[str, int]] = []
        begin = evaluator.env.begin_episodes
        evaluator.env.begin_episodes = lambda options: begun.extend(options.values()) or begin(options)  # type: ignore
        report = evaluator.run(progress_bar=False)
    first_draw = {"fixture_seed": 0, "fixture_draw": 1}
    assert begun == [{"task_id": 0, "placement_seed": seed} | first_draw for seed in (5, 3)]
    assert [episode.init_state_id for episode in report.episodes] == [-6, -4]


def test_what_does_not_exist_is_named_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="init_state_ids has 50; task 0 of libero_goal has official initial states 0"):
        evaluate_policy("tiny", "LIBERO-Goal-v0", init_state_ids=[0, 50])
    with pytest.raises(ValueError, match="task_ids has 10; libero_spatial has tasks 0 to 9"):
        plan_trials("LIBERO-Spatial-v0", [10], [0])
    with pytest.raises(ValueError, match="names one twice"):
        plan_trials("LIBERO-Spatial-v0", [1, 1], [0])
    with pytest.raises(ValueError, match="init_state_ids is empty"):
        plan_trials("LIBERO-Spatial-v0", None, [])
    with pytest.raises(ValueError, match="placement_seeds has -1"):
        plan_trials("LIBERO-Spatial-v0", None, [], [-1])
    with pytest.raises(ValueError, match="Did you mean 'LIBERO-Spatial-v0'"):
        evaluate_policy("tiny", "LIBERO-Spatail-v0")
    with pytest.raises(ValueError, match="Unknown protocol 'opnvla'"):
        evaluate_policy("tiny", protocol="opnvla")
    with pytest.raises(ValueError, match=r"'held-out' needs the checkpoint's training\.json"):
        evaluate_policy(Noise(), init_state_ids="held-out", **BLIND)
    with pytest.raises(ValueError, match="Unknown init_state_ids 'heldout'"):
        evaluate_policy(Noise(), init_state_ids="heldout")
    with pytest.raises(ValueError, match="protocol='openvla' renders 256 pixels, not image_size=64"):
        evaluate_policy(Noise(), image_size=64)
    with pytest.raises(ValueError, match="There is no checkpoint folder 'no-such-model'"):
        evaluate_policy("no-such-model")
    with pytest.raises(TypeError, match="A dict cannot be evaluated"):
        evaluate_policy({})


def test_a_model_that_does_not_fit_is_told_why() -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], **SMALL}
    model = fake_model(config=FakeConfig(num_images=2))
    with pytest.raises(ValueError, match="The model reads wrist_image, which the observations lack"):
        evaluate_policy(model, cameras=("agentview",), **options)
    chunked = fake_model(chunk_size=2)
    chunked.policy.backbone.processor = SimProcessor(1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="gives 14 action tokens, but the environment takes 7"):
        evaluate_policy(chunked, **options)


@pytest.fixture(scope="module")
def regressing() -> OpenVLA:
    """A tiny OpenVLA-OFT with a continuous head: two cameras, state, chunks of eight."""
    tiny = load_processor("tiny")
    statistics = {
        "libero": {**tiny.config.norm_stats[tiny.unnorm_keys[0]], "proprio": {"q01": [-1] * 8, "q99": [1] * 8}}
    }
    oft: dict[str, Any] = {"decoding": "parallel", "action_chunk_size": 8, "num_images": 2, "use_state": True}
    config = replace(tiny.config, norm_stats=statistics, action_head="l1", **oft)
    th.manual_seed(0)
    return OpenVLA(config, Processor(config, tiny._encode, tiny.files)).eval()


def test_an_object_that_acts_may_bring_its_own_processor() -> None:
    class Own(Noise):
        processor = SimProcessor()

    class Other(Noise):
        processor = "an image processor of some other library"

    assert processor_of(Own(), "tiny") is Own.processor
    assert processor_of(Other(), Own.processor) is Own.processor
    assert isinstance(processor_of(Noise(), "tiny"), Processor)


def test_a_continuous_head_is_evaluated_by_its_own_actions(
    regressing: OpenVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    predict = RegressionPolicy.predict

    def spy(self: RegressionPolicy, obs: Any, deterministic: bool = True) -> Any:
        result = predict(self, obs, deterministic)
        seen.append((obs, result[0]))
        return result

    monkeypatch.setattr(RegressionPolicy, "predict", spy)
    report = evaluate_policy(regressing, task_ids=[0], init_state_ids=[0], **SMALL | {"max_episode_steps": 9})
    assert report.episodes == [EpisodeResult(0, 0, False, 9)]
    assert report.settings["cameras"] == ["image", "wrist_image"]
    assert len(seen) == 2
    obs, actions = seen[0]
    instruction = get_tasks("libero_spatial")[0].instruction
    cameras: dict[str, Any] = {"images": obs["image"], "wrist_images": obs["wrist_image"]}
    expected = regressing.predict_action(instructions=instruction, state=obs["state"], **cameras)
    np.testing.assert_allclose(actions[..., :6], expected[..., :6], atol=1e-6)
    np.testing.assert_array_equal(actions[..., 6], np.where(expected[..., 6] > 0.5, -1, 1))


class Spy:
    """A model whose actions are remembered."""

    def __init__(self, model: Any) -> None:
        self.model, self.actions = model, list[np.ndarray]()

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        actions, state = self.model.predict(obs, deterministic=deterministic)
        self.actions.append(actions)
        return actions, state


def _named_backbone() -> FakeBackbone:
    backbone = FakeBackbone()
    backbone.processor = SimProcessor()
    return backbone


def _without_bar(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "progress_bar"}

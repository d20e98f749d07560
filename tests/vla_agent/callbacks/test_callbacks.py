"""Callbacks: signals save, successes are counted per task, the curve is drawn."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from interrupting import At
from interrupting import interruptible as interruptible
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, LearningCurve, SaveOnSignal, SuccessCallback, latest_run, safe_learn
from vla_agent.callbacks.success import Evaluated, TrainingEpisode
from vla_agent.runs import keeping


def fake() -> dict[str, Any]:
    """Arguments that only a fake model needs."""
    return {"policy_kwargs": {"model": FakeBackbone()}, "device": "cpu"}


def fake_model(**kwargs: Any) -> VLAPPO:
    return VLAPPO("VLAPolicy", fake_env(2), n_steps=16, batch_size=16, seed=0, **fake() | kwargs)


@pytest.fixture(autouse=True)
def hang_up_is_heard() -> Iterator[None]:
    """SIGHUP ends a process, also where the tests were started with it ignored, as `nohup` does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: signal.Signals) -> None:
    """Signals this process, and waits until the handler, which removes itself, has run: another thread may get it."""
    handler = signal.getsignal(number)
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 10
    while signal.getsignal(number) is handler and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_the_run_and_close_the_environments(tmp_path: Path, number: signal.Signals) -> None:
    model = fake_model()
    before = signal.getsignal(number)
    ended = safe_learn(model, 10_000, tmp_path, At(20, lambda: send(number)))
    assert not ended
    assert model.num_timesteps == 42  # the step after the signal ended it
    assert VLAPPO.load(tmp_path / "interrupted", **fake()).num_timesteps == 32  # before the rollout that it ended in
    assert model.env.venv.closed_times == 1  # type: ignore[union-attr]
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # it comes in between

    model = fake_model()
    with pytest.raises(KeyboardInterrupt):
        safe_learn(model, 10_000, tmp_path, At(3, twice))
    assert (tmp_path / "interrupted").is_dir()
    assert model.env.venv.closed_times == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_at_once_is_one(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout` sends it to the process, and then to its group. Later, it does what it did before."""
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))

    def twice() -> None:
        send(number)
        os.kill(os.getpid(), number)
        time.sleep(0.05)

    try:
        assert not safe_learn(fake_model(), 10_000, tmp_path, At(20, twice))
        assert came == []
        monkeypatch.setattr(keeping, "SAME_SIGNAL_S", 0.0)
        assert not safe_learn(fake_model(), 10_000, tmp_path, At(20, twice), existing="aside")
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As ``nohup`` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert safe_learn(fake_model(), 64, tmp_path, At(20, lambda: os.kill(os.getpid(), signal.SIGHUP)))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_is_heard_though_the_shell_had_it_ignored(tmp_path: Path) -> None:
    """As of what a script runs in the background: ``kill -INT`` saves it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not safe_learn(fake_model(), 10_000, tmp_path, At(20, lambda: os.kill(os.getpid(), signal.SIGINT)))
        assert (tmp_path / "interrupted").is_dir()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_saves_the_start(tmp_path: Path, number: signal.Signals) -> None:
    """It comes while the environments are reset, which may take minutes."""
    whole = fake_model()
    whole.learn(64)
    model = fake_model()
    reset = model.env.reset  # type: ignore[union-attr]
    model.env.reset = lambda: (send(number), reset())[1]  # type: ignore[union-attr, method-assign]
    before = signal.getsignal(number)
    assert not safe_learn(model, 64, tmp_path, SuccessCallback())
    assert model.num_timesteps == 0
    assert model.env.venv.closed_times == 1  # type: ignore[union-attr]
    assert signal.getsignal(number) is before
    resumed = VLAPPO.load(latest_run(tmp_path), fake_env(2), **fake())
    assert safe_learn(resumed, 64, tmp_path, reset_num_timesteps=False)
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(one, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_environments_are_saved_loses_nothing_of_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    model = fake_model()
    venv, calls = model.env.venv, iter(range(100))  # type: ignore[union-attr]
    snapshot = venv.snapshot
    venv.snapshot = lambda: (next(calls) == 2 and send(number), snapshot())[1]
    assert not safe_learn(model, 10_000, tmp_path)
    kept = VLAPPO.load(tmp_path / "interrupted", fake_env(2), **fake())
    assert kept.num_timesteps == 64
    assert kept._last_obs is not None  # the environments go on where they were


def test_a_signal_that_ends_the_workers_too_is_a_clean_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one to the whole process group may."""

    def signal_and_fail() -> None:
        send(signal.SIGTERM)
        raise BrokenPipeError("worker 0 is gone")

    assert not safe_learn(fake_model(), 10_000, tmp_path, At(20, signal_and_fail))
    assert "After SIGTERM: BrokenPipeError: worker 0 is gone" in caplog.text
    kept = VLAPPO.load(tmp_path / "interrupted", fake_env(2), **fake())
    assert kept.num_timesteps == 32
    assert kept._last_obs is not None


class AtTheEnd(BaseCallback):
    """Sends a signal when training has ended."""

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        send(signal.SIGTERM)


def test_a_signal_after_the_last_step_still_saves(tmp_path: Path) -> None:
    assert not safe_learn(fake_model(), 64, tmp_path, AtTheEnd())
    assert VLAPPO.load(tmp_path / "interrupted", **fake()).num_timesteps == 64


def test_a_stop_by_another_callback_for_signals_is_no_end_by_itself(tmp_path: Path) -> None:
    other = SaveOnSignal(tmp_path, "other")
    before = signal.getsignal(signal.SIGTERM)
    assert not safe_learn(fake_model(), 10_000, tmp_path, [other, At(20, lambda: send(signal.SIGTERM))])
    assert VLAPPO.load(tmp_path / "other", **fake()).num_timesteps == 32
    assert signal.getsignal(signal.SIGTERM) is before


def test_environments_that_do_not_close_do_not_hide_the_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("worker died")

    def close() -> None:
        raise BrokenPipeError("gone")

    model = fake_model()
    model.env.close = close  # type: ignore[union-attr, method-assign]
    with pytest.raises(RuntimeError, match="worker died"):
        safe_learn(model, 10_000, tmp_path, At(5, fail))
    assert "The environments did not close: BrokenPipeError: gone" in caplog.text
    assert not safe_learn(fake_model(), 10_000, tmp_path / "b", At(5, lambda: send(signal.SIGTERM)))


def test_what_never_started_leaves_the_run_before_it_alone(tmp_path: Path) -> None:
    """The environments fail at their first reset; `interrupted/`, from which the run was to go on, stays."""
    assert not safe_learn(fake_model(), 10_000, tmp_path, At(20, lambda: send(signal.SIGTERM)))
    kept = (tmp_path / "interrupted" / "state.json").read_bytes()
    model = VLAPPO.load(tmp_path / "interrupted", fake_env(2), **fake())
    model._last_obs = None

    def fail() -> None:
        raise RuntimeError("no OpenGL")

    model.env.reset = fail  # type: ignore[union-attr, method-assign]
    with pytest.raises(RuntimeError, match="no OpenGL"):
        safe_learn(model, 64, tmp_path, reset_num_timesteps=False)
    assert (tmp_path / "interrupted" / "state.json").read_bytes() == kept


def test_an_error_saves_the_run_too(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("worker died")

    model = fake_model()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="worker died"):
        safe_learn(model, 10_000, tmp_path, [At(5, fail)])
    assert VLAPPO.load(tmp_path / "interrupted", **fake()).num_timesteps == 0
    assert model.env.venv.closed_times == 1  # type: ignore[union-attr]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_undisturbed_run_saves_nothing_and_stays_open(tmp_path: Path) -> None:
    model = fake_model()
    before = signal.getsignal(signal.SIGTERM)
    assert safe_learn(model, 32, tmp_path, SaveOnSignal(tmp_path, "other"), progress_bar=False)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}
    assert model.env.venv.closed_times == 0  # type: ignore[union-attr]
    assert signal.getsignal(signal.SIGTERM) is before


def test_success_is_counted_per_task() -> None:
    callback = SuccessCallback(window=3)
    callback.model = fake_model()
    for task_id, success in [(0, True), (4, False), (0, False), (0, False), (0, False), (4, True)]:
        episode = {"r": 1.0, "l": 5, "t": 0.1}
        infos = [{"task_id": task_id, "is_success": success, "episode": episode}, {"task_id": 9}]
        callback.locals = {"infos": infos, "dones": [True, False]}
        callback._on_step()
    assert callback.success_rates == {0: 0.0, 4: 0.5}
    assert len(callback.history) == 6
    assert callback.history[0] == TrainingEpisode(0, 0, True, 1.0, 5)


def test_a_history_that_is_loaded_takes_the_place_of_ones_own() -> None:
    """As in a notebook, where one callback learns, is saved with its run, and goes on."""
    model, callback = fake_model(), SuccessCallback()
    model.learn(64, callback)
    before, rates = list(callback.history), callback.success_rates
    callback.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert callback.history == before
    assert callback.success_rates == rates
    fake_model().learn(64, callback)  # another training, with the same seed
    assert callback.history == before


def test_success_per_task_is_logged() -> None:
    model, callback = fake_model(), SuccessCallback()
    model.learn(64, callback, log_interval=None)  # type: ignore[arg-type]
    by_task = [[episode.success for episode in callback.history if episode.task_id == task] for task in (0, 1)]
    assert all(by_task)
    for task, successes in enumerate(by_task):
        assert model.logger.name_to_value[f"rollout/success_task_{task}"] == pytest.approx(np.mean(successes))
    assert sum(map(len, by_task)) == len(model.ep_info_buffer or ())


def test_learning_curve_is_a_picture_of_every_episode(tmp_path: Path) -> None:
    curve = LearningCurve(tmp_path / "plots" / "curve.png", window=5)
    model = fake_model()
    model.learn(96, curve)
    with Image.open(tmp_path / "plots" / "curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1080, 576)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curve.png"]
    assert [episode.episode_return for episode in curve.history] == [info["r"] for info in model.ep_info_buffer or ()]
    steps = [episode.num_timesteps for episode in curve.history]
    assert steps == sorted(steps)


def test_a_curve_shows_evaluations_before_any_episode_has_ended(tmp_path: Path) -> None:
    curve = LearningCurve(tmp_path / "curve.png", evaluations=lambda: [Evaluated(0, 0.5, 0.3, 0.7)])
    curve.draw()
    with Image.open(tmp_path / "curve.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = (pixels[:, 2] > 150) & (pixels[:, 0] < 80)  # matplotlib's first colour
    assert blue.sum() > 50


def test_training_success_of_a_policy_that_never_changes_is_level_from_the_first_batch_on() -> None:
    """Successes take 4 steps and failures 40. Counted where episodes end, the first ones are all successes."""
    rng, n_envs = np.random.default_rng(0), 20
    curve = LearningCurve("curve.png", window=20)
    left, fate = np.zeros(n_envs, dtype=int), np.zeros(n_envs, dtype=bool)
    for i in range(n_envs):
        fate[i] = rng.random() < 0.5
        left[i] = 4 if fate[i] else 40
    lengths = left.copy()
    for _ in range(400):
        left -= 1
        dones = left == 0
        infos = [
            {"episode": {"r": float(fate[i]), "l": int(lengths[i])}, "is_success": bool(fate[i])} if dones[i] else {}
            for i in range(n_envs)
        ]
        curve.locals = {"infos": infos, "dones": dones}
        curve.num_timesteps += n_envs
        curve._on_step()
        for i in np.flatnonzero(dones):
            fate[i] = rng.random() < 0.5
            lengths[i] = left[i] = 4 if fate[i] else 40
    assert np.mean([episode.success for episode in curve.history[:8]]) == 1  # where they end: the bias
    batches = curve.batches(20)
    assert len(batches[0]) == 20
    assert {episode.began for episode in batches[0]} == {0}  # one of each environment
    first = np.mean([episode.success for batch in batches[:5] for episode in batch])
    last = np.mean([episode.success for batch in batches[-5:] for episode in batch])
    assert abs(first - last) < 0.2
    under_way = min(began for began in curve.began if began is not None)
    assert max(episode.began for batch in batches for episode in batch) < under_way


def test_episodes_that_began_together_are_in_one_batch() -> None:
    """The first to end are successes: half of a batch would be too good, and the other half too bad."""
    curve = LearningCurve("curve.png", window=4)
    for began, successes, failures in ((0, 3, 3), (8, 1, 2), (16, 1, 1), (24, 1, 0)):
        for success in [True] * successes + [False] * failures:
            curve.history.append(TrainingEpisode(began + 8, 0, success, float(success), 1, began))
    assert [(len(batch), sum(e.success for e in batch)) for batch in curve.batches(4)] == [(6, 3), (5, 2)]
    curve.history[:] = [episode._replace(began=0) for episode in curve.history]  # of a run that did not note it
    assert [len(batch) for batch in curve.batches(4)] == [4, 4, 4]


def test_what_was_noted_of_an_episode_that_was_given_up_is_not_the_next_ones_beginning() -> None:
    curve = LearningCurve("curve.png")
    curve.began, curve.num_timesteps = [0, 90], 100
    infos: list[dict[str, Any]] = [{"episode": {"r": 0.0, "l": 3}}, {"episode": {"r": 0.0, "l": 4}}]
    curve.locals = {"infos": infos, "dones": [True, True]}
    curve._on_step()
    assert [episode.began for episode in curve.history] == [94, 92]
    assert curve.began == [None, None]


def test_a_picture_that_cannot_be_drawn_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    curve, whole = LearningCurve(tmp_path / "plots" / "curve.png"), fake_model().learn(96)
    (tmp_path / "plots").write_text("a file by now")
    model = fake_model()
    with pytest.warns(UserWarning, match=r"The learning curve was not drawn \(\w+: .*plots.*Training goes on") as told:
        model.learn(96, curve)
    assert len([warning for warning in told if "learning curve" in str(warning.message)]) == 1
    for one, other in zip(whole.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(one, other)
    (tmp_path / "plots").unlink()
    model.learn(32, curve, reset_num_timesteps=False)
    assert (tmp_path / "plots" / "curve.png").is_file()


def test_a_curve_is_a_picture_by_default(tmp_path: Path) -> None:
    model = fake_model()
    model.learn(32, LearningCurve(tmp_path / "curve"))
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"


def test_a_curve_without_episodes_is_not_drawn(tmp_path: Path) -> None:
    LearningCurve(tmp_path / "curve.png").draw()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    fake_model().learn(32, progress_bar=True)
    assert "32/32" in "".join(capsys.readouterr()).replace(" ", "")


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_an_error_closes_the_progress_bar() -> None:
    """An open one fails when the interpreter ends, long after the error: "sys.meta_path is None"."""

    def fail() -> None:
        raise RuntimeError("worker died")

    model = fake_model()
    with pytest.raises(RuntimeError, match="worker died"):
        model.learn(64, At(5, fail), progress_bar=True)
    (bar,) = model._progress_bars
    assert bar.pbar.disable  # what tqdm's `close` sets

"""What is saved is of one moment, whatever goes wrong and whenever it is asked for: weights, optimizer and state."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from interrupting import interruptible as interruptible
from poison import poison_losses
from resuming import assert_equal_runs, callbacks, learner, load
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from libero_gym.vector.pool import WorkerError
from vla_agent import VLAPPO, NonFiniteError, RatioError, RunError, safe_learn

TOTAL, PER_ITERATION, MINIBATCHES = 160, 32, 8  # five iterations; each update has two epochs of four minibatches


@pytest.fixture(scope="module")
def whole() -> tuple[VLAPPO, list[BaseCallback]]:
    """A run that nothing happened to."""
    model, used = learner(), callbacks()
    model.learn(TOTAL, used)
    return model, used


def do_at(owner: Any, method: str, number: int, action: Callable[[], Any], *, after: bool = False) -> None:
    """Has ``action`` done before or after the call of a method with this number, counted from 1."""
    original, calls = getattr(owner, method), iter(range(1, 10_000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == number
        if due and not after:
            action()
        result = original(*args, **kwargs)
        if due and after:
            action()
        return result

    setattr(owner, method, wrapped)


def throw(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def press_ctrl_c_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # the handler runs, in this thread
    pytest.fail("the second signal did not stop at once")


class Failing(BaseCallback):
    """Raises at the third call of one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__()
        do_at(self, method, 1 if method == "_on_training_end" else 3, throw(OSError("no space left")))

    def _on_step(self) -> bool:
        return True


SECOND_MINIBATCH = 2 * MINIBATCHES + 2  # of the third update, in which a first step has been taken


def losses_not_finite(model: VLAPPO) -> None:
    poison_losses(model, range(SECOND_MINIBATCH - 1, SECOND_MINIBATCH + 2))


def gpu_memory_runs_out(model: VLAPPO) -> None:
    do_at(model, "_losses", SECOND_MINIBATCH, throw(th.OutOfMemoryError("CUDA out of memory.")))


def host_memory_runs_out(model: VLAPPO) -> None:
    do_at(model, "_losses", SECOND_MINIBATCH, throw(MemoryError()))


def old_probabilities_are_off(model: VLAPPO) -> None:
    def alter() -> None:
        model.rollout_buffer.log_probs += 1

    do_at(model, "_fit_value_head", 3, alter, after=True)


def ctrl_c_twice_in_the_update(model: VLAPPO) -> None:
    do_at(model, "_losses", SECOND_MINIBATCH, press_ctrl_c_twice)


def ctrl_c_twice_while_the_value_head_learns(model: VLAPPO) -> None:
    third = lambda: do_at(model._monitor, "is_finite", 5, press_ctrl_c_twice)  # noqa: E731
    do_at(model, "_fit_value_head", 3, third)


def ctrl_c_twice_within_an_optimizer_step(model: VLAPPO) -> None:
    do_at(model.policy.optimizer, "step", 40, press_ctrl_c_twice, after=True)


def metrics_cannot_be_logged(model: VLAPPO) -> None:
    do_at(model, "_log_update", 3, throw(OSError("no space left")))


def environments_fail(model: VLAPPO) -> None:
    do_at(model.env, "step_wait", 40, throw(OSError("broken pipe")))


def ctrl_c_twice_while_environments_are_saved(model: VLAPPO) -> None:
    do_at(model.env.venv, "snapshot", 3, press_ctrl_c_twice)  # type: ignore[union-attr]
    do_at(model.env.venv, "snapshot", 4, throw(AssertionError("asked again in the middle of an answer")))  # type: ignore[union-attr]


def workers_are_gone_when_environments_are_saved(model: VLAPPO) -> None:
    do_at(model.env.venv, "snapshot", 3, throw(WorkerError("killed")))  # type: ignore[union-attr]
    do_at(model.env, "step_wait", 33, throw(WorkerError("killed")))  # the step after it


def workers_are_replaced_after_environments_were_to_be_saved(model: VLAPPO) -> None:
    do_at(model.env.venv, "snapshot", 3, throw(WorkerError("killed")))  # type: ignore[union-attr]
    do_at(model, "_losses", SECOND_MINIBATCH, throw(MemoryError()))


@pytest.mark.filterwarnings("ignore:A minibatch gave")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("fault", "error", "kept"),
    [
        (losses_not_finite, NonFiniteError, 64),
        (gpu_memory_runs_out, th.OutOfMemoryError, 64),
        (host_memory_runs_out, MemoryError, 64),
        (old_probabilities_are_off, RatioError, 64),
        (ctrl_c_twice_in_the_update, KeyboardInterrupt, 64),
        (ctrl_c_twice_while_the_value_head_learns, KeyboardInterrupt, 64),
        (ctrl_c_twice_within_an_optimizer_step, KeyboardInterrupt, None),
        (metrics_cannot_be_logged, OSError, 64),
        (environments_fail, OSError, 64),
        (ctrl_c_twice_while_environments_are_saved, KeyboardInterrupt, 32),
        (workers_are_gone_when_environments_are_saved, WorkerError, 32),
        (workers_are_replaced_after_environments_were_to_be_saved, MemoryError, 32),
    ],
)
def test_what_an_error_leaves_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
    whole: tuple[VLAPPO, list[BaseCallback]],
    fault: Callable[[VLAPPO], None],
    error: type[BaseException],
    kept: int | None,
) -> None:
    model = learner()
    fault(model)
    with pytest.raises(error):
        safe_learn(model, TOTAL, tmp_path, callbacks())
    assert_goes_on(tmp_path / "interrupted", whole, kept)


@pytest.mark.parametrize(
    ("method", "kept"),
    [("_on_step", 0), ("_on_rollout_start", 64), ("_on_rollout_end", 64), ("_on_training_end", TOTAL)],
)
def test_what_a_failing_callback_leaves_goes_on_too(
    tmp_path: Path, whole: tuple[VLAPPO, list[BaseCallback]], method: str, kept: int
) -> None:
    with pytest.raises(OSError, match="no space left"):
        safe_learn(learner(), TOTAL, tmp_path, [*callbacks(), Failing(method)])
    assert_goes_on(tmp_path / "interrupted", whole, kept)


@pytest.mark.parametrize("when", ["_losses", "_log_update", "_fit_value_head"])
def test_a_save_in_an_update_is_of_the_moment_before_it_and_disturbs_nothing(
    tmp_path: Path, whole: tuple[VLAPPO, list[BaseCallback]], when: str
) -> None:
    model, used = learner(), callbacks()
    number = SECOND_MINIBATCH if when == "_losses" else 3
    do_at(model, when, number, lambda: model.save(tmp_path / "a"), after=when == "_fit_value_head")
    before = [BeforeUpdate(3, tmp_path / "b")]
    model.learn(TOTAL, [*used, *before])
    assert_equal_runs(whole[0], model)
    assert_goes_on(tmp_path / "a", whole, 64)
    for file in (tmp_path / "a").iterdir():  # to the byte what a save in the rollout before gives
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


class BeforeUpdate(BaseCallback):
    """Saves at the end of a rollout."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__()
        do_at(self, "_on_rollout_end", number, lambda: self.model.save(path))

    def _on_step(self) -> bool:
        return True


def test_stable_baselines3_checkpoints_go_on_too(tmp_path: Path, whole: tuple[VLAPPO, list[BaseCallback]]) -> None:
    """They are saved in the middle of a rollout, the second here after 40 of 80 steps per environment."""
    learner().learn(TOTAL, [*callbacks(), CheckpointCallback(20, str(tmp_path), "run")])
    assert_goes_on(tmp_path / "run_80_steps.zip", whole, 64)


def test_more_than_the_limit_is_not_copied_and_a_save_says_so(tmp_path: Path) -> None:
    model = learner()
    model.max_copy_bytes = 1000
    do_at(model, "_losses", SECOND_MINIBATCH, lambda: model.save(tmp_path / "a"))
    with pytest.raises(RunError, match=r"in the middle of an update.* GiB, and max_copy_bytes allows 9\.31e-07 GiB"):
        model.learn(TOTAL)
    assert not (tmp_path / "a").exists()


def test_only_what_is_trained_is_copied_and_only_during_updates() -> None:
    model = learner()
    for parameter in model.policy.backbone.vision.parameters():  # type: ignore[union-attr, operator]
        parameter.requires_grad_(False)
    seen: list[Any] = []
    do_at(model, "_losses", 1, lambda: seen.append(model.moments.boundary))
    model.learn(PER_ITERATION)
    copied, live = seen[0].contents.weights, model.policy.state_dict()
    shared = {name for name in copied if copied[name].data_ptr() == live[name].data_ptr()}
    untrained = {f"{layer}.{kind}" for layer in ("vision", "spare", "state") for kind in ("weight", "bias")}
    assert {name.removeprefix("_backbone.") for name in shared} == untrained  # no output depends on the last two
    assert model.moments.boundary is None
    assert model.moments.past is None


def assert_goes_on(path: Path, whole: tuple[VLAPPO, list[BaseCallback]], kept: int | None) -> None:
    """The rest of the run from there equals the run that nothing happened to: parameters, moments, episodes."""
    expected, logs = whole
    resumed, used = load(path), callbacks()
    if kept is not None:
        assert resumed.num_timesteps == kept
    assert resumed._last_obs is not None
    resumed.learn(TOTAL - resumed.num_timesteps, used, reset_num_timesteps=False)
    assert_equal_runs(expected, resumed)
    for one, other in zip(logs, used, strict=True):
        assert one.history == other.history  # type: ignore[attr-defined]

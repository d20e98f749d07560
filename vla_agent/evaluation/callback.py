"""Evaluation while a model learns, in the place of SB3's `EvalCallback`, by this project's protocols."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from libero_gym.common.checks import flag, whole_number
from vla_agent.callbacks.success import Evaluated
from vla_agent.callbacks.tree import parts
from vla_agent.common.atomic import destination
from vla_agent.evaluation.evaluator import Evaluator
from vla_agent.evaluation.falls import EvaluatedEpisodes, Fall, Practice, find_fall
from vla_agent.evaluation.reports import EvaluationReport
from vla_agent.evaluation.results import EpisodeResult, SuccessRow
from vla_agent.evaluation.settings import differences, settings_of_test
from vla_agent.evaluation.sharing import learners_engine
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.keeping import SaveOnSignal, save_where_free
from vla_agent.runs.learner import Learner
from vla_agent.runs.run_files import RUN
from vla_agent.runs.run_folder import BEST, claimed_folder


class _Stopped(Exception):
    """A signal asked for the end of the training."""


class EvaluationCallback(EventCallback):
    """Evaluates the model every so many timesteps, logs it, and keeps the best.

    It changes nothing in the learning: it has its own environments, and puts torch's generators back. A policy that
    keeps an average of its weights (``average_decay``) is evaluated, and kept as the best, with it. It logs
    ``eval/success_rate``, ``eval/success_low`` and ``eval/success_high`` (Wilson's 95 % interval),
    ``eval/success_task_<id>``, ``eval/mean_ep_length`` (control steps), ``eval/best_success_rate``, and
    ``time/eval_s``; ``eval/success_<suite>`` if tasks come from several suites. ``eval/fell`` is 1 if success fell from
    the best evaluation beyond chance while success in training did not (see `find_fall`); the first such evaluation
    warns.

    The policy is evaluated between two iterations, after the update that follows a rollout. The other processes of the
    learner's engine play their share of the episodes, each in ``n_envs`` environments of its own, which it makes for
    each evaluation. A signal that ends the training (see `SaveOnSignal`) ends an evaluation at its next step; the run
    that goes on makes it up. Other processes end the shares that they have begun first.

    Args:
        env_id: Id of the environments to evaluate on, such as "LIBERO-Spatial-v0".
        eval_freq: Timesteps from one evaluation to the next, and before the first.
        at_start: Whether to evaluate before the first update, too.
        at_end: Whether to evaluate after the last update, too, unless training was stopped before its end.
        folder: Folder to save the best model in (``<folder>/best``) and its report (``<folder>/best_report``). None
            takes the folder of the run, which `safe_learn` or `RunCheckpoints` claims for a learner of this package,
            and saves neither if there is none.
        keep_best: Whether to save the best; False saves neither.
        deterministic: Whether to decode greedily.
        temperature: Temperature of actions that are drawn; None for that of the rollouts.
        seed: Seed for sampling.
        spread: Whether the other processes of the learner's engine play, too, if there are any. By default they do if
            ``deterministic``: greedy episodes are those of one process with as many environments, drawn ones are not.
        callback_on_new_best: Callback for a model that is better than all before, such as SB3's
            `StopTrainingOnRewardThreshold`. SB3's callbacks read success rates where `EvalCallback` has mean rewards:
            a threshold of 0.9 is a success rate of 90 %.
        callback_after_eval: Callback for every evaluation, such as SB3's `StopTrainingOnNoModelImprovement`.
        allow_changes: Whether a run that was evaluated on another test (other states, another protocol or renderer,
            drawn actions instead of greedy ones) may go on with this one. Its history and its best begin anew then.
        verbose: 1 shows a progress bar.
        **kwargs: Further arguments of `Evaluator`: tasks, initial states, protocol, renderer, number of environments of
            each process.

    Attributes:
        history: Timestep and episodes of every evaluation, those before a run was resumed included.
        reports: Reports of this process's evaluations, by timestep.
        best_success_rate: Best success rate so far; -1 before the first evaluation.
        fall: What `find_fall` says of the last evaluation; None if it did not fall.
        practice: Training episodes between each evaluation and the one before it, by the timestep of the evaluation.
        settings: What identifies the test, see `settings_of_test`.

    Raises:
        ValueError: If ``eval_freq`` is no whole number of at least 1; in `learn`, if a run goes on that was evaluated
            on another test.
        FileExistsError: When training starts, if ``<folder>/best`` is something else than a saved run.
    """

    def __init__(
        self,
        env_id: str,
        *,
        eval_freq: int = 10_000,
        at_start: bool = False,
        at_end: bool = False,
        folder: str | Path | None = None,
        keep_best: bool = True,
        deterministic: bool = True,
        temperature: float | None = None,
        seed: int = 0,
        spread: bool | None = None,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        verbose: int = 0,
        allow_changes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(callback_after_eval, verbose=verbose)
        # An iterator would be empty at the second training.
        self.env_id, self.kwargs = env_id, {name: _kept(value) for name, value in kwargs.items()}
        self.allow_changes = flag("allow_changes", allow_changes)
        self.eval_freq = whole_number("eval_freq", eval_freq, minimum=1)
        self.at_start, self.at_end = flag("at_start", at_start), flag("at_end", at_end)
        self.keep_best = flag("keep_best", keep_best)
        self.spread = deterministic if spread is None else flag("spread", spread)
        self.folder = Path(folder) if folder is not None and keep_best else None
        self._takes_the_runs = folder is None and keep_best
        self.run_kwargs: dict[str, Any] = {
            "deterministic": deterministic,
            "temperature": temperature,
            "seed": seed,
        }
        self.settings = settings_of_test(env_id, self.kwargs, self.run_kwargs)
        self.callback_on_new_best = callback_on_new_best
        if callback_on_new_best is not None:
            callback_on_new_best.parent = self
        self.reports: dict[int, EvaluationReport] = {}
        self._evaluator: Evaluator | None = None
        self._begin_anew()
        self._go_on = True
        self._rollout_is_whole = False

    def _begin_anew(self) -> None:
        """Forget what was found before."""
        self.history: list[EvaluatedEpisodes] = []
        self.best_success_rate = -1.0
        self.practice: dict[int, Practice] = {}
        self._practising = Practice()
        self._next = 0
        self._is_loaded = False

    @property
    def curve(self) -> list[Evaluated]:
        """Every evaluation's rate and interval, for `LearningCurve`."""
        rows = [(steps, SuccessRow.of(episodes)) for steps, episodes in self.history]
        return [Evaluated(steps, row.rate, row.low, row.high) for steps, row in rows]

    @property
    def best(self) -> EvaluatedEpisodes:
        """The first of the evaluations with the highest success rate; its model is in ``<folder>/best``."""
        return max(self.history, key=lambda done: SuccessRow.of(done.episodes).rate)

    @property
    def best_mean_reward(self) -> float:
        """Best success rate so far, by the name that SB3's callbacks read; -inf before the first evaluation."""
        return self.best_success_rate if self.best_success_rate >= 0 else -math.inf

    @property
    def last_mean_reward(self) -> float:
        """Success rate of the last evaluation, by the name that SB3's callbacks read; -inf before the first one."""
        return SuccessRow.of(self.history[-1].episodes).rate if self.history else -math.inf

    @property
    def fell(self) -> bool:
        """Whether the last evaluation is worse than the best."""
        rates = [SuccessRow.of(done.episodes).rate for done in (self.history[-1], self.best)]
        return rates[0] < rates[1]

    @property
    def fall(self) -> Fall | None:
        """Whether the last evaluation fell from the best beyond chance, while training did not."""
        return find_fall(self.history, self.practice)

    def describe_fall(self) -> str | None:
        """The fall of the last evaluation as one sentence, with the way out; None if there is none."""
        found = self.fall
        return found and found.describe(self.folder, self.run_kwargs["deterministic"])

    def _init_callback(self) -> None:
        super()._init_callback()
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)

    def _on_training_start(self) -> None:
        # Now and not at the first evaluation: a wrong argument should not cost hours.
        if self._takes_the_runs:
            self.folder = self._folder_of_run()
        if self.folder is not None and getattr(self.model, "saves_runs", False):
            destination(self.folder / BEST, RUN)
        engine = learners_engine(self.model) if self.spread else None
        self._evaluator = Evaluator(self.model, self.env_id, **{"engine": engine} | self.kwargs)
        self._go_on = True
        if self.num_timesteps == 0 and not self._is_loaded:  # another training than what this was used for before
            self._begin_anew()
        self._rollout_is_whole = True  # none has begun
        self.history = [done for done in self.history if done.num_timesteps <= self.num_timesteps]
        self.practice = {steps: span for steps, span in self.practice.items() if steps <= self.num_timesteps}
        # A run is saved as it was before a rollout, and so before the evaluation that was due then.
        is_due = self._is_loaded and self._next <= self.num_timesteps
        self._is_loaded = False
        if not is_due and not 0 < self._next - self.num_timesteps <= self.eval_freq:  # unless a loaded run goes on
            self._next = self.num_timesteps if self.at_start and not self.history else self._following()
        super()._on_training_start()
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.on_training_start(self.locals, self.globals)

    def _folder_of_run(self) -> Path | None:
        return claimed_folder(self.model) if getattr(self.model, "saves_runs", False) else None

    def _following(self) -> int:
        return self.eval_freq * (1 + self.num_timesteps // self.eval_freq)

    def state_dict(self) -> dict[str, Any]:
        """When the next evaluation comes, how good the best was, what all before found, and training between them."""
        return {
            "next": self._next,
            "best_success_rate": self.best_success_rate,
            "history": [(done.num_timesteps, [episode[:4] for episode in done.episodes]) for done in self.history],
            "practice": [[steps, *span] for steps, span in self.practice.items()],
            "practising": list(self._practising),
            "settings": self.settings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; older ones tell no settings.

        Raises:
            ValueError: If it is of another test.
        """
        if changed := differences(state.get("settings", {}), self.settings):
            if not self.allow_changes:
                raise ValueError(
                    f"The run was evaluated on another test ({'; '.join(changed)}). Give what it was evaluated with, "
                    "or allow_changes=True (--allow-changes) to go on as asked; its history and its best then begin "
                    "anew."
                )
            self._begin_anew()
            return
        self._is_loaded = True
        self._next, self.best_success_rate = state["next"], state["best_success_rate"]
        self.history = [
            EvaluatedEpisodes(steps, [EpisodeResult(*episode) for episode in episodes])
            for steps, episodes in state.get("history", ())
        ]
        self.practice = {steps: Practice(*span) for steps, *span in state.get("practice", ())}  # unknown to older runs
        self._practising = Practice(*state.get("practising", ()))

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Hand the training's local variables to both callbacks."""
        super().update_child_locals(locals_)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.update_locals(locals_)

    def _on_rollout_start(self) -> None:
        self._rollout_is_whole = False
        if self.num_timesteps >= self._next:
            self._go_on = self._evaluate()

    def _on_rollout_end(self) -> None:
        self._rollout_is_whole = True

    def _on_step(self) -> bool:
        ended = [bool(info.get("is_success", False)) for info in self.locals["infos"] if "episode" in info]
        self._practising = Practice(self._practising.successes + sum(ended), self._practising.n + len(ended))
        return self._go_on

    def _on_training_end(self) -> None:
        # A run that was stopped before its last evaluation makes it up, with no step left.
        is_new = not self.history or self.history[-1].num_timesteps < self.num_timesteps
        if self.at_end and self._rollout_is_whole and is_new:
            self._evaluate()
        self.close()

    def close(self) -> None:
        """Close the environments; needed only if `learn` ended by an exception."""
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None

    def _stop_if_asked(self) -> None:
        """End the evaluation if a signal has asked for the end of the training: the run is saved once it has ended."""
        if any(isinstance(part, SaveOnSignal) and part.received for part in parts([self.locals["callback"]])):
            raise _Stopped

    def _evaluate(self) -> bool:
        """Evaluate, and say whether to go on; an evaluation that is stopped stays due."""
        assert self._evaluator is not None
        start = time.perf_counter()
        had_fallen, go_on = self.fall is not None, True
        policy = self.model.policy
        with policy.averaged() if isinstance(policy, VLAPolicy) else contextlib.nullcontext():
            try:
                self._stop_if_asked()
                how = {"progress_bar": self.verbose > 0, "on_step": self._stop_if_asked, **self.run_kwargs}
                report = self._evaluator.run(**how)
            except _Stopped:
                return False
            self._next = self._following()
            self.reports[self.num_timesteps] = report
            self.history.append(EvaluatedEpisodes(self.num_timesteps, list(report.episodes)))
            self.practice[self.num_timesteps], self._practising = self._practising, Practice()
            improved = report.success_rate > self.best_success_rate
            self.best_success_rate = max(self.best_success_rate, report.success_rate)
            if improved and self.folder is None and self._takes_the_runs:  # a later callback may have claimed it
                self.folder = self._folder_of_run()
            if improved and self.folder is not None:
                self._keep(report, self.folder)
            if improved and self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        self._log(report, time.perf_counter() - start)
        if not had_fallen and (told := self.describe_fall()):
            warnings.warn(told, stacklevel=2)
        return go_on and self._on_event()

    def _keep(self, report: EvaluationReport, folder: Path) -> None:
        if getattr(self.model, "saves_runs", False):  # what was put into best/ meanwhile stays, and training goes on
            save_where_free(cast(Learner, self.model), folder / BEST)
        else:
            self.model.save(folder / BEST)
        report.save(folder / "best_report")

    def _log(self, report: EvaluationReport, seconds: float) -> None:
        total = report.total
        self.logger.record("eval/success_rate", total.rate)
        self.logger.record("eval/success_low", total.low)
        self.logger.record("eval/success_high", total.high)
        self.logger.record("eval/mean_ep_length", total.mean_steps)
        self.logger.record("eval/best_success_rate", self.best_success_rate)
        self.logger.record("eval/fell", int(self.fall is not None))
        for task_id, row in report.tasks.items():
            self.logger.record(f"eval/success_task_{task_id}", row.rate)
        for suite, row in report.suites.items() if len(report.suites) > 1 else ():
            self.logger.record(f"eval/success_{suite}", row.rate)
        self.logger.record("time/eval_s", seconds)


def _kept(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value

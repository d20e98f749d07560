"""Success rates by protocol: every task asked for from every initial state asked for, exactly once, in parallel."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch as th

from libero_gym.common.checks import choice, flag, whole_number
from libero_gym.dimensions import CAMERA_KEYS
from vla_agent.common.randomness import own_randomness
from vla_agent.envs.backends import evaluation_arguments
from vla_agent.envs.episodes import play_episodes
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.choosing import check_choosing, mean_score, noted_scores
from vla_agent.evaluation.conditions import conditions_of, settings_of
from vla_agent.evaluation.decoding import decoding_settings, drawing_at
from vla_agent.evaluation.familiarity import evaluated_states, warn_of_unfamiliar
from vla_agent.evaluation.filming import Filmer
from vla_agent.evaluation.frames import frame_options, frame_settings
from vla_agent.evaluation.going_on import open_journal
from vla_agent.evaluation.journal import Journal
from vla_agent.evaluation.learning import read_curve
from vla_agent.evaluation.planning import named_trials, statistics_of, trials_of
from vla_agent.evaluation.policies import RegressionPolicy, as_policy, close_subject, load_subject, processor_of
from vla_agent.evaluation.progress import Progress
from vla_agent.evaluation.protocols import PROTOCOLS
from vla_agent.evaluation.provenance import UNKNOWN, describe_model, provenance
from vla_agent.evaluation.reports import EvaluationReport, as_folder, finished_timing
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.evaluation.sharing import check_shareable, cpus_of_each, share_episodes
from vla_agent.evaluation.timing import Clock
from vla_agent.evaluation.trials import Trial
from vla_agent.test_time.scorers import ScorerMaker

if TYPE_CHECKING:
    from vla_agent.engines import RayEngine

logger = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1

Played = Iterator[tuple[int, EpisodeResult]]  # the positions of trials and their results, as they end
Play = Callable[[Sequence[Trial]], Played]


class Evaluator:
    """A model, environments and a plan, for one evaluation or for several of a model that changes.

    Args:
        model: A `VLAPPO` or a folder with one, a checkpoint ("tiny", a folder, a hub id), a backbone, an `Actor` or its
            name ("ws://host:port"; see `vla_agent.actors.load_actor`), or any object with ``predict(obs,
            deterministic=)``. The folder of a run, "runs/ppo", stands for the best of its own
            evaluations (``best/``), and for its newest save if there were none. An object that acts gets `VLAVecEnv`'s
            observations and returns its bins and a state; `play_episodes` says what else `predict` may take. An object
            whose weights cannot be hashed may have ``fingerprint()``, a text that differs where it acts differently.
        env_id: Id of the environments, such as "LIBERO-Spatial-v0"; or a BDDL file, or a folder of such.
        task_ids: Tasks of the suite; all by default.
        init_state_ids: Official initial states, each once per task. "unseen": those of each task's suite that the model
            was not trained on, by its ``training.json``, and all 50 if it has none. "held-out": the same, but a model
            without one is refused. It may be () if there are ``placement_seeds``.
        placement_seeds: Further initial states, each once per task, with the objects anywhere in the BDDL's regions. In
            the report such a state's id is -1 - seed. They serve to choose a model; results are reported on official
            states.
        trained_states: Whether states that the model was trained on are meant; they are refused otherwise. With
            "unseen", all states are taken.
        n_envs: Number of environments side by side; by default as many as CPU cores, and never more than episodes.
        protocol: Name of one of `PROTOCOLS`. "openvla" is OpenVLA's own evaluation, where initial state k has draw
            k + 1 of the fixtures after seed 0. "openpi" is the same with seed 7. "fixed" gives all states draw 1 of
            seed 0. These three render at 256 pixels; images then take JPEG and a Lanczos resize to the model's size.
            "training" makes environments as `make_vec_env` does for training, on draw 1; models that do not take 224
            pixels are fed frames of their size. Drawing the fixtures of a task takes seconds at first; they are kept on
            disk.
        center_crop: Whether the published path of images ends with the centre crop, as is right for models trained with
            random crops. None crops for models that take 224 pixels, as the published ones do.
        renderer: "exact" for every reported result, or "fast".
        max_episode_steps: Control steps of an episode; the protocol's limit by default.
        unnorm_key: Key of the checkpoint's statistics that decode the actions; None takes the only one.
        processor: Processor whose prompts and codec serve a ``model`` without its own, or the name of its checkpoint.
        device: Device that a checkpoint is loaded to.
        replan_steps: Actions of each chunk that are executed before a policy that is named, such as "ws://host:port",
            is asked again; its own number by default.
        best_of_n: Candidates of each decision, of which the best by ``scorer`` is executed; see `BestOfN`.
        scorer: Name of what chooses among them (see `scorer_by_name`), or a function that makes it for the policy and
            its environments. Reports name oracles.
        engine: Engine whose processes play the trials beside this one, each in ``n_envs`` environments of its own. They
            read the model by its name, so it has to be one, or it is the learner that they have copies of. Greedy
            episodes are those of one process with as many environments; sampled ones are not.
        **env_kwargs: Further arguments of the environments, such as ``n_workers``; or ``backend="warp"``, with
            ``backend_device``, by default the model's: the report says "batched" then.

    Attributes:
        trials: The trials, in the report's order.
        conditions, settings: Conditions and settings of the report.

    Raises:
        ValueError: If an argument is out of range, or model and environment do not fit.
        TypeError: If ``model`` cannot act.
    """

    def __init__(
        self,
        model: Any,
        env_id: str = "LIBERO-Spatial-v0",
        *,
        task_ids: Sequence[int] | None = None,
        init_state_ids: Iterable[int] | Literal["unseen", "held-out"] = "unseen",
        placement_seeds: Iterable[int] = (),
        trained_states: bool = False,
        n_envs: int | None = None,
        protocol: str = "openvla",
        center_crop: bool | None = None,
        renderer: str = "exact",
        max_episode_steps: int | None = None,
        unnorm_key: str | None = None,
        processor: Any = "tiny",
        device: th.device | str = "auto",
        replan_steps: int | None = None,
        best_of_n: int = 1,
        scorer: str | ScorerMaker = "agreement",
        engine: RayEngine | None = None,
        **env_kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "engine", "env_kwargs")}
        self.engine, self._given = engine, given | env_kwargs  # what the evaluators of other processes are given
        self.protocol = PROTOCOLS[choice("protocol", protocol, PROTOCOLS)]
        n_envs = cpus_of_each(engine) if n_envs is None else whole_number("n_envs", n_envs, 1)
        if center_crop is not None:
            center_crop = flag("center_crop", center_crop)
        if max_episode_steps is not None:
            max_episode_steps = whole_number("max_episode_steps", max_episode_steps, 1)
        self._choosing = check_choosing(best_of_n, scorer, engine)
        env_kwargs = evaluation_arguments(env_kwargs, device)
        trained_states = flag("trained_states", trained_states)
        task_ids, states, placement_seeds = named_trials(env_id, task_ids, init_state_ids, placement_seeds)
        with own_randomness(0):
            self.subject = load_subject(model, device, replan_steps)
        self._given |= {"model": self.subject.name, "task_ids": task_ids, "init_state_ids": states}
        self._given["placement_seeds"] = placement_seeds
        try:
            check_shareable(engine, self.subject)
            self.suite = describe_suite(env_id)
            self.trials, self.training_states = trials_of(
                self.subject,
                self._choosing.training_states,
                self.suite,
                env_id,
                task_ids,
                states,
                placement_seeds,
                trained_states,
            )
            self.task_ids = sorted({trial.task_id for trial in self.trials})
            self.conditions = conditions_of(
                self.protocol,
                self.suite,
                self.trials,
                renderer,
                max_episode_steps,
                settle_steps=env_kwargs.pop("settle_steps", self.protocol.settle_steps),
                physics=env_kwargs.get("physics", "exact"),
            )
            self._make_env(env_id, n_envs, processor, center_crop, unnorm_key, env_kwargs)
        except BaseException:
            close_subject(self.subject)
            raise

    def _make_env(
        self,
        env_id: str,
        n_envs: int,
        processor: Any,
        center_crop: bool | None,
        unnorm_key: str | None,
        env_kwargs: dict[str, Any],
    ) -> None:
        """Make the environments and the policy that acts in them, and note the settings of both."""
        processor = processor_of(self.subject.model, processor)
        evaluated = {self.suite.sources[task_id] for task_id in self.task_ids}
        unnorm_key = statistics_of(self.subject, processor, unnorm_key, evaluated, self.training_states)
        options = frame_options(self.protocol, processor, center_crop, env_kwargs)
        self.protocol.prepare(self.suite, self.trials)
        logger.info("Starting environments for %d episodes of %s", len(self.trials), self.suite.name)
        self.env = make_vec_env(
            env_id,
            min(n_envs, len(self.trials)),
            model=processor,
            unnorm_key=unnorm_key,
            task_id=self.conditions["task_ids"],
            renderer=self.conditions["renderer"],
            settle_steps=self.conditions["settle_steps"],
            max_episode_steps=self.conditions["max_steps"],
            **env_kwargs | options,
        )
        try:
            with own_randomness(0):
                self.policy = self._choosing.among(as_policy(self.subject.model, self.env, unnorm_key), self.env)
            frames = frame_settings(self.env, env_kwargs.get("image_transform", "auto"), options)
            self.settings = settings_of(env_id, self.env, self.policy, unnorm_key, env_kwargs) | frames
        except BaseException:
            self.env.close()
            raise

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments, and a policy that was loaded by its name; safe to call twice."""
        try:
            self.env.close()
        finally:
            close_subject(self.subject)

    def run(
        self,
        *,
        deterministic: bool = True,
        temperature: float | None = None,
        seed: int = 0,
        progress_bar: bool = True,
        out: str | Path | None = None,
        film_failures: int = 0,
        on_step: Callable[[], Any] = lambda: None,
    ) -> EvaluationReport:
        """Run every trial.

        With ``out``, each episode is written to disk as it ends. After an interruption (Ctrl-C, a kill) the same call
        runs the missing episodes. Ctrl-C writes the report of the finished ones before the exception goes on. Sampled
        episodes after an interruption differ from those without one.

        Args:
            deterministic: Whether to decode greedily, as the protocol does; with ``best_of_n``, a candidate is greedy.
            temperature: Temperature of actions that are drawn, which is put back afterwards; the policy's own if None:
                that of a run's rollouts, and 1 for a checkpoint.
            seed: Seed of torch's generators for sampling; they are put back afterwards.
            progress_bar: Whether to show episodes and successes so far, on a terminal. They are logged in any case, at
                level INFO, every ten seconds.
            out: Folder for ``episodes.jsonl``, ``report.json``, ``report.md``, ``report.html`` and ``success.png``.
            film_failures: Number of failures of each task to film as the model saw them, into ``<out>/failures``.
            on_step: Function that is called after each step of this process's environments, and each episode of
                another's. What it raises ends the evaluation, as Ctrl-C does.

        Raises:
            ValueError: If an argument is out of range, failures are to be filmed without a folder or a camera, or a
                temperature is given where nothing is drawn.
            ReportError: If ``out`` holds an evaluation of another model, or with other settings, or is no folder; or
                if it holds episodes, and nothing tells the object that played them from another of its class.
            BlockingIOError: If another evaluation writes into ``out``.
        """
        deterministic, seed = flag("deterministic", deterministic), whole_number("seed", seed, 0, MAX_SEED)
        progress_bar = flag("progress_bar", progress_bar)
        film_failures = whole_number("film_failures", film_failures, 0)
        out = None if out is None else as_folder("out", out)
        check_shareable(self.engine, self.subject, film_failures)
        filmer = _filmer(film_failures, out, self.settings)
        description = describe_model(self.subject.model, self.subject.name, self.subject.folder)
        settings = self.settings | decoding_settings(self.policy, deterministic, temperature) | {"seed": seed}
        curve = read_curve(self.subject.folder)
        report = EvaluationReport(
            conditions=self.conditions,
            settings=settings,
            episodes=[],
            task_names={task_id: self.suite.task_names[task_id] for task_id in self.task_ids},
            task_suites={task_id: self.suite.sources[task_id] for task_id in self.task_ids},
            manifest={
                "model": description,
                **({} if self.subject.choice is None else {"model_choice": self.subject.choice}),
                "training_states": self.training_states or UNKNOWN,
                **({} if curve is None else {"learning_curve": curve.to_json()}),
                **provenance(),
            },
            complete=False,
        )
        evaluated = evaluated_states(self.suite, self.trials)
        warn_of_unfamiliar(self.training_states, self.settings["unnorm_key"], self.env.processor, evaluated)
        clock = Clock()
        play = functools.partial(self.play, deterministic=deterministic, clock=clock, filmer=filmer, on_step=on_step)
        with open_journal(out, report) as journal:
            try:
                self._run(report, journal, play, progress_bar, filmer, on_step)
                report.complete = True
            finally:
                measured = clock.summary(self.env.num_envs, report.complete)
                report.timing = (not clock.decisions and finished_timing(out)) or measured
                if out is not None and report.episodes:
                    report.save(out)
        return report

    def _run(
        self,
        report: EvaluationReport,
        journal: Journal | None,
        play: Play,
        progress_bar: bool,
        filmer: Filmer | None,
        on_step: Callable[[], Any],
    ) -> None:
        """Run the trials that the journal lacks, and keep the report's episodes up to date."""
        results = {Trial(*episode[:2]): episode for episode in (journal.episodes if journal else [])}
        trials = [trial for trial in self.trials if trial not in results]
        if filmer is not None:
            filmer.count(list(results.values()))
        with (
            own_randomness(report.settings["seed"]),
            drawing_at(self.policy, report.settings["temperature"]),
            Progress(self.suite.name, len(self.trials), len(results), progress_bar) as progress,
        ):
            report.episodes = [results[trial] for trial in self.trials if trial in results]
            for _, episode in self._episodes(trials, report, play):
                results[Trial(*episode[:2])] = episode
                if journal is not None:
                    journal.write(episode, filmed=filmer is not None and episode[:2] in filmer.written)
                report.episodes = [results[trial] for trial in self.trials if trial in results]
                progress.add(report.success_rate)
                on_step()  # the episode may be another process's

    def _episodes(self, trials: Sequence[Trial], report: EvaluationReport, play: Play) -> Played:
        """Episodes as they end, from this process or from all of an engine."""
        if self.engine is None:
            return play(trials)
        make = functools.partial(type(self), **(self._given | {"n_envs": self.env.num_envs}))
        return share_episodes(self.engine, self.subject, make, report, trials, play)

    def play(
        self,
        trials: Sequence[Trial],
        deterministic: bool,
        clock: Clock,
        filmer: Filmer | None = None,
        on_step: Callable[[], Any] = lambda: None,
    ) -> Played:
        """The position of each trial and its result, as they end. The next goes to whichever environment is free.

        Args:
            trials: The trials.
            deterministic: Whether to decode greedily.
            clock: Measures decisions.
            filmer: Films failures.
            on_step: Called after each step; what it raises passes.
        """
        finished = play_episodes(
            self.env,
            clock.timed(self.policy),
            [self.protocol.start(trial) for trial in trials],
            deterministic=deterministic,
            continuous=isinstance(self.policy, RegressionPolicy),
            record=() if filmer is None else CAMERA_KEYS[:1],
            note=noted_scores(self.policy),
            on_step=lambda _: (on_step(), True)[1],
        )
        for episode in finished:
            result = EpisodeResult(*trials[episode.number], episode.success, episode.steps, mean_score(episode))
            clock.count(result.steps, len(episode.actions))
            if filmer is not None:
                filmer.film(result, episode.observations[CAMERA_KEYS[0]])
            yield episode.number, result


def _filmer(film_failures: int, out: Path | None, settings: dict[str, Any]) -> Filmer | None:
    """What films failures; None if there are none to film."""
    if not film_failures:
        return None
    if out is None or CAMERA_KEYS[0] not in settings["cameras"]:
        raise ValueError("film_failures needs an out folder, and environments with the agentview camera.")
    return Filmer(out, film_failures, settings["chunk_size"])

"""Train a vision-language-action model by PPO, and show whether it got better: ``libero-vla train``.

`main` and `learn` are the whole job in the order in which it happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from libero_gym.common.atomic import write_text
from libero_gym.dimensions import SHAPING_GAMMA, Physics, Renderer
from vla_agent import (
    VLAPPO,
    Curriculum,
    EvaluationCallback,
    LearningCurve,
    RayEngine,
    RunCheckpoints,
    claim_run,
    safe_learn,
)
from vla_agent.algorithms.base import VLALearner
from vla_agent.algorithms.health import Stopwatch
from vla_agent.algorithms.losses import RatioLevel
from vla_agent.commands.backends import check_training_backend, evaluation_backend, training_arguments
from vla_agent.commands.begun import keep_options, parse_resumable
from vla_agent.commands.checks import check_numbers, check_unread
from vla_agent.commands.engines import check_engine, engine_of, maker_of_environments, n_envs_of_each
from vla_agent.commands.options import STOPPED, ids_or_none, option_name, parse_options
from vla_agent.commands.own_tasks import have_states
from vla_agent.commands.progress import make_logger
from vla_agent.commands.unseen_states import (
    EvaluatedOptions,
    TrainingOptions,
    check_anything_evaluated,
    check_evaluated,
    placements_drawn,
)
from vla_agent.common.atomic import destination
from vla_agent.envs.backends import BackendName
from vla_agent.envs.suites import describe_suite, located
from vla_agent.evaluation.before_after import describe_change, describe_share, film_change, telling_trial
from vla_agent.evaluation.provenance import TRAINING_FILE, TrainingStates, read_training_states, write_training_states
from vla_agent.openvla.files import resolve_folder
from vla_agent.policy.policy import VLAPolicy
from vla_agent.runs.run_files import RUN


@dataclasses.dataclass
class Options:
    """What to train, on what, and where to. Each field is a command-line option."""

    env_id: str = "LIBERO-Spatial-v0"  # environments to train in: an id, a BDDL file, or a folder of such
    task_ids: str = "6,9"  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states to train on; keep others for evaluation
    n_placements: int = 300  # further initial states per task to train on, drawn from the BDDL's regions
    model: str = "tiny-libero"  # a model that ships ("tiny" is random), a checkpoint folder, or a hub id
    max_episode_steps: int = 0  # control steps; 0 for the suite's own limit
    reward: Literal["sparse", "progress", "process"] = "sparse"  # success; plus progress in simulation; plus a score
    reward_model: str = "tiny-scorer"  # for "process": the scorer that ships, or a folder of train_process_reward.py
    reward_mode: Literal["potential", "bonus", "gain"] = "potential"  # for "process"; "bonus" is VLA-RL's
    reward_weight: float = 1.0  # for "process": weight of its term
    renderer: Renderer = "fast"  # of training frames; "exact" draws stock LIBERO's pixels
    physics: Physics = "fast"  # "exact" gives stock LIBERO's states to the bit; "coarse" steps less often
    backend: BackendName = "processes"  # "warp" simulates worlds on a device, in a physics of its own: "batched"
    backend_device: str = "auto"  # for "warp": Warp's name, such as "cuda:1"; "auto" for the model's device
    keep_on_device: bool = False  # for "warp" with "fast" frames: observations stay on the device until learned from
    n_envs: int = 8  # environments side by side
    n_steps: int = 32  # decisions per environment and iteration; tiny-libero decides 8 control steps at a time
    total_timesteps: int = 6144  # decisions of the whole training
    batch_size: int = 128  # decisions per minibatch
    n_epochs: int = 2  # passes over each rollout
    gradient_accumulation_steps: int = 1  # parts of a minibatch that go through the network one after the other
    learning_rate: float = 5e-5  # learning rate of the policy, at the beginning
    learning_rate_end: float | None = None  # and at the end of training, changing linearly; None for the same
    value_learning_rate: float = 1e-3  # learning rate of the critic
    gamma: float = 0.95  # discount per decision, here 8 control steps: trying a failed grasp again costs something
    gae_lambda: float = 0.9  # GAE's lambda for the advantages
    value_gae_lambda: float = 0.95  # GAE's lambda for the critic's returns
    n_value_epochs: int = 10  # further passes for the value head alone
    ratio_level: RatioLevel = "token"  # clip each of a chunk's 56 ratios on its own, or their product
    target_kl: float = 0.0  # stop an update beyond 1.5 times this divergence of whole actions; 0 never does
    temperature: float = 0.5  # temperature of training's actions; low, since evaluations take the likeliest action
    average_decay: float = 0.0  # share that an update keeps of the weights' moving average, which is evaluated; 0: none
    critic_warmup_iterations: int = 6  # first iterations in which only the critic learns
    policy_warmup_iterations: int = 0  # iterations over which the policy's learning rate rises
    privileged_critic: bool = True  # tell the critic where the objects are, from the simulator
    bootstrap_time_limits: bool = False  # go on valuing behind the time limit; else running out of time is a failure
    autocast: Literal["auto", "bfloat16", "none"] = "auto"  # "bfloat16" halves the model's time on CPUs that have it
    lora_rank: int = 0  # rank of adapters; 0 trains all weights
    lora_target: str = "all-linear"  # layers with adapters; "language" for the language model alone
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: for a large model on a small GPU
    kl_ref_coef: float = 0.0  # weight of the divergence from the model that it started from; needs LoRA
    detach_value: bool = True  # keep the critic's gradient out of the backbone
    seed: int = 0  # seed for everything that is drawn
    device: str = "auto"  # torch's name, such as "cuda:0"
    engine: Literal["local", "ray"] = "local"  # "ray" plays and learns in several processes, here or on many machines
    learners: int = 1  # for "ray": processes that share each minibatch
    policies: int = 0  # for "ray" with "split": processes that play; 0 for one
    placement: Literal["colocated", "split"] = "colocated"  # for "ray": learners play themselves, or others do
    stale: bool = False  # for "split": play the next rollout while learning from the last
    shard: bool = False  # for "ray": learners hold shares of all weights, for training those of a large model
    address: str = ""  # for "ray": of a cluster that this machine belongs to, such as "auto"; empty starts one here
    out: Path = Path("runs/ppo")  # folder of the run
    curriculum: Literal["uniform", "hardest", "frontier"] = "uniform"  # how tasks are drawn; "hardest" is VLA-RL's
    curriculum_tau: float = 0.5  # temperature of the curriculum
    checkpoint_every: int = 10  # iterations between checkpoints
    eval_freq: int = 1536  # decisions between greedy evaluations, which also run before and after; 0 for none
    eval_states: str = "0-19"  # official initial states to evaluate on; training must not see them
    n_eval_placements: int = 0  # further initial states per task to evaluate on, drawn; none is trained on
    eval_renderer: Renderer = "fast"  # of evaluations and the film; "exact" takes longer
    eval_backend: BackendName = "processes"  # of evaluations; "warp" judges where "batched" physics trains
    existing: Literal["refuse", "aside"] = "refuse"  # if --out holds another run; "aside" moves it to earlier/
    resume: Path | None = None  # a folder of an earlier run, such as runs/ppo, to go on from where it stopped
    allow_changes: bool = False  # resume with other options than the run was made with
    long: bool = False  # three tasks and twice as many decisions, 15 minutes


# Defaults that ``--long`` changes; an option that is given wins.
LONG: dict[str, Any] = {"task_ids": "0-2", "total_timesteps": 12288, "eval_freq": 4096}
# And those that an environment of tasks without official initial states changes.
WITHOUT_STATES: dict[str, Any] = {"task_ids": "", "init_states": "", "eval_states": "", "n_eval_placements": 20}


def main(options: Options) -> None:
    """The whole job: make the environments and the learner, then `learn`."""
    check(options)
    times = Stopwatch()
    claimed = claim_run(options.out, options.resume, existing=options.existing)
    with claimed as claim, engine_of(options) as engine:
        with times("environments"):
            env = make_environments(options, engine)
        with contextlib.closing(env):  # its workers would outlive an error
            with times("model"):
                model = make_learner(options, env, claim.resumed_from)
            note_training_states(options, claim.resumed_from)
            learn(options, model, times)


def learn(options: Options, model: VLAPPO, times: Stopwatch) -> None:
    """Evaluate, learn, evaluate, report."""
    model.set_logger(make_logger(options.out, model.num_timesteps))
    seconds = ", ".join(f"{name} {spent:.0f} s" for name, spent in times.seconds.items())
    print(f"Ready ({seconds}); training on {model.device}, logs in {options.out}")
    success = Curriculum(options.curriculum, options.curriculum_tau, allow_changes=options.allow_changes)
    evaluation = make_evaluation(options) if options.eval_freq else None
    curve = LearningCurve(
        options.out / "curve.png",
        evaluations=lambda: evaluation.curve if evaluation else [],
        learns_from=options.critic_warmup_iterations * options.n_steps * options.n_envs,
    )
    callbacks: list[BaseCallback] = [success, RunCheckpoints(options.out, every=options.checkpoint_every)]
    callbacks += [evaluation] if evaluation else []
    callbacks.append(curve)  # last: it shows what the others found
    with times("learning, with evaluations"):
        learn_and_keep(model, options, callbacks)
    if evaluation is not None:
        with times("film"):
            film_the_change(options, model, evaluation)
    write_text(options.out / "times.json", json.dumps(times.seconds, indent=1) + "\n")
    report(options, success, evaluation)


def check(options: Options) -> None:
    """Refuse options that mean nothing, before anything slow begins.

    Raises:
        ValueError: If an option is out of range, or two do not fit each other.
    """
    check_numbers(options)
    check_unread(options, Options, ("reward_model", "reward_mode", "reward_weight"), "reward", "process")
    if not options.lora_rank:
        check_unread(options, Options, ("lora_target",), "lora_rank", 32)
    check_engine(options)
    check_training_backend(options)
    for name in ("task_ids", "init_states", "eval_states"):
        ids_or_none(option_name(name), getattr(options, name))
    if options.eval_freq:
        check_anything_evaluated(options, ", or --eval-freq 0")
        fewer = "--eval-states '' --n-eval-placements 20, or --eval-freq 0"
        check_evaluated(options, "--eval-freq 0 to evaluate on none", fewer)
    if options.reward == "progress" and (options.gamma != SHAPING_GAMMA or not options.bootstrap_time_limits):
        raise ValueError(
            f"--reward progress is shaped for gamma={SHAPING_GAMMA} and bootstrap_time_limits=True, and training has "
            f"gamma={options.gamma} and bootstrap_time_limits={options.bootstrap_time_limits}: shaping would change "
            f"what is optimal. Add --gamma {SHAPING_GAMMA} --bootstrap-time-limits."
        )


def make_environments(options: Options, engine: RayEngine | None = None) -> VecEnv:
    """The environments to train in, where the engine's policies are; None for this process."""
    process: dict[str, Any] = {}
    if options.reward == "process":
        process = {"reward_model": options.reward_model}
        process["reward_kwargs"] = {
            "mode": options.reward_mode,
            "weight": options.reward_weight,
            "gamma": options.gamma,
            "bootstrap_time_limits": options.bootstrap_time_limits,
        }
    made: VecEnv = maker_of_environments(engine)(
        options.env_id,
        options.n_envs,
        task_id=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--init-states", options.init_states),
        placement_seeds=range(options.n_placements),
        model=options.model,
        reward=options.reward,
        **process,
        renderer=options.renderer,
        physics=options.physics,
        max_episode_steps=options.max_episode_steps or None,
        **training_arguments(options),
        privileged=options.privileged_critic,
        seed=options.seed,
    )
    return made


def make_learner(options: Options, env: VecEnv, path: Path | None) -> VLAPPO:
    """PPO with the options' arguments, new or loaded from an earlier run.

    Args:
        options: The options.
        env: The environments to train in.
        path: The saved run; None makes a new learner.
    """
    lora = {"r": options.lora_rank, "alpha": max(1, options.lora_rank // 2), "target": options.lora_target}
    policy_kwargs: dict[str, Any] = {  # all of them, so that a run which was made otherwise does not go on in silence
        "model": options.model,
        "temperature": options.temperature,
        "detach_value": options.detach_value,
        "average_decay": options.average_decay,
        "autocast": None if options.autocast == "none" else options.autocast,
        "gradient_checkpointing": options.gradient_checkpointing,
        "lora": lora if options.lora_rank else None,
    }
    arguments: dict[str, Any] = {
        "learning_rate": learning_rate(options),
        "value_learning_rate": options.value_learning_rate,
        "n_steps": options.n_steps,
        "batch_size": options.batch_size,
        "n_epochs": options.n_epochs,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gamma": options.gamma,
        "gae_lambda": options.gae_lambda,
        "value_gae_lambda": options.value_gae_lambda,
        "n_value_epochs": options.n_value_epochs,
        "ratio_level": options.ratio_level,
        "target_kl": options.target_kl or None,
        "kl_ref_coef": options.kl_ref_coef,
        "critic_warmup_iterations": options.critic_warmup_iterations,
        "policy_warmup_iterations": options.policy_warmup_iterations,
        "bootstrap_time_limits": options.bootstrap_time_limits,
        "policy_kwargs": policy_kwargs,
        "seed": options.seed,
    }
    if path is None:
        # The last episodes to end are a fair sample only if they are more than those that began together.
        arguments["stats_window_size"] = max(100, 2 * env.num_envs)
        return VLAPPO("VLAPolicy", env, device=options.device, **arguments)
    model = VLAPPO.load(path, env, options.device, allow_changes=options.allow_changes, **arguments)
    print(f"Going on from {path}, {model.num_timesteps} of {options.total_timesteps} steps done")
    return model


def learning_rate(options: Options) -> float | LinearSchedule:
    """The policy's rate, or how it changes over the training."""
    end = options.learning_rate_end
    return options.learning_rate if end is None else LinearSchedule(options.learning_rate, end, end_fraction=1.0)


def make_evaluation(options: Options) -> EvaluationCallback:
    """Greedy evaluations on unseen initial states: before, on the way, and after."""
    return evaluation_on_the_way(
        options,
        options.eval_renderer,
        n_envs_of_each(options, options.n_envs),
        max_episode_steps=options.max_episode_steps or None,
        **evaluation_backend(options),
    )


def evaluation_on_the_way(
    options: EvaluatedOptions, renderer: Renderer, n_envs: int, **further: Any
) -> EvaluationCallback:
    """Greedy evaluations on the options' states, by the protocol of training: before, on the way, and after.

    Args:
        options: The options.
        renderer: Of the frames.
        n_envs: Environments side by side.
        further: Further arguments of `EvaluationCallback`.
    """
    first = options.n_placements  # training draws from the placement seeds below
    return EvaluationCallback(
        options.env_id,
        eval_freq=options.eval_freq,
        at_start=True,
        at_end=True,
        folder=options.out,
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--eval-states", options.eval_states) or (),
        placement_seeds=range(first, first + options.n_eval_placements),
        protocol="training",
        renderer=renderer,
        n_envs=n_envs,
        verbose=1,
        allow_changes=options.allow_changes,
        **further,
    )


def learn_and_keep(model: VLALearner, options: TrainingOptions, callbacks: list[BaseCallback]) -> None:
    """Learn what is left of the decisions and keep the model; a signal ends the program, saying how to go on."""
    destination(options.out / "model", RUN)  # complains: at the end it would be too late
    keep_options(options)
    left = max(0, options.total_timesteps - model.num_timesteps)
    if not left:
        print(f"Nothing is left of {options.total_timesteps} decisions; a larger --total-timesteps goes on.")
    fresh = options.resume is None
    if not safe_learn(model, left, options.out, callbacks, progress_bar=left > 0, reset_num_timesteps=fresh):
        print(f"Stopped. --resume {options.out} goes on as if it had not been.")
        raise SystemExit(STOPPED)
    model.save(options.out / "model")
    keep_training_states(options.out)


def note_training_states(
    options: TrainingOptions, resumed_from: Path | None = None, taught: TrainingStates | None = None
) -> None:
    """Write down the initial states to train on, so that evaluations can tell seen ones from unseen ones.

    Args:
        options: The options.
        resumed_from: The saved run that goes on; None begins with ``options.model``.
        taught: States that a teacher was trained on; None for no teacher, or if they are unknown.
    """
    task_ids = ids_or_none("--task-ids", options.task_ids)
    trained = describe_suite(options.env_id).states_by_source(
        task_ids, ids_or_none("--init-states", options.init_states)
    )
    started_from = read_training_states(resolve_folder(options.model, weights=False))
    placements = placements_drawn(options, resumed_from, trained)
    write_training_states(options.out, trained, read_training_states(resumed_from) or started_from, placements)
    if taught:
        write_training_states(options.out, taught, read_training_states(options.out), placements)


def keep_training_states(out: Path) -> None:
    """Tell a run's last and best model what they were trained on, so that each can be taken elsewhere."""
    for name in ("model", "best"):
        if (out / name).is_dir():
            shutil.copy(out / TRAINING_FILE, out / name)


def film_the_change(options: Options, model: VLAPPO, evaluation: EvaluationCallback) -> None:
    """Film one unseen initial state: the policy before training on the left, the best of the training on the right."""
    first, last = evaluation.history[0], evaluation.best if evaluation.fell else evaluation.history[-1]
    trial, path = telling_trial(first.episodes, last.episodes), options.out / "episode.mp4"
    after = options.out / "best" if evaluation.fell else model
    with cast(VLAPolicy, model.policy).averaged():  # as it was evaluated
        how = {"renderer": options.eval_renderer, "max_episode_steps": options.max_episode_steps or None}
        film_change(options.model, after, options.env_id, trial, path, **how)


def report(options: Options, success: Curriculum, evaluation: EvaluationCallback | None) -> None:
    """Print what changed, in the last lines."""
    returns = [episode.episode_return for episode in success.history]
    print(f"{len(returns)} training episodes, mean return {np.mean(returns):.3f}" if returns else "No episode ended.")
    film = ", episode.mp4" if evaluation else ""
    print(f"Wrote model/, curve.png{film} and logs into {options.out}")
    if evaluation is not None:
        suite = describe_suite(options.env_id)
        names, sources = dict(enumerate(suite.instructions)), dict(enumerate(suite.sources))
        physics = "batched physics, " if options.eval_backend == "warp" else ""
        print(f"Greedy, {physics}{options.eval_renderer} frames, initial states that training never saw:")
        first, best, last = evaluation.history[0], evaluation.best, evaluation.history[-1]
        print(describe_change(first.episodes, last.episodes, names, sources))
        if evaluation.fell:
            print(f"best: {describe_share(best.episodes)}, after {best.num_timesteps} decisions; it is in best/")
        if told := evaluation.describe_fall():
            print(told)


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line; ``--resume``, ``--long`` and files of one's own change the defaults of others."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    default = dataclasses.replace(Options(), **LONG) if "--long" in given else Options()
    options = parse_resumable(Options, description, given, default)
    if options.env_id == default.env_id:
        return options
    if options.resume is None and not have_states(options.env_id):
        options = parse_options(Options, description, given, dataclasses.replace(default, **WITHOUT_STATES))
    return dataclasses.replace(options, env_id=located(options.env_id))


def command(arguments: Sequence[str]) -> None:
    """``libero-vla train``."""
    main(parse_arguments(arguments))

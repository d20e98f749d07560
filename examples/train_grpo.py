"""Train a vision-language-action model by GRPO (or RLOO), without a critic.

    python examples/train_grpo.py                                  # two CPU cores, no network: 38 to 78 %
    python examples/train_grpo.py --advantage leave_one_out        # RLOO
    python examples/train_grpo.py --model tiny-libero-few --task-ids "" --temperature 0.7 --total-timesteps 49152
    python examples/train_grpo.py --resume runs/grpo               # goes on where it stopped
    python examples/train_grpo.py --reward gain --init-states 0-19 --n-placements 0    # test-time training: on the
        # states that are evaluated, by a scorer's opinion of the frames; no reward tells of success

What is left out, and why: the critic, its warm-up and GAE, since the episodes of a group are each other's baseline; the
discount, since success is all that counts; the KL term, as in DAPO and Dr. GRPO, since the clip range bounds a step;
the division by an episode's length, which would favour short failures; and many machines, which `train_ppo.py` has.
The update is in `vla_agent/algorithms/grpo.py`, the groups in `vla_agent/algorithms/groups.py`.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_agent import VLAGRPO, Curriculum, LearningCurve, RunCheckpoints, claim_run, make_vec_env
from vla_agent.algorithms.groups import Advantage, Baseline
from vla_agent.commands.begun import parse_resumable
from vla_agent.commands.checks import check_numbers
from vla_agent.commands.options import ids_or_none, run_command
from vla_agent.commands.progress import make_logger
from vla_agent.commands.train import evaluation_on_the_way, learn_and_keep, note_training_states
from vla_agent.commands.unseen_states import check_anything_evaluated, check_evaluated
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.before_after import describe_change


@dataclass
class Options:
    """What to train, on what, and where to. Each field is a command-line option."""

    env_id: str = "LIBERO-Spatial-v0"
    task_ids: str = "6,9"  # such as "0,3-5"; all tasks of the suite if empty
    model: str = "tiny-libero"  # a model that ships, a checkpoint folder, or a hub id
    init_states: str = "20-49"  # official initial states to train on
    n_placements: int = 300  # further initial states per task to train on, drawn from the BDDL's regions
    eval_states: str = "0-19"  # official initial states to evaluate on; training never sees them
    n_eval_placements: int = 0  # further initial states per task to evaluate on, drawn; none is trained on
    physics: Literal["exact", "fast", "coarse"] = "fast"  # of training; evaluations have exact physics
    n_envs: int = 8  # environments side by side
    n_episodes: int = 32  # episodes that an iteration learns from
    group_size: int = 8  # episodes from one initial state
    advantage: Advantage = "group"  # GRPO or RLOO
    baseline: Baseline = "episode"  # what a return is compared with: the mean over episodes, decisions, or at a time
    total_timesteps: int = 6144  # decisions of the whole training; tiny-libero decides 8 control steps at a time
    batch_size: int = 128  # decisions per minibatch
    n_epochs: int = 2  # passes over each iteration's decisions
    learning_rate: float = 5e-5
    clip_range: float = 0.2  # how far a token's ratio may fall
    clip_range_high: float = 0.28  # and rise
    temperature: float = 0.5  # of training's actions
    curriculum: Literal["uniform", "hardest", "frontier"] = "uniform"  # how tasks are drawn
    curriculum_tau: float = 0.5  # temperature of the curriculum
    average_decay: float = 0.0  # share that an update keeps of the weights' moving average, which is evaluated; 0: none
    reward: Literal["success", "gain", "confidence"] = "success"  # or the rise of a scorer's score; or no reward at all
    reward_model: str = "tiny-scorer"  # for "gain": the scorer that ships, or a folder
    failure_scorer: str = ""  # a process reward model, such as "tiny-scorer", whose score of a failure counts
    autocast: Literal["auto", "bfloat16", "none"] = "auto"  # "bfloat16" halves the model's time on CPUs that have it
    eval_freq: int = 1536  # decisions between greedy evaluations, which also run before and after
    seed: int = 0
    device: str = "auto"
    out: Path = Path("runs/grpo")
    existing: Literal["refuse", "aside"] = "refuse"  # if --out holds another run; "aside" moves it to earlier/
    resume: Path | None = None  # the folder of an earlier run, to go on from where it stopped
    allow_changes: bool = False  # resume with other options than the run was made with


def check(options: Options) -> None:
    """Refuse options that mean nothing, or that would tell of success where nothing may."""
    check_numbers(options)
    check_anything_evaluated(options)
    if options.reward_model != Options.reward_model and options.reward != "gain":
        raise ValueError(f"--reward-model {options.reward_model} scores for --reward gain; add that, or leave it out.")
    if options.reward == "success":
        check_evaluated(options, "--reward gain or confidence, which read no success")
        return
    # The others may be judged where they train, since they never learn what succeeded.
    if options.failure_scorer or options.curriculum != "uniform":
        told = "--failure-scorer" if options.failure_scorer else f"--curriculum {options.curriculum}"
        raise ValueError(f"{told} reads success, and --reward {options.reward} is to read none; leave one of them out.")


def main(options: Options) -> None:
    check(options)
    task_ids, states = ids_or_none("--task-ids", options.task_ids), ids_or_none("--init-states", options.init_states)
    with claim_run(options.out, options.resume, existing=options.existing) as claim:
        scored = {"reward": "process", "reward_model": options.reward_model, "reward_kwargs": {"mode": "gain"}}
        # Environments that begin where they are told, to the bit: the episodes of a group differ by the draws alone.
        env = make_vec_env(
            options.env_id,
            options.n_envs,
            model=options.model,
            task_id=task_ids,
            init_state_ids=states,
            placement_seeds=range(options.n_placements),
            renderer="fast",
            physics=options.physics,
            seed=options.seed,
            **(scored if options.reward == "gain" else {}),
        )
        policy_kwargs = {
            "model": options.model,
            "temperature": options.temperature,
            "average_decay": options.average_decay,
            "autocast": None if options.autocast == "none" else options.autocast,
        }
        arguments = {
            "learning_rate": options.learning_rate,
            "n_episodes": options.n_episodes,
            "group_size": options.group_size,
            "advantage": options.advantage,
            "baseline": options.baseline,
            "batch_size": options.batch_size,
            "n_epochs": options.n_epochs,
            "clip_range": options.clip_range,
            "clip_range_high": options.clip_range_high,
            "returns": "confidence" if options.reward == "confidence" else "environment",
            "failure_scorer": options.failure_scorer or None,
            "policy_kwargs": policy_kwargs,
            "seed": options.seed,
        }
        # Greedy evaluations on initial states that training never sees; the best model is kept in best/.
        evaluation = evaluation_on_the_way(options, "fast", options.n_envs)
        callbacks = [
            Curriculum(options.curriculum, options.curriculum_tau, allow_changes=options.allow_changes),
            RunCheckpoints(options.out, every=5),
            evaluation,
            LearningCurve(options.out / "curve.png", evaluations=lambda: evaluation.curve),
        ]
        with contextlib.closing(env):
            if claim.resumed_from is None:
                model = VLAGRPO("VLAPolicy", env, device=options.device, **arguments)
            else:
                how = {"allow_changes": options.allow_changes, **arguments}
                model = VLAGRPO.load(claim.resumed_from, env, options.device, **how)
            note_training_states(options, claim.resumed_from)
            model.set_logger(make_logger(options.out, model.num_timesteps))
            learn_and_keep(model, options, callbacks)
    suite = describe_suite(options.env_id)
    first, last = evaluation.history[0].episodes, evaluation.history[-1].episodes
    judged = "that training never saw" if options.reward == "success" else "of which it was told no success"
    print(f"Greedy, fast frames, initial states {judged}:")
    print(describe_change(first, last, dict(enumerate(suite.instructions)), dict(enumerate(suite.sources))))
    print(f"Wrote model/, best/, curve.png and logs into {options.out}")


if __name__ == "__main__":
    run_command(lambda: main(parse_resumable(Options, __doc__, sys.argv[1:])))

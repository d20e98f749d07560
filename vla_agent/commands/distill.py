"""Teach a model on its own rollouts what a better one thinks of them, without rewards: ``libero-vla distill``.

    libero-vla distill --teacher runs/ppo                              # its best save, into the cloned model
    libero-vla distill --teacher runs/ppo --estimator exact            # the divergence over all bins: less variance
    libero-vla distill --resume runs/distilled                         # goes on where it stopped

The student starts as `--model` and plays; both models score what it drew. A run that began with the student's
checkpoint always fits as a teacher; others need the same tokenizer and statistics. It evaluates greedily on initial
states that it never plays, before, on the way and after, and leaves what `libero-vla train` leaves, without the film.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from libero_gym.dimensions import Physics, Renderer
from vla_agent import LearningCurve, RunCheckpoints, VLADistillation, claim_run, make_vec_env
from vla_agent.algorithms.losses import Estimator
from vla_agent.callbacks import Curriculum
from vla_agent.commands.begun import parse_resumable
from vla_agent.commands.checks import check_numbers
from vla_agent.commands.options import ids_or_none
from vla_agent.commands.progress import make_logger
from vla_agent.commands.train import evaluation_on_the_way, learn_and_keep, note_training_states
from vla_agent.commands.unseen_states import check_anything_evaluated, check_evaluated, check_unseen
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation.before_after import describe_change
from vla_agent.evaluation.provenance import TrainingStates, read_training_states
from vla_agent.openvla.files import resolve_folder
from vla_agent.runs.choosing import choose_save, is_run_folder
from vla_agent.runs.run_files import is_run


@dataclasses.dataclass
class Options:
    """Whom to teach, by whom, and on what. Each field is a command-line option."""

    teacher: str = ""  # a run's folder, whose best save counts, a saved run, or a checkpoint
    model: str = "tiny-libero-few"  # the student: a model that ships, a checkpoint folder, or a hub id
    env_id: str = "LIBERO-Spatial-v0"  # id of the environments that the student plays
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states that the student plays
    n_placements: int = 300  # further initial states per task to play, drawn from the BDDL's regions
    eval_states: str = "0-19"  # official initial states to evaluate on; keep them apart
    n_eval_placements: int = 0  # further initial states per task to evaluate on, drawn; none is played
    renderer: Renderer = "fast"  # of the frames that are played, and evaluated on
    physics: Physics = "fast"  # of what is played; evaluations have exact physics
    n_envs: int = 8  # environments side by side
    n_steps: int = 32  # decisions per environment and iteration
    total_timesteps: int = 12288  # decisions of the whole training
    batch_size: int = 128  # decisions per minibatch
    n_epochs: int = 1  # passes over each rollout
    estimator: Estimator = "sampled"  # of the divergence: by the tokens that were drawn, or over all bins
    learning_rate: float = 5e-5  # of AdamW
    temperature: float = 0.5  # of the student's actions, and of both models' probabilities
    average_decay: float = 0.0  # share that an update keeps of the weights' moving average, which is evaluated; 0: none
    autocast: Literal["auto", "bfloat16", "none"] = "auto"  # "bfloat16" halves the model's time on CPUs that have it
    eval_freq: int = 3072  # decisions between greedy evaluations, which also run before and after
    checkpoint_every: int = 10  # iterations between checkpoints
    seed: int = 0  # seed for everything that is drawn
    device: str = "auto"  # torch's name, such as "cuda:0"
    out: Path = Path("runs/distilled")  # folder of the run
    existing: Literal["refuse", "aside"] = "refuse"  # if --out holds another run; "aside" moves it to earlier/
    resume: Path | None = None  # the folder of an earlier run, to go on from where it stopped
    allow_changes: bool = False  # resume with other options, or another teacher, than the run was made with


def main(options: Options) -> None:
    """The whole job: make the environments and the learner, learn, report."""
    check_numbers(options)
    check_teacher(options.teacher)
    check_anything_evaluated(options)
    otherwise = "--eval-states '' --n-eval-placements 20"
    check_evaluated(options, otherwise)
    taught = states_of_teacher(options.teacher)
    known = {f"--teacher {options.teacher}": taught}
    check_unseen("--eval-states", options.eval_states, options.env_id, options.task_ids, known, otherwise)
    with claim_run(options.out, options.resume, existing=options.existing) as claim:
        env = make_vec_env(
            options.env_id,
            options.n_envs,
            model=options.model,
            task_id=ids_or_none("--task-ids", options.task_ids),
            init_state_ids=ids_or_none("--init-states", options.init_states),
            placement_seeds=range(options.n_placements),
            renderer=options.renderer,
            physics=options.physics,
            seed=options.seed,
        )
        with contextlib.closing(env):
            if claim.resumed_from is None:
                model = VLADistillation("VLAPolicy", env, device=options.device, **arguments(options))
            else:
                changes = {"allow_changes": options.allow_changes, **arguments(options)}
                model = VLADistillation.load(claim.resumed_from, env, options.device, **changes)
            note_training_states(options, claim.resumed_from, taught)
            model.set_logger(make_logger(options.out, model.num_timesteps))
            evaluation = evaluation_on_the_way(options, options.renderer, options.n_envs)
            callbacks = [
                Curriculum("uniform"),
                RunCheckpoints(options.out, every=options.checkpoint_every),
                evaluation,
                LearningCurve(options.out / "curve.png", evaluations=lambda: evaluation.curve),
            ]
            learn_and_keep(model, options, callbacks)
    suite = describe_suite(options.env_id)
    first, last = evaluation.history[0].episodes, evaluation.history[-1].episodes
    print(f"Greedy, {options.renderer} frames, initial states that it never played:")
    print(describe_change(first, last, dict(enumerate(suite.instructions)), dict(enumerate(suite.sources))))
    print(f"Wrote model/, best/, curve.png and logs into {options.out}")


def check_teacher(teacher: str) -> None:
    """Complain about a teacher that is not there, before anything slow begins.

    Raises:
        ValueError: If none is given, or it is neither a run nor a checkpoint.
        RunError: If its run holds no save.
    """
    if not teacher:
        raise ValueError("--teacher is missing: give a run's folder such as runs/ppo, a saved run, or a checkpoint.")
    if is_run_folder(teacher):
        choose_save(teacher)
    elif not is_run(teacher):
        resolve_folder(teacher, weights=True)


def states_of_teacher(teacher: str) -> TrainingStates | None:
    """The initial states that a teacher was trained on, which its student learns of; None if they are unknown."""
    if is_run_folder(teacher):
        return read_training_states(choose_save(teacher).path)
    return read_training_states(Path(teacher) if is_run(teacher) else resolve_folder(teacher, weights=False))


def arguments(options: Options) -> dict[str, Any]:
    """The learner's arguments."""
    return {
        "teacher": options.teacher,
        "learning_rate": options.learning_rate,
        "n_steps": options.n_steps,
        "batch_size": options.batch_size,
        "n_epochs": options.n_epochs,
        "estimator": options.estimator,
        "policy_kwargs": {
            "model": options.model,
            "temperature": options.temperature,
            "average_decay": options.average_decay,
            "autocast": None if options.autocast == "none" else options.autocast,
        },
        "seed": options.seed,
    }


def command(given: Sequence[str]) -> None:
    """``libero-vla distill``."""
    main(parse_resumable(Options, __doc__, given))

"""Teach a model by demonstrations: record them, fine-tune, and evaluate: ``libero-vla finetune``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from tqdm import tqdm

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import real_number, whole_number
from libero_gym.common.json_files import parse_json
from libero_gym.demonstrations import LeRobotReader, record
from libero_gym.dimensions import CAMERA_KEYS, Renderer
from libero_gym.tasks import SUITES, get_suite
from vla_agent.augmentation import Augmentation
from vla_agent.commands.options import ids_or_none, option_name, parse_options
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation import evaluate_policy
from vla_agent.evaluation.familiarity import describe_trained
from vla_agent.evaluation.provenance import read_training_states, write_training_states
from vla_agent.evaluation.results import describe_ids
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.files import resolve_folder
from vla_agent.openvla.tiny import chunked_config, write_tiny
from vla_agent.sft.data import ActionChunks
from vla_agent.sft.paraphrases import vocabulary
from vla_agent.sft.settings import SFTSettings
from vla_agent.sft.trainer import Metrics, SupervisedTrainer


@dataclasses.dataclass
class Options:
    """What to learn, from what, and where to. Each field is a command-line option."""

    model: str = ""  # a checkpoint folder or a hub id; empty for a new tiny model
    demonstrations: str = ""  # a LeRobot dataset; empty to record one
    fps: int = 20  # frames per second that the demonstrations must state; 0 takes theirs, and resamples nothing
    suite: str = "libero_spatial"  # LIBERO's name of the suite
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states to record; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    image_size: int = 112  # side of recorded frames in pixels
    renderer: Renderer = "fast"  # renderer of recorded frames
    n_workers: int = 2  # processes that record
    grasp_radius: float = 0.05  # m; episodes that grasp farther from the task's median are left out; 0 keeps all
    cut_waiting: bool = True  # leave out frames in which the hand waits before it closes or opens
    n_steps: int = 2500  # optimizer steps
    batch_size: int = 32  # examples per step
    micro_batch_size: int = 0  # examples per forward pass; 0 for the whole batch
    learning_rate: float = 1e-3  # peak of the schedule
    bin_sigma: float = 2.0  # standard deviation of a target in bins; 0 for the plain next-token loss
    keyframe_coef: float = 0.5  # weight of a loss on where the hand will be at the gripper's next change
    ema_decay: float = 0.998  # decay of the average of the weights that is kept; 0 keeps the last weights
    weight_decay: float = 0.02  # AdamW's weight decay
    paraphrase: float = 0.0  # probability that a training example's instruction is said in other words, by rules
    crop_area: float = 1.0  # least share of an image that a random crop keeps; OpenVLA's crops keep exactly 0.9
    shift: int = 4  # largest shift of an image in pixels
    lora_rank: int = 0  # 0 trains all weights
    evaluate_states: str = "0-19"  # official initial states to run at the end; empty for none
    eval_renderer: Renderer = "fast"  # of that evaluation; "exact" draws stock LIBERO's pixels
    seed: int = 0  # seed for everything that is drawn
    device: str = "cuda" if th.cuda.is_available() else "cpu"  # torch's name
    out: Path = Path("runs/finetune")  # folder of all that is written


def check_options(options: Options) -> None:
    """Refuse options that mean nothing, before anything slow begins.

    Raises:
        ValueError: If one is out of range.
    """
    n_tasks = get_suite(options.suite).n_tasks
    for index in ids_or_none("--task-ids", options.task_ids) or ():
        whole_number("--task-ids", index, 0, n_tasks - 1)
    for name in ("init_states", "evaluate_states"):
        ids_or_none(option_name(name), getattr(options, name))
    for name in ("fps", "n_placements", "n_workers", "micro_batch_size", "lora_rank", "seed"):
        whole_number(option_name(name), getattr(options, name), 0)
    real_number("--grasp-radius", options.grasp_radius, 0)
    if not options.demonstrations and not options.init_states and not options.n_placements:
        raise ValueError("There is nothing to record: give --init-states, such as '20-49', or --n-placements.")
    if options.demonstrations and not Path(options.demonstrations).is_dir():
        raise ValueError(f"--demonstrations '{options.demonstrations}' is no folder; expected a LeRobot dataset.")
    check_evaluation(options)
    sft_settings(options)
    augmentation(options)
    th.device(options.device)


def check_evaluation(options: Options) -> None:
    """Refuse to evaluate, at the end, on initial states that are trained on. Those of given demonstrations are unknown.

    Raises:
        ValueError: If a state is trained on.
    """
    evaluated = ids_or_none("--evaluate-states", options.evaluate_states)
    if not evaluated or options.demonstrations:
        return
    recorded = ids_or_none("--init-states", options.init_states) or []
    if both := sorted(set(recorded) & set(evaluated)):
        raise ValueError(
            f"--init-states and --evaluate-states share {describe_ids(both)}: an evaluation on states that were "
            "trained on says little. Keep them apart, or --evaluate-states '' to evaluate on none."
        )
    if options.model:
        suite = describe_suite(SUITES[options.suite].env_id)
        asked = suite.states_by_source(ids_or_none("--task-ids", options.task_ids), evaluated)
        if told := describe_trained(read_training_states(resolve_folder(options.model, weights=False)), asked):
            raise ValueError(
                f"--evaluate-states {options.evaluate_states} are not all new to --model {options.model}: {told}. Give "
                "others, or --evaluate-states '' to evaluate on none."
            )


def sft_settings(options: Options) -> SFTSettings:
    """The options as settings of the trainer."""
    return SFTSettings(
        n_steps=options.n_steps,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or None,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        bin_sigma=options.bin_sigma,
        keyframe_coef=options.keyframe_coef,
        ema_decay=options.ema_decay,
        paraphrase=options.paraphrase,
        seed=options.seed,
    )


def augmentation(options: Options) -> Augmentation:
    """How images are varied: as the options say, and a little in colour."""
    return Augmentation(
        crop_area=options.crop_area, shift=options.shift, brightness=0.1, contrast=0.15, saturation=0.15, hue=0.02
    )


def record_demonstrations(options: Options) -> Path:
    """Record the expert. Noise disturbs it, so that it shows how to come back; the labels are its own actions."""
    root = options.out / "demonstrations"
    summary = record(
        root,
        options.suite,
        "libero_gym.demonstrations:expert_policy",
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--init-states", options.init_states) or [],
        placement_seeds=range(options.n_placements),
        cameras=("agentview",),
        image_size=options.image_size,
        renderer=options.renderer,
        action_noise=0.12,
        noise_steps=5,
        record_intended=True,
        random_prefix=8,
        seed=options.seed,
        crf=15,
        n_workers=options.n_workers,
    )
    print(f"{summary.n_written} of {summary.n_planned} episodes succeeded, in {root}")
    return root


def load_model(options: Options) -> OpenVLA:
    """Load the checkpoint that was asked for, or make a new tiny one."""
    if options.model:
        dtype = None if options.lora_rank else th.float32  # bfloat16, the default on a GPU, would lose small steps
        return OpenVLA.from_pretrained(options.model, dtype=dtype, device=options.device)
    words = vocabulary() if options.paraphrase else []  # each a token of its own, or else cut into pieces
    write_tiny(options.out / "initial", options.seed, chunked_config(words), words)
    return OpenVLA.from_pretrained(options.out / "initial", dtype=th.float32, device=options.device)


def commonest_grasps(root: str | Path, radius: float, fps: int | None) -> list[int]:
    """Indices of the episodes whose first grasp lies near the median of their instruction's grasps.

    The expert takes a bowl by either side of its rim, depending on small differences. A policy that cannot tell which
    side is meant learns the middle of the two, where there is nothing to grasp.

    Args:
        root: The dataset.
        radius: Largest distance from the median, m.
        fps: Frames per second that the dataset must state; None takes its own.
    """
    reader = LeRobotReader(root, cameras=(), fps=fps)
    grasps: dict[str, dict[int, np.ndarray]] = {}
    for index, episode in reader.enumerate():
        closing = np.flatnonzero(np.diff(np.sign(episode.actions[:, 6])) > 0)
        frame = closing[0] if len(closing) else len(episode) - 1
        grasps.setdefault(episode.instruction, {})[index] = episode.state[frame, :3]
    kept = []
    for places in grasps.values():
        median = np.median(list(places.values()), axis=0)
        kept += [index for index, place in places.items() if np.linalg.norm(place - median) < radius]
    return sorted(kept)


def load_data(options: Options, root: str | Path, model: OpenVLA) -> ActionChunks:
    """Read the demonstrations whose grasps are kept, as the model takes them."""
    cameras = CAMERA_KEYS[: model.config.num_images]
    fps = options.fps or None
    reader = LeRobotReader(root, cameras=cameras, fps=fps)
    kept = commonest_grasps(root, options.grasp_radius, fps) if options.grasp_radius else range(len(reader))
    print(f"Learning from {len(kept)} of {len(reader)} episodes")
    return ActionChunks(
        tqdm((episode for _, episode in reader.enumerate(kept)), "reading", len(kept), unit="episode", disable=None),
        cameras=cameras,
        image_size=model.processor.image_size,
        chunk_size=model.config.action_chunk_size,
        cut_waiting=options.cut_waiting,
    )


def note_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a file of metrics; lines of the same or a later step are an interrupted run's and are removed."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if parse_json(line, f"'{path}'").get("step", 0) < row["step"]]
    write_text(path, "\n".join([*kept, json.dumps(row)]) + "\n")


def train(options: Options, model: OpenVLA, data: ActionChunks) -> OpenVLA:
    """Fine-tune, with a line of metrics and a checkpoint every 250 steps."""
    trainer = SupervisedTrainer(
        model,
        data,
        lora={"r": options.lora_rank, "alpha": max(1, options.lora_rank // 2)} if options.lora_rank else None,
        augmentation=augmentation(options),
        **dataclasses.asdict(sft_settings(options)),
    )
    folder = options.out / "trainer"
    if folder.exists():
        trainer.load(folder)

    def look(step: int, metrics: Metrics) -> None:
        if step % 250 == 0 or step == options.n_steps:
            held_out = trainer.validate()
            row = {"step": step, **{f"train/{name}": value for name, value in metrics._asdict().items()}}
            if held_out is not None:
                row |= {f"held_out/{name}": value for name, value in held_out._asdict().items()}
            note_metrics(options.out / "metrics.jsonl", row)
            tqdm.write(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            trainer.save(folder)

    trainer.train(callback=look, progress_bar=True)
    return trainer.export()


def note_training_states(options: Options, checkpoint: Path) -> None:
    """Write down the initial states that were recorded, so that evaluations can tell seen ones from unseen ones."""
    recorded = describe_suite(SUITES[options.suite].env_id).states_by_source(
        ids_or_none("--task-ids", options.task_ids), ids_or_none("--init-states", options.init_states) or []
    )
    before = read_training_states(resolve_folder(options.model, weights=False)) if options.model else None
    write_training_states(checkpoint, recorded, before)


def main(options: Options) -> None:
    """Record demonstrations if none are given, learn from them, save the model, and evaluate it."""
    check_options(options)
    options.out.mkdir(parents=True, exist_ok=True)
    root = options.demonstrations or record_demonstrations(options)
    model = load_model(options)
    model = train(options, model, load_data(options, root, model))
    checkpoint = options.out / "model"
    model.to(th.bfloat16).save_pretrained(checkpoint)
    if not options.demonstrations:
        note_training_states(options, checkpoint)
    print(f"Wrote {checkpoint}; use it as --model {checkpoint}")
    if options.evaluate_states:
        report = evaluate_policy(
            str(checkpoint),
            SUITES[options.suite].env_id,
            task_ids=ids_or_none("--task-ids", options.task_ids),
            init_state_ids=ids_or_none("--evaluate-states", options.evaluate_states) or [],
            protocol="training",
            renderer=options.eval_renderer,
            out=options.out / "evaluation",
        )
        print(report)


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla finetune``."""
    main(parse_arguments(arguments))

"""Teach a model by demonstrations: record them, fine-tune, and evaluate: ``libero-vla finetune``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.utils import get_device
from tqdm import tqdm

from libero_gym.common.atomic import write_text
from libero_gym.common.checks import real_number, whole_number
from libero_gym.common.json_files import read_json
from libero_gym.demonstrations import Episode, LeRobotReader, record
from libero_gym.demonstrations.lerobot_layout import INFO_PATH
from libero_gym.dimensions import CAMERA_KEYS, Renderer
from libero_gym.tasks import get_suite
from vla_agent.augmentation import Augmentation
from vla_agent.commands.checks import check_start, check_there
from vla_agent.commands.chosen_episodes import commonest_grasps, first_of_each_task, of_tasks, states_of
from vla_agent.commands.offline import (
    VALUES_FOLDER,
    Method,
    check_offline,
    keep_chosen_statistics,
    kept_statistics,
    mark,
)
from vla_agent.commands.options import STOPPED, ids_or_none, option_name, parse_options
from vla_agent.commands.progress import Pace, note_metrics
from vla_agent.commands.unseen_states import check_unseen, trained_before
from vla_agent.common.stopping import StopRequest
from vla_agent.envs.suites import describe_suite
from vla_agent.evaluation import EvaluationReport, evaluate_policy
from vla_agent.evaluation.provenance import (
    TRAINING_FILE,
    TrainingStates,
    read_training_states,
    write_training_states,
)
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.files import resolve_folder
from vla_agent.openvla.tiny import chunked_config, write_tiny
from vla_agent.policy.arguments import check_device
from vla_agent.sft.checkpoint import STATE_FILE
from vla_agent.sft.data import ActionChunks
from vla_agent.sft.frames import remove_frames
from vla_agent.sft.paraphrases import vocabulary
from vla_agent.sft.settings import Autocast, SFTSettings
from vla_agent.sft.trainer import Metrics, SupervisedTrainer

TRAINER_FOLDER, FRAMES_FOLDER = "trainer", "frames"


@dataclasses.dataclass
class Options:
    """What to learn, from what, and where to. Each field is a command-line option."""

    model: str = ""  # a checkpoint folder or a hub id; empty for a new tiny model
    demonstrations: str = ""  # a LeRobot dataset; empty to record one
    demonstrations_per_task: int = 0  # learn from the first episodes of each task, by initial state; 0 for all
    method: Method = "clone"  # "filtered" clones successes alone, "awr" and "tagged" all by how well they went
    fps: int = 20  # frames per second that the demonstrations must state; 0 takes theirs, and resamples nothing
    suite: str = "libero_spatial"  # LIBERO's name of the suite, a BDDL file, or a folder of such
    task_ids: str = ""  # to learn and evaluate, such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states to record; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    image_size: int = 112  # side of recorded frames in pixels
    renderer: Renderer = "fast"  # renderer of recorded frames
    n_workers: int = 2  # processes that record
    grasp_radius: float | None = None  # m; episodes whose grasp is farther from the median are left out; 0 for none
    cut_waiting: bool | None = None  # leave out frames in which the hand waits before it closes or opens: to clone
    n_steps: int = 2500  # optimizer steps
    batch_size: int = 32  # examples per step
    micro_batch_size: int = 0  # examples per forward pass; 0 for the whole batch
    learning_rate: float = 1e-3  # peak of the schedule
    bin_sigma: float = 2.0  # standard deviation of a target in bins; 0 for the plain next-token loss
    keyframe_coef: float | None = None  # of a loss on where the gripper next changes: 0.5 to clone, or else 0
    ema_decay: float = 0.998  # decay of the average of the weights that is kept; 0 keeps the last weights
    weight_decay: float = 0.02  # AdamW's weight decay
    paraphrase: float = 0.0  # probability that a training example's instruction is said in other words, by rules
    autocast: Autocast = "auto"  # "bfloat16" halves the time on CPUs that multiply it; "auto" uses it on GPUs alone
    crop_area: float = 1.0  # least share of an image that a random crop keeps; OpenVLA's crops keep exactly 0.9
    shift: int = 4  # largest shift of an image in pixels
    lora_rank: int = 0  # 0 trains all weights
    unnorm_key: str = ""  # "filtered", "awr", "tagged": statistics to keep, where the checkpoint has several
    beta: float = 0.2  # "awr": temperature of the weights exp(advantage / beta)
    max_weight: float = 20.0  # "awr": largest weight
    tag_word: str = "well"  # "tagged": word behind the instruction of the better frames, and of all prompts afterwards
    tag_share: float = 0.3  # "tagged": share of each task's frames that get it
    tag_dropout: float = 0.1  # "tagged": probability that a training example goes without it
    gamma: float = 0.995  # "awr", "tagged": discount factor of a control step
    returns_lambda: float = 1.0  # "awr", "tagged": 1 for Monte Carlo returns, less for lambda returns
    evaluate_states: str = "0-19"  # official initial states to run at the end; empty for none
    eval_renderer: Renderer = "fast"  # of that evaluation; "exact" draws stock LIBERO's pixels
    seed: int = 0  # seed for everything that is drawn
    device: str = "auto"  # torch's name, such as "cuda:0"
    out: Path = Path("runs/finetune")  # folder of all that is written


def check_options(options: Options) -> None:
    """Refuse options that mean nothing, before anything slow begins.

    Raises:
        ValueError: If one is out of range.
    """
    check_device("--device", options.device)
    if options.model:
        check_start(options.model)
    ids_or_none("--init-states", options.init_states)
    check_there("--evaluate-states", options.evaluate_states, get_suite(options.suite).env_id, options.task_ids)
    counts = ("demonstrations_per_task", "fps", "n_placements", "n_workers", "micro_batch_size", "lora_rank", "seed")
    for name in counts:
        whole_number(option_name(name), getattr(options, name), 0)
    real_number("--grasp-radius", grasp_radius(options), 0)
    check_offline(options, Options)
    if not options.demonstrations and not options.init_states and not options.n_placements:
        raise ValueError("There is nothing to record: give --init-states, such as '20-49', or --n-placements.")
    if options.demonstrations and not Path(options.demonstrations).is_dir():
        raise ValueError(f"--demonstrations '{options.demonstrations}' is no folder; expected a LeRobot dataset.")
    if not options.demonstrations:
        recorded = ids_or_none("--init-states", options.init_states) or []
        suite = describe_suite(get_suite(options.suite).env_id)
        check_evaluation(options, suite.states_by_source(ids_or_none("--task-ids", options.task_ids), recorded))
    sft_settings(options)
    augmentation(options)


def grasp_radius(options: Options) -> float:
    """The distance in m that is meant; a policy's grasps are its own matter, and failures' are far."""
    return (0.05 if options.method == "clone" else 0.0) if options.grasp_radius is None else options.grasp_radius


def cut_waiting(options: Options) -> bool:
    """Whether frames of waiting are left out. An expert settles before it grasps; a policy's frames are all its own."""
    return options.method == "clone" if options.cut_waiting is None else options.cut_waiting


def keyframe_coef(options: Options) -> float:
    """The weight that is meant. Where an expert grasps tells its aim; a policy's draws close the hand anywhere."""
    return (0.5 if options.method == "clone" else 0.0) if options.keyframe_coef is None else options.keyframe_coef


def check_evaluation(options: Options, states: TrainingStates | None) -> None:
    """Refuse to evaluate, at the end, on states of the demonstrations or of an earlier training, by their suite."""
    trained = {"a model of these demonstrations": states} | trained_before(options.model)
    env_id, way_out = get_suite(options.suite).env_id, "--evaluate-states '' for none"
    check_unseen("--evaluate-states", options.evaluate_states, env_id, options.task_ids, trained, way_out)


def sft_settings(options: Options) -> SFTSettings:
    """The options as settings of the trainer."""
    return SFTSettings(
        n_steps=options.n_steps,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or None,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        bin_sigma=options.bin_sigma,
        keyframe_coef=keyframe_coef(options),
        ema_decay=options.ema_decay,
        paraphrase=options.paraphrase,
        autocast=options.autocast,
        seed=options.seed,
    )


def augmentation(options: Options) -> Augmentation:
    """How images are varied: as the options say, and a little in colour."""
    return Augmentation(
        crop_area=options.crop_area, shift=options.shift, brightness=0.1, contrast=0.15, saturation=0.15, hue=0.02
    )


def record_demonstrations(options: Options) -> Path:
    """Record the expert. Noise disturbs it, so that it shows how to come back; the labels are its own actions.

    A recording that is complete is taken as it is.
    """
    root = options.out / "demonstrations"
    plan: dict[str, Any] = {
        "suite": options.suite,
        "policy": "libero_gym.demonstrations:expert_policy",
        "task_ids": ids_or_none("--task-ids", options.task_ids),
        "init_state_ids": ids_or_none("--init-states", options.init_states) or [],
        "placement_seeds": list(range(options.n_placements)),
        "cameras": ["agentview"],
        "image_size": options.image_size,
        "renderer": options.renderer,
        "action_noise": 0.12,
        "noise_steps": 5,
        "record_intended": True,
        "random_prefix": 8,
        "seed": options.seed,
        "crf": 15,
    }
    note = options.out / "recorded.json"
    if note.is_file() and read_json(note) == plan and (root / INFO_PATH).is_file():
        print(f"The demonstrations of these options are in {root} already.")
        return root
    note.unlink(missing_ok=True)
    summary = record(root, **plan, n_workers=options.n_workers)
    print(f"{summary.n_written} of {summary.n_planned} episodes succeeded, in {root}")
    if summary.n_recorded + summary.n_resumed == summary.n_planned:
        write_text(note, json.dumps(plan) + "\n")
    return root


def load_model(options: Options) -> OpenVLA:
    """Load the checkpoint that was asked for, or make a new tiny one."""
    if options.model:
        dtype = None if options.lora_rank else th.float32  # bfloat16, the default on a GPU, would lose small steps
        return OpenVLA.from_pretrained(options.model, dtype=dtype, device=get_device(options.device))
    words = vocabulary() if options.paraphrase else []  # each a token of its own, or else cut into pieces
    write_tiny(options.out / "initial", options.seed, chunked_config(words), words)
    return OpenVLA.from_pretrained(options.out / "initial", dtype=th.float32, device=get_device(options.device))


def choose_episodes(options: Options, reader: LeRobotReader) -> tuple[list[int], TrainingStates | None]:
    """The episodes to learn from, before their grasps are looked at, and the initial states that they began from.

    Returns:
        Indices of the episodes, and official initial states by suite; None if the dataset does not tell all of them.
    """
    n_each, tasks = options.demonstrations_per_task, ids_or_none("--task-ids", options.task_ids)
    indices = first_of_each_task(reader, n_each) if n_each else list(range(len(reader)))
    if tasks is not None:
        indices = of_tasks(reader, indices, get_suite(options.suite).name, tasks)
    if n_each:
        print(f"Chose {len(indices)} of {len(reader)} episodes: the first {n_each} of each task, by initial state")
    states, n_unknown = states_of(reader, indices)
    if n_unknown:
        print(
            f"{n_unknown} of {len(indices)} episodes do not tell which initial state of which suite they began from: "
            f"the model gets no {TRAINING_FILE}, and evaluations cannot tell states that it was trained on from others"
        )
    return indices, None if n_unknown else states


def load_data(options: Options, reader: LeRobotReader, indices: Sequence[int], model: OpenVLA) -> ActionChunks:
    """Read the demonstrations whose grasps are kept, as the model takes them, or what an earlier run read."""
    start = time.monotonic()
    radius = grasp_radius(options)

    def episodes() -> Iterator[Episode]:  # nothing of it runs if an earlier run's frames are found
        kept = commonest_grasps(reader.root, radius, options.fps or None, indices) if radius else indices
        print(f"Reading {len(kept)} episodes")
        for _, episode in tqdm(reader.enumerate(kept), "reading", len(kept), unit="episode", disable=None):
            yield episode

    key = {"dataset": reader.fingerprint(), "episodes": list(indices), "fps": options.fps, "grasp_radius": radius}
    data = ActionChunks(
        episodes(),
        cameras=reader.cameras,
        image_size=model.processor.image_size,
        chunk_size=model.config.action_chunk_size,
        cut_waiting=cut_waiting(options),
        progress_bar=False,
        cache=options.out / FRAMES_FOLDER,
        cache_key=json.dumps(key, sort_keys=True),
    )
    filtered = (
        f"; the others are damaged, or grasp farther than {radius:g} m from their task's median" if radius else ""
    )
    print(
        f"Learning from {data.n_episodes} of {len(indices)} episodes, {len(data)} frames, read in "
        f"{time.monotonic() - start:.0f} s{filtered if data.n_episodes < len(indices) else ''}"
    )
    return data


def train(options: Options, model: OpenVLA, data: ActionChunks, offline: Mapping[str, float]) -> OpenVLA:
    """Fine-tune, with a line of metrics and a checkpoint every 250 steps.

    Args:
        options: The options.
        model: The model.
        data: What it learns from.
        offline: Metrics of `mark`, which stay the same.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the step that was under way is saved; after a second one at
            once.
    """
    trainer = SupervisedTrainer(
        model,
        data,
        lora={"r": options.lora_rank, "alpha": max(1, options.lora_rank // 2)} if options.lora_rank else None,
        augmentation=augmentation(options),
        statistics=kept_statistics(options, model, data),
        **dataclasses.asdict(sft_settings(options)),
    )
    folder = options.out / TRAINER_FOLDER
    if folder.exists():
        trainer.load(folder)
        print(f"Going on from step {trainer.step} of {options.n_steps}, which is in {folder}")
    pace = Pace(trainer.step, options.n_steps)

    def look(step: int, metrics: Metrics) -> None:
        due = step % 250 == 0 or step == options.n_steps
        if due:
            held_out = trainer.validate()
            row = {"step": step, **{f"train/{name}": value for name, value in metrics._asdict().items()}}
            if held_out is not None:
                row |= {f"held_out/{name}": value for name, value in held_out._asdict().items()}
            row |= offline
            note_metrics(options.out / "metrics.jsonl", row)
            values = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
            tqdm.write(f"{pace.tell(step)}: {values}")
        elif pace.is_due:
            tqdm.write(f"{pace.tell(step)}: train/loss {metrics.loss:.4g}")
        if due or stop.received:
            trainer.save(folder)
        if stop.received:
            raise KeyboardInterrupt

    with StopRequest() as stop:
        trainer.train(callback=look, progress_bar=True)
    if stop.received:  # after the last step
        raise KeyboardInterrupt
    return trainer.export()


def note_training_states(options: Options, checkpoint: Path, states: TrainingStates | None) -> None:
    """Write down the initial states that were learned from, so that evaluations can tell seen ones from unseen ones.

    Args:
        options: The options; their model may have been trained before.
        checkpoint: The folder.
        states: Official initial states by suite; None if unknown, which leaves no file.
    """
    if states is None:
        (checkpoint / TRAINING_FILE).unlink(missing_ok=True)
        return
    before = read_training_states(resolve_folder(options.model, weights=False)) if options.model else None
    write_training_states(checkpoint, states, before)


@contextlib.contextmanager
def stopping(words: Callable[[], str]) -> Iterator[None]:
    """A phase of the command: after Ctrl-C it says what is kept, and ends the program with status 130.

    Args:
        words: Function that gives the sentences, asked when the phase is stopped.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nStopped. {words()}")
        raise SystemExit(STOPPED) from None


def saved_step(options: Options) -> str:
    """What a training that was stopped leaves, in words."""
    path = options.out / TRAINER_FOLDER / STATE_FILE
    if not path.is_file():
        return "No step is saved yet; the same command begins with the first one."
    return f"Step {read_json(path)['step']} of {options.n_steps} is saved; the same command goes on from there."


def main(options: Options) -> None:
    """Record demonstrations if none are given, learn from them, save the model, and evaluate it."""
    check_options(options)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "model"
    with stopping(lambda: "Recorded episodes are kept; the same command records the others."):
        root = options.demonstrations or record_demonstrations(options)
    with stopping(lambda: f"The demonstrations were not read to the end. {saved_step(options)}"):
        model = load_model(options)
        keep_chosen_statistics(options, model)
        reader = LeRobotReader(root, cameras=CAMERA_KEYS[: model.config.num_images], fps=options.fps or None)
        indices, states = choose_episodes(options, reader)
        check_evaluation(options, states)
        data = load_data(options, reader, indices, model)
        offline = mark(options, model, data, options.out / VALUES_FOLDER)
    with stopping(lambda: saved_step(options)):
        model = train(options, model, data, offline)
        model.to(th.bfloat16).save_pretrained(checkpoint)
        note_training_states(options, checkpoint, states)
    print(f"Wrote {checkpoint}; use it as --model {checkpoint}")
    if options.evaluate_states:
        with stopping(lambda: f"{checkpoint} is whole, and episodes so far are kept; the same command goes on."):
            print(evaluate(options, checkpoint))
    remove_frames(options.out / FRAMES_FOLDER)


def evaluate(options: Options, checkpoint: Path) -> EvaluationReport:
    """Evaluate the model on initial states that it was not trained on, as the options say."""
    return evaluate_policy(
        str(checkpoint),
        get_suite(options.suite).env_id,
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--evaluate-states", options.evaluate_states) or [],
        protocol="training",
        renderer=options.eval_renderer,
        device=options.device,
        out=options.out / "evaluation",
    )


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla finetune``."""
    main(parse_arguments(arguments))

"""Teach a model by demonstrations: record them, fine-tune, evaluate.

    python examples/finetune.py                                         # makes `tiny-libero`; two CPU cores, an hour
    python examples/finetune.py --task-ids 0 --init-states 20-21 --n-steps 20 --batch-size 4          # a look, minutes
    python examples/finetune.py --model openvla/openvla-7b --demonstrations data/mine --lora-rank 32 --image-size 256 \\
        --batch-size 16 --learning-rate 5e-4 --bin-sigma 0 --keyframe-coef 0 --ema-decay 0 --crop-area 0.9      # a GPU

Without `--demonstrations` a scripted expert records them first. The same command again goes on where it stopped.
Needs `pip install -c constraints.txt -e ".[data]"`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from tqdm import tqdm

from libero_gym.demonstrations import record
from libero_gym.lerobot import LeRobotReader
from libero_gym.tasks import SUITES
from vla_agent.action_chunks import ActionChunks
from vla_agent.augmentation import Augmentation
from vla_agent.evaluation import evaluate_policy
from vla_agent.evaluation.manifest import write_training_states
from vla_agent.openvla import OpenVLA
from vla_agent.openvla.tiny import chunked_config, write_tiny
from vla_agent.policy import CAMERA_KEYS
from vla_agent.sft import Metrics, SupervisedTrainer


@dataclasses.dataclass
class Options:
    """What to learn, from what, and where to. Each field is a command-line option."""

    model: str = ""  # a checkpoint folder or a hub id; empty for a new tiny model
    demonstrations: str = ""  # a LeRobot dataset; empty to record one
    suite: str = "libero_spatial"
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official ones that are recorded; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    image_size: int = 112  # of recorded frames
    renderer: str = "fast"  # of recorded frames
    n_workers: int = 2
    grasp_radius: float = 0.05  # m; episodes that grasp farther from the task's median are left out; 0 keeps all
    cut_waiting: bool = True  # leave out frames in which the hand waits before it closes or opens
    n_steps: int = 2500
    batch_size: int = 32
    micro_batch_size: int = 0  # examples per forward pass; 0 for the whole batch
    learning_rate: float = 1e-3
    bin_sigma: float = 2.0  # 0 for the plain next-token loss
    keyframe_coef: float = 0.5
    ema_decay: float = 0.998
    weight_decay: float = 0.02
    crop_area: float = 1.0  # 0.9 as OpenVLA, evaluated with the centre crop; or none, but shifts
    shift: int = 4
    lora_rank: int = 0  # 0 trains all weights
    evaluate_states: str = "0-19"  # official initial states to run at the end; empty for none
    seed: int = 0
    device: str = "cuda" if th.cuda.is_available() else "cpu"
    out: Path = Path("runs/finetune")


def parse_ids(text: str) -> list[int]:
    """Such as [0, 3, 4, 5] for "0,3-5"; none for an empty text."""
    ids: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


def record_demonstrations(options: Options) -> Path:
    """The expert's demonstrations: disturbed, so that they show how to come back, with its own actions as labels."""
    root = options.out / "demonstrations"
    summary = record(
        root,
        options.suite,
        "libero_gym.demonstrations:expert_policy",
        task_ids=parse_ids(options.task_ids) or None,
        init_state_ids=parse_ids(options.init_states),
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
    """The checkpoint asked for, or a new tiny one."""
    if options.model:
        dtype = None if options.lora_rank else th.float32  # in bfloat16, a GPU's default, small steps would be lost
        return OpenVLA.from_pretrained(options.model, dtype=dtype, device=options.device)
    write_tiny(options.out / "initial", options.seed, chunked_config())
    return OpenVLA.from_pretrained(options.out / "initial", dtype=th.float32, device=options.device)


def commonest_grasps(root: str | Path, radius: float) -> list[int]:
    """Episodes whose first grasp lies within a radius, in m, of the median over their instruction's episodes.

    The expert takes a bowl by either side of its rim, whichever scores a hair better; a policy that cannot tell which
    learns the middle of the two, where there is nothing to take.
    """
    reader = LeRobotReader(root, cameras=())
    grasps: dict[str, dict[int, np.ndarray]] = {}
    for index in range(len(reader)):
        episode = reader[index]
        closing = np.flatnonzero(np.diff(np.sign(episode.actions[:, 6])) > 0)
        frame = closing[0] if len(closing) else len(episode) - 1
        grasps.setdefault(episode.instruction, {})[index] = episode.state[frame, :3]
    kept = []
    for places in grasps.values():
        median = np.median(list(places.values()), axis=0)
        kept += [index for index, place in places.items() if np.linalg.norm(place - median) < radius]
    return sorted(kept)


def load_data(options: Options, root: str | Path, model: OpenVLA) -> ActionChunks:
    cameras = CAMERA_KEYS[: model.config.num_images]
    reader = LeRobotReader(root, cameras=cameras)
    kept = commonest_grasps(root, options.grasp_radius) if options.grasp_radius else range(len(reader))
    print(f"Learning from {len(kept)} of {len(reader)} episodes")
    return ActionChunks(
        tqdm((reader[index] for index in kept), "reading", len(kept), unit="episode", disable=None),
        cameras=cameras,
        image_size=model.processor.image_size,
        chunk_size=model.config.action_chunk_size,
        cut_waiting=options.cut_waiting,
    )


def train(options: Options, model: OpenVLA, data: ActionChunks) -> OpenVLA:
    """Fine-tune, with a line of metrics and a checkpoint every 250 steps."""
    trainer = SupervisedTrainer(
        model,
        data,
        lora={"r": options.lora_rank, "alpha": max(1, options.lora_rank // 2)} if options.lora_rank else None,
        augmentation=Augmentation(
            crop_area=options.crop_area, shift=options.shift, brightness=0.1, contrast=0.15, saturation=0.15, hue=0.02
        ),
        n_steps=options.n_steps,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or None,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        bin_sigma=options.bin_sigma,
        keyframe_coef=options.keyframe_coef,
        ema_decay=options.ema_decay,
        seed=options.seed,
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
            with open(options.out / "metrics.jsonl", "a") as stream:
                stream.write(json.dumps(row) + "\n")
            tqdm.write(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            trainer.save(folder)

    trainer.train(callback=look, progress_bar=True)
    return trainer.export()


def main(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    root = options.demonstrations or record_demonstrations(options)
    model = load_model(options)
    model = train(options, model, load_data(options, root, model))
    checkpoint = options.out / "model"
    model.to(th.bfloat16).save_pretrained(checkpoint)
    if not options.demonstrations:  # so that evaluations can tell seen initial states from unseen ones
        write_training_states(checkpoint, options.suite, parse_ids(options.init_states))
    print(f"Wrote {checkpoint}; use it as --model {checkpoint}")
    if options.evaluate_states:
        report = evaluate_policy(
            str(checkpoint),
            SUITES[options.suite].env_id,
            task_ids=parse_ids(options.task_ids) or None,
            init_state_ids=parse_ids(options.evaluate_states),
            protocol="training",
            out=options.out / "evaluation",
        )
        print(report)


def parse_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Options):
        kind = Path if "Path" in str(field.type) else type(field.default)
        action: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **action)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse_options())

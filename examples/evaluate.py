"""Evaluate a model by the published protocol, or compare two evaluations.

    python examples/evaluate.py --init-states 0-1 --max-episode-steps 40 --renderer fast     # a look, two CPU cores
    python examples/evaluate.py --model openvla/openvla-7b-finetuned-libero-spatial --n-envs 16    # 500 episodes, a GPU
    python examples/evaluate.py --model runs/ppo/model --init-states held-out --film-failures 2
    python examples/evaluate.py --compare runs/evaluation runs/other

Writes ``report.json``, ``report.md``, ``success.png`` and ``episodes.jsonl`` into ``--out``. After Ctrl-C the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vla_agent import EvaluationReport, compare_reports, evaluate_policy


@dataclasses.dataclass
class Options:
    """What to evaluate, on what, and where to. Each field is a command-line option."""

    model: str = "tiny"  # the tiny model that ships, a checkpoint folder, a run saved by VLAPPO, or a hub id
    env_id: str = "LIBERO-Spatial-v0"
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "0-49"  # official ones, or "held-out": those that the model was not trained on
    placement_seeds: str = ""  # such as "1000-1019": drawn initial states instead, each once per task
    protocol: str = "openvla"  # "training" feeds images as make_vec_env does for training
    center_crop: str = "auto"  # "yes" for models trained with random crops
    renderer: str = "exact"  # "fast" is for a look, not for a reported result
    max_episode_steps: int = 0  # control steps; 0 for the suite's own limit
    sample: bool = False  # draw actions instead of taking the likeliest
    n_envs: int = 0  # side by side; 0 for as many as CPU cores
    unnorm_key: str = ""  # which action statistics, where the checkpoint has several
    film_failures: int = 0  # MP4s of so many failures of each task
    seed: int = 0
    device: str = "auto"
    out: Path = Path("runs/evaluation")


def parse_ids(text: str) -> list[int]:
    """Such as [0, 3, 4, 5] for "0,3-5"; none for an empty text."""
    ids: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


def evaluate(options: Options) -> EvaluationReport:
    """Run what is missing in ``out``."""
    init_states: list[int] | str = "held-out" if options.init_states == "held-out" else parse_ids(options.init_states)
    drawn = parse_ids(options.placement_seeds)
    return evaluate_policy(
        options.model,
        options.env_id,
        task_ids=parse_ids(options.task_ids) or None,
        init_state_ids=() if drawn else init_states,
        placement_seeds=drawn,
        protocol=options.protocol,
        center_crop={"auto": None, "yes": True, "no": False}[options.center_crop],
        renderer=options.renderer,
        max_episode_steps=options.max_episode_steps or None,
        deterministic=not options.sample,
        n_envs=options.n_envs or None,
        unnorm_key=options.unnorm_key or None,
        film_failures=options.film_failures,
        seed=options.seed,
        device=options.device,
        out=options.out,
    )


def main() -> None:
    options, compare = parse_options()
    if compare:
        print(compare_reports(*(EvaluationReport.load(folder) for folder in compare)))
        return
    try:
        report = evaluate(options)
    except KeyboardInterrupt:
        print(f"\nStopped. Episodes so far are in {options.out}; the same command goes on from there.")
        return
    print(report)
    print(f"{report.timing.get('ms_per_action', 0):.1f} ms of model per action. Wrote report.md into {options.out}")


def parse_options() -> tuple[Options, list[Path]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Options):
        name = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(name, type=type(field.default) if field.name != "out" else Path, default=field.default)
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FOLDER", help="print what two evaluations say")
    arguments = vars(parser.parse_args())
    compare = arguments.pop("compare") or []
    return Options(**arguments), compare


if __name__ == "__main__":
    main()

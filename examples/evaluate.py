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
import logging
import sys
from pathlib import Path

from libero_gym.checks import parse_ids, whole_number
from vla_agent import EvaluationReport, compare_reports, evaluate_policy
from vla_agent.evaluation import PROTOCOLS

CROPS = {"auto": None, "yes": True, "no": False}
CHOICES = {"protocol": list(PROTOCOLS), "center_crop": list(CROPS), "renderer": ["exact", "fast"]}


@dataclasses.dataclass
class Options:
    """What to evaluate, on what, and where to. Each field is a command-line option."""

    model: str = "tiny"  # the tiny model that ships, a checkpoint folder, a run saved by VLAPPO, or a hub id
    env_id: str = "LIBERO-Spatial-v0"
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "0-49"  # official ones, or "held-out": those that the model was not trained on
    placement_seeds: str = ""  # such as "1000-1019": drawn initial states instead, each once per task
    protocol: str = "openvla"  # where fixtures stand, and which way images take; "training" is make_vec_env's
    center_crop: str = "auto"  # "yes" for models trained with random crops
    renderer: str = "exact"  # "fast" is for a look, not for a reported result
    max_episode_steps: int = 0  # control steps; 0 for the protocol's limit
    sample: bool = False  # draw actions instead of taking the likeliest
    n_envs: str = "auto"  # side by side; "auto" for as many as CPU cores
    unnorm_key: str = ""  # which action statistics, where the checkpoint has several
    film_failures: int = 0  # MP4s of so many failures of each task
    seed: int = 0
    device: str = "auto"
    out: Path = Path("runs/evaluation")


def evaluate(options: Options) -> EvaluationReport:
    """Run what is missing in ``out``."""
    held_out = options.init_states == "held-out"
    states: list[int] | str = "held-out" if held_out else parse_ids("--init-states", options.init_states)
    drawn = parse_ids("--placement-seeds", options.placement_seeds) if options.placement_seeds else []
    return evaluate_policy(
        options.model,
        options.env_id,
        task_ids=parse_ids("--task-ids", options.task_ids) if options.task_ids else None,
        init_state_ids=() if drawn else states,
        placement_seeds=drawn,
        protocol=options.protocol,
        center_crop=CROPS[options.center_crop],
        renderer=options.renderer,
        max_episode_steps=whole_number("--max-episode-steps", options.max_episode_steps, 0) or None,
        deterministic=not options.sample,
        n_envs=None if options.n_envs == "auto" else _count("--n-envs", options.n_envs),
        unnorm_key=options.unnorm_key or None,
        film_failures=whole_number("--film-failures", options.film_failures, 0),
        seed=options.seed,
        device=options.device,
        out=options.out,
    )


def main() -> None:
    options, compare = parse_options()
    try:
        if compare:
            print(compare_reports(*(EvaluationReport.load(folder) for folder in compare)))
            return
        if not sys.stderr.isatty():  # where bars are quiet
            logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
            for package in ("vla_agent", "libero_gym"):
                logging.getLogger(package).setLevel(logging.INFO)
        report = evaluate(options)
    except KeyboardInterrupt:
        print(f"\nStopped. Episodes so far are in {options.out}; the same command goes on from there.")
        return
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    print(report)
    print(f"{report.timing.get('ms_per_action', 0):.1f} ms of model per action. Wrote report.md into {options.out}")


def parse_options() -> tuple[Options, list[Path]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Options):
        name = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(name, action="store_true")
        else:
            kind = Path if field.name == "out" else type(field.default)
            parser.add_argument(name, type=kind, default=field.default, choices=CHOICES.get(field.name))
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FOLDER", help="print what two evaluations say")
    arguments = vars(parser.parse_args())
    compare = arguments.pop("compare") or []
    return Options(**arguments), compare


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or int(text) < 1:
        raise ValueError(f"{name} {text!r}; expected a whole number of at least 1, or 'auto'.")
    return int(text)


if __name__ == "__main__":
    main()

"""Whether the first command of the README shows learning: three seeds of it, judged on unseen states.

    python benchmarks/main_job.py                    # three seeds, an hour of two cores; goes on where it stopped
    python benchmarks/main_job.py --seeds 0
    python benchmarks/main_job.py --options "--physics coarse --autocast bfloat16" --work runs/main_job_fast \\
        --out benchmarks/results/main_job_fast.json      # does faster training learn as much?
    python benchmarks/main_job.py --script train_grpo.py --work runs/main_job_grpo \\
        --out benchmarks/results/main_job_grpo.json      # the same job by another algorithm

Runs ``python examples/train_ppo.py --seed S --out FOLDER`` with no other option but ``--options``, then evaluates the
model that it started from and the best of each run (exact frames, greedy) on drawn initial states that neither training
nor its own evaluations see, the same for all. The best was chosen by the run's evaluations on the official states 0 to
19. Differences are paired by state: McNemar's exact test for each seed, and a bootstrap over states (all seeds of a
state together) for their mean. Writes ``benchmarks/results/main_job.json``, and the curve of each seed beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

from gains import Outcomes, gain_by_state, mean_in_points, outcomes_of, paired, rate, run_example
from measuring import provenance

from vla_agent import EvaluationReport
from vla_agent.commands.train import Options
from vla_agent.evaluation.learning import read_curve
from vla_agent.runs.run_files import STATE

RESULTS = Path(__file__).parent / "results"


def train(args: argparse.Namespace, seed: int) -> tuple[Path, float]:
    """The folder of a seed's run and the seconds that it took; a finished run is not repeated."""
    folder = args.work / f"seed_{seed}"
    note = args.work / f"seed_{seed}.json"
    if not (folder / "model" / STATE).is_file():
        seconds = run_example(args.script, "--seed", str(seed), "--out", str(folder), *args.options.split())
        note.write_text(json.dumps({"seconds": round(seconds, 1)}))
    return folder, json.loads(note.read_text())["seconds"]


def times(folder: Path) -> dict[str, float]:
    """Seconds of a run by what it did."""
    told = folder / "times.json"  # train_ppo.py's alone
    seconds = {name: round(s, 1) for name, s in json.loads(told.read_text()).items()} if told.is_file() else {}
    with (folder / "progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    sums = {name: sum(float(row[f"time/{name}_s"] or 0) for row in rows) for name in ("rollout", "update", "eval")}
    last = float(rows[-1]["time/eval_s"] or 0)
    sums["rollout"] -= sums["eval"] - last  # all but the last are on the clock of the rollout behind them
    return seconds | {f"of learning, {name}": round(spent, 1) for name, spent in sums.items()}


def evaluate(args: argparse.Namespace, model: str, folder: Path) -> Outcomes:
    """Success from every initial state to judge by."""
    options = Options()
    command = ["--model", model, "--env-id", options.env_id, "--task-ids", options.task_ids, "--protocol", "training"]
    run_example("evaluate.py", *command, "--placement-seeds", args.states, "--n-envs", "8", "--out", str(folder))
    return outcomes_of(EvaluationReport.load(folder))


def evaluations(folder: Path) -> dict[str, float]:
    """Success rates of a run's own evaluations, by the decisions before them."""
    curve = read_curve(folder / "model")
    return {} if curve is None else {str(point.num_timesteps): point.rate for point in curve.evaluations}


def describe(before: Outcomes, after: Outcomes) -> dict[str, Any]:
    """Rates of a seed, and how they differ from those before training."""
    return {
        **rate(after),
        **paired(before, after),
        "by_task": {
            task_id: [sum(outcomes[key] for key in outcomes if key[0] == task_id) for outcomes in (before, after)]
            for task_id in sorted({task_id for task_id, _ in before})
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--script", default="train_ppo.py", help="example that trains on the same tasks and states")
    parser.add_argument("--options", default="", help="further options of the trainings, in one string")
    parser.add_argument("--states", default="1000-1039", help="placement seeds to judge by")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--out", type=Path, default=RESULTS / "main_job.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    options = Options()
    results: dict[str, Any] = {
        "provenance": provenance(),
        "command": f"python examples/{args.script} --seed S {args.options}".strip(),
        "env_id": options.env_id,
        "task_ids": options.task_ids,
        "states": args.states,
    }
    trained = {seed: train(args, seed) for seed in args.seeds}
    before = evaluate(args, options.model, args.work / "before")
    after = {seed: evaluate(args, str(folder / "best"), folder / "judged") for seed, (folder, _) in trained.items()}
    results["seeds"] = {
        str(seed): {
            "seconds": seconds,
            "times": times(folder),
            "evaluations": evaluations(folder),
            **describe(before, after[seed]),
        }
        for seed, (folder, seconds) in trained.items()
    }
    results["before"] = rate(before)
    results["mean_gain"] = mean_in_points([gain_by_state([before], list(after.values()))])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    for seed, (folder, _) in trained.items():
        shutil.copyfile(folder / "curve.png", args.out.with_name(f"{args.out.stem}_seed_{seed}.png"))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

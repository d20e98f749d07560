"""How many decisions per second a training makes: rollouts, updates and both, beside earlier commits, interleaved.

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.json    # five minutes on two cores
    git worktree add ../earlier 18ac0d4
    python benchmarks/training_speed.py --beside ../earlier --out benchmarks/results/training_speed.json

Each round trains anew by ``python examples/train_ppo.py``, with evaluations left out, in this checkout with each of
`VARIANTS`, and in those beside it with their own fast frames. Rates are those of all iterations after the first, which
fills caches. Each checkout runs its own example and packages.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import commit, provenance, report, summary
from tqdm import tqdm

TREE = Path(__file__).resolve().parent.parent
N_ENVS, N_STEPS = 8, 32
OPTIONS = "--env-id LIBERO-Spatial-v0 --task-ids 0-2 --critic-warmup-iterations 0 --eval-freq 0"
VARIANTS = {
    "default": "",
    "bfloat16": "--autocast bfloat16",
    "coarse": "--physics coarse",
    "bfloat16 and coarse": "--autocast bfloat16 --physics coarse",
}


def main() -> None:
    """Measures each variant and checkout in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6, help="iterations of a training, from 2")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="checkouts of earlier commits")
    parser.add_argument("--options", default="", help="further options of this checkout's trainings, in one string")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ours = {name: (TREE, options.split() + args.options.split()) for name, options in VARIANTS.items()}
    variants = ours | {commit(tree): (tree.resolve(), []) for tree in args.beside}
    rates: dict[str, dict[str, list[float]]] = {}
    for seed in tqdm(range(args.repeats), desc="rounds", unit="round"):
        for name, (tree, options) in variants.items():
            for kind, rate in train(tree, seed, args.iterations, options).items():
                rates.setdefault(name, {}).setdefault(kind, []).append(rate)
    results: dict[str, Any] = {
        "provenance": provenance(),
        "options": f"{OPTIONS} {args.options}".strip(),
        "variants": VARIANTS,
        "decisions_per_s": {
            name: {kind: summary(values) for kind, values in kinds.items()} for name, kinds in rates.items()
        },
        "times": {
            f"{name} / {other}": summary(
                [a / b for a, b in zip(rates[name]["learning"], rates[other]["learning"], strict=True)]
            )
            for name in VARIANTS
            for other in ("default", *map(commit, args.beside))
            if name != other
        },
    }
    report(results, args.out)


def train(tree: Path, seed: int, n_iterations: int, further: list[str]) -> dict[str, float]:
    """Decisions per second of a training's rollouts, updates, and both, after its first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(tree / "examples" / "train_ppo.py"), *OPTIONS.split()]
        command += ["--seed", str(seed), "--out", f"{folder}/run", *further]
        command += ["--total-timesteps", str(n_iterations * N_ENVS * N_STEPS)]
        command += ["--n-envs", str(N_ENVS), "--n-steps", str(N_STEPS)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        with open(f"{folder}/log", "w+") as log:
            if subprocess.run(command, env=environment, cwd=tree, stdout=log, stderr=log).returncode:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
        with open(f"{folder}/run/progress.csv") as stream:
            rows = list(csv.DictReader(stream))
    rollout = [float(row["time/rollout_s"]) for row in rows if row["time/rollout_s"]]
    update = [float(row["time/update_s"]) for row in rows if row["time/update_s"]]
    n_decisions = N_ENVS * N_STEPS
    seconds = {"rollouts": sum(rollout[1:]) / len(rollout[1:]), "updates": sum(update[1:]) / len(update[1:])}
    seconds["learning"] = sum(seconds.values())
    return {kind: n_decisions / spent for kind, spent in seconds.items()}


if __name__ == "__main__":
    main()

"""How much PPO improves a model: success on unseen initial states before and after, over seeds, and what matters.

    python benchmarks/ppo_improvement.py                                        # three seeds of the recipe
    python benchmarks/ppo_improvement.py --variants recipe no-warm-up hot patient hardest frontier   # ablations
    python benchmarks/ppo_improvement.py --variants recipe process --task-ids 0-2    # with and without process rewards
    python benchmarks/ppo_improvement.py --variants process --task-ids 0-2 \\
        --beside benchmarks/results/ppo_improvement.json                                     # those without run before
    python benchmarks/ppo_improvement.py --suites LIBERO-Spatial-v0 LIBERO-Spatial-Swap-v0           # other tasks, too
    python benchmarks/ppo_improvement.py --suites LIBERO-Spatial-v0 LIBERO-Spatial-v0:drawn      # other states, too

Trains by ``examples/train_ppo.py`` and evaluates by ``examples/evaluate.py`` (exact frames, greedy, official initial
states 0 to 19, which neither the demonstrations nor PPO have seen), one after the other; the same command goes on
where it stopped. Runs are kept in ``--work``; the figures go to ``benchmarks/results/ppo_improvement.json``, the
learning curves beside them as PNG. Rates come with Wilson's 95 % intervals, over all seeds' episodes together, and
differences with Newcombe's; runs with process rewards are checked for reward hacking. ``--beside`` takes other
variants' figures from an earlier result of the same settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from gains import run_example
from measuring import provenance

from vla_agent import EvaluationReport, RunError, latest_run
from vla_agent.common.figures import new_figure, save_figure
from vla_agent.common.intervals import newcombe_interval, wilson_interval
from vla_agent.process_reward.hacking import check_hacking
from vla_agent.runs.run_files import STATE

RESULTS = Path(__file__).parent / "results"
START = "tiny-libero"
ENV_ID = "LIBERO-Spatial-v0"  # to train on
DRAWN = ":drawn"  # behind a suite: from initial states that are drawn, and that nobody looked at to find the recipe
# Each variant changes one thing of the recipe, which is what the example does by default.
VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "no-warm-up": ["--critic-warmup-iterations", "0"],
    "hot": ["--temperature", "1.0"],
    "patient": ["--gamma", "0.99", "--gae-lambda", "0.8"],
    "frames-critic": ["--no-privileged-critic"],
    "hardest": ["--curriculum", "hardest"],
    "frontier": ["--curriculum", "frontier"],
    "process": ["--reward", "process"],
    "process-bonus": ["--reward", "process", "--reward-mode", "bonus", "--reward-weight", "0.1"],
}
N_POINTS = 25  # of a learning curve


def train(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """The folder of a trained run; a run that was stopped goes on."""
    folder = args.work / variant / f"seed_{seed}"
    if not (folder / "model" / STATE).is_file():
        command = ["--seed", str(seed), "--total-timesteps", str(args.total_timesteps), "--out", str(folder)]
        command += ["--env-id", ENV_ID, "--task-ids", args.task_ids, "--eval-freq", "0", *VARIANTS[variant]]
        with contextlib.suppress(RunError):  # it has not begun
            latest_run(folder)
            command += ["--resume", str(folder)]
        run_example("train_ppo.py", *command)
    return folder


def evaluate(args: argparse.Namespace, model: str, suite: str, folder: Path) -> EvaluationReport:
    """A model's success from unseen initial states."""
    states = ["--placement-seeds", args.drawn_states] if suite.endswith(DRAWN) else ["--init-states", args.init_states]
    command = ["--model", model, "--env-id", suite.removesuffix(DRAWN), "--protocol", "training", *states]
    run_example("evaluate.py", *command, "--task-ids", args.task_ids, "--n-envs", "4", "--out", str(folder))
    return EvaluationReport.load(folder)


def count(reports: list[EvaluationReport]) -> tuple[int, int]:
    """Successes and episodes of several evaluations together."""
    return sum(report.total.successes for report in reports), sum(report.total.n for report in reports)


def describe(reports: list[EvaluationReport]) -> dict[str, Any]:
    """Rates of each seed and task, and all episodes' rate with its interval."""
    successes, n = count(reports)
    return {
        "successes": successes,
        "n": n,
        "success_rate": round(successes / n, 4),
        "wilson_95": [round(end, 4) for end in wilson_interval(successes, n)],
        "by_seed": [round(report.total.rate, 4) for report in reports],
        "by_task": {task_id: [report.tasks[task_id].successes for report in reports] for task_id in reports[0].tasks},
        "n_by_task": next(iter(reports[0].tasks.values())).n,
    }


def learning_curve(folder: Path, total_timesteps: int) -> list[float | None]:
    """Success of the training (sampled actions, fast frames) over episodes that began in each of `N_POINTS` spans.

    Spans of beginnings do not favour short episodes, and with them successes, as spans of ends would.
    """
    callbacks = json.loads((folder / "model" / STATE).read_text())["callbacks"]
    history = np.array([(episode[5], episode[2]) for episode in callbacks["Curriculum"]["history"]], dtype=float)
    spans = np.minimum((history[:, 0] / total_timesteps * N_POINTS).astype(int), N_POINTS - 1)
    return [
        round(float(history[spans == span, 1].mean()), 4) if (spans == span).any() else None for span in range(N_POINTS)
    ]


def draw(
    curves: dict[str, list[list[float | None]]],
    after: dict[str, dict[str, Any]],
    total_timesteps: int,
    before: float,
    path: Path,
) -> None:
    """Draw the mean learning curve over seeds, the spread from worst to best, and the success rates after training.

    Args:
        curves: Learning curves of each variant, one per seed.
        after: Rates of each variant after training, as `describe` gives them; a variant without evaluation is left out.
        total_timesteps: Decisions of a run.
        before: Success rate of the model that all runs began from.
        path: The picture.
    """
    figure, ((axes,),) = new_figure(10, 4.5)
    steps = (np.arange(N_POINTS) + 0.5) * total_timesteps / N_POINTS
    for index, (variant, seeds) in enumerate(curves.items()):
        values = np.array(seeds, dtype=float)
        (line,) = axes.plot(steps, np.nanmean(values, axis=0), label=f"{variant}, seeds: {len(seeds)}")
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        if variant in after:
            rate, ends = after[variant]["success_rate"], after[variant]["wilson_95"]
            beside = total_timesteps * (1 + 0.02 * index)
            errors = [[rate - ends[0]], [ends[1] - rate]]
            axes.errorbar([beside], [rate], errors, fmt="D", color=line.get_color(), capsize=4)
    axes.axhline(before, color="0.5", linestyle="--", linewidth=1, label="before, greedy,\nunseen states")
    axes.plot([], [], "D", color="0.5", label="after, greedy,\nunseen states, 95 %")
    axes.set_xlabel("decisions (chunks of at most 8 control steps)")
    axes.set_ylabel("success rate of training episodes")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, which may be anywhere
    save_figure(figure, path, dpi=120)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate the variants; the figures so far are written after each step."""
    settings = {name: getattr(args, name) for name in ("task_ids", "init_states", "drawn_states", "total_timesteps")}
    results: dict[str, Any] = {
        "provenance": provenance(),
        **settings,
        "variants": {variant: " ".join(VARIANTS[variant]) for variant in args.variants},
        "before": {},
        "after": {variant: {} for variant in args.variants},
        "improvement": {variant: {} for variant in args.variants},
        "against": {},
        "hacking": {},
        "curves": {},
    }
    if args.beside:
        take(results, json.loads(args.beside.read_text()), settings)
    curves: dict[str, list[list[float | None]]] = results["curves"]
    before = {suite: evaluate(args, START, suite, args.work / "before" / suite) for suite in args.suites}
    results["before"] = {suite: describe([report]) for suite, report in before.items()}
    for variant in args.variants:
        curves[variant] = []
        reports: dict[str, list[EvaluationReport]] = {suite: [] for suite in args.suites}
        for seed in args.seeds:
            folder = train(args, variant, seed)
            curves[variant].append(learning_curve(folder, args.total_timesteps))
            for suite in args.suites:
                reports[suite].append(evaluate(args, str(folder / "model"), suite, folder / suite))
                results["after"][variant][suite] = describe(reports[suite])
                first, second = count([before[suite]]), count(reports[suite])
                results["improvement"][variant][suite] = difference(first, second)
            if "process" in VARIANTS[variant]:
                results["hacking"].setdefault(variant, []).append(
                    hacking(folder, before[args.suites[0]], reports[args.suites[0]][-1])
                )
            results["against"] = against_each_other(results["after"], args.suites)
            write(args, results)
    return results


def difference(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    """How many points the second rate lies above the first, each as successes and episodes."""
    return {
        "points": round(100 * (second[0] / second[1] - first[0] / first[1]), 2),
        "newcombe_95": [round(100 * end, 2) for end in newcombe_interval(first, second)],
    }


def hacking(folder: Path, before: EvaluationReport, after: EvaluationReport) -> dict[str, Any]:
    """Whether a run with process rewards raised the score without succeeding more often."""
    check = check_hacking(folder, (before.total.rate, after.total.rate))
    return dataclasses.asdict(check) | {"suspicious": check.suspicious}


def against_each_other(after: dict[str, Any], suites: list[str]) -> dict[str, Any]:
    """Differences of the other variants from the first, by suite."""
    first, *others = [variant for variant in VARIANTS if variant in after]
    counts = {
        variant: {suite: (row["successes"], row["n"]) for suite, row in after[variant].items()} for variant in after
    }
    return {
        f"{other} - {first}": {
            suite: difference(counts[first][suite], counts[other][suite])
            for suite in suites
            if suite in counts[first] and suite in counts[other]
        }
        for other in others
    }


def take(results: dict[str, Any], earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    """Add the variants of an earlier result that are not run now, and say which commit they are of.

    Raises:
        SystemExit: If it was made with other settings.
    """
    differing = [name for name, value in settings.items() if earlier[name] != value]
    if differing:
        told = ", ".join(f"{name} is {earlier[name]} there and {settings[name]} here" for name in differing)
        raise SystemExit(f"--beside was made with other settings: {told}. Give the same, or leave it out.")
    taken = [variant for variant in earlier["variants"] if variant not in results["variants"]]
    results["taken"] = {"variants": taken, "provenance": earlier["provenance"]}
    for part in ("variants", "after", "improvement", "curves"):
        results[part] |= {variant: earlier[part][variant] for variant in taken}
    results["hacking"] |= {variant: found for variant, found in earlier.get("hacking", {}).items() if variant in taken}


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    suite = args.suites[0]
    after = {variant: found[suite] for variant, found in results["after"].items() if suite in found}
    rate = results["before"][suite]["success_rate"]
    draw(results["curves"], after, args.total_timesteps, rate, args.out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=["recipe"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--task-ids", default="0-9", help="such as 0,3-5")
    parser.add_argument("--init-states", default="0-19", help="unseen ones, to evaluate on")
    parser.add_argument("--drawn-states", default="1000-1019", help=f"placement seeds, for suites that end in {DRAWN}")
    parser.add_argument("--suites", nargs="*", default=["LIBERO-Spatial-v0"], help="to evaluate on")
    parser.add_argument("--beside", type=Path, help="an earlier result, whose other variants are shown too")
    parser.add_argument("--total-timesteps", type=int, default=37_500, help="decisions; each is up to 8 control steps")
    parser.add_argument("--work", type=Path, default=Path("runs/ppo_improvement"))
    parser.add_argument("--out", type=Path, default=RESULTS / "ppo_improvement.json")
    results = measure(parser.parse_args())
    print(json.dumps({key: results[key] for key in ("before", "after", "improvement")}, indent=1))


if __name__ == "__main__":
    main()

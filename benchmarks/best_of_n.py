"""Success against the number of candidates, for each scorer, with what a decision costs: cell by cell.

    libero-vla train-critic --model tiny-libero-few --out runs/critic    # once, for the cells critic/*
    python benchmarks/best_of_n.py plan                                  # the cells, what is done, hours left
    python benchmarks/best_of_n.py run --hours 2.8                       # goes on with them; may be killed at any time
    python benchmarks/best_of_n.py run --cells 'agreement/*' judged/critic
    python benchmarks/best_of_n.py costs                                 # ms of a decision in each, with nothing beside
    python benchmarks/best_of_n.py report                                # JSON, picture and table of the finished cells

A cell SCORER/N evaluates the best of N candidates from official states 0 to 19 of LIBERO-Spatial's ten tasks, which
neither cloning nor the critic saw. The first candidate is the greedy one, so policy/1, greedy decoding, is where all
curves begin; drawn/1 is what one drawn candidate does without a choice. The scorers whose names end in "oracle" look
ahead in the simulator that judges them. A cell judged/SCORER says how a scorer orders eight candidates beside the
process oracle, over the first two states. Frames are fast, physics exact. What a decision costs is measured apart, so
that cells may run beside other work. All cells take about a day of two cores, most of it the success oracle's:
``--cells`` and ``--numbers`` take less.

``--kept`` is one file of the repository that has the finished cells of all machines: what ``--work`` lacks comes from
there, and what it has goes there, unless the settings of its cells are others than the defaults.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from forty import store
from forty.session import CellError, Note, Session, Stopped, do_each, locked
from forty.work import finished_report
from gains import EXAMPLES, gain_by_state, mean_in_points, outcomes_of, paired, rate
from measuring import commit, milliseconds, provenance, summary

from libero_gym.common.atomic import write_text
from vla_agent.common.figures import new_figure, save_figure
from vla_agent.test_time.calibration import success_auc

RESULTS = Path(__file__).parent / "results"
NUMBERS = (2, 4, 8, 16, 32)
THREADS = 1
# What is judged how, if the command line says nothing else; the cells of these settings are kept.
SETTINGS: dict[str, Any] = {"model": "tiny-libero-few", "env_id": "LIBERO-Spatial-v0", "task_ids": "", "states": "0-19"}
SETTINGS |= {"temperature": 0.5, "n_envs": 8, "seed": 0, "max_episode_steps": 0}
# Seconds of an episode for n candidates, a + b n, on one core with eight environments; until cells are measured.
S_PER_EPISODE = {"policy": (1.5, 0.0), "drawn": (1.5, 0.0), "agreement": (2.0, 0.1), "critic": (2.0, 0.1)}
S_PER_EPISODE |= {"process-oracle": (2.0, 1.0), "success-oracle": (2.0, 5.5)}
JUDGED_N = 8
COST_REPEATS = 7
LOOKS = {"policy": "0.3", "drawn": "0.5", "agreement": "#2a78b5", "critic": "#c7562b", "process-oracle": "#6a4c93"}
LOOKS |= {"success-oracle": "#3b8f5a"}


class Cell(NamedTuple):
    """An evaluation: a scorer and a number of candidates; or, with n = 0, what a scorer's order says."""

    scorer: str
    n: int

    @property
    def name(self) -> str:
        """Such as "agreement/8"."""
        return f"{self.scorer}/{self.n}" if self.n else f"judged/{self.scorer}"


class Plan:
    """What is evaluated, and where it is kept.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.root = args, Path(args.work)
        usual = {name: getattr(args, name) for name in SETTINGS} == SETTINGS
        self.kept = Path(args.kept) if usual else None

    @property
    def cells(self) -> list[Cell]:
        """Every cell, small numbers of candidates first."""
        scorers = ("agreement", "critic", "process-oracle", "success-oracle")
        found = [
            Cell("policy", 1),
            Cell("drawn", 1),
            *(Cell(scorer, n) for n in self.args.numbers for scorer in scorers),
        ]
        return [*found, Cell("agreement", 0), Cell("critic", 0)]

    def chosen(self) -> list[Cell]:
        """The cells that a pattern fits.

        Raises:
            ValueError: If a pattern fits none.
        """
        patterns = self.args.cells or ["*"]
        for pattern in patterns:
            if not any(fnmatch.fnmatch(cell.name, pattern) for cell in self.cells):
                raise ValueError(f"No cell is called {pattern!r}; there are {', '.join(c.name for c in self.cells)}.")
        return [cell for cell in self.cells if any(fnmatch.fnmatch(cell.name, pattern) for pattern in patterns)]

    def file(self, cell: Cell) -> Path:
        """Where a finished cell is kept."""
        return self.root / "cells" / f"{cell.name}.json"

    def folder(self, cell: Cell) -> Path:
        """Where a cell is under way."""
        return self.root / "runs" / cell.name

    def scorer_of(self, cell: Cell) -> str:
        """The scorer as the command takes it.

        Raises:
            CellError: If there is no critic.
        """
        if cell.scorer == "critic":
            if not (Path(self.args.critic) / "critic.json").is_file():
                raise CellError(f"there is no critic at '{self.args.critic}'; libero-vla train-critic trains one")
            return f"critic:{self.args.critic}"
        if cell.scorer == "success-oracle":
            return f"success-oracle:{self.args.horizon}"
        return cell.scorer

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell."""
        return {"scorer": self.scorer_of(cell), "n": cell.n, **{name: getattr(self.args, name) for name in SETTINGS}}

    def keep(self) -> None:
        """Put the finished cells into the repository's file of all machines, too."""
        if self.kept is not None:
            store.pack(self.root, self.kept)

    def costs(self) -> dict[str, Any]:
        """What decisions cost, if it was measured apart."""
        path = self.root / "costs.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {"ms": {}}

    def do(self, cell: Cell, session: Session) -> None:
        """Bring a cell to its end.

        Raises:
            CellError: If it cannot go on.
            Stopped: If the session ended before.
        """
        note, folder = Note(self.folder(cell) / "note.json"), self.folder(cell)
        note.begin(self.settings(cell))
        print(f"{cell.name}: begins", flush=True)
        if cell.n:
            content = self._evaluate(cell, folder / "report", session, note)
        else:
            content = self._judge(cell, folder / "judged.json", session, note)
        content |= {name: note.content[name] for name in ("settings", "seconds", "memory_mb")}
        content["provenance"] = provenance()
        write_text(self.file(cell), json.dumps(content) + "\n")
        self.keep()

    def _evaluate(self, cell: Cell, out: Path, session: Session, note: Note) -> dict[str, Any]:
        args = self.args
        command = [sys.executable, str(EXAMPLES / "evaluate.py"), "--model", args.model, "--env-id", args.env_id]
        command += ["--protocol", "training", "--renderer", "fast", "--init-states", args.states]
        command += ["--task-ids", args.task_ids, "--n-envs", str(args.n_envs), "--seed", str(args.seed)]
        command += ["--max-episode-steps", str(args.max_episode_steps), "--out", str(out)]
        if cell.scorer == "drawn":
            command += ["--sample", "--temperature", str(args.temperature)]
        elif cell.n > 1:
            command += ["--best-of-n", str(cell.n), "--scorer", self.scorer_of(cell)]
            command += ["--temperature", str(args.temperature)]
        if finished_report(out) is None:
            session.run(command, signal.SIGINT, out.with_name("output.log"), note, "evaluate")
        report = finished_report(out)
        if report is None:
            raise Stopped
        return {
            "episodes": [[e.task_id, e.init_state_id, int(e.success), e.steps, e.score] for e in report.episodes],
            "timing": report.timing,
            "commit": report.manifest.get("commit"),
        }

    def _judge(self, cell: Cell, out: Path, session: Session, note: Note) -> dict[str, Any]:
        command = [sys.executable, __file__, "judge", "--cells", cell.name, "--out", str(out), "--model"]
        command += [self.args.model, "--env-id", self.args.env_id, "--task-ids", self.args.task_ids, "--critic"]
        command += [str(self.args.critic), "--n-envs", str(self.args.n_envs), "--seed", str(self.args.seed)]
        command += ["--temperature", str(self.args.temperature)]
        command += ["--max-episode-steps", str(self.args.max_episode_steps), "--states", "0-1"]
        if not out.is_file():
            session.run(command, signal.SIGINT, out.with_name("output.log"), note, "judge")
        return {**json.loads(out.read_text()), "commit": commit()}


def judge(plan: Plan, cell: Cell, out: Path) -> None:
    """Play episodes of a scorer's choices, and hold its order against the process oracle's at every decision."""
    from vla_agent import Evaluator
    from vla_agent.commands.options import ids_or_none, parse_ids
    from vla_agent.test_time import BestOfN, scorer_by_name

    args = plan.args
    evaluator = Evaluator(
        args.model,
        args.env_id,
        task_ids=ids_or_none("--task-ids", args.task_ids),
        init_state_ids=parse_ids("--states", args.states),
        protocol="training",
        renderer="fast",
        n_envs=args.n_envs,
        max_episode_steps=args.max_episode_steps or None,
    )
    with evaluator:
        policy, env = evaluator.policy, evaluator.env
        scorers = [scorer_by_name(name)(policy, env) for name in (plan.scorer_of(cell), "process-oracle")]
        evaluator.policy = chooser = BestOfN(policy, JUDGED_N, scorers[0], judge=scorers[1])
        report = evaluator.run(temperature=args.temperature, seed=args.seed, progress_bar=False)
    found = np.array(chooser.rank_correlations)
    mean, error = float(found.mean()), float(found.std() / np.sqrt(len(found)))
    content = {"decisions": len(found), "scorer_rank_correlation": mean, "standard_error": error}
    write_text(out, json.dumps(content | _rate(outcomes_of(report))) + "\n")


def costs(plan: Plan) -> dict[str, Any]:
    """Milliseconds of each cell's decisions in the first states, per environment of those that decide together."""
    import torch as th

    from vla_agent import Evaluator
    from vla_agent.test_time import BestOfN, scorer_by_name

    th.set_num_threads(THREADS)
    args, found = plan.args, dict[str, Any]()
    settings: dict[str, Any] = {"protocol": "training", "renderer": "fast", "n_envs": args.n_envs}
    with Evaluator(args.model, args.env_id, **settings) as evaluator:
        observations, policy = evaluator.env.reset(), evaluator.policy
        for cell in plan.chosen():
            if not cell.n:
                continue
            try:
                name = plan.scorer_of(cell)
            except CellError as error:
                print(f"{cell.name}: left out, since {error}")
                continue
            scorer = None if cell.n == 1 else scorer_by_name(name)(policy, evaluator.env)
            chooser = BestOfN(policy, cell.n, scorer)
            decide = functools.partial(chooser.predict, observations, deterministic=cell.scorer != "drawn")
            decide()
            found[cell.name] = summary([milliseconds(decide, args.n_envs) for _ in range(COST_REPEATS)])
            print(f"{cell.name}: {found[cell.name]['median']:.1f} ms", flush=True)
    return {"ms": found, "repeats": COST_REPEATS, "threads": THREADS, "provenance": provenance()}


def describe(plan: Plan) -> str:
    """The plan as a table, with the hours that are left by what was measured."""
    lines, total = [f"{'cell':26}{'hours left':>10}  state"], 0.0
    n_tasks = len(plan.args.task_ids.split(",")) if plan.args.task_ids else 10
    for cell in plan.chosen():
        if plan.file(cell).is_file():
            lines.append(f"{cell.name:26}{0:10.1f}  done in {_seconds(plan, cell) / 3600:.2f} hours")
            continue
        episodes = n_tasks * (20 if cell.n else 2)
        hours = episodes * _s_per_episode(plan, cell) / 3600
        total += hours
        lines.append(f"{cell.name:26}{hours:10.1f}  {'under way' if plan.folder(cell).is_dir() else 'not begun'}")
    return "\n".join([*lines, f"{total:.1f} hours left."])


def _seconds(plan: Plan, cell: Cell) -> float:
    return float(sum(json.loads(plan.file(cell).read_text())["seconds"].values()))


def _s_per_episode(plan: Plan, cell: Cell) -> float:
    """By the finished cell of the scorer with the nearest number of candidates; assumed if there is none."""
    scorer, n = (cell.scorer, cell.n) if cell.n else ("process-oracle", JUDGED_N)
    a, b = S_PER_EPISODE[scorer]
    alike = [c for c in plan.cells if c.scorer == scorer and c.n and plan.file(c).is_file()]
    if not alike:
        return a + b * n
    nearest = min(alike, key=lambda c: abs(np.log2(c.n / n)))
    measured = _seconds(plan, nearest) / max(1, len(json.loads(plan.file(nearest).read_text())["episodes"]))
    return measured * (a + b * n) / (a + b * nearest.n)


def report(plan: Plan, out: Path) -> str:
    """Write the JSON and the picture of the finished cells, and give the table.

    Raises:
        ValueError: If nothing is finished, or greedy decoding is not, which all are held against.
    """
    done = {cell: json.loads(plan.file(cell).read_text()) for cell in plan.cells if plan.file(cell).is_file()}
    first = Cell("policy", 1)
    if first not in done:
        raise ValueError(f"'{plan.root}' holds no finished cell {first.name}, which all others are held against.")
    start, cost = _outcomes(done[first]), plan.costs()
    rows = []
    for cell, content in done.items():
        if not cell.n:
            continue
        outcomes = _outcomes(content)
        scored = [(e[4], bool(e[2])) for e in content["episodes"] if e[4] is not None]
        row: dict[str, Any] = {"scorer": cell.scorer, **_rate(outcomes), **paired(start, outcomes)}
        row["n"] = cell.n
        row["bootstrap_95"] = mean_in_points([gain_by_state([start], [outcomes])])["bootstrap_95"]
        row["memory_mb"] = content["memory_mb"].get("evaluate")
        row["scorer_auc"] = success_auc([s for s, _ in scored], [ok for _, ok in scored]) if scored else None
        ms = cost["ms"][cell.name]["median"] if cell.name in cost["ms"] else content["timing"]["ms_per_decision"]
        row |= {"ms_per_decision": ms, "seconds": _seconds(plan, cell)}
        rows.append(row | {"commit": content["commit"]})
    judged = [{"scorer": cell.scorer, **content} for cell, content in done.items() if not cell.n]
    kept = {cell.name: [e[:4] for e in content["episodes"]] for cell, content in done.items() if cell.n}
    document = {"settings": done[first]["settings"], "rows": rows, "judged": judged, "costs": cost, "episodes": kept}
    write_text(out, json.dumps(document | {"provenance": done[first]["provenance"]}) + "\n")
    draw(rows, out.with_suffix(".png"))
    lines = ["| scorer | n | success | 95 % | against greedy | AUC | ms per decision |", "|" + " --- |" * 7]
    for row in rows:
        low, high = (100 * end for end in row["wilson_95"])
        auc = "" if row["scorer_auc"] is None else f"{row['scorer_auc']:.2f}"
        lines.append(
            f"| {row['scorer']} | {row['n']} | {100 * row['successes'] / row['n_episodes']:.1f} % "
            f"| {low:.1f} to {high:.1f} | {row['points']:+.1f} (p = {row['mcnemar_p']:.2g}) | {auc} "
            f"| {row['ms_per_decision']:.0f} |"
        )
    lines += [
        f"{row['scorer']} and the process oracle order candidates with a rank correlation of "
        f"{row['scorer_rank_correlation']:.2f} ± {row['standard_error']:.2f} ({row['decisions']} decisions)."
        for row in judged
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Success and cost against the number of candidates, a line for each scorer; oracles are dashed."""
    figure, ((success, cost),) = new_figure(10.0, 4.2, 1, 2)
    first = rows[0]
    for row in rows:
        if row["scorer"] == "drawn":
            rate_drawn = 100 * row["successes"] / row["n_episodes"]
            success.axhline(rate_drawn, color=LOOKS["drawn"], ls=":", lw=1.4, label="one drawn, no choice")
    chosen = dict.fromkeys(row["scorer"] for row in rows[1:] if row["scorer"] != "drawn")
    for place, scorer in enumerate(chosen):
        line = [first, *(row for row in rows if row["scorer"] == scorer)]
        numbers = np.array([row["n"] for row in line]) * 1.04**place  # beside each other, so that intervals show
        rates = np.array([row["successes"] / row["n_episodes"] for row in line])
        ends = np.array([row["wilson_95"] for row in line]).T
        looks = {"color": LOOKS[scorer], "linestyle": "--" if scorer.endswith("oracle") else "-", "marker": "o"}
        spread = np.abs(ends - rates) * 100
        success.errorbar(numbers, 100 * rates, yerr=spread, label=scorer, capsize=2, lw=1.4, ms=3, **looks)
        cost.plot(numbers, [row["ms_per_decision"] for row in line], lw=1.4, ms=3, **looks)
    for axes, label in ((success, "success, %, with 95 % intervals (Wilson)"), (cost, "ms per decision")):
        axes.set_xscale("log", base=2)
        ticks = sorted({row["n"] for row in rows})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xlabel("candidates of each decision")
        axes.set_ylabel(label)
    cost.set_yscale("log")
    for formatted in (cost.yaxis.set_major_formatter, cost.yaxis.set_minor_formatter):
        formatted("{x:.0f}")
    success.set_ylim(0, 100)
    success.legend(fontsize=8, loc="lower right")
    save_figure(figure, path, 125)


def _rate(outcomes: dict[tuple[int, int], bool]) -> dict[str, Any]:
    found = rate(outcomes)
    return {"successes": found["successes"], "n_episodes": found["n"], "wilson_95": found["wilson_95"]}


def _outcomes(content: dict[str, Any]) -> dict[tuple[int, int], bool]:
    return {(task, state): bool(success) for task, state, success, *_ in content["episodes"]}


def run(plan: Plan, hours: float | None) -> int:
    """Do cells in order until the hours are used; the number of those that failed."""
    with locked(plan.root) as lock, Session(hours, THREADS, lock).listening() as session:
        to_do = [cell for cell in plan.chosen() if not plan.file(cell).is_file()]
        return do_each({cell.name: functools.partial(plan.do, cell, session) for cell in to_do})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["plan", "run", "costs", "report", "judge"])
    parser.add_argument("--cells", nargs="*", default=[], help="patterns of cells, or names; all by default")
    parser.add_argument("--hours", type=float, help="after which the cell under way is stopped, so that it can go on")
    parser.add_argument("--model")
    parser.add_argument("--env-id")
    parser.add_argument("--task-ids", help="such as 0,3-5; all by default")
    parser.add_argument("--states", help="official initial states")
    parser.add_argument("--numbers", nargs="*", type=int, default=NUMBERS, help="of candidates, besides 1")
    parser.add_argument("--temperature", type=float, help="of drawn candidates")
    parser.add_argument("--horizon", type=int, default=4, help="decisions that the success oracle looks ahead")
    parser.add_argument("--critic", type=Path, default=Path("runs/critic/critic"))
    parser.add_argument("--max-episode-steps", type=int, help="control steps; 0 for the suite's limit")
    parser.add_argument("--n-envs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/best_of_n"))
    parser.add_argument("--out", type=Path, default=RESULTS / "best_of_n.json")
    parser.add_argument("--kept", type=Path, default=RESULTS / "best_of_n_cells.jsonl", help="all finished cells")
    parser.set_defaults(**SETTINGS)
    plan = Plan(args := parser.parse_args())
    try:
        if plan.kept is not None:
            store.unpack(plan.kept, plan.root)
        if args.job == "plan":
            print(describe(plan))
        elif args.job == "report":
            print(report(plan, args.out))
        elif args.job == "costs":
            write_text(plan.root / "costs.json", json.dumps(costs(plan)) + "\n")
            plan.keep()
        elif args.job == "judge":
            judge(plan, plan.chosen()[0], args.out)
        else:
            raise SystemExit(1 if run(plan, args.hours) else 0)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()

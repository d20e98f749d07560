"""The evidence over forty tasks: PPO from the models that ship, judged before and after, cell by cell.

    python benchmarks/forty_tasks.py plan                          # the cells, what is done, hours left
    python benchmarks/forty_tasks.py run --hours 2.8               # goes on with them; may be killed at any moment
    python benchmarks/forty_tasks.py run --cells 'few*/spatial/*' strong/object/1    # some, or further seeds
    python benchmarks/forty_tasks.py cell strong/spatial/0         # one cell
    python benchmarks/forty_tasks.py report                        # tables and pictures of the finished cells

A cell is GROUP/SUITE/SEED; `GROUPS` below says what each group trains. A training sees official states 20 to 49 and
placement seeds 0 to 299; its own evaluations, which choose ``best/``, see drawn states beyond those. What judges is
official states 0 to 19 of each task, which neither cloning nor training saw: the start once, then the best and the last
model of each cell, greedy and at the rollouts' temperature. Test-time training (`few-gain`, `few-confidence`) trains on
these very states without being told of success, and its last model is judged alone. Training and judging draw fast
frames; judging has exact physics. Finished cells are kept as small files in ``--work``, which alone the report reads.
``--kept`` is one file of the repository that has those of all machines: what the folder lacks comes from there, and
what it has goes there.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from forty import plan, report, store
from forty.cells import FORTY, Cell, Group, chosen, parse
from forty.session import Session, do_each, locked
from forty.work import Work

from vla_agent.policy.precision import multiplies_bfloat16

RESULTS = Path(__file__).parent / "results"
THREADS = 2  # of each process; another number rounds otherwise

# PPO's settings: options of the train command, by field, where they are not its defaults.
# bfloat16 saves time where a CPU multiplies it, and costs five times as much elsewhere; a cell keeps which it was.
FASTER: dict[str, Any] = {"physics": "coarse", "autocast": "bfloat16" if multiplies_bfloat16() else "none"}
RECIPE: dict[str, Any] = FASTER | {
    "n_eval_placements": 10,
    "temperature": 0.5,
    "learning_rate": 5e-5,
    "average_decay": 0.98,
    "gamma": 0.95,
    "n_envs": 8,
}
FRONTIER: dict[str, Any] = {"curriculum": "frontier", "curriculum_tau": 0.25}
HARDEST: dict[str, Any] = {"curriculum": "hardest", "curriculum_tau": 0.25}
STRONG = RECIPE | FRONTIER | {"total_timesteps": 24_576, "eval_freq": 6144}
# What `strong` learned, a third as many decisions longer, while its rate falls from where it was to 0.
STRONG_FALLING = STRONG | {"total_timesteps": 32_768, "learning_rate": 2e-4, "learning_rate_end": 0.0}
STRONG_FALLING |= {"eval_freq": 4096, "allow_changes": True}
# A weak start's critic is no better than its policy, so rollouts hold whole episodes, of most of the tasks; and more
# noise tells more about each action.
FEW = RECIPE | {"total_timesteps": 49_152, "eval_freq": 12_288, "temperature": 0.7, "learning_rate": 3e-5}
FEW |= {"n_steps": 128, "batch_size": 256, "critic_warmup_iterations": 2}
# What `few` learned, a third as many decisions longer, while its rate falls from where it was to 0.
FALLING = FEW | {"total_timesteps": 65_536, "learning_rate": 1.2e-4, "learning_rate_end": 0.0, "allow_changes": True}
# The same, to 2.7 times as many decisions as `few`: at 49,152 the rate is where it was, at the end it is 0.
LONGER = FALLING | {"total_timesteps": 131_072, "learning_rate": 4.8e-5, "eval_freq": 16_384}
# LIBERO-10, at which the strong start is weak, too: as FEW, with a discount that reaches the beginning of an episode.
LONG = FEW | {"temperature": 0.5, "gamma": 0.99}
# The few-shot start without a critic: as many decisions, of whole episodes in groups from one state.
GROUPED = FASTER | {name: FEW[name] for name in ("n_eval_placements", "average_decay", "n_envs", "total_timesteps")}
GROUPED |= {name: FEW[name] for name in ("eval_freq", "temperature", "learning_rate", "batch_size")}
GROUPED |= {"n_episodes": 64, "group_size": 8, "n_epochs": 2}
RLOO = GROUPED | {"advantage": "leave_one_out"}
# GRPO against the episodes that last at each decision, in larger steps.
BY_TIME = GROUPED | {"baseline": "time", "learning_rate": 1e-4}
# The same on the very states that judge, without anything that tells of success. 64 episodes a rollout, as above.
TEST_TIME = GROUPED | {"init_states": "0-19", "n_placements": 0, "eval_states": "0-9", "n_eval_placements": 0}
TEST_TIME |= {"total_timesteps": 12_288, "eval_freq": 3072}
# A student plays; the best model that GRPO made of the same start tells it what it thinks.
DISTILLED = FASTER | {name: FEW[name] for name in ("n_eval_placements", "average_decay", "n_envs", "temperature")}
DISTILLED |= {"total_timesteps": 12_288, "eval_freq": 3072, "n_steps": 64, "estimator": "exact"}
TOGETHER = STRONG | {"total_timesteps": 4 * 24_576, "eval_freq": 4 * 6144}
GROUPS = {
    "strong": Group(
        "tiny-libero",
        {"spatial": (0, 1, 2), "goal": (0, 1, 2), "object": (0,), "10": (0,)},
        STRONG,
        by_suite={"10": LONG},
    ),
    "strong-falling": Group(
        "tiny-libero",
        {"spatial": (1,), "goal": (1,)},
        STRONG_FALLING,
        against="strong",
        continues="strong",
    ),
    "short": Group("tiny-libero", {"10": (0,)}, STRONG, against="strong"),
    "few": Group("tiny-libero-few", {"spatial": (0, 1, 2), "object": (0, 1, 2)}, FEW),
    "few-falling": Group("tiny-libero-few", {"spatial": (1,)}, FALLING, against="few", continues="few"),
    "few-falling-exact": Group(
        "tiny-libero-few",
        {"spatial": (1,)},
        FALLING | {"physics": "exact"},
        against="few-falling",
        continues="few",
    ),
    "few-longer": Group(
        "tiny-libero-few",
        {"spatial": (1, 2)},
        LONGER,
        against="few-falling",
        continues="few",
    ),
    "few-cooler": Group(
        "tiny-libero-few",
        {"spatial": (2,)},
        LONGER | {"temperature": 0.4},
        against="few-longer",
        continues="few",
    ),
    "few-process": Group("tiny-libero-few", {"spatial": (0,)}, FEW | {"reward": "process"}, against="few"),
    "few-hardest": Group("tiny-libero-few", {"spatial": (0,)}, FEW | HARDEST, against="few"),
    "few-frontier": Group("tiny-libero-few", {"spatial": (0,)}, FEW | FRONTIER, against="few"),
    "few-grpo": Group("tiny-libero-few", {"spatial": (0, 1, 2)}, GROUPED, against="few", script="train_grpo.py"),
    "few-grpo-time": Group("tiny-libero-few", {"spatial": (0,)}, BY_TIME, against="few", script="train_grpo.py"),
    "few-rloo": Group("tiny-libero-few", {"spatial": (0,)}, RLOO, against="few", script="train_grpo.py"),
    "few-gain": Group(
        "tiny-libero-few",
        {"spatial": (0,)},
        TEST_TIME | {"reward": "gain"},
        script="train_grpo.py",
        on_judged=True,
    ),
    "few-confidence": Group(
        "tiny-libero-few",
        {"spatial": (0,)},
        TEST_TIME | {"reward": "confidence"},
        script="train_grpo.py",
        on_judged=True,
    ),
    "few-distilled": Group(
        "tiny-libero-few",
        {"spatial": (0,)},
        DISTILLED,
        against="few-grpo",
        script="distill",
        teacher="few-grpo",
    ),
    "together": Group("tiny-libero", {FORTY: (0,)}, TOGETHER, against="strong"),
}


def run(work: Work, names: list[str], hours: float | None, kept: Path | None = None) -> int:
    """Do cells in order until the hours are used, and keep them in a file, too; the number of those that failed."""
    cells = chosen(work.groups, names)

    def do(cell: Cell, session: Session) -> None:
        work.do(cell, session)
        if kept is not None:
            store.pack(work.root, kept)

    with locked(work.root) as lock, Session(hours, work.threads, lock).listening() as session:
        failed = do_each({cell.name: partial(do, cell, session) for cell in cells if not work.is_done(cell)})
    left = [cell.name for cell in cells if not work.is_done(cell)]
    print(f"Not done: {', '.join(left)}." if left else "All of these cells are done.")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["plan", "run", "cell", "report"])
    parser.add_argument("name", nargs="?", help="of the cell, for the job of that name, such as strong/spatial/0")
    parser.add_argument("--cells", nargs="*", default=[], help="patterns of cells, or names; all by default")
    parser.add_argument("--hours", type=float, help="after which the cell under way is stopped, so that it can go on")
    parser.add_argument("--renderer", choices=["fast", "exact"], default="fast", help="of the frames that judge")
    parser.add_argument("--work", type=Path, default=Path("runs/forty_tasks"))
    parser.add_argument("--out", type=Path, default=RESULTS / "forty_tasks.json")
    parser.add_argument("--kept", type=Path, default=RESULTS / "forty_tasks_cells.jsonl", help="all finished cells")
    args = parser.parse_args()
    work = Work(args.work, GROUPS, args.renderer, THREADS)
    try:
        store.unpack(args.kept, args.work)
        if (args.name is None) == (args.job == "cell"):
            raise ValueError("The job 'cell' takes a name such as strong/spatial/0, and the others take none.")
        if args.job == "plan":
            print(plan.describe(work, chosen(GROUPS, args.cells)))
        elif args.job == "report":
            print(report.write(work, args.out))
            store.pack(args.work, args.kept)
        else:
            names = args.cells if args.job == "run" else [parse(GROUPS, args.name).name]
            raise SystemExit(1 if run(work, names, args.hours, args.kept) else 0)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()

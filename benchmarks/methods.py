"""One table: what each way of learning, and of spending more at test time, gains from one weak start, and its cost.

    python benchmarks/methods.py       # prints the table; writes methods.json and methods.md into results/

All begin with `tiny-libero-few` on LIBERO-Spatial's ten tasks. What judges is official states 0 to 19, which neither
cloning nor training saw, but for training at test time, which plays them and is told of no success. The rows come from
what other benchmarks left in ``results/``: `forty_tasks.py`, `offline.py` and `best_of_n.py`, whose commands stand in
the last column. What has not run has no row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forty.report import percent, points, table_row
from measuring import commit

from libero_gym.common.atomic import write_text

RESULTS = Path(__file__).parent / "results"
START, SUITE = "tiny-libero-few", "spatial"
DECODINGS = ("greedy", "sampled")
TRAINED = {
    "few": "PPO",
    "few-falling": "PPO, then a falling rate",
    "few-falling-exact": "PPO, then a falling rate in exact physics",
    "few-longer": "PPO, 2.7 times as long, its rate falling",
    "few-cooler": "PPO, as long, at a lower temperature at the end",
    "few-process": "PPO, process reward",
    "few-hardest": "PPO, curriculum `hardest`",
    "few-frontier": "PPO, curriculum `frontier`",
    "few-grpo": "GRPO",
    "few-grpo-time": "GRPO, baseline by time",
    "few-rloo": "RLOO",
    "few-distilled": "distillation of GRPO's best",
    "few-gain": "test-time training, a scorer's gain",
    "few-confidence": "test-time training, confidence",
}
OFFLINE = {"filtered": "filtered cloning", "awr": "AWR", "tagged": "advantage tags"}
OFFLINE |= {f"{name}-as-demos": f"{OFFLINE[name]}, as an expert's" for name in ("filtered", "awr")}
N = 8  # candidates of a row of `best_of_n.py`


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        method: Its name.
        seeds: Seeds of its training.
        before, after: Rates by decoding, as `gains.rate` gives them; a decoding that was not judged is missing.
        gain: Points by decoding, with intervals.
        spent: Decisions or episodes that it learned from.
        minutes: Of its training, mean over the seeds, evaluations on the way included.
        memory_mb: Peak over the seeds; None if nobody looked.
        command: What makes it again.
    """

    method: str
    seeds: tuple[int, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    gain: Mapping[str, Any]
    spent: str
    minutes: float | None
    memory_mb: float | None
    command: str


def trained_rows(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Methods that learn from episodes that they play; the best model by evaluations on yet other states."""
    for group, method in TRAINED.items():
        found = figures["groups"].get(group)
        if found is None or SUITE not in found["greedy"]["best"]:
            continue
        sides = {decoding: found[decoding]["best"][SUITE] for decoding in DECODINGS}
        seeds = tuple(sides["greedy"]["seeds"])
        cells = [figures["cells"][f"{group}/{SUITE}/{seed}"] for seed in seeds]
        memory = [cell["memory_mb"]["train"] for cell in cells if cell.get("memory_mb")]
        decisions = sorted({cell["decisions"] for cell in cells})
        yield Row(
            method,
            seeds,
            *({decoding: side[name] for decoding, side in sides.items()} for name in ("before", "after", "gain")),
            f"{between(decisions)} decisions",
            sum(cell["seconds"]["train"] for cell in cells) / len(cells) / 60,
            max(memory, default=None),
            f"python benchmarks/forty_tasks.py run --cells '{group}/{SUITE}/*'",
        )


def offline_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Methods that learn from the start's recorded episodes."""
    tables, recorded = found["table"], found["episodes"]
    episodes = sum(count for _, count in recorded["successes_and_episodes"].values())
    for name, method in OFFLINE.items():
        if name not in tables["greedy"]:
            continue
        cells = {int(cell.split("/")[1]): row for cell, row in found["cells"].items() if cell.split("/")[0] == name}
        memory = [row["memory_mb"]["train"] for row in cells.values() if row.get("memory_mb")]
        trained = sum(row["seconds"]["train"] for row in cells.values()) / len(cells)
        yield Row(
            method,
            tuple(sorted(cells)),
            {decoding: tables[decoding]["start"] for decoding in DECODINGS},
            {decoding: tables[decoding][name]["after"] for decoding in DECODINGS},
            {decoding: tables[decoding][name]["gain"] for decoding in DECODINGS},
            f"{episodes} recorded episodes",
            (recorded["seconds"]["record"] + trained) / 60,
            max(memory, default=None),
            f"python benchmarks/offline.py run --cells '{name}/*'",
        )


def best_of_n_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """The best of N candidates by each scorer, against greedy decoding."""
    rows = found["rows"]
    greedy = rows[0]
    for row in rows:
        if row["n"] != N:
            continue
        before, after = (
            {"greedy": {"successes": side["successes"], "n": side["n_episodes"], "wilson_95": side["wilson_95"]}}
            for side in (greedy, row)
        )
        yield Row(
            f"best of {N}, {row['scorer'].replace('-', ' ')}",
            (),
            before,
            after,
            {"greedy": {"points": row["points"], "bootstrap_95": row["bootstrap_95"]}},
            f"{row['ms_per_decision'] / greedy['ms_per_decision']:.1f} times a greedy decision",
            None,
            row.get("memory_mb"),
            f"python benchmarks/best_of_n.py run --cells policy/1 {row['scorer']}/{N}",
        )


def between(numbers: list[int]) -> str:
    """The smallest and the largest of sorted numbers, such as "1,500 to 2,000"; one of them if they are equal."""
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def all_rows(results: Path) -> list[Row]:
    """Every method that has run.

    Raises:
        ValueError: If none has.
    """
    kinds = {"forty_tasks": trained_rows, "offline": offline_rows, "best_of_n": best_of_n_rows}
    files = {name: results / f"{name}.json" for name in kinds}
    rows = [row for name, file in files.items() if file.is_file() for row in kinds[name](json.loads(file.read_text()))]
    if not rows:
        raise ValueError(f"'{results}' holds no results from {START}; run forty_tasks.py, offline.py or best_of_n.py.")
    return rows


def markdown(rows: list[Row]) -> str:
    """The table."""
    heads = ["method", "seeds", "greedy: before, after", "gain", "drawn: before, after", "gain", "learned from or cost"]
    heads += ["minutes", "memory, GB", "again"]
    lines = [table_row(heads), table_row(["---"] * len(heads))]
    for row in rows:
        cells = [row.method, ", ".join(map(str, row.seeds))]
        for decoding in DECODINGS:
            if decoding in row.after:
                cells += [f"{short(row.before[decoding])}, {percent(row.after[decoding])}", points(row.gain[decoding])]
            else:
                cells += ["", ""]
        cells += [row.spent, "" if row.minutes is None else f"{row.minutes:.0f}"]
        cells += ["" if row.memory_mb is None else f"{row.memory_mb / 1e3:.1f}", f"`{row.command}`"]
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


def short(found: Mapping[str, Any]) -> str:
    """A rate without its interval."""
    return f"{100 * found['successes'] / found['n']:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the other benchmarks' results")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json")
    args = parser.parse_args()
    try:
        rows = all_rows(args.results)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
    write_text(
        args.out, json.dumps({"commit": commit(), "rows": [dataclasses.asdict(r) for r in rows]}, indent=1) + "\n"
    )
    write_text(args.out.with_suffix(".md"), markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()

"""How training scales from 1 to 64 GPUs by a model of measured pieces, and how near the model is to runs here.

    python benchmarks/scaling_model.py --out benchmarks/results/scaling_model.json    # two cores, ten minutes

A *unit* is what a process computes on: one core for ``tiny-libero``, one GPU with its share of cores for the 7B. The
model is of one iteration: all environments are stepped ``n_steps`` times, then all minibatches are learned from.

    step    = environments / cores + decode(rows of a policy)
    rollout = n_steps * step + what learner 0 reads of the others' steps + what policies send to it
    update  = minibatches * (fixed + rows of a learner * per row + all-reduce) + what learner 0 sends to the others
    colocated: rollout + update, with all units in both
    split:     rollout + weights + update, with P units in the first and L = units - P in the last
    stale:     the larger of (rollout + weights) and (update, each sample scored once more, + what is read and sent)

P is the best for each number of units. Assumptions:

- Work grows with the units: environments and minibatch for each unit stay the same, so an ideal is a straight line.
- Cores belong to environments wherever their policy is, so that a split loses none of them; but a core that learns
  (a unit of ``tiny-libero`` in a stale split) steps none meanwhile.
- Decoding and updates are linear in rows: a fixed part (weights that are read) and one for each row.
- An all-reduce is a ring: 2 (L - 1) / L of the trained bytes through each unit's link.
- Policies play ahead without waiting: learner 0 reads what each tells of a step, between its own steps where it plays.
- Rollouts arrive at learner 0 one after the other, and leave it once for each further machine.
- All processes are equally fast: no waits for the slowest, no losses.

Measured here, by runs of one process (4 and 8 environments, 1 and 4 minibatches): environment, decode, update, what an
iteration is besides; and by themselves: a call, a byte between processes, an all-reduce. Runs of two processes check
what the pieces add up to. The 7B's decode and update are *assumed*: the counted operations and bytes of
``results/policy_memory.json`` at the rates of `ASSUMED`, which nobody measured. Its environment's control step is
measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from measuring import commit, provenance, report
from scaling.measuring import measure, measure_env
from scaling.model import Pieces, Recipe, crossing, iteration_s, scale

TREE = Path(__file__).resolve().parent
# For a machine of eight H200: none of this was measured.
ASSUMED = {
    "matrix_flop_per_s": 0.4 * 989e12,  # 40 % of the dense bfloat16 rate that NVIDIA states
    "memory_bytes_per_s": 4.0e12,  # as in policy_memory.py
    "link_bytes_per_s": 50e9,  # all-reduce, for each GPU: 400 Gb/s
    "network_bytes_per_s": 2.5e9,  # Ray's objects from machine to machine
    "cores_per_gpu": 24,
    "gpus_per_machine": 8,
}


def seven_billion(measured: Pieces, env_s: float) -> Pieces:
    """The 7B's pieces: assumed rates, and counted operations and bytes."""
    counted = json.loads((TREE / "results" / "policy_memory.json").read_text())
    decoding = {entry["batch"]: entry for entry in counted["decoding"]}
    plain = [e for e in counted["updates"] if not (e["gradient_checkpointing"] or e["pefts_layers"])]
    updates = {entry["micro_batch"]: entry for entry in plain}

    def row_s(table: dict[int, dict[str, float]], low: int, high: int) -> float:
        flop, gigabytes = (
            (table[high][key] - table[low][key]) / (high - low) for key in ("matrix_tflop", "elementwise_gb")
        )
        return flop * 1e12 / ASSUMED["matrix_flop_per_s"] + gigabytes * 1e9 / ASSUMED["memory_bytes_per_s"]

    weights_s = decoding[1]["weights_gb"] * 1e9 / ASSUMED["memory_bytes_per_s"]
    trained = (updates[1]["weights_gb"] - decoding[1]["weights_gb"]) * 1e9
    return dataclasses.replace(
        measured,
        env_s=env_s,
        decode_call_s=7 * weights_s,  # weights are read for each of seven tokens
        decode_row_s=row_s(decoding, 8, 32),
        update_batch_s=3 * weights_s,  # forward, backward, and the optimizer with it
        update_row_s=row_s(updates, 8, 16),
        again_row_s=row_s(updates, 8, 16) / 3,  # a pass forward, without the one backward that costs twice as much
        reduce_call_s=1e-4,
        reduce_byte_s=1 / ASSUMED["link_bytes_per_s"],
        byte_s=1 / ASSUMED["network_bytes_per_s"],
        trained_bytes=trained,
        sample_bytes=224 * 224 * 3,
        cores_per_unit=ASSUMED["cores_per_gpu"],
        units_per_machine=int(ASSUMED["gpus_per_machine"]),
        units_are_cores=False,
    )


def check(pieces: Pieces, seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of an iteration by the model, as measured, and their ratio."""
    at = functools.partial(iteration_s, pieces, Recipe())
    by_model = {
        "local": at(1, 1, split=False),
        "colocated": at(2, 2, split=False),
        "split": at(2, 1, split=True),
        "stale": at(2, 1, split=True, stale=True),
    }
    return {
        name: {"model_s": by_model[name], "measured_s": seconds[name], "ratio": by_model[name] / seconds[name]}
        for name in by_model
    }


def rounded(value: Any) -> Any:
    """The same with numbers of four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Decisions per second by units, and where the placements cross."""
    lines = [f"{name}: decisions per second", "units  colocated      split (players)      stale (players)"]
    for row in rows:
        text = f"{row['units']:5}  {row['colocated']:9.1f}"
        for kind in ("split", "stale"):
            text += f"  {row[kind]:9.1f} ({row[f'{kind}_players']:3})     " if kind in row else ""
        lines.append(text.rstrip())
    for kind in ("split", "stale"):
        units = crossing(rows, kind)
        lines.append(
            f"{kind} is ahead of colocated " + (f"from {units} units on" if units else "at no number of units")
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the pieces, checks the model, and scales it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran, for the file")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    commit()
    pieces, seconds = measure(args.repeats, args.iterations)
    step = gym.make("LIBERO-Spatial-v0", image_size=256, renderer="fast", physics="fast")
    large = seven_billion(pieces, measure_env(step, 10 * args.repeats))
    models = {
        "tiny-libero, a core each": (pieces, Recipe()),
        "7B, assumed": (large, Recipe(envs=8, n_steps=32, batch=16)),
    }
    results: dict[str, Any] = {"provenance": provenance(), "note": args.note, "assumed": ASSUMED, "models": {}}
    results["check"] = check(pieces, seconds)
    for name, (of, recipe) in models.items():
        rows = scale(of, recipe)
        print(table(name, rows) + "\n")
        results["models"][name] = {
            "pieces": dataclasses.asdict(of),
            "recipe": dataclasses.asdict(recipe),
            "decisions_per_s": rows,
            "ahead_of_colocated_from": {kind: crossing(rows, kind) for kind in ("split", "stale")},
        }
    report(rounded(results), args.out)


if __name__ == "__main__":
    main()

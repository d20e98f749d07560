"""What an engine costs: the same training with and without one, and over 1, 2 and 4 raylets of one machine.

    python benchmarks/engine_overhead.py --out benchmarks/results/engine_overhead.json    # two cores, 15 minutes

*Ratios.* Each round trains in this process, by ``RayEngine()`` and by ``RayEngine(1, 1, placement="split")``, with as
many environments and one process for them each time, in turns; ratios of decisions per second are taken round by round.
Split and synchronous, one process waits while the other works, so that resources are equal.

*Raylets.* Four colocated processes train together, on a cluster of 1, 2 and 4 raylets that have four places in all.
The machine has the same cores each time, so what differs is the cost of going through more raylets and object stores.
No speed-up is measured here.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch as th
from measuring import commit, provenance, report, summary
from ray.cluster_utils import Cluster
from scaling.measuring import train
from scaling.model import ENVS_PER_UNIT, N_STEPS
from tqdm import tqdm

from vla_agent import RayEngine, make_vec_env

RAYLETS, PLACES = (1, 2, 4), 4


def rate(make: Callable[..., Any], n_iterations: int, units: int = 1) -> float:
    """Decisions per second of a training: the median of its iterations."""
    _, times = train(make, n_iterations, units)
    return ENVS_PER_UNIT * N_STEPS * units / statistics.median(times.iterations)


def ratios(n_rounds: int, n_iterations: int) -> dict[str, Any]:
    """Decisions per second with and without engines, and their ratios, round by round."""
    rates: dict[str, list[float]] = {"local": [], "colocated": [], "split": []}
    with RayEngine(1) as colocated, RayEngine(1, 1, placement="split", cpus_per_worker=1) as split:
        makes = {"local": make_vec_env, "colocated": colocated.make_vec_env, "split": split.make_vec_env}
        for number in tqdm(range(n_rounds), desc="rounds"):
            # The first in a round is another each time: a machine that slows down favours none.
            for name in [*makes, *makes][number % 3 :][:3]:
                rates[name].append(rate(makes[name], n_iterations))
    return {
        "decisions_per_s": {name: summary(found) for name, found in rates.items()},
        "ratio_to_local": {
            name: summary([ours / local for ours, local in zip(rates[name], rates["local"], strict=True)])
            for name in ("colocated", "split")
        },
    }


def raylets(n_raylets: int, n_iterations: int) -> float:
    """Decisions per second of four processes on so many raylets."""
    each = PLACES // n_raylets
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": each, "include_dashboard": False})
    try:
        for _ in range(n_raylets - 1):
            cluster.add_node(num_cpus=each)
        ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
        with RayEngine(PLACES, cpus_per_worker=1) as engine:
            found = rate(engine.make_vec_env, n_iterations, PLACES)
            used = {engine.cluster.node, *engine.cluster.places().values()}
            if len(used) != n_raylets:
                raise RuntimeError(f"The run was on {len(used)} raylets, not on {n_raylets}.")
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Measures ratios, then raylets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--note", default="", help="what else ran, for the file")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    commit()
    results: dict[str, Any] = {"provenance": provenance(), "note": args.note}
    ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    results |= ratios(args.rounds, args.iterations)
    ray.shutdown()
    turns: dict[int, list[float]] = {n: [] for n in RAYLETS}
    for _ in tqdm(range(args.rounds), desc="raylets"):
        for n, found in turns.items():
            found.append(raylets(n, args.iterations))
    results["four_processes_decisions_per_s"] = {f"{n} raylets": summary(found) for n, found in turns.items()}
    report(results, args.out)


if __name__ == "__main__":
    main()

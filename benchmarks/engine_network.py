"""A run over a network that delays messages, or loses all of them: what it costs, and what becomes of the run.

Two network namespaces of this machine stand for two machines. Each has a TUN device, and this program forwards packets
between the two: after a delay, or not at all. The process that calls `learn` is in one, a second raylet in the other.

    python benchmarks/engine_network.py --out benchmarks/results/engine_network.json    # as root, two cores, 30 minutes

*Cuts.* All packets are dropped, so that the other machine seems to hang: no connection is closed.
*Delays.* The same training with several delays, in turns: its weights are compared, and its iterations timed.

The training is that of `engine_faults.py`. Left out: packets lost now and then, links with little bandwidth, GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch as th
from delayed_network import CUT, HERE, THERE, end_all, network, why_not
from engine_faults import DEADLINES, FIRST_OF_SECOND, N_ENVS, PPO, Bench, Strike, equal
from measuring import provenance, report, summary
from scaling.measuring import Times

from vla_agent import RayEngine

DELAYS_S = (0.0, 0.02, 0.1)  # each way
HOW: dict[str, Any] = {"cpus_per_worker": 1, **DEADLINES, "deadline_s": 20.0}
ENGINES: dict[str, dict[str, Any]] = {
    "split": {"n_learners": 1, "n_policies": 1, "placement": "split", **HOW},
    "colocated": {"n_learners": 2, **HOW},
}
STORE_BYTES = 200 * 2**20
DELAY = "delay_s"  # the file in which both processes have the link's delay


class There:
    """The raylet in the other namespace, with room for one process."""

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace = namespace
        given = {"address": address, "node-ip-address": THERE, "num-cpus": 1, "object-store-memory": STORE_BYTES}
        words = ["-m", "ray.scripts.scripts", "start", "--block", *(f"--{key}={value}" for key, value in given.items())]
        self.command = ["ip", "netns", "exec", namespace, sys.executable, *words]
        self.start()

    def start(self) -> None:
        """Starts it, and waits until the cluster has it."""
        self.program = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        _wait(lambda: self.ports() != [])

    def stop(self) -> None:
        """Ends it, and waits until the cluster knows."""
        end_all(self.namespace)
        self.program.wait()
        _wait(lambda: self.ports() == [])

    def ports(self) -> list[int]:
        """Its port, if the cluster has it."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [node["NodeManagerPort"] for node in nodes if node["NodeManagerAddress"] == THERE]

    def round_trip_s(self) -> float:
        """Seconds until it takes a connection, which is one round trip."""
        found = []
        for _ in range(5):
            begun = time.perf_counter()
            socket.create_connection((THERE, self.ports()[0]), timeout=60).close()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)


def _wait(is_done: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not is_done():
        if time.monotonic() > until:
            raise RuntimeError("The raylet in the other namespace did not come, or go, within 120 s.")
        time.sleep(0.2)


# --------------------------------------------------------------------------------------------------- runs


def delays(delay_s: np.ndarray, bench: Bench, there: There, n_rounds: int, n_iterations: int) -> dict[str, Any]:
    """Seconds of an iteration by placement and delay, and whether its weights are those without a delay."""
    timesteps = (n_iterations + 2) * PPO["n_steps"] * N_ENVS  # the first is not timed, the end of the last not seen
    alone = Times()
    local, _ = bench.train(None, alone, "alone", timesteps)
    found: dict[str, Any] = {"one process": {"iteration_s": summary(alone.iterations)}}
    for placement, given in ENGINES.items():
        expected = local if placement == "split" else None
        rows: dict[float, dict[str, list[Any]]] = {
            delay: {"round_trip_s": [], "iteration_s": [], "equal": []} for delay in DELAYS_S
        }
        with RayEngine(**given) as engine:
            for number in range(n_rounds):
                for delay, row in rows.items():
                    delay_s[0] = delay
                    row["round_trip_s"].append(there.round_trip_s())
                    times = Times()
                    weights, _ = bench.train(engine, times, f"{placement} {delay} {number}", timesteps)
                    row["iteration_s"] += times.iterations
                    expected = expected or weights
                    row["equal"].append(equal(expected, weights))
                    print(placement, delay, row, flush=True)
            delay_s[0] = 0.0
        for delay, row in rows.items():
            told = {name: summary(row[name]) for name in ("round_trip_s", "iteration_s")}
            found[f"{placement}, {delay * 1e3:g} ms each way"] = told | {"equal to the bit": all(row["equal"])}
    return found


class Heard(logging.Handler):
    """The engine's first message after a cut, and how many seconds after it."""

    begun, after_s, message = 0.0, None, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it."""
        if self.begun and not self.message:
            self.after_s, self.message = round(time.monotonic() - self.begun, 1), record.getMessage()


def cut(
    delay_s: np.ndarray, bench: Bench, there: There, placement: str, fault: str, room: bool, for_s: float, when: Any
) -> dict[str, Any]:
    """What becomes of a training whose process on the other machine is cut off for some seconds.

    Args:
        delay_s: The link's delay, (1,).
        bench: A cluster with room here for the process that learns alone.
        there: The other machine.
        placement: A key of `ENGINES`.
        fault: Its name.
        room: Whether there comes to be room here for another process.
        for_s: Seconds of the cut.
        when: See `Strike`.
    """
    heard = Heard(logging.WARNING)
    nodes: list[Any] = []

    def act() -> None:
        heard.begun, delay_s[0] = time.monotonic(), CUT
        if for_s != CUT:
            threading.Timer(for_s, mend).start()

    def mend() -> None:
        delay_s[0] = 0.0

    @contextlib.contextmanager
    def machine_is_back() -> Iterator[RayEngine | None]:
        engine.close()
        mend()
        there.stop()
        there.start()
        with contextlib.nullcontext() if placement == "split" else RayEngine(**ENGINES[placement]) as other:
            yield other

    logging.getLogger("vla_agent.engines").addHandler(heard)
    with RayEngine(**ENGINES[placement]) as engine:
        bench.reference(placement, engine)
        if room:
            nodes.append(bench.cluster.add_node(num_cpus=1, node_ip_address=HERE, object_store_memory=STORE_BYTES))
        bench.strike(fault, placement, engine, Strike(act, **when), machine_is_back)
    logging.getLogger("vla_agent.engines").removeHandler(heard)
    mend()
    there.stop()
    for node in nodes:
        bench.cluster.remove_node(node)
    there.start()
    return dataclasses.asdict(bench.outcomes[-1]) | {"named_after_s": heard.after_s, "named": heard.message}


def cuts(delay_s: np.ndarray, bench: Bench, there: There) -> list[dict[str, Any]]:
    """Cuts in rollouts and updates, with and without room here."""
    in_rollout, in_update = {"step": FIRST_OF_SECOND}, {"rollout": 1, "in_update": True}
    made = [
        ("split", "policy cut off for 5 s in a rollout", False, 5.0, in_rollout),
        ("split", "policy cut off for 30 s in a rollout", False, 30.0, in_rollout),
        ("split", "policy cut off in a rollout", True, CUT, in_rollout),
        ("split", "policy cut off in a rollout, without room here", False, CUT, in_rollout),
        ("split", "policy cut off in an update", True, CUT, {"rollout": 1}),
        ("colocated", "learner cut off for 5 s in an update", False, 5.0, in_update),
        ("colocated", "learner cut off for 30 s in an update", False, 30.0, in_update),
        ("colocated", "learner cut off in an update", True, CUT, in_update),
        ("colocated", "learner cut off in an update, without room here", False, CUT, in_update),
        ("colocated", "learner cut off in a rollout", True, CUT, in_rollout),
    ]
    return [cut(delay_s, bench, there, *one) for one in made]


def inside(folder: Path, namespace: str, args: argparse.Namespace) -> None:
    """What runs in the first namespace."""
    th.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # else processes on a busy machine take many times as long
    delay_s = np.memmap(folder / DELAY, "float64", "r+", shape=(1,))
    known = provenance() | {"note": args.note}
    results: dict[str, Any] = {}
    if args.only is not None and args.out is not None and args.out.exists():
        results = json.loads(args.out.read_text())
    head = {"node_ip_address": HERE, "object_store_memory": STORE_BYTES, "temp_dir": str(folder / "ray")}
    bench = Bench("network", folder, {}, **head)
    try:
        there = There(namespace, bench.cluster.address)
        if args.only != "delays":
            results["cuts"] = known | {"rows": cuts(delay_s, bench, there)}
            report(results, args.out)
        if args.only != "cuts":
            results["delays"] = known | {"rows": delays(delay_s, bench, there, args.rounds, args.iterations)}
            report(results, args.out)
    finally:
        bench.close()


def main() -> None:
    """Makes the network, and runs this program again in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--only", choices=("cuts", "delays"), default=None)
    parser.add_argument("--note", default="", help="what else ran, for the file")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.inside:
        inside(Path(args.inside[0]), args.inside[1], args)
        return
    if why_not():
        sys.exit(why_not())
    with tempfile.TemporaryDirectory() as folder:
        delay_s = np.memmap(Path(folder) / DELAY, "float64", "w+", shape=(1,))
        with network(delay_s) as (here, there):
            own = [sys.executable, __file__, *sys.argv[1:], "--inside", folder, there]
            # Ctrl-C reaches this process alone, which ends the other in order.
            program = subprocess.Popen(["ip", "netns", "exec", here, *own], start_new_session=True)
            try:
                program.wait()
            finally:
                program.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(timeout=60)
    sys.exit(program.returncode)


if __name__ == "__main__":
    main()

"""Faults of a run on a Ray cluster, made one by one: what is survived, with what result, and what stops with what left.

Several raylets on this machine are the cluster's machines (`ray.cluster_utils.Cluster`). Each fault hits a small
training, whose weights are then compared with those of the same training without it. Left out: networks that lose or
delay messages, a head machine that dies (Ray ends every process then), GPUs.

    python benchmarks/engine_faults.py --out benchmarks/results/engine_faults.json      # 25 minutes on two cores
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import engine_recipe
import numpy as np
import ray
import torch as th
from engine_recipe import ENV, ENV_ID, N_ENVS
from measuring import provenance, report
from ray.cluster_utils import Cluster
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, make_vec_env
from vla_agent.engines import EngineError, RayEngine, cluster, ranks
from vla_agent.engines.worker import Worker
from vla_agent.runs.keeping import latest_run, safe_learn

TIMESTEPS = 32  # two iterations
PPO = engine_recipe.PPO | {"ratio_level": "token"}
DEADLINES: dict[str, Any] = {"deadline_s": 15.0, "room_deadline_s": 15.0}
_SPLIT: dict[str, Any] = {"placement": "split", "cpus_per_worker": 1, **DEADLINES}
FIRST_OF_SECOND = 5  # the first step of the second rollout, whose process goes on to play meanwhile
KINDS = EQUAL, OTHERWISE, WHOLE, REFUSED, WRONG = (
    "survived, equal to the bit",
    "survived otherwise",
    "stopped with a whole checkpoint",
    "refused in a sentence",
    "wrong",
)


@dataclasses.dataclass
class Outcome:
    """What became of a run with a fault."""

    group: str
    fault: str
    outcome: str
    seconds: float  # of the run, with the fault and what mended it
    undisturbed_s: float | None = None
    replaced: int = 0
    sentence: str = ""


# ----------------------------------------------------------------------------------------------- faults


class Strike(BaseCallback):
    """Does something once: after a step, when a rollout has ended, or when the update after it sums its gradients."""

    def __init__(self, act: Callable[[], None], *, step: int = 0, rollout: int = 0, in_update: bool = False) -> None:
        super().__init__()
        self.act, self.step, self.rollout, self.in_update = act, step, rollout, in_update
        self.n_rollouts = 0

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.act()
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if self.n_rollouts != self.rollout:
            return
        if not self.in_update:
            self.act()
            return
        summed = ranks.ProcessRanks.sum

        def sum_after(own: Any, tensors: Any) -> None:
            ranks.ProcessRanks.sum = summed  # type: ignore[method-assign]
            self.act()
            own.sum(tensors)

        ranks.ProcessRanks.sum = sum_after  # type: ignore[method-assign]


def send(engine: RayEngine, number: int, which: int) -> Callable[[], None]:
    """Kills (SIGKILL) or stops (SIGSTOP) a process of the engine."""
    return lambda: os.kill(engine.roster.pid(number), which)


def send_to_environments(engine: RayEngine, number: int, which: int) -> Callable[[], None]:
    """The same to a process of its environments: a child of a child, the template that it was forked from."""

    def act() -> None:
        (template,) = _children(engine.roster.pid(number), "libero_gym.vector.worker")
        os.kill(_children(template, "libero_gym.vector.worker")[0], which)

    return act


def _children(pid: int, command: str) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", command], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


# ------------------------------------------------------------------------------------------------- runs


class Bench:
    """A cluster whose head has room for the process that learns, engines, and what their undisturbed runs learn."""

    def __init__(self, group: str, folder: Path, references: dict[str, Any], **head: Any) -> None:
        self.group, self.folder, self.references = group, folder, references
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False} | head)
        ray.init(address=self.cluster.address, configure_logging=False, log_to_driver=False)
        self.outcomes: list[Outcome] = []

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def node_of(self, engine: RayEngine, number: int) -> Any:
        """The machine of a process, as `Cluster` holds it."""
        actor = engine.roster.actor(number)
        found = ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=30)
        return next(node for node in self.cluster.list_all_nodes() if node.node_id == found)

    def reference(self, kind: str, engine: RayEngine | None) -> tuple[dict[str, th.Tensor], float]:
        """Weights and seconds of an undisturbed run; those of "split" are of a run in one process."""
        if kind not in self.references:
            if kind == "split":
                expected, _ = self.train(None, None, "one process")  # it also compiles what the first use compiles
            begun = time.monotonic()
            weights, _ = self.train(engine, None, "reference " + kind)
            self.references[kind] = weights, time.monotonic() - begun
            if kind == "split" and not equal(weights, expected):
                raise RuntimeError("The engine's run without a fault is not that of one process.")
        return self.references[kind]

    def train(
        self, engine: RayEngine | None, strike: BaseCallback | None, name: str, timesteps: int = TIMESTEPS, **env: Any
    ) -> tuple[dict[str, th.Tensor], Path]:
        """Trains; the weights, and the run's folder."""
        run_dir = self.folder / name.replace(" ", "_").replace(",", "")
        envs = (make_vec_env if engine is None else engine.make_vec_env)(ENV_ID, N_ENVS, **(ENV | env))
        try:
            model = VLAPPO("VLAPolicy", envs, **PPO)
            safe_learn(model, timesteps, run_dir, strike)
            return weights_of(model), run_dir
        finally:
            envs.close()

    def strike(
        self,
        fault: str,
        kind: str,
        engine: RayEngine,
        strike: BaseCallback,
        resume: Callable[[], contextlib.AbstractContextManager[RayEngine | None]] = contextlib.nullcontext,
        **env: Any,
    ) -> None:
        """Trains with a fault, and compares; a run that stops goes on with the engine that ``resume`` gives."""
        print(f"\n>>> {fault}", flush=True)
        weights, undisturbed_s = self.reference(kind, engine)
        before, begun = engine.n_replaced, time.monotonic()
        told = Outcome(self.group, fault, WRONG, 0.0, undisturbed_s)
        try:
            found, _ = self.train(engine, strike, fault, **env)
            told.outcome = EQUAL if equal(weights, found) else OTHERWISE
        except EngineError as error:
            told.sentence = str(error)
        except Exception as error:
            told.sentence = f"{type(error).__name__}: {error}"
            print(traceback.format_exc(), flush=True)
        told.seconds, told.replaced = time.monotonic() - begun, engine.n_replaced - before
        if told.sentence:
            with resume() as other:
                try:
                    if equal(weights, self._resumed(fault, other)):
                        told.outcome = WHOLE
                except Exception as error:
                    told.sentence += f" And then: {type(error).__name__}: {error}"
        self.tell(told)

    def _resumed(self, name: str, engine: RayEngine | None) -> dict[str, th.Tensor]:
        run_dir = self.folder / name.replace(" ", "_").replace(",", "")
        envs = (make_vec_env if engine is None else engine.make_vec_env)(ENV_ID, N_ENVS, **ENV)
        try:
            model = VLAPPO.load(latest_run(run_dir), envs, "cpu")
            model.learn(TIMESTEPS - model.num_timesteps, reset_num_timesteps=False)
            return weights_of(model)
        finally:
            envs.close()

    def refuse(self, fault: str, act: Callable[[], Any], *words: str) -> None:
        """Does what has to be refused by an `EngineError` with these words."""
        print(f"\n>>> {fault}", flush=True)
        begun, told = time.monotonic(), Outcome(self.group, fault, WRONG, 0.0)
        try:
            act()
        except EngineError as error:
            told.sentence = str(error)
            told.outcome = REFUSED if all(word in told.sentence for word in words) else WRONG
        told.seconds = time.monotonic() - begun
        self.tell(told)

    def tell(self, told: Outcome) -> None:
        told.seconds = round(told.seconds, 1)
        told.undisturbed_s = None if told.undisturbed_s is None else round(told.undisturbed_s, 1)
        self.outcomes.append(told)
        print(dataclasses.asdict(told), flush=True)


def weights_of(model: Any) -> dict[str, th.Tensor]:
    """A copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def equal(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    """Whether weights are the same to the bit."""
    return first.keys() == second.keys() and all(th.equal(tensor, second[name]) for name, tensor in first.items())


@contextlib.contextmanager
def worker_that_says(**other: Any) -> Iterator[None]:
    """Processes that start meanwhile say something else of themselves."""

    class Other(Worker):
        def describe(self) -> dict[str, Any]:
            told = super().describe()
            return told | other | {"versions": told["versions"] | other.get("versions", {})}

    cluster.Worker = Other  # type: ignore[misc]
    try:
        yield
    finally:
        cluster.Worker = Worker  # type: ignore[misc]


# ------------------------------------------------------------------------------------- groups of faults


def processes(bench: Bench) -> None:
    """Processes of all roles, killed and hung, with room for another on their machine."""
    for _ in range(2):
        bench.cluster.add_node(num_cpus=2)
    verbs = ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "hung"))
    with RayEngine(1, 1, placement="split", cpus_per_worker=1, **DEADLINES) as engine:
        for which, verb in verbs:
            act = send_to_environments(engine, 0, which)
            strike = Strike(act, step=FIRST_OF_SECOND)
            bench.strike(f"environment process {verb}", "split", engine, strike)
            strike = Strike(act, step=FIRST_OF_SECOND)
            bench.strike(f"environment process {verb}, restart=True", "split", engine, strike, restart=True)
            act = send(engine, 0, which)
            bench.strike(f"policy {verb} in a rollout", "split", engine, Strike(act, step=FIRST_OF_SECOND))
            bench.strike(f"policy {verb} in an update", "split", engine, Strike(act, rollout=1))
        strike = Strike(send(engine, 0, signal.SIGKILL), step=FIRST_OF_SECOND)
        with_other = contextlib.ExitStack()
        strike.act = lambda kill=strike.act: (with_other.enter_context(worker_that_says(code="another")), kill())[1]

        @contextlib.contextmanager
        def same_code() -> Iterator[None]:
            with_other.close()
            yield

        bench.strike("policy killed, its replacement has other code", "split", engine, strike, same_code)
    with RayEngine(1, 1, stale=True, **_SPLIT) as engine:
        later = Strike(lambda: threading.Timer(0.3, send(engine, 0, signal.SIGKILL)).start(), rollout=1)
        bench.strike("policy killed while it plays ahead", "stale", engine, later)
    with RayEngine(2, 1, placement="split", cpus_per_worker=1, **DEADLINES) as engine:
        for which, verb in verbs:
            strike = Strike(send(engine, 1, which), rollout=1, in_update=True)
            bench.strike(f"learner {verb} in an update", "pair", engine, strike)
    with RayEngine(2, cpus_per_worker=1, **DEADLINES) as engine:
        for which, verb in verbs:
            strike = Strike(send(engine, 0, which), step=FIRST_OF_SECOND)
            bench.strike(f"colocated learner {verb} in a rollout", "colocated", engine, strike)


def nodes(bench: Bench) -> None:
    """Machines that die, with and without room elsewhere, and that join late."""
    bench.cluster.add_node(num_cpus=1)
    spare = bench.cluster.add_node(num_cpus=1)
    bench.cluster.wait_for_nodes()

    def kill_node(engine: RayEngine) -> Callable[[], None]:
        node = bench.node_of(engine, 0)
        return lambda: bench.cluster.remove_node(node, allow_graceful=False)

    with RayEngine(1, 1, placement="split", cpus_per_worker=1, **DEADLINES) as engine:
        strike = Strike(kill_node(engine), step=FIRST_OF_SECOND)
        bench.strike("machine of the policy dies, with room elsewhere", "split", engine, strike)
        strike = Strike(kill_node(engine), step=FIRST_OF_SECOND)
        bench.strike("machine of the policy dies, without room elsewhere", "split", engine, strike)
    del spare

    with futures.ThreadPoolExecutor() as pool:
        waits = pool.submit(RayEngine, 1, 1, **(_SPLIT | {"room_deadline_s": 60}))
        time.sleep(8)
        bench.cluster.add_node(num_cpus=1)
        engine = waits.result()
    with engine:
        bench.strike("machine joins eight seconds late", "split", engine, Strike(lambda: None))
        bench.refuse("second run, without room", lambda: RayEngine(1, 1, **_SPLIT), "0 of 2 CPUs are free")
    bench.refuse("more than the cluster has", lambda: RayEngine(1, 2, **_SPLIT), "has 2 CPUs on 2 machines")
    with worker_that_says(code="another"):
        bench.refuse("other code on a machine", lambda: RayEngine(1, 1, **_SPLIT), "runs other sources")
    with worker_that_says(versions={"torch": "1.0"}):
        bench.refuse("other version on a machine", lambda: RayEngine(1, 1, **_SPLIT), "has torch 1.0")

    with RayEngine(2, cpus_per_worker=1, **DEADLINES) as engine:
        node = bench.node_of(engine, 0)
        bench.reference("colocated", engine)
        bench.cluster.add_node(num_cpus=1)
        bench.cluster.wait_for_nodes()
        strike = Strike(lambda: bench.cluster.remove_node(node, allow_graceful=False), rollout=1, in_update=True)
        bench.strike("machine of a learner dies in an update, with room elsewhere", "colocated", engine, strike)


def rooms(bench: Bench) -> None:
    """Two runs at the same time on a cluster with room for both."""
    for _ in range(3):
        bench.cluster.add_node(num_cpus=1)
    with RayEngine(1, 1, **_SPLIT) as engine:
        bench.strike("second run, with room", "split", engine, Second(bench))


class Second(BaseCallback):
    """Another training, in a program of its own, on the same cluster and at the same time."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench

    def _on_training_start(self) -> None:
        self.path = self.bench.folder / "second.pt"
        command = [sys.executable, __file__, "--second", self.bench.cluster.address, str(self.path)]
        self.program = subprocess.Popen(command)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.program.wait(timeout=600) or not equal(th.load(self.path), self.bench.references["split"][0]):
            raise RuntimeError("The second run failed, or learned something else.")


def second(address: str, path: Path) -> None:
    """The program of `Second`."""
    with RayEngine(1, 1, address=address, **_SPLIT) as engine, tempfile.TemporaryDirectory() as folder:
        envs = engine.make_vec_env(ENV_ID, N_ENVS, **ENV)
        model = VLAPPO("VLAPolicy", envs, **PPO)
        safe_learn(model, TIMESTEPS, Path(folder) / "run")
        envs.close()
    th.save(weights_of(model), path)


STORE_BYTES = 100 * 2**20


@ray.remote(num_cpus=0)
class Hoarder:
    """Fills the object store of its machine."""

    def fill(self) -> int:
        self.refs = []
        with contextlib.suppress(ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
            for _ in range(int(0.95 * STORE_BYTES) // 2**20):
                self.refs.append(ray.put(np.ones(2**20 - 4096, dtype=np.uint8)))
        return len(self.refs)


def store(bench: Bench, spills: bool) -> None:
    """The object store of the machine that plays has no room."""
    node = bench.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    bench.cluster.wait_for_nodes()
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    hoarder = Hoarder.options(scheduling_strategy=where).remote()  # type: ignore[attr-defined]
    with RayEngine(1, 1, **_SPLIT) as engine:
        how = "Ray goes on to the disk" if spills else "and Ray may not go on to the disk"
        strike = Strike(lambda: ray.get(hoarder.fill.remote(), timeout=60), step=FIRST_OF_SECOND - 1)
        bench.strike(f"object store full, {how}", "split", engine, strike)


# ------------------------------------------------------------------------------------------------ table


def main() -> None:
    """Makes the faults, prints a table, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="file for the figures")
    parser.add_argument(
        "--only", choices=("processes", "nodes", "rooms", "store"), default=None, help="one group of faults"
    )
    parser.add_argument("--second", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.second:
        second(args.second[0], Path(args.second[1]))
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # else processes on a busy machine take many times as long
    head = {"object_store_memory": 200 * 2**20}
    no_disk = {"_system_config": {"automatic_object_spilling_enabled": False}}
    groups: list[tuple[str, dict[str, Any], Callable[[Bench], None]]] = [
        ("processes", {}, processes),
        ("nodes", {}, nodes),
        ("rooms", {"num_cpus": 4}, rooms),
        ("store", {}, lambda bench: store(bench, True)),
        ("store, without the disk", no_disk, lambda bench: store(bench, False)),
    ]
    known = provenance()
    found: dict[str, Any] = {}  # by group
    if args.only is not None and args.out is not None and args.out.exists():
        found = json.loads(args.out.read_text())["groups"]
    references: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (group, options, make) in enumerate(groups):
            if args.only in (None, group.split(",")[0]):
                bench = Bench(group, Path(folder) / str(number), references, **(head | options))
                try:
                    make(bench)
                finally:
                    bench.close()
                found[group] = known | {"faults": [dataclasses.asdict(told) for told in bench.outcomes]}
                report(figures(found), args.out)  # each group, for a later one may fail
    print("\n| fault | outcome | seconds (undisturbed) | replaced |\n| --- | --- | --- | --- |")
    for one in (outcome for group in found.values() for outcome in group["faults"]):
        seconds = f"{one['seconds']:.0f} ({one['undisturbed_s'] or 0:.0f})"
        print(f"| {one['fault']} | {one['outcome']} | {seconds} | {one['replaced']} |")


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of some groups, with sums over all of them."""
    told = [outcome for group in found.values() for outcome in group["faults"]]
    counts = {kind: sum(outcome["outcome"] == kind for outcome in told) for kind in KINDS}
    return {"made": len(told), "outcomes": counts, "groups": found}


if __name__ == "__main__":
    main()

"""Ray's side of an engine: a cluster to work on, processes on it, and answers within a deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch as th

from vla_agent.engines.errors import EngineError, LostError
from vla_agent.engines.worker import PACKAGES, Worker, code_fingerprint, package_versions

PLACES_WITHIN_S = 60  # for a cluster to find room for what it can hold


class Place(NamedTuple):
    """What each process of an engine gets."""

    cpus: float
    gpus: float


class Machine(NamedTuple):
    """What a machine of the cluster has, as Ray counts it."""

    called: str
    memory: int  # bytes, besides the object store
    object_store: int  # bytes
    n_gpus: float


class Remote(NamedTuple):
    """A process on the cluster."""

    number: int
    actor: Any
    host: str
    pid: int
    node: str = ""  # Ray's id of the machine
    gpu: int = 0  # bytes of its GPU; 0 if it has none

    @property
    def called(self) -> str:
        """What messages call it."""
        return f"Worker {self.number} (process {self.pid} on {self.host})"


class Seat:
    """Holds the room of the process that calls `learn`, which Ray does not count."""

    def gpus(self) -> list[Any]:
        """Ids of its GPUs."""
        import ray

        return list(ray.get_gpu_ids())


class Cluster:
    """Processes on a Ray cluster.

    Args:
        address: Address of a cluster, such as "10.0.0.1:6379" or "auto"; None starts one on this machine.
        deadline_s: Seconds within which a call has to answer.
        start_deadline_s: Seconds within which a process has to start, and to make its environments or learner.

    Raises:
        ImportError: If Ray is not installed.
        EngineError: If the cluster does not answer.
        ValueError: If the address is one of Ray's client, whose driver is outside the cluster.
    """

    def __init__(self, address: str | None, deadline_s: float, start_deadline_s: float) -> None:
        self.ray = _ray()
        self.deadline_s, self.start_deadline_s = deadline_s, start_deadline_s
        self.is_own = not self.ray.is_initialized()
        if self.is_own:
            self._start(address)
        self._group: Any = None
        self._seat: Any = None

    def _start(self, address: str | None) -> None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"address={address!r} is of Ray's client, and the learner has to run on the cluster itself: start the "
                "program there, such as with 'ray job submit', and give address='auto'."
            )
        try:
            # "local", since None would join whatever cluster somebody has started on this machine.
            given = {"include_dashboard": False, "logging_level": "warning", "configure_logging": False}
            self.ray.init(address or "local", **given)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise EngineError(f"No Ray cluster answers at {address!r}: {error}") from error

    @property
    def host(self) -> str:
        """This machine's address, as the cluster knows it."""
        return str(self.ray.util.get_node_ip_address())

    @property
    def node(self) -> str:
        """Id of the node that this process belongs to."""
        return str(self.ray.get_runtime_context().get_node_id())

    def machines(self) -> dict[str, Machine]:
        """The machines by the ids of their nodes."""
        found = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                sizes = int(has.get("memory", 0)), int(has.get("object_store_memory", 0))
                called = f"machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                found[node["NodeID"]] = Machine(called, *sizes, has.get("GPU", 0.0))
        return found

    def places(self) -> dict[int, str]:
        """The node that each process has its place on, by the process's number."""
        if self._group is None:
            return {}
        nodes = self.ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        return {int(bundle) - 1: str(node) for bundle, node in nodes.items() if int(bundle)}  # the first is this one's

    def reserve(self, n_workers: int, place: Place) -> None:
        """Keeps room for this process and so many others, and has this one compute on the GPU that it gets.

        Raises:
            EngineError: If the cluster is too small; the message says what it has.
        """
        wanted = {"CPU": place.cpus} | ({"GPU": place.gpus} if place.gpus else {})
        has, n_processes = self.ray.cluster_resources(), n_workers + 1
        for name, called in (("CPU", "CPUs"), ("GPU", "GPUs")):
            needed = n_processes * wanted.get(name, 0)
            if needed > has.get(name, 0):
                raise EngineError(
                    f"{n_processes} processes of {wanted[name]:g} {called} each need {needed:g}, and the cluster has "
                    f"{has.get(name, 0):g} {called} on {self._machines()}. Ask for fewer, or add machines."
                )
        here = wanted | {f"node:{self.host}": 0.001}  # this machine's own resource, of which there is 1
        self._group = self.ray.util.placement_group([here, *[wanted] * n_workers], strategy="PACK")
        if not self._group.wait(PLACES_WITHIN_S):
            free = self.ray.available_resources()
            self.release()
            raise EngineError(
                f"The cluster found no room for {n_processes} processes of {wanted} in {PLACES_WITHIN_S} s: free are "
                f"{free.get('CPU', 0):g} of {has.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} of "
                f"{has.get('GPU', 0):g} GPUs. Another run may hold them."
            )

        self._sit_down(place)

    def _sit_down(self, place: Place) -> None:
        """Holds this process's room, so that no other gets its GPU."""
        where = self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._group, 0)
        seat = self.ray.remote(Seat).options(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=where)
        self._seat = seat.remote()
        gpus = self.ray.get(self._seat.gpus.remote(), timeout=self.start_deadline_s)
        if gpus and th.cuda.is_available():
            th.cuda.set_device(int(gpus[0]))

    def _machines(self) -> str:
        count = sum(bool(node["Alive"]) for node in self.ray.nodes())
        return f"{count} machine{'s' * (count != 1)}"

    def start(self, numbers: Iterable[int], place: Place, threads: int) -> dict[int, Remote]:
        """Starts processes where room is kept for them, all at the same time.

        Raises:
            EngineError: If one does not start, or runs other code.
        """
        strategies = self.ray.util.scheduling_strategies
        variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_restarts": 0}
        kind = self.ray.remote(Worker)
        found = {}
        for number in numbers:
            where = strategies.PlacementGroupSchedulingStrategy(self._group, number + 1)
            given = options | {"scheduling_strategy": where, "runtime_env": {"env_vars": variables}}
            actor = kind.options(**given).remote(number, threads)
            found[number] = Remote(number, actor, "a machine that is being looked for", 0)
        asked = {number: remote.actor.describe.remote() for number, remote in found.items()}
        for number, reference in asked.items():
            told = self.answer(found[number], reference, self.start_deadline_s)
            told_of = {"host": told["host"], "pid": told["pid"], "node": told["node"], "gpu": told["gpu_bytes"]}
            found[number] = found[number]._replace(**told_of)
            check_alike(found[number], told)
        return found

    def answer(self, remote: Remote, reference: Any, deadline_s: float | None = None) -> Any:
        """The result of a call.

        Raises:
            LostError: If the process is gone, or does not answer within the deadline.
            Exception: What the call raised.
        """
        errors = self.ray.exceptions
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        try:
            return self.ray.get(reference, timeout=deadline_s)
        except errors.GetTimeoutError:
            raise LostError(f"{remote.called} did not answer within {deadline_s:g} s.", remote.number) from None
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except errors.OutOfMemoryError as error:
            raise LostError(f"{remote.called} was ended, for its machine is out of memory.", remote.number) from error
        except (errors.RayActorError, errors.ObjectLostError) as error:
            raise LostError(f"{remote.called} is gone.", remote.number) from error

    def stream(self, remote: Remote, references: Any) -> Iterator[Any]:
        """The results of a call that gives several, each within the deadline; errors as of `answer`."""
        while True:
            begun = time.monotonic()
            ready, _ = self.ray.wait([references], timeout=self.deadline_s, fetch_local=False)
            if not ready:
                raise LostError(f"{remote.called} did not answer within {self.deadline_s:g} s.", remote.number)
            try:
                reference = next(references)
            except StopIteration:
                return
            yield self.answer(remote, reference, max(1.0, self.deadline_s - (time.monotonic() - begun)))

    def told(self, streams: Sequence[Any], within_s: float) -> list[Any]:
        """Those of several streams that have a result, or have ended; waits for the first of them."""
        ready, _ = self.ray.wait(list(streams), timeout=within_s, fetch_local=False)
        return list(ready)

    def put(self, value: Any) -> Any:
        """A reference to a value that processes share; each machine gets it once.

        Raises:
            EngineError: If the object store has no room for it.
        """
        try:
            return self.ray.put(value)
        except self.ray.exceptions.ObjectStoreFullError as error:
            raise EngineError(
                "Ray's object store has no room for a rollout; start Ray with a larger --object-store-memory."
            ) from error

    def end(self, remote: Remote) -> None:
        """Ends a process at once."""
        if self.ray.is_initialized():
            self.ray.kill(remote.actor, no_restart=True)

    def release(self) -> None:
        """Gives back the room that is kept."""
        if self._group is not None:
            self.ray.util.remove_placement_group(self._group)
            self._group = None

    def close(self) -> None:
        """Gives back the room, and ends a cluster that was started here."""
        if self.ray.is_initialized():
            self.release()
            if self.is_own:
                self.ray.shutdown()


def check_alike(remote: Remote, told: dict[str, Any]) -> None:
    """Complains about a process with other versions or sources than this one's, as EngineError.

    Args:
        remote: The process.
        told: What it says of itself, see `Worker.describe`.
    """
    ours = package_versions(PACKAGES)
    for name, version in told["versions"].items():
        if version != ours[name]:
            raise EngineError(
                f"{remote.called} has {name} {version}, and this process {ours[name]}; install the same everywhere."
            )
    if told["code"] != code_fingerprint():
        raise EngineError(
            f"{remote.called} runs other sources of libero-vla ({told['code']}) than this process "
            f"({code_fingerprint()}); check out the same commit on every machine."
        )


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise ImportError("RayEngine needs ray: pip install 'libero-vla[ray]'") from error
    return ray

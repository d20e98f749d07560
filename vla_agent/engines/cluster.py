"""Ray's side of an engine: a cluster to work on, processes on it, and answers within a deadline."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch as th

from libero_gym.common.version import install_extra
from vla_agent.engines.errors import EngineError, LostError
from vla_agent.engines.packing import Place, Room, largest_share, n_fitting, told_of, too_small
from vla_agent.engines.seat import Seat
from vla_agent.engines.worker import PACKAGES, Worker, code_fingerprint, package_versions, place_of
from vla_agent.envs.vec_env import is_worker_error

logger = logging.getLogger(__name__)

_CHECK_ROOM_EVERY_S = 1.0  # while a process starts: its machine may go meanwhile
_FREED_WITHIN_S = 1.0  # what an engine held that was closed just now
_FETCH_S = 1.0  # for a result that is there already, on another machine
_STORE_FULL = (
    "Ray's object store, and the disk that it goes on to, have no room for a rollout or the weights. Start Ray with a "
    "larger --object-store-memory, free its disk, or give fewer n_steps."
)


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
        return (
            f"Worker {self.number} (process {self.pid} on {self.host})" if self.pid else f"Worker {self.number} (new)"
        )


class Cluster:
    """Processes on a Ray cluster.

    Args:
        address: Address of a cluster, such as "10.0.0.1:6379" or "auto"; None starts one on this machine.
        deadline_s: Seconds within which a call has to answer.
        start_deadline_s: Seconds within which a process has to start, and to make its environments or learner.
        room_deadline_s: Seconds within which the cluster has to have room; machines may join meanwhile.

    Raises:
        ImportError: If Ray is not installed.
        EngineError: If the cluster does not answer.
        ValueError: If the address is one of Ray's client, whose driver is outside the cluster.
    """

    def __init__(self, address: str | None, deadline_s: float, start_deadline_s: float, room_deadline_s: float) -> None:
        self.ray = _ray()
        self.deadline_s, self.start_deadline_s, self.room_deadline_s = deadline_s, start_deadline_s, room_deadline_s
        self.is_own = not self.ray.is_initialized()
        self.can_grow = address is not None or not self.is_own
        if self.is_own:
            self._join(address)
        self._group: Any = None
        self._seat: Any = None

    def _join(self, address: str | None) -> None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"address={address!r} is of Ray's client, and the learner has to run on the cluster itself: start the "
                "program there, such as with 'ray job submit', and give address='auto'."
            )
        if address is not None:
            self._knock(address)
        try:
            if address is None:  # else Ray's processes run at niceness 15, behind everything else on the machine
                os.environ.setdefault("RAY_worker_niceness", "0")
            # "local", since None would join whatever cluster somebody has started on this machine.
            given = {"include_dashboard": False, "logging_level": "warning", "configure_logging": False}
            self.ray.init(address or "local", **given)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            where = "No Ray could be started here" if address is None else f"No Ray cluster was joined at {address!r}"
            raise EngineError(f"{where}: {error}") from error

    def _knock(self, address: str) -> None:
        """Complains about an address where nobody listens, for which Ray itself has no deadline."""
        host, separator, port = address.rpartition(":")
        if not separator or not port.isdigit():
            return  # such as "auto"
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=self.deadline_s).close()
        except OSError as error:
            raise EngineError(
                f"Nobody answers at address={address!r} within {self.deadline_s:g} s ({error}). 'ray status' on the "
                "head machine says whether Ray runs; its port has to be open to this machine."
            ) from error

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

    def rooms(self, free: bool = False) -> list[Room]:
        """What the machines have for processes, or have free."""
        found = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        if free:  # Ray tells no more than the sum of all machines elsewhere; `ray.util.tpu` asks here, too
            left = self.ray._private.state.available_resources_per_node()
            found = {node: left.get(node, has) for node, has in found.items()}
        return [Room(has.get("CPU", 0), has.get("GPU", 0), node == self.node) for node, has in found.items()]

    def share(self, n_processes: int, gpus: float) -> float:
        """The most CPUs that each of several processes can have, of those that are free; of all if there are none."""
        most, begun = largest_share(self.rooms(), n_processes, gpus), time.monotonic()
        while (free := largest_share(self.rooms(free=True), n_processes, gpus)) < most:
            if time.monotonic() - begun > _FREED_WITHIN_S:
                told = f"each process gets {free:g}, instead of {most:g}" if free else "waiting for them"
                logger.warning("Others hold CPUs of the cluster: %s.", told)
                break
            time.sleep(0.1)
        return free or max(most, 1.0)

    def reserve(self, n_workers: int, place: Place) -> None:
        """Keeps room for this process and so many others, and has this one compute on the GPU that it gets.

        Machines may join within ``room_deadline_s``, and other runs end; this process's own does not grow.

        Raises:
            EngineError: If the cluster has too little room; the message says what it has.
        """
        wanted = {"CPU": place.cpus} | ({"GPU": place.gpus} if place.gpus else {})
        rooms = self.rooms()
        refusal = too_small(rooms, n_workers + 1, place)
        if refusal and not (self.can_grow and any(room.is_here and n_fitting(room, place) for room in rooms)):
            raise EngineError(refusal)
        # The first is this process's own, on the very node that it belongs to: a machine may have several.
        labels = [{"ray.io/node-id": self.node}, *[{}] * n_workers]
        self._group = self.ray.util.placement_group(
            [wanted] * (n_workers + 1), strategy="PACK", bundle_label_selector=labels
        )
        begun, is_told = time.monotonic(), False
        while not self._has_room():
            waited = time.monotonic() - begun
            if waited > self.room_deadline_s:
                told = too_small(self.rooms(), n_workers + 1, place) or self._no_room(n_workers + 1, place)
                self.release()
                raise EngineError(told)
            if waited > 1 and not is_told:
                is_told = True
                logger.warning("The cluster has no room yet; waiting up to %g s for it.", self.room_deadline_s)
            time.sleep(0.1)
        self._sit_down(place)

    def _has_room(self) -> bool:
        """Whether room is kept for all processes: not before it is found, nor after a machine is lost."""
        return bool(self.ray.util.placement_group_table(self._group).get("state") == "CREATED")

    def _no_room(self, n_processes: int, place: Place) -> str:
        """What is free on a cluster that has no room, as a sentence."""
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        kinds = ["CPU", "GPU"] if place.gpus else ["CPU"]
        rest = " and ".join(f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}s" for name in kinds)
        needs = told_of(place)
        count = f"{n_processes} processes of {needs} each" if n_processes > 1 else f"a process of {needs}"
        return (
            f"The cluster found no room for {count} within {self.room_deadline_s:g} s: {rest} are free, on "
            f"{self._machines()}. Wait for other runs to end, add a machine, or ask for less."
        )

    def _sit_down(self, place: Place) -> None:
        """Holds this process's room, so that no other gets its GPU."""
        where = self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._group, 0)
        seat = self.ray.remote(Seat).options(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=where)
        self._seat = seat.remote()
        try:
            gpus = self.ray.get(self._seat.gpus.remote(), timeout=self.start_deadline_s)
        except self.ray.exceptions.RayError as error:
            raise EngineError(
                f"Ray did not give this process its own place within {self.start_deadline_s:g} s: {error}"
            ) from error
        if gpus and th.cuda.is_available():
            th.cuda.set_device(place_of(str(gpus[0]), os.environ.get("CUDA_VISIBLE_DEVICES")))

    def _machines(self) -> str:
        count = sum(bool(node["Alive"]) for node in self.ray.nodes())
        return f"{count} machine{'s' * (count != 1)}"

    def start(self, numbers: Iterable[int], place: Place, threads: int) -> dict[int, Remote]:
        """Starts processes where room is kept for them, all at the same time.

        Ray starts them on a machine that is gone, too, until it knows that; then they are started once more.

        Raises:
            LostError: If one is gone, or does not start in time; none of them is left.
            EngineError: If there is no room for one any more, or it runs other code; none of them is left.
        """
        numbers, begun = list(numbers), time.monotonic()
        try:
            return self._start_once(numbers, place, threads, begun)
        except LostError:
            if time.monotonic() - begun > self.start_deadline_s:
                raise
            return self._start_once(numbers, place, threads, begun)

    def _start_once(self, numbers: list[int], place: Place, threads: int, begun: float) -> dict[int, Remote]:
        strategies = self.ray.util.scheduling_strategies
        folder = os.getcwd()
        sources = [os.path.join(folder, part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sources)}
        options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_restarts": 0}
        kind = self.ray.remote(Worker)
        found = {}
        for number in numbers:
            where = strategies.PlacementGroupSchedulingStrategy(self._group, number + 1)
            given = options | {"scheduling_strategy": where, "runtime_env": {"env_vars": variables}}
            actor = kind.options(**given).remote(number, threads, folder)
            found[number] = Remote(number, actor, "", 0)
        asked = {number: remote.actor.describe.remote() for number, remote in found.items()}
        try:
            for number, reference in asked.items():
                self._await_room(reference, place, begun)
                told = self.answer(found[number], reference, self.start_deadline_s, begun)
                told_of = {"host": told["host"], "pid": told["pid"], "node": told["node"], "gpu": told["gpu_bytes"]}
                found[number] = found[number]._replace(**told_of)
                check_alike(found[number], told)
        except BaseException:
            for remote in found.values():  # one that waits for room would take it later
                self.end(remote)
            raise
        return found

    def _await_room(self, reference: Any, place: Place, begun: float) -> None:
        """Waits for a process to start, until its deadline.

        Raises:
            EngineError: If there is no room for it within ``room_deadline_s``, as after its machine is gone.
        """
        had_room = time.monotonic()
        while not self.ray.wait([reference], timeout=_CHECK_ROOM_EVERY_S, fetch_local=False)[0]:
            now = time.monotonic()
            if now - begun > self.start_deadline_s:
                return
            if self._has_room():
                had_room = now
            elif now - had_room > self.room_deadline_s:
                raise EngineError(self._no_room(1, place))

    def answer(
        self, remote: Remote, reference: Any, deadline_s: float | None = None, begun: float | None = None
    ) -> Any:
        """The result of a call.

        Args:
            remote: The process.
            reference: Ray's reference to the result.
            deadline_s: Seconds within which it has to come; ``self.deadline_s`` by default.
            begun: When they began, as of `time.monotonic`; now by default.

        Raises:
            LostError: If the process is gone, its environments are, or it does not answer within the deadline.
            EngineError: If there is no memory for the result.
            Exception: What the call raised.
        """
        errors = self.ray.exceptions
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        left_s = deadline_s if begun is None else max(_FETCH_S, begun + deadline_s - time.monotonic())
        try:
            return self.ray.get(reference, timeout=left_s)
        except errors.GetTimeoutError:
            raise LostError(f"{remote.called} did not answer within {deadline_s:g} s.", remote.number) from None
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, (errors.ObjectStoreFullError, errors.OutOfDiskError)):
                raise EngineError(f"{remote.called}: {_STORE_FULL}") from error
            if is_worker_error(cause):
                told = str(cause).partition("\n")[0]  # its traceback follows, and stays with the cause
                raise LostError(f"{remote.called} lost its environments: {told}", remote.number) from error
            raise cause from error
        except (errors.ObjectStoreFullError, errors.OutOfDiskError) as error:
            raise EngineError(_STORE_FULL) from error
        except errors.OutOfMemoryError as error:
            raise LostError(f"{remote.called} was ended, for its machine is out of memory.", remote.number) from error
        except errors.RuntimeEnvSetupError as error:
            raise EngineError(f"{remote.called} cannot start: {error}") from error
        except errors.RayError as error:  # the process, its machine, or the result on it
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
            yield self.answer(remote, reference, self.deadline_s, begun)

    def told(self, streams: Sequence[Any], within_s: float) -> list[Any]:
        """Those of several streams that have a result, or have ended; waits for the first of them."""
        waited = list(streams)
        ready, _ = self.ray.wait(waited, timeout=within_s, fetch_local=False)  # gives one
        if ready:
            ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
        return list(ready)

    def put(self, value: Any) -> Any:
        """A reference to a value that processes share; each machine gets it once.

        Raises:
            EngineError: If the object store has no room for it.
        """
        try:
            return self.ray.put(value)
        except (self.ray.exceptions.ObjectStoreFullError, self.ray.exceptions.OutOfDiskError) as error:
            raise EngineError(_STORE_FULL) from error

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
        raise ImportError(f"RayEngine needs ray: {install_extra('ray')}") from error
    return ray

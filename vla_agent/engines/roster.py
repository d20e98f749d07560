"""The processes of an engine, and what each of them holds, so that another can take its place."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.engines.cluster import Cluster, Remote
from vla_agent.engines.errors import EngineError, LostError
from vla_agent.engines.merging import with_task_weights
from vla_agent.engines.packing import Place
from vla_agent.engines.vec_env import Answer
from vla_agent.engines.worker import Copied, MomentsOnHost
from vla_agent.policy.averaging import own_weights
from vla_agent.runs.serialization import is_given_again

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 3  # of processes, within one rollout or update
NOWHERE = "Its environments cannot say where they were, so none replaces it."


@contextlib.contextmanager
def saved(learner: Any) -> Iterator[Path]:
    """A zip of the learner as a save holds it now, until the end; with its weights, if it acts with their average."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zip"
        with own_weights(learner.policy.optimizer):
            learner.save(path)
        yield path


def beside_file(learner: Any) -> dict[str, Any]:
    """Arguments for `load` that `saved` does not hold: classes, and modules, which other processes are sent as such."""
    policy_kwargs = {key: value for key, value in learner.policy_kwargs.items() if is_given_again(value)}
    if (named := learner.policy_kwargs.get("model")) is not None:
        policy_kwargs["model"] = named
    own = {key: value for key, value in learner.constructor_arguments().items() if is_given_again(value)}
    given = own | {"policy_kwargs": policy_kwargs, "custom_objects": {"policy_class": type(learner.policy)}}
    return given if learner.moments_device is None else given | {"engine": MomentsOnHost()}


class Roster:
    """Processes by number, from 0.

    Args:
        cluster: Where they run.
        size: How many there are.
        place: What each gets.
        threads: Threads that each computes with.

    Attributes:
        snapshots: Where the environments of each were when their last rollout ended or began.
        task_weights: Task weights that were set last; None if none were.
        n_replaced: How many have been replaced so far.
        on_replaced: Called with the number of a process that has taken another's place.

    Raises:
        EngineError: If the cluster is too small, or one does not start.
    """

    def __init__(self, cluster: Cluster, size: int, place: Place, threads: int) -> None:
        self.cluster, self.place, self.threads = cluster, place, threads
        self._learner: Callable[[], Any] = lambda: None
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.task_weights: list[float] | None = None
        self.n_replaced = 0
        self.on_replaced: Callable[[int], None] = lambda _: None
        self._remotes: dict[int, Remote] = {}
        self._makes: dict[int, Callable[[], VecEnv]] = {}
        if size or place.gpus:
            cluster.reserve(size, place)
            self._remotes = cluster.start(range(size), place, threads)

    @property
    def learner(self) -> Any:
        """The learner that they have copies of; None if there is none, or nobody else holds it any more."""
        return self._learner()

    @learner.setter
    def learner(self, learner: Any) -> None:
        self._learner = weakref.ref(learner)

    def _remote(self, number: int) -> Remote:
        if number not in self._remotes:
            raise EngineError(f"The engine is closed, and its process {number} with it; make another one.")
        return self._remotes[number]

    def actor(self, number: int) -> Any:
        """Ray's handle of a process; EngineError once the engine is closed."""
        return self._remote(number).actor

    def called(self, number: int) -> str:
        """What messages call a process."""
        return self._remote(number).called

    def node(self, number: int) -> str:
        """Ray's id of the machine that a process is on."""
        return self._remote(number).node

    def pid(self, number: int) -> int:
        """Process id, on its machine."""
        return self._remote(number).pid

    def gpu(self, number: int) -> int:
        """Bytes of a process's GPU; 0 if it has none."""
        return self._remote(number).gpu

    @property
    def numbers(self) -> list[int]:
        """The processes."""
        return list(self._remotes)

    def answer(self, number: int, reference: Any, starting: bool = False, begun: float | None = None) -> Any:
        """The result of a call, see `Cluster.answer`.

        Args:
            number: The process.
            reference: Ray's reference to the result.
            starting: Whether environments or a learner are being made, which takes longer.
            begun: See there.
        """
        deadline_s = self.cluster.start_deadline_s if starting else None
        return self.cluster.answer(self._remote(number), reference, deadline_s, begun)

    def stream(self, number: int, references: Any) -> Any:
        """The results of a call that gives several, see `Cluster.stream`."""
        return self.cluster.stream(self._remote(number), references)

    def make_envs(self, makes: dict[int, Callable[[], VecEnv]]) -> Callable[[], list[dict[str, Any]]]:
        """Begins to make environments in several processes; what is returned waits, and gives their descriptions."""
        self.snapshots.clear()
        self.task_weights = None
        self._makes = dict(makes)
        asked = {number: self.actor(number).make_env.remote(make) for number, make in makes.items()}

        def described() -> list[dict[str, Any]]:
            found = []
            for number, reference in asked.items():
                try:
                    found.append(self.answer(number, reference, starting=True))
                except LostError as lost:  # while it was idle, or now
                    found.append(self.restart(number, lost))
            return found

        return described

    def close_envs(self) -> None:
        """Ends the environments."""
        for number in self._makes:
            if number in self._remotes:
                self.actor(number).close.remote()
        self._makes.clear()
        self.snapshots.clear()

    def copy_learner(self, numbers: Iterable[int] | None = None) -> None:
        """Gives processes the learner as it is, or as it was before the rollout or update under way.

        Args:
            numbers: The processes; all by default.
        """
        chosen = list(self._remotes if numbers is None else numbers)
        if not chosen or self.learner is None:
            return
        with saved(self.learner) as path:
            run = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        copied = self.cluster.put(Copied(type(self.learner), run, beside_file(self.learner)))
        device = "cpu" if self.learner.device.type == "cpu" else "cuda:0"
        asked = {number: self.actor(number).load.remote(copied, device) for number in chosen}
        for number, reference in asked.items():
            try:
                self.answer(number, reference, starting=True)
            except LostError as lost:
                self.restart(number, lost)
                self.answer(number, self.actor(number).load.remote(copied, device), starting=True)

    def snapshot(self, number: int) -> dict[str, Any]:
        """Where a process's environments were, with the task weights of now."""
        return with_task_weights(self.snapshots[number], self.task_weights)

    def knows_where(self, number: int) -> bool:
        """Whether another process can take up the environments of one where they are; true if it has none."""
        return number not in self._makes or number in self.snapshots

    def restart(self, number: int, lost: LostError) -> Any:
        """Starts another process in the place of one, with its environments where they were, as far as is known.

        Args:
            number: Number of both.
            lost: What became of the one.

        Returns:
            What the new environments say of themselves; None if it has none.

        Raises:
            EngineError: If there is no room for it.
            LostError: If it is lost, too.
        """
        logger.warning("%s Another process is to take its place.", lost)
        self.cluster.end(self._remote(number))
        try:
            self._remotes |= self.cluster.start([number], self.place, self.threads)
        except LostError:
            raise
        except EngineError as error:
            raise EngineError(f"{lost} It cannot be replaced: {error}") from lost
        self.n_replaced += 1
        if number not in self._makes:
            return None
        described = self.answer(number, self.actor(number).make_env.remote(self._makes[number]), starting=True)
        if number in self.snapshots:
            self.answer(number, self.actor(number).ask.remote("restore", self.snapshot(number)), starting=True)
        return described

    def replace(self, number: int, lost: LostError) -> None:
        """`restart`, and a copy of the learner."""
        self.restart(number, lost)
        self.copy_learner([number])
        self.on_replaced(number)

    def close(self) -> None:
        """Ends all processes; safe to call twice."""
        for remote in self._remotes.values():
            self.cluster.end(remote)
        self._remotes.clear()


class RemotePart:
    """Environments of one of the processes.

    Args:
        roster: The processes.
        number: Which of them.
        is_ahead: Whether it plays a rollout that nobody has asked for yet.
        went_elsewhere: Called when its environments leave where the last rollout ended.
    """

    def __init__(
        self, roster: Roster, number: int, is_ahead: Callable[[], bool], went_elsewhere: Callable[[], None]
    ) -> None:
        self.roster, self.number = roster, number
        self._is_ahead, self._went_elsewhere = is_ahead, went_elsewhere

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        """Begins a method of the process's `Player`; a process that is gone is replaced, and asked again."""
        roster, number = self.roster, self.number
        is_snapshot = name == "call" and args[0] == "snapshot"
        if is_snapshot and self._is_ahead():
            return lambda: roster.snapshot(number)
        if name == "call" and args[0] == "set_task_weights":
            roster.task_weights = args[1]
        if name in ("reset", "restore", "begin_episodes", "step"):
            roster.snapshots.pop(number, None)
            self._went_elsewhere()
        if name == "restore":
            roster.snapshots[number] = args[0]

        def begin() -> Any:
            return roster.actor(number).ask.remote(name, *args, **kwargs)

        reference = begin()

        def answer() -> Any:
            try:
                result = roster.answer(number, reference)
            except LostError as lost:
                if name in ("step", "begin_episodes"):
                    raise  # another process's environments are not where these were
                roster.replace(number, lost)
                result = roster.answer(number, begin())
            if is_snapshot and result is not None:
                roster.snapshots[number] = result
            return result

        return answer

"""Record a scripted expert's demonstrations as a LeRobot dataset: ``libero-vla record``."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from libero_gym.common.atomic import write_bytes
from libero_gym.common.checks import whole_number
from libero_gym.demonstrations import record
from libero_gym.demonstrations.plan import EpisodeKey
from libero_gym.demonstrations.recorder import RecordingJob
from libero_gym.demonstrations.recording import RecordingSummary
from libero_gym.demonstrations.workers import record_episodes
from libero_gym.dimensions import Renderer
from libero_gym.tasks import get_suite
from vla_agent.commands.engines import check_sharing, sharing_engine
from vla_agent.commands.options import ids_or_none, parse_options
from vla_agent.commands.own_tasks import check_states, have_states
from vla_agent.engines import RayEngine


@dataclasses.dataclass
class Options:
    """What to record, and where to. Each field is a command-line option."""

    suite: str = "libero_spatial"  # LIBERO's name of the suite, a BDDL file, or a folder of such
    policy: str = "libero_gym.demonstrations:expert_policy"  # "module:function"; a scripted expert by default
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    cameras: str = "agentview,wrist"  # or some of these, and frontview, birdview, sideview
    image_size: int = 256  # side of the frames in pixels, even
    renderer: Renderer = "exact"  # "exact" draws stock LIBERO's pixels
    action_noise: float = 0.0  # standard deviation of disturbances; the recorded actions are the policy's own
    keep_failures: bool = False  # failed episodes enter the dataset, marked
    seed: int = 0  # seed for everything that is drawn
    n_workers: int = 2  # processes, without an engine
    engine: Literal["local", "ray"] = "local"  # "ray" records in processes of a cluster, here or on many machines
    processes: int = 2  # for "ray": how many record
    address: str = ""  # for "ray": of a cluster that this machine belongs to, such as "auto"; empty starts one here
    out: Path = Path("runs/demonstrations")  # folder of the dataset; the same command goes on or extends it


def main(options: Options) -> None:
    """Record what is missing."""
    whole_number("--n-placements", options.n_placements, minimum=0)
    check_sharing(options)
    if not have_states(get_suite(options.suite).env_id):
        if not options.n_placements:
            check_states(options.suite, "--n-placements", "20")
        if options.init_states == Options.init_states:
            options = dataclasses.replace(options, init_states="")
    with sharing_engine(options) as engine:
        summary = _record(options, None if engine is None else functools.partial(share_episodes, engine))
    print(f"{summary.n_written} of {summary.n_planned} episodes are in {options.out}")


def _record(options: Options, recorder: Callable[..., Iterator[bool]] | None) -> RecordingSummary:
    return record(
        options.out,
        options.suite,
        options.policy,
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--init-states", options.init_states),
        placement_seeds=range(options.n_placements),
        cameras=tuple(filter(None, options.cameras.split(","))),
        image_size=options.image_size,
        renderer=options.renderer,
        action_noise=options.action_noise,
        record_intended=options.action_noise > 0,
        keep_failures=options.keep_failures,
        seed=options.seed,
        n_workers=options.n_workers,
        recorder=recorder,
    )


def share_episodes(engine: RayEngine, job: RecordingJob, keys: list[EpisodeKey]) -> Iterator[bool]:
    """Record episodes in all processes of an engine, and file them here; a recorder for `record`.

    Args:
        engine: The engine.
        job: What every episode has in common.
        keys: The episodes.

    Yields:
        Whether an episode succeeded, in the order in which they end.
    """

    def here(own: Sequence[EpisodeKey]) -> Iterator[tuple[int, tuple[bool, None]]]:
        for position, success in enumerate(record_episodes(job, list(own), n_workers=0)):
            yield position, (success, None)

    for index, (success, content) in engine.map(functools.partial(record_elsewhere, job), keys, here):
        if content is not None:
            write_bytes(job.staging / keys[index].file_name, content)
        yield success


def record_elsewhere(job: RecordingJob, keys: Sequence[EpisodeKey]) -> Iterator[tuple[int, tuple[bool, bytes]]]:
    """Record episodes on a machine that need not see the dataset: whether each succeeded, and its file's content."""
    with tempfile.TemporaryDirectory() as folder:
        own = dataclasses.replace(job, staging=Path(folder))
        for position, success in enumerate(record_episodes(own, list(keys), n_workers=0)):
            path = own.staging / keys[position].file_name
            yield position, (success, path.read_bytes())
            path.unlink()


def command(arguments: Sequence[str]) -> None:
    """``libero-vla record``."""
    main(parse_options(Options, __doc__, arguments))

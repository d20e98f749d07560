"""Record a scripted expert, or a policy with its failures, as a LeRobot dataset: ``libero-vla record``."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from libero_gym.common.atomic import write_bytes
from libero_gym.common.checks import whole_number
from libero_gym.demonstrations import LeRobotReader, record
from libero_gym.demonstrations.plan import EpisodeKey
from libero_gym.demonstrations.recorder import RecordingJob
from libero_gym.demonstrations.recording import RecordingSummary
from libero_gym.demonstrations.workers import record_episodes
from libero_gym.dimensions import Renderer
from libero_gym.tasks import get_suite
from vla_agent.actors.loading import EXPERT as SCRIPTED
from vla_agent.actors.loading import names_actor
from vla_agent.commands.engines import N_PROCESSES, check_sharing, sharing_engine
from vla_agent.commands.options import ids_or_none, parse_options
from vla_agent.commands.own_tasks import check_states, have_states
from vla_agent.engines import RayEngine
from vla_agent.evaluation import StepwisePolicy

EXPERT = "libero_gym.demonstrations:expert_policy"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "module:function"


@dataclasses.dataclass
class Options:
    """What to record, and where to. Each field is a command-line option."""

    suite: str = "libero_spatial"  # LIBERO's name of the suite, a BDDL file, or a folder of such
    policy: str = EXPERT  # a scripted expert; or "module:function"; or what `evaluate` takes as --model or --policy
    sample: bool = False  # draw a model's actions instead of taking the likeliest
    temperature: float | None = None  # with --sample: None for the one of the run's rollouts, and 1 for a checkpoint
    best_of_n: int = 1  # of a model: candidates of each decision, of which the best by --scorer is executed
    scorer: str = "agreement"  # or critic:FOLDER; for --best-of-n
    task_ids: str = ""  # such as "0,3-5"; all tasks of the suite if empty
    init_states: str = "20-49"  # official initial states; keep others for evaluation
    n_placements: int = 0  # further initial states per task, drawn from the BDDL's regions
    episodes_per_state: int = 1  # from each state, with random numbers of their own
    cameras: str = ""  # of agentview, wrist, frontview, birdview, sideview; empty for the model's, or the first two
    image_size: int = 0  # side of the frames in pixels, even; 0 for what the model looks at, or 256
    renderer: Renderer = "exact"  # "exact" draws stock LIBERO's pixels
    action_noise: float = 0.0  # standard deviation of disturbances; the recorded actions are the policy's own
    keep_failures: bool = False  # failed episodes enter the dataset, marked; those of a model always do
    seed: int = 0  # seed for everything that is drawn
    n_workers: int = 2  # processes, without an engine, each with the model; 0 for this one alone, as for one GPU
    device: str = "auto"  # of a model: torch's name, such as "cuda:0"
    engine: Literal["local", "ray"] = "local"  # "ray" records in processes of a cluster, here or on many machines
    processes: int = N_PROCESSES  # for "ray": how many record
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
    policy = policy_of(options)
    with sharing_engine(options) as engine:
        summary = _record(options, policy, None if engine is None else functools.partial(share_episodes, engine))
    print(f"{summary.n_written} of {summary.n_planned} episodes are in {options.out}")
    if isinstance(policy, StepwisePolicy):
        print(describe_outcomes(options.out))


def policy_of(options: Options) -> str | StepwisePolicy:
    """The policy that is meant: the name of a factory, or a model.

    Raises:
        ValueError: If actions of something else than a model are to be drawn.
    """
    if options.policy == SCRIPTED or (_FACTORY.fullmatch(options.policy) and not names_actor(options.policy)):
        if options.sample or options.temperature is not None:
            raise ValueError("--sample and --temperature are for a model's actions; leave them out, or name a model.")
        if options.best_of_n != 1:
            raise ValueError("--best-of-n chooses among a model's actions; leave it out, or name a model.")
        return EXPERT if options.policy == SCRIPTED else options.policy
    return StepwisePolicy(
        options.policy,
        options.sample,
        options.temperature,
        device=options.device,
        best_of_n=options.best_of_n,
        scorer=options.scorer,
    )


def frames_of(options: Options, policy: str | StepwisePolicy) -> tuple[tuple[str, ...], int]:
    """Cameras to record, and the side of their frames in pixels.

    Raises:
        ValueError: If a model would not see the frames that it looks at.
    """
    given = tuple(filter(None, options.cameras.split(",")))
    if isinstance(policy, str):
        return given or ("agentview", "wrist"), options.image_size or 256
    if given and (missing := set(policy.cameras) - set(given)):
        raise ValueError(f"--cameras lacks {', '.join(sorted(missing))}, which '{options.policy}' looks at; add it.")
    if options.image_size not in (0, policy.image_size):
        raise ValueError(
            f"--image-size {options.image_size}, but '{options.policy}' looks at frames of {policy.image_size} pixels; "
            "leave it out."
        )
    return given or policy.cameras, policy.image_size


def describe_outcomes(root: Path) -> str:
    """How many episodes of each task of a dataset succeeded, in lines."""
    counts: dict[str, list[int]] = {}
    for _, episode in LeRobotReader(root, cameras=(), fps=None).enumerate():
        row = counts.setdefault(f"{episode.task_id:3d} {episode.instruction}", [0, 0])
        row[0] += episode.success
        row[1] += 1
    every = [sum(column) for column in zip(*counts.values(), strict=True)]
    lines = [f"{task}: {won} successes, {n - won} failures" for task, (won, n) in sorted(counts.items())]
    return "\n".join([*lines, f"all tasks: {every[0]} successes, {every[1] - every[0]} failures"])


def _record(
    options: Options, policy: str | StepwisePolicy, recorder: Callable[..., Iterator[bool]] | None
) -> RecordingSummary:
    cameras, image_size = frames_of(options, policy)
    return record(
        options.out,
        options.suite,
        policy,
        task_ids=ids_or_none("--task-ids", options.task_ids),
        init_state_ids=ids_or_none("--init-states", options.init_states) or (),
        placement_seeds=range(options.n_placements),
        episodes_per_state=options.episodes_per_state,
        cameras=cameras,
        image_size=image_size,
        renderer=options.renderer,
        action_noise=options.action_noise,
        record_intended=options.action_noise > 0,
        keep_failures=options.keep_failures or isinstance(policy, StepwisePolicy),
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

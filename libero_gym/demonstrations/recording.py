"""Record demonstrations of any policy, in parallel and resumable, as a LeRobot dataset.

    from libero_gym.demonstrations import record
    record("data/spatial", "libero_spatial", "my_policies:make", init_state_ids=range(20), n_workers=8)

Each episode is first written to ``<root>/.recording``, as a whole or not at all. The dataset is assembled from all that
is there, in the order of tasks and states, so that the same plans give the same dataset however often they were
interrupted. A later run needs the folder to continue or extend the plan; it may be removed when the dataset is done. A
script that records with workers needs ``if __name__ == "__main__":``, because each worker is a fresh process that
imports the script.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from libero_gym.common import videos
from libero_gym.common.array_files import unpack
from libero_gym.common.atomic import write_bytes
from libero_gym.common.checks import flag, sequence, whole_number
from libero_gym.common.json_files import read_json
from libero_gym.common.sources import is_within, source_hash
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode
from libero_gym.demonstrations.leftovers import foreign_data
from libero_gym.demonstrations.lerobot_layout import INFO_PATH, require_pyarrow
from libero_gym.demonstrations.lerobot_writer import LeRobotWriter
from libero_gym.demonstrations.plan import EpisodeKey, RecordingOptions, describe_tasks, plan_episodes
from libero_gym.demonstrations.recorder import PolicyFactory, RecordingJob
from libero_gym.demonstrations.workers import record_episodes
from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.env import LiberoEnv, check_task_ids
from libero_gym.equivalence.versions import fidelity, with_fidelity
from libero_gym.rendering import renderer as rendering
from libero_gym.tasks import get_suite, get_tasks

EpisodeRecorder = Callable[[RecordingJob, list[EpisodeKey]], Iterator[bool]]
RECORDING_FOLDER = ".recording"
# The temporary files of `atomic.replacing`, which a killed process leaves behind, for names of `EpisodeKey.file_name`.
_TEMPORARY = re.compile(
    r"\.(task\d{3,}_(init|place)\d{3,}_repeat\d{3,}\.[a-z0-9_]{8}\.npz|options\.[a-z0-9_]{8}\.json)"
)


class RecordingSummary(NamedTuple):
    """Numbers of episodes after a recording.

    Attributes:
        n_planned: Episodes in the plan, those of earlier runs among them.
        n_recorded: Episodes that this run recorded.
        n_resumed: Episodes that earlier runs recorded.
        n_successes: Episodes that ended in success.
        n_written: Episodes in the dataset.
    """

    n_planned: int
    n_recorded: int
    n_resumed: int
    n_successes: int
    n_written: int


def record(
    root: str | Path,
    suite: str,
    policy: str | PolicyFactory,
    *,
    task_ids: int | Sequence[int] | None = None,
    init_state_ids: Iterable[int] | None = None,
    placement_seeds: Iterable[int] = (),
    episodes_per_state: int = 1,
    cameras: Sequence[str] = ("agentview", "wrist"),
    image_size: int = 256,
    renderer: str = "exact",
    settle_steps: int = 10,
    max_steps: int | None = None,
    action_noise: float = 0.0,
    noise_steps: int = 1,
    record_intended: bool = False,
    random_prefix: int = 0,
    random_action_prob: float = 0.0,
    keep_failures: bool = False,
    seed: int = 0,
    crf: int = videos.DATASET_CRF,
    n_workers: int = 1,
    render_device: int | None = None,
    progress_bar: bool = True,
    recorder: EpisodeRecorder | None = None,
) -> RecordingSummary:
    """Record a policy's episodes and write them as a LeRobot dataset. Another call continues or extends the recording.

    Its plan then is what it is asked for together with all that the folder has recorded before.

    Args:
        root: The dataset's folder.
        suite: Name of a registered suite; or a BDDL file, or a folder of such.
        policy: A factory that is called with the environment after each reset and returns the episode's policy: a
            function from an observation to an action (7,), or an object with ``act()`` that reads the environment, and
            perhaps with ``reset()`` and ``done``. A true ``done`` or a StopIteration ends the episode; one that ends
            before its first action has failed, enters no dataset, and is told, once for its task. Workers import
            the factory by a name, ``"module:function"``, or unpickle it. A recording is continued with a factory of the
            same ``name``, an attribute of your own; or else of the same name of its class or function, whose source
            has not changed: its file, or its own lines if it stands in a script. A lambda or a function within a
            function also keeps the values it has taken along; one with values that JSON cannot hold, such as a model,
            is continued only if it has a ``name``.
        task_ids: Tasks to record; None for all.
        init_state_ids: Official initial states of each task; None for all. Evaluations use all 50, so leave some out.
        placement_seeds: Seeds that draw further initial states, with objects anywhere in the BDDL's regions; see
            `libero_gym.compilation.placements`.
        episodes_per_state: Number of episodes from each state, which differ in their random numbers.
        cameras: Cameras to record, names that `LiberoEnv` takes.
        image_size: Side of the frames in pixels, even.
        renderer: ``"exact"`` or ``"fast"``.
        settle_steps: Control steps before the first frame.
        max_steps: Control steps after which an episode has failed; None for the task's limit.
        action_noise: Standard deviation of Gaussian noise on the six motion dimensions of every executed action.
        noise_steps: Control steps for which a draw of the noise holds. Noise that is drawn in each step averages out
            within an action chunk.
        record_intended: Whether to record the policy's own action instead of the executed one, and to leave the random
            prefix out, so that demonstrations show how to come back (DART; Laskey et al., 2017, arXiv 1703.09327).
        random_prefix: Largest number of uniformly random actions with an open gripper that begin an episode; each
            episode draws its own number. Demonstrations then show recoveries.
        random_action_prob: Probability that an action is replaced by a uniformly random one.
        keep_failures: Whether failed episodes enter the dataset; ``libero/success`` and ``next.success`` mark them, and
            their ``next.reward`` is 0 throughout.
        seed: Seed of all random numbers. An episode's numbers depend on the seed and its key, not on workers or order.
        crf: Quality of the videos, see `videos.encode`.
        n_workers: Number of worker processes; 0 records in this process.
        render_device: EGL device index of the workers.
        progress_bar: Whether a bar shows the rate if the output is a terminal.
        recorder: What records the episodes in the place of worker processes here, such as processes on other machines.
            It is given the job and the missing episodes, puts each into the job's staging folder under its file name,
            and yields whether it succeeded.

    Returns:
        How many episodes were recorded, succeeded and are in the dataset.

    Raises:
        ImportError: If pyarrow is missing.
        ValueError: If an option is out of range, or differs from the one that the folder was begun with, or nothing
            tells whether the policy does.
        FileExistsError: If the folder holds a dataset that was not recorded there.
        BlockingIOError: If another process records to this folder.
        RuntimeError: If a policy raises; the message holds its traceback. Complete episodes are kept.
        OSError: If the disk is full. Complete episodes are kept.
    """
    require_pyarrow()
    progress_bar = flag("progress_bar", progress_bar)
    if not isinstance(policy, str) and not callable(policy):
        raise ValueError(f"policy={policy!r}; expected a factory, or its name as 'module:function'.")
    suite = get_suite(suite).name
    task_ids = check_task_ids(task_ids, get_suite(suite).n_tasks, suite)
    keys = plan_episodes(suite, task_ids, init_state_ids, placement_seeds, episodes_per_state)
    options = RecordingOptions(
        suite=suite,
        policy=policy if isinstance(policy, str) else _policy_name(policy),
        cameras=tuple(sequence("cameras", cameras)),
        image_size=rendering.check_image_size(image_size),
        renderer=renderer,
        settle_steps=settle_steps,
        max_steps=_limit_of(suite) if max_steps is None else max_steps,
        action_noise=action_noise,
        noise_steps=noise_steps,
        record_intended=record_intended,
        random_prefix=random_prefix,
        random_action_prob=random_action_prob,
        keep_failures=keep_failures,
        seed=seed,
        crf=crf,
        mujoco=fidelity(),
        tasks=describe_tasks(get_tasks(suite)),
        source=_source(policy),
    )
    n_workers = whole_number("n_workers", n_workers, 0)
    job = RecordingJob(Path(root) / RECORDING_FOLDER, options, policy, render_device, get_suite(suite).loaded())
    recorder = recorder or functools.partial(record_episodes, n_workers=n_workers)
    return _record(Path(root), keys, job, recorder, progress_bar)


def _record(
    root: Path, keys: list[EpisodeKey], job: RecordingJob, recorder: EpisodeRecorder, progress_bar: bool
) -> RecordingSummary:
    """Record the episodes that are missing, and write the dataset."""
    _check_folder(root)
    job.staging.mkdir(parents=True, exist_ok=True)
    with _lock(job.staging):
        staged = set(filter(None, (EpisodeKey.of_file(path.name) for path in job.staging.iterdir())))
        options = job.staging / "options.json"
        if not staged and not (root / INFO_PATH).is_file():  # a first attempt failed, and left nothing but its options
            options.unlink(missing_ok=True)
        _check_same_options(options, job.options)
        keys = sorted({*keys, *staged})
        missing = [key for key in keys if not _is_recorded(job.staging / key.file_name)]
        n_resumed = len(keys) - len(missing)
        with tqdm(
            total=len(keys),
            initial=n_resumed,
            unit="episode",
            desc="recording",
            disable=None if progress_bar else True,
        ) as bar:
            n_successes = 0
            for n_done, success in enumerate(recorder(job, missing), start=1):
                n_successes += success
                bar.set_postfix(success=f"{n_successes / n_done:.0%}", refresh=False)
                bar.update()
        n_successes, n_written = _assemble(root, keys, job.options)
    n_recorded = sum((job.staging / key.file_name).is_file() for key in missing)
    return RecordingSummary(len(keys), n_recorded, n_resumed, n_successes, n_written)


def expert_policy(env: LiberoEnv) -> Any:
    """The scripted expert as a policy for `record`, by the name ``"libero_gym.demonstrations:expert_policy"``."""
    from libero_gym.experts import Expert

    return Expert(env.simulator)


def _assemble(root: Path, keys: list[EpisodeKey], options: RecordingOptions) -> tuple[int, int]:
    """Write the dataset from the staged episodes, and return how many succeeded and how many it holds."""
    n_successes = n_written = 0
    empty: Counter[tuple[str, str]] = Counter()  # by task and reason
    cameras = [IMAGE_KEYS[camera] for camera in options.cameras]
    writer = None  # until there is something to write
    for key in keys:
        path = root / RECORDING_FOLDER / key.file_name
        if not path.is_file():
            continue  # the workers that recorded it died; a warning said so
        try:
            description, arrays = unpack(path, DamagedEpisodeError)
            episode = Episode(state=arrays["state"], actions=arrays["actions"], **description["episode"])
            n_successes += episode.success
            if not len(episode):
                empty[f"Task {key.task_id}, {episode.task_name!r}", description["why_empty"]] += 1
                continue
            if not episode.success and not options.keep_failures:
                continue
            encoded = {name: arrays["video_" + name].tobytes() for name in cameras}
        except (DamagedEpisodeError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is left out: {error}", stacklevel=4)
            continue
        writer = writer or LeRobotWriter(root, cameras=cameras, crf=options.crf, overwrite=True)
        writer.add_encoded(episode, encoded, description["shapes"], description["stats"])
        n_written += 1
    for (task, reason), count in empty.items():
        warnings.warn(f"{task}: {count} of its episodes failed, because {reason}.", stacklevel=4)
    if writer is not None:
        writer.finish()
    else:
        kept = "keeps the dataset of before" if (root / INFO_PATH).is_file() else "holds no dataset"
        warnings.warn(f"None of {len(keys)} episodes succeeded; {root} {kept}.", stacklevel=4)
    return n_successes, n_written


def _is_recorded(path: Path) -> bool:
    """Whether an episode is there and whole; a damaged file is named in a warning and removed."""
    if not path.is_file():
        return False
    try:
        unpack(path, DamagedEpisodeError)
    except DamagedEpisodeError as error:
        warnings.warn(f"{error} It is recorded again.", stacklevel=4)
        path.unlink()
        return False
    return True


def _check_folder(root: Path) -> None:
    """Raise a FileExistsError if a dataset's place in the folder is taken by something that was not recorded there."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file; choose a folder for the dataset.")
    if (root / RECORDING_FOLDER / "options.json").exists():
        return
    if (root / INFO_PATH).exists():
        raise FileExistsError(f"{root} holds a dataset, but not what recorded it ({RECORDING_FOLDER}); choose another.")
    if (other := foreign_data(root)) is not None:
        raise FileExistsError(f"{other} is in the way of a dataset, and was not recorded there; choose another folder.")


def _check_same_options(path: Path, options: RecordingOptions) -> None:
    """Write a new recording's options to a file, or compare a continued one's with its file."""
    now = json.loads(json.dumps(asdict(options)))  # tuples become lists, as in the file
    noted = with_fidelity(read_json(path)) if path.is_file() else {}
    before = (noted or now) | {"tasks": noted.get("tasks", now["tasks"])}  # which earlier versions did not note
    now["source"] = _known_source(path, options, noted)
    if before.get("source") is None:  # nor this
        before["source"] = now["source"]
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        differences = ", ".join(_difference(name, before.get(name), now[name]) for name in changed)
        raise ValueError(
            f"{path.parent.parent} was begun with other options ({differences}); continue with those, or choose "
            "another folder."
        )
    if before != noted:
        write_bytes(path, json.dumps(before, indent=4).encode())


def _known_source(path: Path, options: RecordingOptions, noted: dict[str, Any]) -> str | None:
    """The policy's source; what was noted of it where it has none now.

    Raises:
        ValueError: If a recording has begun with a lambda, or goes on with one, and nothing tells it from another.
    """
    before, told = noted.get("source"), f"Nothing tells the policy {options.policy} from another one of that name, "
    if noted and (before == "" or (before and options.source == "")):
        raise ValueError(
            f"{told}so {path.parent.parent} is not continued; give the function a `name` (policy.name = ...), and "
            "choose another folder."
        )
    if not noted and options.source == "":
        warnings.warn(f"{told}so this recording cannot be continued; give the function a `name`.", stacklevel=5)
        return ""
    return options.source or before


def _difference(name: str, before: Any, now: Any) -> str:
    """How an option has changed, in words; of tasks, which of them."""
    if name == "source":
        return "the source of its policy has changed"
    if name != "tasks":
        return f"{name} {before!r} to {now!r}"
    old, new = (dict(str(task).rsplit(" ", 1) for task in tasks) for tasks in (before, now))
    told = [f"{task!r} is new" for task in new if task not in old]
    told += [f"{task!r} is gone" for task in old if task not in new]
    told += [f"{task!r} is another one" for task in new if old.get(task, new[task]) != new[task]]
    return "its tasks: " + ("; ".join(told) or "their order")


@contextlib.contextmanager
def _lock(staging: Path) -> Iterator[None]:
    """Lock the folder for this process; the system releases the lock when the process ends, in whatever way."""
    with open(staging / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"Another process records to {staging.parent}; wait for it, or end it.") from error
        for leftover in list(staging.iterdir()):
            if _TEMPORARY.fullmatch(leftover.name):  # a killed worker left it
                leftover.unlink(missing_ok=True)
        yield


def _limit_of(suite: str) -> int | None:
    """The limit that all tasks of a suite have; None if each has its own."""
    limits = {task.max_steps for task in get_tasks(suite)}
    return limits.pop() if len(limits) == 1 else None


def _own_name(policy: PolicyFactory) -> str | None:
    """The ``name`` that a policy's author gave it; None if there is none."""
    own = getattr(policy, "name", None)
    return own if isinstance(own, str) else None


def _source(policy: str | PolicyFactory) -> str | None:
    """What the options note of a policy's source, see `RecordingOptions`."""
    if not isinstance(policy, str) and _own_name(policy) is not None:
        return None
    found = source_hash(policy)
    return "" if found is None and not isinstance(policy, str) and is_within(_policy_name(policy)) else found


def _policy_name(policy: PolicyFactory) -> str:
    """The name under which the options note a policy that is given as an object: its own ``name``, if it has one."""
    if (own := _own_name(policy)) is not None:
        return own
    named = getattr(policy, "func", policy)
    return str(getattr(named, "__qualname__", type(named).__qualname__))

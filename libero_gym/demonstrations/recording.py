"""Record demonstrations of any policy, in parallel and resumable, as a LeRobot dataset.

    from libero_gym.demonstrations import record
    record("data/spatial", "libero_spatial", "my_policies:make", init_state_ids=range(20), n_workers=8)

Every episode is first written, whole or not at all, to ``<root>/.recording``; from there the dataset is assembled in
the plan's order, so that the same plan gives the same dataset however often it was interrupted. The folder lets a later
run continue or extend the plan, and may be removed when the dataset is done. Scripts that record with workers need
``if __name__ == "__main__":``, for the workers are spawned.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from libero_gym import videos
from libero_gym.atomic import write_bytes
from libero_gym.checks import flag, sequence, whole_number
from libero_gym.demonstrations.episodes import DamagedEpisodeError, Episode, unpack
from libero_gym.demonstrations.leftovers import foreign_data
from libero_gym.demonstrations.lerobot_layout import INFO_PATH, require_pyarrow
from libero_gym.demonstrations.lerobot_writer import LeRobotWriter
from libero_gym.demonstrations.plan import EpisodeKey, RecordingOptions, plan_episodes
from libero_gym.demonstrations.recorder import PolicyFactory, RecordingJob
from libero_gym.demonstrations.workers import record_episodes
from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.env import LiberoEnv, check_task_ids
from libero_gym.json_files import read_json
from libero_gym.rendering import renderer as rendering
from libero_gym.tasks import get_suite

RECORDING_FOLDER = ".recording"
# What `atomic.replacing` leaves of a killed process, by `EpisodeKey.file_name`.
_TEMPORARY = re.compile(
    r"\.(task\d{3,}_(init|place)\d{3,}_repeat\d{3,}\.[a-z0-9_]{8}\.npz|options\.[a-z0-9_]{8}\.json)"
)


class RecordingSummary(NamedTuple):
    """What came of a plan.

    Attributes:
        n_planned: Episodes in the plan.
        n_recorded: Of those, recorded by this run.
        n_resumed: Recorded by earlier runs.
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
) -> RecordingSummary:
    """Record a policy's episodes, and write them as a LeRobot dataset; call it again to continue or to extend.

    Args:
        root: The dataset's folder.
        suite: LIBERO's name of the suite.
        policy: Called with the environment after each reset, gives the episode's policy: a function from observation
            to action (7,), or an object with ``act()``, and perhaps ``reset()`` and ``done``, for privileged policies;
            ``done`` or a StopIteration ends the episode. As ``"module:function"``, or anything that pickles: the
            workers are fresh processes.
        task_ids: Tasks to record; None for all.
        init_state_ids: Official initial states of each; None for all. Say which you train on: evaluations use all 50.
        placement_seeds: Further initial states, with objects anywhere in the BDDL's regions; see `placements`.
        episodes_per_state: Episodes from each state, which differ in their random numbers.
        cameras: Of ``"agentview"`` and ``"wrist"``.
        image_size: Side of the frames in pixels, even.
        renderer: ``"exact"`` or ``"fast"``.
        settle_steps: Control steps before the first frame.
        max_steps: Control steps after which an episode has failed; None for the suite's limit.
        action_noise: Standard deviation of Gaussian noise on the six motion dimensions of every action. The noisy
            action is executed.
        noise_steps: Control steps for which one draw of the noise holds: i.i.d. noise averages out within a chunk.
        record_intended: Record what the policy asked for, not the noisy action that was executed, and leave out the
            random prefix: demonstrations that show how to come back (DART; Laskey et al., 2017).
        random_prefix: Up to so many uniformly random actions with an open gripper begin each episode (their number is
            drawn too), so that demonstrations show recoveries.
        random_action_prob: Probability that an action is replaced by a uniformly random one.
        keep_failures: Whether failed episodes enter the dataset, marked in ``libero/success`` and ``next.success``.
        seed: Of all random numbers. An episode's depend on this and on its key, not on workers or order.
        crf: Quality of the videos, see `videos.encode`.
        n_workers: Processes; 0 records in this one.
        render_device: EGL device index of the workers.
        progress_bar: Show a bar with the rate, where the output is a terminal.

    Returns:
        What came of it.

    Raises:
        ImportError: If pyarrow is missing.
        ValueError: If an option is out of range, or differs from those that the folder was begun with.
        FileExistsError: If the folder holds a dataset that was not recorded there.
        BlockingIOError: If another process records to this folder.
        RuntimeError: If a policy raises; the message holds its traceback. What was complete is kept.
        OSError: If the disk is full. What was complete is kept.
    """
    require_pyarrow()
    progress_bar = flag("progress_bar", progress_bar)
    if not isinstance(policy, str) and not callable(policy):
        raise ValueError(f"policy={policy!r}; expected a factory, or its name as 'module:function'.")
    n_tasks, default_max_steps = get_suite(suite).n_tasks, get_suite(suite).max_steps
    task_ids = check_task_ids(task_ids, n_tasks, suite)
    keys = plan_episodes(suite, task_ids, init_state_ids, placement_seeds, episodes_per_state)
    options = RecordingOptions(
        suite=suite,
        policy=policy if isinstance(policy, str) else _policy_name(policy),
        cameras=tuple(sequence("cameras", cameras)),
        image_size=rendering.check_image_size(image_size),
        renderer=renderer,
        settle_steps=settle_steps,
        max_steps=default_max_steps if max_steps is None else max_steps,
        action_noise=action_noise,
        noise_steps=noise_steps,
        record_intended=record_intended,
        random_prefix=random_prefix,
        random_action_prob=random_action_prob,
        keep_failures=keep_failures,
        seed=seed,
        crf=crf,
    )
    n_workers = whole_number("n_workers", n_workers, 0)
    job = RecordingJob(Path(root) / RECORDING_FOLDER, options, policy, render_device)
    return _record(Path(root), keys, job, n_workers, progress_bar)


def _record(
    root: Path, keys: list[EpisodeKey], job: RecordingJob, n_workers: int, progress_bar: bool
) -> RecordingSummary:
    """Record the episodes that are missing, and write the dataset."""
    _check_folder(root)
    job.staging.mkdir(parents=True, exist_ok=True)
    with _lock(job.staging):
        _check_same_options(job.staging / "options.json", job.options)
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
            for n_done, success in enumerate(record_episodes(job, missing, n_workers), start=1):
                n_successes += success
                bar.set_postfix(success=f"{n_successes / n_done:.0%}", refresh=False)
                bar.update()
        n_successes, n_written = _assemble(root, keys, job.options)
    n_recorded = sum((job.staging / key.file_name).is_file() for key in missing)
    return RecordingSummary(len(keys), n_recorded, n_resumed, n_successes, n_written)


def expert_policy(env: LiberoEnv) -> Any:
    """The scripted expert as a policy for `record`: ``"libero_gym.demonstrations:expert_policy"``."""
    return importlib.import_module("libero_gym.experts").Expert(env.simulator)


def _assemble(root: Path, keys: list[EpisodeKey], options: RecordingOptions) -> tuple[int, int]:
    """Write the dataset from the staged episodes; gives how many succeeded and how many it holds."""
    n_successes = n_written = 0
    cameras = [IMAGE_KEYS[camera] for camera in options.cameras]
    writer = LeRobotWriter(root, cameras=cameras, crf=options.crf, overwrite=True)
    for key in keys:
        path = root / RECORDING_FOLDER / key.file_name
        if not path.is_file():
            continue  # its workers died; a warning said so
        try:
            description, arrays = unpack(path)
            episode = Episode(state=arrays["state"], actions=arrays["actions"], **description["episode"])
            n_successes += episode.success
            if not episode.success and not options.keep_failures:
                continue
            encoded = {name: arrays["video_" + name].tobytes() for name in writer.cameras}
        except (DamagedEpisodeError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is left out: {error}", stacklevel=4)
            continue
        writer.add_encoded(episode, encoded, description["shapes"], description["stats"])
        n_written += 1
    if n_written:
        writer.finish()
    else:
        warnings.warn(f"None of {len(keys)} episodes succeeded; {root} holds no dataset.", stacklevel=4)
    return n_successes, n_written


def _is_recorded(path: Path) -> bool:
    """Whether an episode is there and whole; a damaged one is named, removed, and recorded again."""
    if not path.is_file():
        return False
    try:
        unpack(path)
    except DamagedEpisodeError as error:
        warnings.warn(f"{error} It is recorded again.", stacklevel=4)
        path.unlink()
        return False
    return True


def _check_folder(root: Path) -> None:
    """Refuse a folder with something where a dataset goes that was not recorded there."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file; choose a folder for the dataset.")
    if (root / RECORDING_FOLDER / "options.json").exists():
        return
    if (root / INFO_PATH).exists():
        raise FileExistsError(f"{root} holds a dataset, but not what recorded it ({RECORDING_FOLDER}); choose another.")
    if (other := foreign_data(root)) is not None:
        raise FileExistsError(f"{other} is in the way of a dataset, and was not recorded there; choose another folder.")


def _check_same_options(path: Path, options: RecordingOptions) -> None:
    """Note a new recording's options, and hold a continued one to its own."""
    now = json.loads(json.dumps(asdict(options)))
    if not path.is_file():
        write_bytes(path, json.dumps(now, indent=4).encode())
        return
    before = read_json(path)
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        differences = ", ".join(f"{name} {before.get(name)!r} to {now[name]!r}" for name in changed)
        raise ValueError(
            f"{path.parent.parent} was begun with other options ({differences}); continue with those, or choose "
            "another folder."
        )


@contextlib.contextmanager
def _lock(staging: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends."""
    with open(staging / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"Another process records to {staging.parent}; wait for it, or end it.") from error
        for leftover in list(staging.iterdir()):
            if _TEMPORARY.fullmatch(leftover.name):  # of a killed worker
                leftover.unlink(missing_ok=True)
        yield


def _policy_name(policy: PolicyFactory) -> str:
    """What the options note of a policy that is an object."""
    named = getattr(policy, "func", policy)
    return str(getattr(named, "__qualname__", type(named).__qualname__))

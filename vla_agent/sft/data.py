"""Demonstrations as training examples: an observation, and the chunk of actions that follows it."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from libero_gym.common.checks import as_path, flag, sequence, whole_number
from libero_gym.common.version import package_versions
from libero_gym.dimensions import ACTION_DIM, CAMERA_KEYS, GRIPPER_DIM, STATE_DIM
from libero_gym.gripper import GripperCommands
from vla_agent.openvla.image import libero_image
from vla_agent.sft.frames import Decoded, checked_frames, read_frames, writing_frames
from vla_agent.sft.outcomes import Outcomes, joined, reward_columns
from vla_agent.sft.tags import Tags, check_tags

# The distributions whose versions decide the pixels of a decoded and resized frame.
_DECODERS = ("imageio-ffmpeg", "numpy", "pillow", "simplejpeg")
MAX_IMAGE_SIZE, MAX_CHUNK_SIZE = 4096, 1024
_HASHED_FRAMES = 256  # at least, of more: all of them may be gigabytes


class Demonstration(Protocol):
    """What is read of an episode with T frames, such as `libero_gym.demonstrations.episodes.Episode`."""

    @property
    def instruction(self) -> str:
        """The words that told the robot what to do."""

    @property
    def state(self) -> np.ndarray:
        """Robot states, float32 (T, 8)."""

    @property
    def actions(self) -> np.ndarray:
        """Actions, float32 (T, 7); +1 closes the gripper."""

    @property
    def images(self) -> dict[str, np.ndarray]:
        """Frames by observation key, uint8 (T, H, W, 3)."""

    @property
    def fps(self) -> int:
        """Frames per second."""


class Examples(NamedTuple):
    """B examples with K actions each.

    Attributes:
        images: uint8 (B, S, S, 3), one array per camera.
        state: Robot states, float32 (B, 8).
        instructions: B texts.
        actions: float32 (B, K, 7), the gripper as OpenVLA has it: 0 closed, 1 open.
        valid: Which actions are learned, bool (B, K).
        keyframe: Where the hand is when the gripper's command next changes, float32 (B, 3), m.
        weight: How much each example counts, float32 (B,), at least 0; None counts all alike.
        tagged: Whose instruction ends with the tag's word, bool (B,); None if the data have no tags.
    """

    images: tuple[np.ndarray, ...]
    state: np.ndarray
    instructions: list[str]
    actions: np.ndarray
    valid: np.ndarray
    keyframe: np.ndarray
    weight: np.ndarray | None = None
    tagged: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """How much each example counts, float32 (B,)."""
        return np.ones(len(self.valid), np.float32) if self.weight is None else np.asarray(self.weight, np.float32)

    def token_weights(self) -> np.ndarray:
        """How much each action token counts, float32 (B, 7 K): the example's weight, 0 if the action is not learned."""
        tokens = np.repeat(self.valid, self.actions.shape[2], axis=1)
        return tokens.astype(np.float32) * self.weights()[:, None]


class Clip(NamedTuple):
    """T frames of an episode that are learned from, without their images.

    Attributes:
        instruction: The episode's words.
        state: Robot states, float32 (T, 8).
        actions: float32 (T, 7), the gripper as OpenVLA has it.
        keyframes: Where the hand is when the gripper's command next changes, float32 (T, 3), m.
        times: Control step of each frame in its episode, int64 (T,).
    """

    instruction: str
    state: np.ndarray
    actions: np.ndarray
    keyframes: np.ndarray
    times: np.ndarray


class ActionChunks:
    """Every frame of some demonstrations with the actions that follow it.

    Frames are decoded once, into a file, and read from there when a batch asks for them, so that memory holds a batch
    and not the demonstrations. The file needs S * S * 3 bytes per frame and camera (6 GB for 1200 episodes of 130
    frames at S = 112). Without ``cache`` it has no name, lies in the folder of temporary files (``TMPDIR``, which some
    systems keep in memory) and ends with the process.

    Args:
        episodes: Demonstrations, such as a `LeRobotReader`; they are read once.
        cameras: Observation keys to keep, in the model's order.
        image_size: Side in pixels that the model takes. Frames of another size are resized as the published evaluation
            does (JPEG, Lanczos).
        chunk_size: Actions per example, K.
        cut_waiting: Leave out frames in which the hand waits before the gripper's command changes; see `moving_frames`.
        pad_chunks: Fill chunks that reach past the episode's end with its last action, as OpenVLA-OFT does. Without,
            those actions are not learned, and an episode's last actions, such as letting go, are learned less often.
            Past the end of an episode that failed nothing is learned in either case.
        progress_bar: Show a bar while episodes are read, on a terminal.
        cache: Folder that keeps the decoded frames. If it holds those of the same ``cache_key``, cameras, size and
            ``cut_waiting``, ``episodes`` are not read; otherwise it is made anew. It may be deleted at any time.
        cache_key: What the caller reads, in its own words, such as a dataset's fingerprint; needed with ``cache``.

    Attributes:
        outcomes: Rewards and ends of the episodes; None if one of them records none.
        weights: How much each frame counts; see `reweigh`.
        tags: Which frames count as well done; see `tag`.

    Raises:
        ValueError: If there are no episodes, an episode lacks a camera, its actions or states have another width or are
            not finite, frame rates differ, or the gripper's commands are of another convention (0 to 1).
        FileExistsError: If ``cache`` is a folder of something else.
        OSError: If the disk cannot hold the frames.

    Warns:
        UserWarning: If the gripper is only ever told to open, or only to close.
    """

    def __init__(
        self,
        episodes: Iterable[Demonstration],
        *,
        cameras: Sequence[str] = CAMERA_KEYS[:1],
        image_size: int,
        chunk_size: int = 1,
        cut_waiting: bool = False,
        pad_chunks: bool = True,
        progress_bar: bool = True,
        cache: str | Path | None = None,
        cache_key: str = "",
    ) -> None:
        self.cut_waiting, self.pad_chunks = flag("cut_waiting", cut_waiting), flag("pad_chunks", pad_chunks)
        self.cameras = _check_cameras(cameras)
        self.image_size = whole_number("image_size", image_size, 1, MAX_IMAGE_SIZE)
        self.chunk_size = whole_number("chunk_size", chunk_size, 1, MAX_CHUNK_SIZE)
        progress_bar = flag("progress_bar", progress_bar)
        if isinstance(episodes, (str, bytes, dict)) or not isinstance(episodes, Iterable):
            raise ValueError(f"episodes={episodes!r}; expected episodes, such as LeRobotReader('data/mine').")
        folder = None if cache is None else as_path("cache", cache)
        if folder is not None and (not isinstance(cache_key, str) or not cache_key):
            raise ValueError(f"cache_key={cache_key!r}; a cache needs words that say what is read, such as a hash.")
        source, shape = self._source(cache_key), (len(self.cameras), self.image_size)
        decoded = None if folder is None else read_frames(folder, source, *shape)
        if decoded is None:
            bar = tqdm(episodes, "reading", unit="episode", disable=None if progress_bar else True)
            decoded = self._decode(bar, folder, source)
        if decoded.description["doubt"]:
            warnings.warn(decoded.description["doubt"], stacklevel=2)
        lengths, self._frames = decoded.table["lengths"], decoded.frames
        self.n_episodes = len(lengths)
        self.episode_ids = np.repeat(np.arange(len(lengths)), lengths)
        self._ends = np.repeat(np.cumsum(lengths), lengths)
        self._instructions: list[str] = decoded.description["instructions"]
        self.state, self.actions, self._keyframes = (decoded.table[name] for name in ("state", "actions", "keyframes"))
        self.outcomes: Outcomes | None = None
        if len(decoded.table["rewards"]):
            told = {name: decoded.table[name] for name in Outcomes._fields if name != "episode_ids"}
            self.outcomes = Outcomes(episode_ids=self.episode_ids, **told)
        padded = np.full(self.n_episodes, self.pad_chunks)
        if self.outcomes is not None:
            padded &= self.outcomes.successes
        self._padded = padded[self.episode_ids]
        self.weights: np.ndarray | None = None
        self.tags: Tags | None = None

    def __len__(self) -> int:
        return len(self.state)

    @property
    def instructions(self) -> list[str]:
        """Every instruction, once, in order of appearance."""
        return list(dict.fromkeys(self._instructions))

    @property
    def instruction_ids(self) -> np.ndarray:
        """Position of each frame's instruction in `instructions`, int64 (n,)."""
        rows = {instruction: row for row, instruction in enumerate(self.instructions)}
        return np.array([rows[instruction] for instruction in self._instructions])[self.episode_ids]

    def __getitem__(self, frames: np.ndarray) -> Examples:
        """Examples that begin at frames, int64 (B,); an IndexError if there is no such frame."""
        frames = checked_frames(frames, len(self))
        steps = frames[:, None] + np.arange(self.chunk_size)
        inside = steps < self._ends[frames, None]
        return Examples(
            images=self._frames[frames],
            state=self.state[frames],
            instructions=[self._instructions[episode] for episode in self.episode_ids[frames]],
            actions=self.actions[np.minimum(steps, self._ends[frames, None] - 1)],
            valid=inside | self._padded[frames, None],
            keyframe=self._keyframes[frames],
            weight=None if self.weights is None else self.weights[frames],
            tagged=None if self.tags is None else self.tags.tagged[frames],
        )

    def reweigh(self, weights: np.ndarray | None) -> None:
        """Say how much each frame counts in the loss, such as an offline learner's exponentiated advantage.

        Args:
            weights: One number of at least 0 per frame, (n,) for n = ``len(self)``; None counts all alike.

        Raises:
            ValueError: If the weights have another shape, are not finite, are negative, or are all 0.
        """
        if weights is not None:
            weights = np.asarray(weights, np.float32)
            if (
                weights.shape != (len(self),)
                or not np.isfinite(weights).all()
                or weights.min() < 0
                or not weights.any()
            ):
                raise ValueError(
                    f"weights of shape {weights.shape}; expected {len(self)} finite numbers of at least 0, one per "
                    "frame, of which some are above 0."
                )
        self.weights = weights

    def tag(self, tags: Tags | None) -> None:
        """Say which frames count as well done, so that a word in their prompts tells them from the others.

        Args:
            tags: The word and its frames; None for no word.

        Raises:
            ValueError: If there is not one flag per frame, or the word is none in lower case.
        """
        if tags is not None:
            check_tags(tags, len(self))
        self.tags = tags

    def fingerprint(self) -> str:
        """SHA-256 of what is learned, in hexadecimal: all but the images, and of these some hundred frames."""
        digest = hashlib.sha256()
        for values in (self.state, self.actions, self._keyframes, self.episode_ids, *(self.outcomes or ())):
            digest.update(np.ascontiguousarray(values).tobytes())
        told = [self._instructions, self.cameras, self.image_size, self.chunk_size, self.pad_chunks]
        digest.update(json.dumps(told).encode())
        for frame in range(0, len(self), max(1, len(self) // _HASHED_FRAMES)):
            for image in self._frames[np.array([frame])]:
                digest.update(image.tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, Any]:
        """Statistics as a checkpoint's ``norm_stats`` keep them: of actions and of states ("proprio")."""
        return {
            "action": _describe(self.actions) | {"mask": [True] * GRIPPER_DIM + [False]},
            "proprio": _describe(self.state) | {"mask": [True] * STATE_DIM},
            "num_transitions": len(self),
            "num_trajectories": self.n_episodes,
        }

    def _source(self, cache_key: str) -> dict[str, Any]:
        """What decides the decoded frames."""
        return {
            "cache_key": cache_key,
            "cameras": list(self.cameras),
            "image_size": self.image_size,
            "cut_waiting": self.cut_waiting,
            "versions": package_versions(_DECODERS),
        }

    def _decode(self, episodes: Iterable[Demonstration], cache: Path | None, source: dict[str, Any]) -> Decoded:
        """Read the episodes, and write their frames into a file."""
        clips: list[Clip] = []
        columns: list[dict[str, np.ndarray]] = []
        fps: dict[float, str] = {}
        gripper = GripperCommands()
        with writing_frames(cache, len(self.cameras), self.image_size) as writer:
            for index, episode in enumerate(episodes):
                if not all(hasattr(episode, part) for part in ("instruction", "state", "actions", "images", "fps")):
                    raise ValueError(f"Episode {index} is a {type(episode).__name__}; expected an `Episode`.")
                name = f"Episode {index} ('{episode.instruction}')"
                _check(episode, self.cameras, name)
                fps.setdefault(episode.fps, name)
                gripper |= GripperCommands.of(episode.actions[:, GRIPPER_DIM])
                clip, images = self._read(episode)
                clips.append(clip)
                columns.append(_rewards(episode, name))
                writer.add(images)
            if not clips:
                raise ValueError(
                    "There are no demonstrations to learn from: the dataset is empty, or all were skipped."
                )
            if len(fps) > 1:
                rates = ", ".join(f"{name} has {rate}" for rate, name in fps.items())
                raise ValueError(
                    f"The demonstrations mix frame rates ({rates} frames per second); train on one at a time."
                )
            if gripper.fault:
                raise ValueError(f"These demonstrations cannot be learned from. {gripper.fault}")
            table = {name: np.concatenate([getattr(clip, name) for clip in clips]) for name in Clip._fields[1:]}
            table["lengths"] = np.array([len(clip.state) for clip in clips])
            table |= {"durations": np.array([len(column["rewards"]) for column in columns]), **joined(columns)}
            description = {"instructions": [clip.instruction for clip in clips], "doubt": gripper.doubt}
            return writer.finish(source | description, table)

    def _read(self, episode: Demonstration) -> tuple[Clip, list[np.ndarray]]:
        """An episode as examples, and their images by camera."""
        actions = np.array(episode.actions, dtype=np.float32)
        commands = np.sign(actions[:, GRIPPER_DIM])
        actions[:, GRIPPER_DIM] = commands < 0
        state = np.asarray(episode.state, dtype=np.float32)
        kept = moving_frames(state, commands) if self.cut_waiting else np.ones(len(state), dtype=bool)
        images = [np.asarray(episode.images[key])[kept] for key in self.cameras]
        size = self.image_size
        keyframes, times = next_gripper_change(state, commands), np.flatnonzero(kept)
        return Clip(episode.instruction, state[kept], actions[kept], keyframes[kept], times), [
            frames if frames.shape[1:3] == (size, size) else libero_image(frames, rotate=False, size=size)
            for frames in images
        ]


def next_gripper_change(state: np.ndarray, commands: np.ndarray) -> np.ndarray:
    """Position of the hand when the gripper's command next changes, or else at the end, float32 (T, 3), m.

    Args:
        state: Robot states (T, 8), end-effector position first.
        commands: Sign of the gripper's command (T,).
    """
    changes = [*np.flatnonzero(commands[1:] != commands[:-1]) + 1, len(commands) - 1]
    following = np.searchsorted(changes, np.arange(len(commands)), side="left")
    return state[np.asarray(changes)[following], :3].astype(np.float32)


def moving_frames(state: np.ndarray, commands: np.ndarray, reach_xy: float = 0.02, reach_z: float = 0.01) -> np.ndarray:
    """Which frames to keep so that the hand does not wait before the gripper's command changes, bool (T,).

    A scripted expert settles to the millimetre before it closes the hand. A policy that sees one frame at a time would
    learn to wait there and then wait for ever. The first frame near the place of the change is kept; the frames between
    it and the change are left out.

    Args:
        state: Robot states (T, 8), end-effector position first.
        commands: Sign of the gripper's command (T,).
        reach_xy: Largest distance in the plane that counts as near, m.
        reach_z: Largest distance in height that counts as near, m.
    """
    kept = np.ones(len(commands), dtype=bool)
    start = 0
    for change in np.flatnonzero(commands[1:] != commands[:-1]) + 1:
        away = state[start:change, :3] - state[change, :3]
        there = (np.linalg.norm(away[:, :2], axis=1) < reach_xy) & (np.abs(away[:, 2]) < reach_z)
        kept[start + np.append(np.flatnonzero(there), change - start)[0] + 1 : change] = False
        start = int(change)
    return kept


def normalize_position(position: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Positions (B, 3) in m as multiples of their standard deviation around their mean, float32.

    Args:
        position: Positions of the hand.
        stats: The `proprio` entry of a checkpoint's `norm_stats`; its first three dimensions are the hand's position.
    """
    return ((position - stats["mean"][:3]) / (np.asarray(stats["std"][:3]) + 1e-8)).astype(np.float32)


def _check_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    names = tuple(sequence("cameras", cameras))
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"cameras={cameras!r}; expected observation keys, such as {CAMERA_KEYS[:1]}, each once.")
    return names


def _check(episode: Demonstration, cameras: Sequence[str], name: str) -> None:
    for array, width, what in ((episode.actions, ACTION_DIM, "actions"), (episode.state, STATE_DIM, "states")):
        if array.ndim != 2 or array.shape[1] != width or len(array) != len(episode.actions) or not len(array):
            expected = f"({len(episode.actions) or 'at least 1'}, {width})"
            raise ValueError(f"{name} has {what} of shape {array.shape}; expected {expected}, a row for each action.")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity in its {what}; repair or remove it.")
    for key in cameras:
        if key not in episode.images:
            found = ", ".join(map(repr, episode.images)) or "none"
            raise ValueError(f"{name} has no frames of {key!r}, which the model reads; it has {found}.")
        frames = np.asarray(episode.images[key])
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != len(episode.actions):
            raise ValueError(
                f"{name} has frames of {key!r} as {frames.dtype} {frames.shape}; expected uint8 "
                f"({len(episode.actions)}, H, W, 3)."
            )


def _rewards(episode: Demonstration, name: str) -> dict[str, np.ndarray]:
    try:
        return reward_columns(episode)
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from error


def _describe(values: np.ndarray) -> dict[str, list[float]]:
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    columns = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
    return {name: [float(x) for x in column] for name, column in (columns | {"q01": q01, "q99": q99}).items()}

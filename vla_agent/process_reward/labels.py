"""Training examples for process reward models: frames of episodes, each with an instruction and a target in [0, 1].

What is positive are keyframes of demonstrations, as in VLA-RL (arXiv 2505.18719); the paper does not say what is
negative. Here that is a keyframe under another instruction, a frame from before the demonstration's first keyframe and
first grasp, and a frame of a failed episode in which it can be seen to have failed: behind the last one in which the
hand held something, and the last of all. While it holds something a failure may be on its way as a success is; such
frames are no labels, and are there to be reported on. Frames between keyframes are neither positive nor negative; they
show how the target rises. It rises with time, and jumps at the first keyframe: how long the way to a grasp is says
little, that it is done says much.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from libero_gym.checks import real_number, whole_number
from libero_gym.gripper import FINGERS, gripper_opening
from vla_agent.figures import new_figure, save_figure

# What an example is: positive, negative, neither, or a failure's that holds something still.
KINDS = ("keyframe", "before", "other instruction", "failure", "between", "holding failure")
POSITIVE, NEGATIVE, HOLDING = KINDS[:1], KINDS[1:4], KINDS[5]
# A frame is "before" a keyframe if so much time lies between them: nearer ones look alike.
BEFORE_MARGIN = 0.25  # s
# A gripper that has closed this far from where it was at first is closing, or closed.
CLOSED_BY = 0.01  # m
# It holds something if its fingers stay apart by more than what is left when they close on nothing, and so much time
# goes by in which they hardly move from frame to frame: a policy that is lost opens and closes them again and again.
EMPTY, STEADY = 0.003, 0.003  # m
HELD_FOR = 0.8  # s


class Recorded(Protocol):
    """What is read of an episode; `libero_gym.demonstrations.episodes.Episode` is one."""

    instruction: str
    state: np.ndarray  # float32 (T, 8), the last two the finger joints in m
    images: dict[str, np.ndarray]  # uint8 (T, H, W, 3) by observation key
    success: bool
    fps: float


KeyframeFinder = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Examples:
    """n labelled frames.

    Attributes:
        images: uint8 (n, H, W, 3).
        instructions: What each is asked about.
        told: What its episode was told.
        targets: float32 (n,), how much of the instruction is done: of a demonstration with T frames, frame t has
            t / (T - 1), and half of that before the first keyframe; frames of failures and under another instruction
            have 0.
        kinds: Index into `KINDS`, int64 (n,).
        episodes: Which episode each is from, int64 (n,).
    """

    images: np.ndarray
    instructions: list[str]
    told: list[str]
    targets: np.ndarray
    kinds: np.ndarray
    episodes: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def positive(self) -> np.ndarray:
        """Whether each is a keyframe, bool (n,)."""
        return self.of_kinds(POSITIVE)

    @property
    def negative(self) -> np.ndarray:
        """Whether each counts against a keyframe, bool (n,)."""
        return self.of_kinds(NEGATIVE)

    def of_kinds(self, kinds: Sequence[str]) -> np.ndarray:
        """Whether each is of one of some `KINDS`, bool (n,)."""
        return np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])

    def take(self, indices: np.ndarray) -> Examples:
        """Those examples, in that order."""
        chosen = np.arange(len(self))[indices]
        instructions, told = ([texts[index] for index in chosen] for texts in (self.instructions, self.told))
        arrays = (array[chosen] for array in (self.targets, self.kinds, self.episodes))
        return Examples(self.images[chosen], instructions, told, *arrays)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {kind: int(np.sum(self.kinds == index)) for index, kind in enumerate(KINDS)}


def label_episodes(
    episodes: Iterable[Recorded],
    keyframes: KeyframeFinder,
    *,
    camera: str = "image",
    n_between: int = 2,
    n_negatives: int = 1,
    n_holding: int = 0,
    seed: int = 0,
) -> Examples:
    """Examples with so many negatives per keyframe, in equal parts of each kind, as far as the episodes can give them.

    Args:
        episodes: Demonstrations, and failed episodes, which need not be expert's.
        keyframes: An episode's frames to label positive, increasing, such as those of
            `libero_gym.demonstrations.segments.segment_episode`. The last frame of a demonstration is always one.
        camera: Observation key of the frames.
        n_between: Frames between keyframes, per keyframe.
        n_negatives: Negatives per keyframe; 1 balances them.
        n_holding: Frames per keyframe of failures that hold something; to report on, not to learn from.
        seed: Of which frames and instructions become examples.

    Raises:
        ValueError: If an episode lacks the camera, no demonstration is among them, or a count is no whole number.
    """
    counts = {"n_between": n_between, "n_negatives": n_negatives, "n_holding": n_holding, "seed": seed}
    for name, value in counts.items():
        whole_number(name, value, 0)
    rng = np.random.default_rng(seed)
    rows: dict[str, list[_Row]] = {kind: [] for kind in KINDS}
    for index, episode in enumerate(episodes):
        frames, told = _frames(episode, camera, index), episode.instruction
        targets = np.zeros(len(frames))
        if episode.success:
            targets = np.arange(len(frames)) / max(len(frames) - 1, 1)
            found = _positive_frames(episode, keyframes)
            targets[: found[0]] /= 2
            others = [t for t in range(found[0], len(frames)) if t not in found]
            first = min(found[0], _first_closed(episode.state))
            chosen = {
                "keyframe": found,
                "before": range(max(first - math.ceil(BEFORE_MARGIN * episode.fps), 0)),
                "between": rng.permutation(others)[: n_between * len(found)],
            }
        else:
            lost = _lost_for_good(episode)
            chosen = {"failure": range(lost, len(frames)), HOLDING: range(_first_closed(episode.state), lost)}
        for kind, times in chosen.items():
            rows[kind] += [_Row(frames[t], told, told, targets[t], kind, index) for t in times]
    positives = rows["keyframe"]
    if not positives:
        raise ValueError("None of the episodes succeeded; process rewards are learned from demonstrations that did.")
    instructions = sorted({row.instruction for row in positives})
    if len(instructions) > 1:
        rows["other instruction"] = [_asked_otherwise(row, instructions, rng) for row in positives]
    pools = [rows[kind] for kind in NEGATIVE if rows[kind]]
    wanted = [(pool, n_negatives * len(positives) // len(pools)) for pool in pools]
    examples = [*positives, *rows["between"]]
    for pool, number in [*wanted, (rows[HOLDING], n_holding * len(positives))]:
        examples += [pool[index] for index in rng.permutation(len(pool))[:number]]
    return _to_examples(examples)


def grasps(episode: Recorded) -> np.ndarray:
    """Frames at which the hand begins to hold something, int64 (n,).

    Finds keyframes of episodes that show one frame a chunk of actions, too few for the rests of the hand.
    """
    return np.array([hold[0] for hold in _holds(episode)], dtype=np.int64)


def split_by_episode(examples: Examples, share: float, seed: int = 0) -> tuple[Examples, Examples]:
    """Two parts without a common episode, the second with about that share of each instruction's episodes.

    Args:
        examples: Of `label_episodes`.
        share: In (0, 1).
        seed: Of which episodes go where.

    Raises:
        ValueError: If one part would be empty, or an argument is none.
    """
    share, seed = real_number("share", share, 0, 1), whole_number("seed", seed, 0)
    rng = np.random.default_rng(seed)
    told = np.array(examples.told)
    held_out: set[int] = set()
    for instruction in sorted(set(examples.told)):
        episodes = np.unique(examples.episodes[told == instruction])
        held_out |= set(rng.permutation(episodes)[: round(share * len(episodes))].tolist())
    second = np.isin(examples.episodes, sorted(held_out))
    if second.all() or not second.any():
        raise ValueError(f"share={share} of {len(np.unique(examples.episodes))} episodes leaves one part empty.")
    return examples.take(np.flatnonzero(~second)), examples.take(np.flatnonzero(second))


def contact_sheet(examples: Examples, path: str | Path, *, per_kind: int = 8, seed: int = 0) -> None:
    """Draw some examples of each kind with instruction and target; the path's suffix chooses the format."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, n in examples.counts().items() if n]
    figure = new_figure(1.9 * per_kind, 2.5 * len(kinds))
    for kind, panels in zip(kinds, figure.subplots(len(kinds), per_kind, squeeze=False), strict=True):
        shown = rng.permutation(np.flatnonzero(examples.of_kinds([kind])))[:per_kind]
        for panel in panels:
            panel.axis("off")
        for panel, index in zip(panels, shown, strict=False):
            panel.imshow(examples.images[index])
            words = "\n".join(textwrap.wrap(examples.instructions[index], 30))
            panel.set_title(f"{kind}, {examples.targets[index]:.2f}\n{words}", fontsize=6)
    save_figure(figure, path)


class _Row(NamedTuple):
    image: np.ndarray
    instruction: str
    told: str
    target: float
    kind: str
    episode: int


def _to_examples(rows: list[_Row]) -> Examples:
    return Examples(
        np.stack([row.image for row in rows]),
        [row.instruction for row in rows],
        [row.told for row in rows],
        np.array([row.target for row in rows], dtype=np.float32),
        np.array([KINDS.index(row.kind) for row in rows]),
        np.array([row.episode for row in rows]),
    )


def _frames(episode: Recorded, camera: str, index: int) -> np.ndarray:
    if camera not in episode.images:
        raise ValueError(
            f"Episode {index} ('{episode.instruction}') has no camera '{camera}'; it has {', '.join(episode.images)}."
        )
    return episode.images[camera]


def _positive_frames(episode: Recorded, keyframes: KeyframeFinder) -> list[int]:
    """The keyframes and the last frame: the goal holds right after it, which ends the episode."""
    return sorted({*map(int, keyframes(episode)), len(episode.state) - 1})


def _first_closed(state: np.ndarray) -> int:
    """The first frame at which the gripper has closed by `CLOSED_BY`, or the number of frames."""
    closed = np.flatnonzero(_closed(state))
    return int(closed[0]) if len(closed) else len(state)


def _lost_for_good(episode: Recorded) -> int:
    """The frame behind the hand's last hold; without any, that of its first closing; the last frame at most."""
    holds = _holds(episode)
    lost = int(holds[-1][-1]) + 1 if holds else _first_closed(episode.state)
    return min(lost, len(episode.state) - 1)


def _holds(episode: Recorded) -> list[np.ndarray]:
    """Runs of frames in which the hand holds something."""
    opening = gripper_opening(episode.state[:, FINGERS])
    frames = np.flatnonzero(_closed(episode.state) & (opening > EMPTY))
    breaks = (np.diff(frames) > 1) | (np.abs(np.diff(opening[frames])) > STEADY)
    runs = np.split(frames, np.flatnonzero(breaks) + 1)
    return [run for run in runs if len(run) > HELD_FOR * episode.fps]


def _closed(state: np.ndarray) -> np.ndarray:
    """Whether the gripper has closed by `CLOSED_BY` since the first frame, bool (T,)."""
    opening = gripper_opening(state[:, FINGERS])
    return np.asarray(opening < opening[0] - CLOSED_BY)


def _asked_otherwise(row: _Row, instructions: Sequence[str], rng: np.random.Generator) -> _Row:
    """The same frame under another instruction, of which nothing is done."""
    others = [instruction for instruction in instructions if instruction != row.instruction]
    return row._replace(instruction=str(rng.choice(others)), target=0.0, kind="other instruction")

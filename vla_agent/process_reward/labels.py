"""Training examples for process reward models: frames of episodes, each with an instruction and a target in [0, 1].

Positives are keyframes of demonstrations, as in VLA-RL (arXiv 2505.18719). The paper does not say which frames are
negatives; here there are three kinds:

* a keyframe under another instruction;
* a frame from before the demonstration's first keyframe and first grasp;
* a frame of a failed episode that shows the failure: one after the hand last held something, or the last frame.

A failed episode may look like a success while the hand still holds something. Those frames are neither positive nor
negative and are only reported on. Frames between keyframes are neither, too, but they are learned: they show how the
target rises. It rises with time and jumps at the first keyframe, because the time that the way to a grasp takes says
little about the task, and the grasp says much.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from libero_gym.common.checks import real_number, whole_number
from libero_gym.gripper import FINGERS, gripper_opening
from vla_agent.common.figures import new_figure, save_figure

# Kinds of examples: one positive, three negative, one in between, and failures in which the hand still holds something.
KINDS = ("keyframe", "before", "other instruction", "failure", "between", "holding failure")
POSITIVE, NEGATIVE, HOLDING = KINDS[:1], KINDS[1:4], KINDS[5]
# A frame counts as "before" a keyframe if at least so much time lies between them: nearer frames look alike.
BEFORE_MARGIN = 0.25  # s
# A gripper that has closed by this much since the first frame is closing or closed.
CLOSED_BY = 0.01  # m
# The hand holds something if its fingers stay apart by more than EMPTY, which is left when they close on nothing, and
# move by at most STEADY from frame to frame for more than HELD_FOR: a lost policy opens and closes them repeatedly.
EMPTY, STEADY = 0.003, 0.003  # m
HELD_FOR = 0.8  # s


class Recorded(Protocol):
    """What is read of an episode with T frames, such as `libero_gym.demonstrations.episodes.Episode`."""

    @property
    def instruction(self) -> str:
        """Instruction that the expert or the policy was given."""

    @property
    def state(self) -> np.ndarray:
        """Robot states, float32 (T, 8); the last two numbers are the finger joints in m."""

    @property
    def images(self) -> dict[str, np.ndarray]:
        """Frames, uint8 (T, H, W, 3), by observation key."""

    @property
    def success(self) -> bool:
        """Whether the goal held at the end."""

    @property
    def fps(self) -> float:
        """Frames per second of the simulator's time."""


KeyframeFinder = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class LabelledFrames:
    """n labelled frames.

    Attributes:
        images: uint8 (n, H, W, 3).
        instructions: Instruction that each frame is asked about.
        told: Instruction that the policy or the expert was given in each frame's episode.
        targets: How much of the instruction is done, float32 (n,). Frame t of a demonstration with T frames has
            t / (T - 1), and half of that before the first keyframe; frames of failures and frames under another
            instruction have 0.
        kinds: Index into `KINDS`, int64 (n,).
        episodes: Index of each frame's episode, int64 (n,).
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
        """Whether each frame is a keyframe, bool (n,)."""
        return self.of_kinds(POSITIVE)

    @property
    def negative(self) -> np.ndarray:
        """Whether each frame is a negative, bool (n,)."""
        return self.of_kinds(NEGATIVE)

    def of_kinds(self, kinds: Sequence[str]) -> np.ndarray:
        """Whether each frame is of one of these `KINDS`, bool (n,)."""
        return np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])

    def take(self, indices: np.ndarray) -> LabelledFrames:
        """The frames at these indices, in this order."""
        chosen = np.arange(len(self))[indices]
        instructions, told = ([texts[index] for index in chosen] for texts in (self.instructions, self.told))
        arrays = (array[chosen] for array in (self.targets, self.kinds, self.episodes))
        return LabelledFrames(self.images[chosen], instructions, told, *arrays)

    def counts(self) -> dict[str, int]:
        """Number of frames of each kind."""
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
) -> LabelledFrames:
    """Label frames of episodes, and draw as many of each kind as are asked for.

    Every keyframe becomes an example. The negatives are drawn in equal parts from their kinds; the first kinds give one
    more if the number cannot be divided, and the others give more if a kind has too few.

    Args:
        episodes: Demonstrations, and failed episodes, which may be a policy's.
        keyframes: Gives an episode's positive frames, increasing, such as those of
            `libero_gym.demonstrations.segments.segment_episode`. The last frame of a demonstration is always one.
        camera: Observation key of the frames.
        n_between: Frames between keyframes, per keyframe.
        n_negatives: Negatives per keyframe; 1 balances them.
        n_holding: Frames of failures in which the hand holds something, per keyframe; to report on, not to learn from.
        seed: Seed for the choice of frames and instructions.

    Raises:
        ValueError: If an episode lacks the camera, no demonstration is among them, or a count is no whole number.
    """
    counts = {"n_between": n_between, "n_negatives": n_negatives, "n_holding": n_holding, "seed": seed}
    for name, value in counts.items():
        whole_number(name, value, 0)
    rng = np.random.default_rng(seed)
    rows: dict[str, list[_Row]] = {kind: [] for kind in KINDS}
    for index, episode in enumerate(episodes):
        for row in _label_episode(index, episode, keyframes, camera, n_between, rng):
            rows[row.kind].append(row)
    positives = rows["keyframe"]
    if not positives:
        raise ValueError("None of the episodes succeeded; process rewards are learned from demonstrations that did.")
    instructions = sorted({row.instruction for row in positives})
    if len(instructions) > 1:
        rows["other instruction"] = [_asked_otherwise(row, instructions, rng) for row in positives]
    pools = [rows[kind] for kind in NEGATIVE if rows[kind]]
    numbers = _equal_parts(n_negatives * len(positives), [len(pool) for pool in pools])
    wanted = [*zip(pools, numbers, strict=True), (rows[HOLDING], n_holding * len(positives))]
    chosen = [*positives, *rows["between"]]
    for pool, number in wanted:
        chosen += [pool[index] for index in rng.permutation(len(pool))[:number]]
    return _stack(chosen)


def grasps(episode: Recorded) -> np.ndarray:
    """Frames at which the hand begins to hold something, int64 (n,).

    These serve as keyframes of a policy's episodes. Such episodes have one frame per chunk of actions, which is too few
    to find the moments at which the hand rests.
    """
    return np.array([hold[0] for hold in _holds(episode)], dtype=np.int64)


def split_by_episode(examples: LabelledFrames, share: float, seed: int = 0) -> tuple[LabelledFrames, LabelledFrames]:
    """Two parts without a common episode.

    Args:
        examples: Examples of `label_episodes`.
        share: About this share of each instruction's episodes goes into the second part, in (0, 1).
        seed: Seed for which episodes go where.

    Raises:
        ValueError: If one part would be empty, or an argument has another type or is out of range.
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


def contact_sheet(examples: LabelledFrames, path: str | Path, *, per_kind: int = 8, seed: int = 0) -> None:
    """Draw some examples of each kind with instruction and target; the path's suffix chooses the format."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, n in examples.counts().items() if n]
    figure, rows = new_figure(1.9 * per_kind, 2.5 * len(kinds), len(kinds), per_kind)
    for kind, panels in zip(kinds, rows, strict=True):
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


def _stack(rows: list[_Row]) -> LabelledFrames:
    return LabelledFrames(
        np.stack([row.image for row in rows]),
        [row.instruction for row in rows],
        [row.told for row in rows],
        np.array([row.target for row in rows], dtype=np.float32),
        np.array([KINDS.index(row.kind) for row in rows]),
        np.array([row.episode for row in rows]),
    )


def _label_episode(
    index: int, episode: Recorded, keyframes: KeyframeFinder, camera: str, n_between: int, rng: np.random.Generator
) -> list[_Row]:
    """Labelled frames of one episode under its own instruction, in the order of their kinds."""
    frames = _frames(episode, camera, index)
    if episode.success:
        targets, chosen = _label_success(episode, len(frames), _positive_frames(episode, keyframes), n_between, rng)
    else:
        targets, lost = np.zeros(len(frames)), _lost_for_good(episode)
        chosen = {"failure": range(lost, len(frames)), HOLDING: range(_first_closed(episode.state), lost)}
    told = episode.instruction
    return [_Row(frames[t], told, told, targets[t], kind, index) for kind, times in chosen.items() for t in times]


def _label_success(
    episode: Recorded, n_frames: int, found: list[int], n_between: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Iterable[int]]]:
    """Targets of a demonstration's frames, float64 (T,), and the chosen frames of each kind."""
    targets = np.arange(n_frames) / max(n_frames - 1, 1)
    targets[: found[0]] /= 2
    others = [t for t in range(found[0], n_frames) if t not in found]
    first = min(found[0], _first_closed(episode.state))
    return targets, {
        "keyframe": found,
        "before": range(max(first - math.ceil(BEFORE_MARGIN * episode.fps), 0)),
        "between": rng.permutation(others)[: n_between * len(found)],
    }


def _equal_parts(total: int, sizes: Sequence[int]) -> list[int]:
    """A number in parts that differ as little as the sizes, which they may not exceed, let them."""
    parts = [0] * len(sizes)
    while growing := [i for i, size in enumerate(sizes) if parts[i] < size][:total]:
        for i in growing:
            parts[i] += 1
        total -= len(growing)
    return parts


def _frames(episode: Recorded, camera: str, index: int) -> np.ndarray:
    if camera not in episode.images:
        raise ValueError(
            f"Episode {index} ('{episode.instruction}') has no camera '{camera}'; it has {', '.join(episode.images)}."
        )
    return episode.images[camera]


def _positive_frames(episode: Recorded, keyframes: KeyframeFinder) -> list[int]:
    """The keyframes and the last frame, right after which the goal holds and the episode ends."""
    return sorted({*map(int, keyframes(episode)), len(episode.state) - 1})


def _first_closed(state: np.ndarray) -> int:
    """The first frame at which the gripper has closed by `CLOSED_BY`, or the number of frames."""
    closed = np.flatnonzero(_closed(state))
    return int(closed[0]) if len(closed) else len(state)


def _lost_for_good(episode: Recorded) -> int:
    """The frame after the hand's last hold, or that of its first closing if it never held; at most the last frame."""
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
    """The same frame asked about another instruction, of which nothing is done."""
    others = [instruction for instruction in instructions if instruction != row.instruction]
    return row._replace(instruction=str(rng.choice(others)), target=0.0, kind="other instruction")

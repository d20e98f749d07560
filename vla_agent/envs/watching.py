"""Episodes for people to look at: every frame, action, reward term and score, played here or read from a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from libero_gym.common.checks import whole_number
from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, IMAGE_KEYS, Physics, Renderer
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.suites import describe_suite
from vla_agent.process_reward.interface import check_camera, checked_scores

MAX_STEPS = 5000  # control steps of an episode to look at: its frames are in memory, and then in one page
SCORED = 16  # frames that a reward model scores at once
# Decides the next action, (7,) or None to end the episode, in an environment that was reset.
Act = Callable[[], "np.ndarray | None"]

_MOTION = {"position": ("x", "y", "z"), "rotation": ("rx", "ry", "rz"), "gripper": ("gripper",)}


@dataclass(frozen=True)
class WatchedEpisode:
    """What is shown of an episode of T actions, in n frames: T + 1 where it was played, T where it was recorded.

    Attributes:
        instruction: What the robot was told.
        success: Whether the goal held at the end.
        fps: Frames per second of simulated time.
        frames: By the observation's key, uint8 (n, H, W, 3).
        plots: By a plot's name, its lines by their names, each (n,): one value per frame, NaN where there is none.
        facts: Where the episode comes from, in words by what they are.
    """

    instruction: str
    success: bool
    fps: float
    frames: dict[str, np.ndarray]
    plots: dict[str, dict[str, np.ndarray]]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        """Number of frames, n."""
        return len(next(iter(self.frames.values())))


def watch(
    env_id: str,
    start: EpisodeStart,
    choose: Callable[[Any], Act],
    *,
    cameras: Sequence[str] = ("agentview", "wrist"),
    image_size: int = 256,
    renderer: Renderer = "exact",
    physics: Physics = "exact",
    settle_steps: int = 10,
    max_steps: int | None = None,
    scorer: Any = None,
    seed: int = 0,
) -> WatchedEpisode:
    """Play an episode, and note everything at every control step.

    Args:
        env_id: Id of the environment, a BDDL file, or a folder of such.
        start: Where it begins; what is None there is drawn from ``seed``.
        choose: A function from the environment (`LiberoEnv`), after its reset, to what decides the actions.
        cameras: Names of the cameras; at least one.
        image_size: Side of the frames in pixels, even.
        renderer: "exact" or "fast".
        physics: "exact", or the one that an evaluation was run in.
        settle_steps: Control steps before the first frame.
        max_steps: Control steps at which the episode ends; None for the task's limit.
        scorer: A process reward model, whose scores of its camera's frames are shown; None for none.
        seed: Seed of the environment.

    Raises:
        ValueError: If an argument is out of range, or the id is unknown.
        RewardModelError: If the scorer looks at a camera that LIBERO lacks, or gives something else than scores.
    """
    from libero_gym.env import LiberoEnv
    from libero_gym.rendering import check_image_size

    image_size = check_image_size(image_size)
    suite = describe_suite(env_id)
    limit = whole_number("max_steps", MAX_STEPS if max_steps is None else max_steps, 1, MAX_STEPS)
    if not cameras or image_size % 2:
        raise ValueError(f"cameras={tuple(cameras)}, image_size={image_size}; expected a camera and an even size.")
    options: dict[str, Any] = {"cameras": tuple(cameras), "image_size": image_size, "renderer": renderer}
    options["physics"] = physics
    with contextlib.closing(LiberoEnv(suite.name, reward="progress", settle_steps=settle_steps, **options)) as env:
        obs, info = env.reset(seed=seed, options=start.options)
        if max_steps is None:
            limit = min(limit, env.step_limits[info["task_id"]])
        act, eye = choose(env), None if scorer is None else _Eye(scorer, env)
        seen, infos = [obs], []
        actions: list[np.ndarray] = []
        while len(actions) < limit and (action := act()) is not None:
            obs, _, terminated, _, info = env.step(action)
            seen.append(obs)
            actions.append(action)
            infos.append(info)
            if eye is not None:
                eye.look()
            if terminated:
                break
    frames = {IMAGE_KEYS[name]: np.stack([each[IMAGE_KEYS[name]] for each in seen]) for name in env.cameras}
    plots = _motion(np.array(actions).reshape(-1, ACTION_DIM), len(seen))
    plots |= _states(np.stack([each["state"] for each in seen]))
    plots |= {"reward terms": _rows(infos, "reward_terms"), "progress of the goal": _rows(infos, "progress_terms")}
    if eye is not None:
        plots["score"] = {"score": eye.scores(info["instruction"])}
    facts = {"task": f"{info['task_id']} of {suite.name}: {info['task_name']}", "begins at": _describe(start, info)}
    facts |= {"frames": f"{renderer}, {image_size} pixels", "simulation": info["mujoco"]}
    return WatchedEpisode(info["instruction"], bool(info["is_success"]), CONTROL_FREQ, frames, plots, facts)


def watch_recorded(root: str, index: int) -> WatchedEpisode:
    """An episode of a LeRobot data set, as it was recorded.

    Args:
        root: Folder of the data set.
        index: Number of the episode, from 0.

    Raises:
        OSError: If the folder holds no data set.
        ValueError: If there is no such episode, it is damaged, or it has no frames.
    """
    from libero_gym.demonstrations import LeRobotReader

    reader = LeRobotReader(root, fps=None)
    if not 0 <= whole_number("episode", index) < len(reader):
        raise ValueError(f"episode {index}: '{root}' has episodes 0 to {len(reader) - 1}.")
    episode = reader[index]
    if not episode.images:
        raise ValueError(f"'{root}' was recorded without a camera; there is nothing to look at.")
    where = f"initial state {episode.init_state_id}" if episode.init_state_id >= 0 else "unknown"
    if episode.placement_seed >= 0:
        where = f"placement seed {episode.placement_seed}"
    facts = {"recording": f"episode {index} of {len(reader)} in {root}", "begins at": where}
    if episode.suite:
        facts["task"] = f"{episode.task_id} of {episode.suite}: {episode.task_name}"
    plots = _motion(episode.actions, len(episode)) | _states(episode.state)
    return WatchedEpisode(episode.instruction, episode.success, reader.fps, episode.images, plots, facts)


class _Eye:
    """What a process reward model sees of an episode: its own camera's frames, of its own size.

    Args:
        scorer: The model.
        env: The environment, `LiberoEnv`, after its reset.

    Raises:
        RewardModelError: If LIBERO has no such camera.
    """

    def __init__(self, scorer: Any, env: Any) -> None:
        self._scorer, self._env = scorer, env
        self._size = getattr(scorer, "image_size", None) or env.image_size
        key = check_camera(scorer, dict.fromkeys(IMAGE_KEYS.values(), (self._size, self._size, 3)))
        self._camera = next(camera for camera, own in IMAGE_KEYS.items() if own == key)
        self._frames: list[np.ndarray] = []
        self.look()

    def look(self) -> None:
        """Keep the frame of this moment."""
        from libero_gym.rendering import render

        env = self._env
        self._frames += render(env.simulator, (self._camera,), self._size, env.render_device, env.renderer)

    def scores(self, instruction: str) -> np.ndarray:
        """The score of each frame, (n,).

        Raises:
            RewardModelError: If the model gives anything else than scores in [0, 1].
        """
        batches = (self._frames[first : first + SCORED] for first in range(0, len(self._frames), SCORED))
        scores = [checked_scores(self._scorer, np.stack(part), [instruction] * len(part)) for part in batches]
        return np.concatenate(scores) if scores else np.zeros(0)


def expert(env: Any) -> Act:
    """The scripted expert, until it has done all that it knows."""
    from libero_gym.experts import Expert

    script = Expert(env.simulator)

    def act() -> np.ndarray | None:
        action = script.act()
        return None if script.done else action

    return act


def at_random(env: Any) -> Act:
    """Random actions, drawn from the environment's generator."""
    return lambda: env.np_random.uniform(-1, 1, ACTION_DIM)


def again(actions: np.ndarray) -> Callable[[Any], Act]:
    """Actions that were decided elsewhere, (T, 7), one after the other."""
    waiting = iter(actions)
    return lambda _env: lambda: next(waiting, None)


def _motion(actions: np.ndarray, n_frames: int) -> dict[str, dict[str, np.ndarray]]:
    """The plots of actions, (T, 7); behind the last one is none."""
    padded = np.full((n_frames, ACTION_DIM), np.nan)
    padded[: len(actions)] = actions
    columns = iter(padded.T)
    return {f"action: {name}": {line: next(columns) for line in lines} for name, lines in _MOTION.items()}


def _states(states: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {
        "hand's position, m": dict(zip("xyz", states[:, :3].T, strict=True)),
        "fingers, m": {"left": states[:, 6], "right": states[:, 7]},
    }


def _rows(infos: Sequence[dict[str, Any]], key: str) -> dict[str, np.ndarray]:
    """A dict of numbers that each step's info has, as lines; before the first step is none."""
    names = dict.fromkeys(name for info in infos for name in info[key])
    return {name: np.array([np.nan, *(info[key].get(name, np.nan) for info in infos)]) for name in names}


def _describe(start: EpisodeStart, info: dict[str, Any]) -> str:
    if start.placement_seed is not None:
        return f"placement seed {start.placement_seed}"
    drawn = "" if start.init_state_id is not None else ", drawn"
    return f"initial state {info['init_state_id']}{drawn}" if info["init_state_id"] >= 0 else "a drawn placement"

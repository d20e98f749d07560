"""A policy's own episodes, as process reward models see them: one frame per decision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from libero_gym.atomic import write_bytes
from libero_gym.checks import flag, real_number, whole_number
from libero_gym.demonstrations.episodes import pack, unpack
from libero_gym.dimensions import ACTION_DIM, CAMERA_KEYS, CONTROL_FREQ
from vla_agent.envs.vec_env import VLAVecEnv

# The bin that opens the gripper furthest.
_OPEN = 255


class PolicyEpisode(NamedTuple):
    """What a policy met with, from the first frame to the last.

    Attributes:
        instruction: What it was told.
        state: Robot states, float32 (T, 8).
        images: Frames by observation key, uint8 (T, H, W, 3).
        success: Whether the goal held at the end.
        task_id: The task.
        init_state_id: The official initial state, -1 for another.
        fps: Frames per second of the simulator's time.
    """

    instruction: str
    state: np.ndarray
    images: dict[str, np.ndarray]
    success: bool
    task_id: int
    init_state_id: int
    fps: float


def policy_episodes(
    env: VLAVecEnv,
    model: Any,
    n_episodes: int,
    *,
    deterministic: bool = False,
    drop_prob: float = 0.0,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[PolicyEpisode]:
    """Whole episodes of a policy, in the order in which they end.

    Short episodes end first, and failures last: so as not to prefer either, every environment contributes as many.

    Args:
        env: The environments, with a camera and the robot's state; they begin anew.
        model: Acts by ``predict(obs, deterministic=)``.
        n_episodes: At least so many; rounded up to a multiple of the environments.
        deterministic: Take the likeliest actions.
        drop_prob: Probability of every decision that the fingers open instead, whatever the policy wants of them. What
            it held falls, and most policies are lost then: failures to learn from.
        seed: Of these.
        progress_bar: Show one, on a terminal.

    Raises:
        ValueError: If an argument is of another type or out of range.
    """
    n_episodes, seed = whole_number("n_episodes", n_episodes, 0), whole_number("seed", seed, 0)
    deterministic, progress_bar = flag("deterministic", deterministic), flag("progress_bar", progress_bar)
    drop_prob = real_number("drop_prob", drop_prob, 0, 1)
    cameras = [key for key in CAMERA_KEYS if key in env.observation_space.spaces]  # type: ignore[attr-defined]
    wanted = -(-n_episodes // env.num_envs)
    chunk_size = len(env.action_space.nvec) // ACTION_DIM  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    obs = env.reset()
    running: list[list[dict[str, np.ndarray]]] = [[_row(obs, i, cameras)] for i in range(env.num_envs)]
    counts = np.zeros(env.num_envs, dtype=int)
    episodes: list[PolicyEpisode] = []
    with tqdm(total=wanted * env.num_envs, unit="episode", disable=None if progress_bar else True) as bar:
        while (counts < wanted).any():
            actions, _ = model.predict(obs, deterministic=deterministic)
            actions[rng.random(env.num_envs) < drop_prob, ACTION_DIM - 1 :: ACTION_DIM] = _OPEN
            obs, _, dones, infos = env.step(actions)  # type: ignore[assignment]
            for i, (done, info) in enumerate(zip(dones, infos, strict=True)):
                if not done:
                    running[i].append(_row(obs, i, cameras))
                    continue
                last = info["terminal_observation"]
                running[i].append({key: np.array(last[key]) for key in (*cameras, "state")})
                if counts[i] < wanted:
                    episodes.append(_episode(running[i], cameras, info, CONTROL_FREQ / chunk_size))
                    bar.update()
                counts[i] += 1
                running[i] = [_row(obs, i, cameras)]
    return episodes


def save_episodes(path: Path, episodes: Sequence[PolicyEpisode], about: dict[str, Any]) -> None:
    """Keep episodes in one file, which is there as a whole or not at all.

    Args:
        path: The file, ``*.npz``.
        episodes: At least one; all with the same cameras.
        about: What they were made by, as JSON can hold it.
    """
    arrays = {"state": np.concatenate([episode.state for episode in episodes])}
    for camera in episodes[0].images:
        arrays[camera] = np.concatenate([episode.images[camera] for episode in episodes])
    rows = [[e.instruction, e.success, e.task_id, e.init_state_id, e.fps, len(e.state)] for e in episodes]
    write_bytes(path, pack({"about": about, "episodes": rows}, arrays))


def load_episodes(path: Path, about: dict[str, Any]) -> list[PolicyEpisode] | None:
    """What `save_episodes` kept there; None if it kept nothing, or what something else made.

    Raises:
        DamagedEpisodeError: If the file is damaged.
    """
    if not path.is_file():
        return None
    description, arrays = unpack(path)
    if description["about"] != about:
        return None
    ends = np.cumsum([row[-1] for row in description["episodes"]])[:-1]
    parts = {name: np.split(array, ends) for name, array in arrays.items()}
    states = parts.pop("state")
    return [
        PolicyEpisode(instruction, states[i], {camera: frames[i] for camera, frames in parts.items()}, *rest)
        for i, (instruction, *rest, _) in enumerate(description["episodes"])
    ]


def _row(obs: dict[str, np.ndarray], index: int, cameras: list[str]) -> dict[str, np.ndarray]:
    return {key: np.array(obs[key][index]) for key in (*cameras, "state")}


def _episode(rows: list[dict[str, np.ndarray]], cameras: list[str], info: dict[str, Any], fps: float) -> PolicyEpisode:
    return PolicyEpisode(
        str(info["instruction"]),
        np.stack([row["state"] for row in rows]),
        {key: np.stack([row[key] for row in rows]) for key in cameras},
        bool(info["is_success"]),
        int(info["task_id"]),
        int(info["init_state_id"]),
        fps,
    )

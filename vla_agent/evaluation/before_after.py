"""What a training changed, in words and as a film: two evaluations of the same episodes side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.videos import write_film
from libero_gym.dimensions import CONTROL_FREQ
from vla_agent.common.intervals import mcnemar_exact
from vla_agent.envs.episodes import play_episodes
from vla_agent.envs.make import make_vec_env
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.evaluation.policies import RegressionPolicy, as_policy, close_subject, load_subject, processor_of
from vla_agent.evaluation.results import EpisodeResult, SuccessRow, lost_and_gained, paired_episodes
from vla_agent.evaluation.trials import Trial

FILM_SIZE = 256  # pixels of each side's frame
FILM_SPEED = 2  # times as fast as the robot
MARGIN = 64  # pixels of text above the frames


def describe_change(
    before: Sequence[EpisodeResult],
    after: Sequence[EpisodeResult],
    instructions: Mapping[int, str],
    suites: Mapping[int, str] | None = None,
) -> str:
    """Describe the change in a few lines: each task, each suite if there are several, both success rates, the test.

    A line reads such as "before: 13 of 20 (43 to 82 %), after: 18 of 20 (70 to 97 %)".

    Args:
        before: Episodes of the first evaluation.
        after: Episodes of the second evaluation, from the same initial states.
        instructions: The tasks' instructions by task id.
        suites: Names of the suites that the tasks come from, by task id.
    """
    lines = []
    tasks = sorted({episode.task_id for episode in before})
    for task_id in tasks if len(tasks) > 1 else []:
        one, two = ([e for e in episodes if e.task_id == task_id] for episodes in (before, after))
        lines.append(f"  task {task_id}: {_count(one)} -> {_count(two)}  {instructions[task_id]}")
    if len(tasks) == 1:
        lines.append(f"  task {tasks[0]}: {instructions[tasks[0]]}")
    sources = {task_id: (suites or {}).get(task_id, "") for task_id in tasks}
    parts = list(dict.fromkeys(sources.values()))
    for suite in parts if len(parts) > 1 else []:
        one, two = ([e for e in episodes if sources.get(e.task_id) == suite] for episodes in (before, after))
        lines.append(f"  {suite}: {describe_share(one)} -> {describe_share(two)}, {_paired(one, two)}")
    return "\n".join(
        [*lines, f"before: {describe_share(before)}, after: {describe_share(after)}", _paired(before, after)]
    )


def _paired(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    lost, gained = lost_and_gained(paired_episodes(before, after))
    return f"paired: {gained} gained, {lost} lost, p = {mcnemar_exact(lost, gained):.2g} (McNemar, exact)"


def _count(episodes: Sequence[EpisodeResult]) -> str:
    return f"{sum(episode.success for episode in episodes)} of {len(episodes)}"


def describe_share(episodes: Sequence[EpisodeResult]) -> str:
    """Successes with Wilson's interval, such as "18 of 20 (70 to 97 %)"."""
    row = SuccessRow.of(episodes)
    return f"{row.successes} of {row.n} ({100 * row.low:.0f} to {100 * row.high:.0f} %)"


def telling_trial(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> Trial:
    """The trial that shows the change best: failed before and succeeded after; else a success, else the first."""
    failed = {episode[:2] for episode in before if not episode.success}
    ranked = sorted(after, key=lambda e: (not (e.success and e[:2] in failed), not e.success, e.steps))
    return Trial(*ranked[0][:2])


class _Side(NamedTuple):
    """One policy's episode."""

    frames: list[np.ndarray]  # uint8 (FILM_SIZE, FILM_SIZE, 3) each
    success: bool
    steps: int


def film_change(before: Any, after: Any, env_id: str, trial: Trial, path: Path, **env_kwargs: Any) -> None:
    """One trial as an MP4, twice as fast as the robot: one policy on the left, another on the right.

    Args:
        before: Policy on the left; anything that `Evaluator` takes.
        after: Policy on the right.
        env_id: Id of the environment, such as "LIBERO-Spatial-v0".
        trial: Trial that both begin from.
        path: The MP4.
        **env_kwargs: Further arguments of the environments.
    """
    with contextlib.ExitStack() as opened:
        models = []
        for model in (before, after):
            subject = load_subject(model, "auto")
            opened.callback(close_subject, subject)
            models.append(subject.model)
        env = make_vec_env(
            env_id,
            1,
            model=processor_of(models[1], "tiny"),
            task_id=trial.task_id,
            render_mode="rgb_array",
            render_size=FILM_SIZE,
            n_workers=1,
            **env_kwargs,
        )
        opened.callback(env.close)
        sides = [_play(as_policy(model, env, None), env, trial) for model in models]
        instruction = env.reset_infos[0]["instruction"]
        chunk = env.codec.chunk_size
    frames = compose(sides, instruction)
    write_film(path, frames, FILM_SPEED * CONTROL_FREQ / chunk)


def _play(policy: Any, env: VLAVecEnv, trial: Trial) -> _Side:
    """A greedy episode's frames."""
    continuous = isinstance(policy, RegressionPolicy)
    (episode,) = play_episodes(env, policy, [trial.start], continuous=continuous, watch=env.get_images)
    return _Side(episode.frames, episode.success, episode.steps)


def compose(sides: Sequence[_Side], instruction: str) -> np.ndarray:
    """Two episodes side by side under their captions, uint8 (T, H, W, 3); the shorter one waits at its last frame."""
    length = max(len(side.frames) for side in sides) + 3
    video = []
    for index in range(length):
        row = [side.frames[min(index, len(side.frames) - 1)] for side in sides]
        captions = []
        for name, side in zip(("before", "after"), sides, strict=True):
            ended = index >= len(side.frames) - 1
            outcome = f"succeeded in {side.steps / CONTROL_FREQ:.1f} s" if side.success else "failed: out of time"
            captions.append(f"{name}: {outcome}" if ended else name)
        video.append(_captioned(np.concatenate(row, axis=1), instruction, captions, [s.success for s in sides]))
    return np.stack(video)


def _captioned(frame: np.ndarray, title: str, captions: Sequence[str], good: Sequence[bool]) -> np.ndarray:
    """A pair of frames under an instruction and a caption each."""
    from PIL import Image, ImageDraw, ImageFont

    width = frame.shape[1]
    page = Image.new("RGB", (width, frame.shape[0] + MARGIN), "white")
    page.paste(Image.fromarray(frame), (0, MARGIN))
    draw = ImageDraw.Draw(page)
    size = 16
    while draw.textlength(title, ImageFont.load_default(size)) > width - 16 and size > 8:
        size -= 1
    draw.text((8, 8), title, "black", ImageFont.load_default(size))
    for column, (caption, success) in enumerate(zip(captions, good, strict=True)):
        colour = "black" if ":" not in caption else "darkgreen" if success else "firebrick"
        draw.text((8 + column * width // 2, MARGIN - 26), caption, colour, ImageFont.load_default(16))
    return np.asarray(page)

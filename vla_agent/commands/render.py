"""Watch LIBERO: every task of a suite as a captioned MP4 and a contact sheet: ``libero-vla render``."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from libero_gym.common.checks import whole_number
from libero_gym.common.videos import write_film
from libero_gym.dimensions import CONTROL_FREQ, Renderer
from vla_agent.commands.options import parse_options
from vla_agent.common.figures import new_figure, save_figure
from vla_agent.envs.suites import describe_suite, id_of


@dataclasses.dataclass
class Options:
    """What to draw, and where to. Each field is a command-line option."""

    suite: str = "LIBERO-Spatial-v0"  # environment id, a BDDL file, or a folder of such
    steps: int = 20  # control steps per task, with random actions
    image_size: int = 256  # side of the frames in pixels
    renderer: Renderer = "exact"  # "exact" draws stock LIBERO's pixels
    out: Path = Path("runs/random")  # folder for the MP4 and the PNG


def rollout(
    env: gym.Env[Any, Any], task_id: int, n_steps: int, has_states: bool = True
) -> tuple[list[np.ndarray], str]:
    """Frames of one task under random actions, and its instruction; from its first official state if it has such."""
    obs, _ = env.reset(seed=task_id, options={"task_id": task_id, "init_state_id": 0 if has_states else None})
    frames = [obs["image"]]
    for _ in range(n_steps):
        obs, *_ = env.step(env.action_space.sample())
        frames.append(obs["image"])
    return frames, obs["instruction"]


def captioned(frame: np.ndarray, caption: str) -> np.ndarray:
    """The frame over its caption, at least 256 pixels wide; sides are multiples of 16, as H.264's blocks."""
    side = len(frame) * -(-256 // len(frame))
    font_size = max(side // 20, 12)
    font = ImageFont.load_default(font_size)
    lines = textwrap.wrap(caption, int(side / font.getlength("n")))
    width, height = (-(-length // 16) * 16 for length in (side, side + 5 * font_size))
    page = Image.new("RGB", (width, height))
    page.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST))
    ImageDraw.Draw(page).text((font_size // 2, side + 2), "\n".join(lines), font=font, fill="white")
    return np.asarray(page)


def contact_sheet(images: list[np.ndarray], captions: list[str], path: Path) -> None:
    """The first frame of every task with its instruction."""
    columns = 5
    rows = -(-len(images) // columns)
    figure, axes = new_figure(3 * columns, 3.4 * rows, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image)
        axis.set_title(textwrap.fill(caption, 44), fontsize=8)
    save_figure(figure, path)


def main(options: Options) -> None:
    """Draw every task of the suite."""
    whole_number("--steps", options.steps, minimum=0)
    suite = describe_suite(options.suite)  # complains about an unknown id in one sentence, and offers the nearest
    env_id = id_of(options.suite)
    env = gym.make(env_id, image_size=options.image_size, renderer=options.renderer)
    env.action_space.seed(0)
    movie, sheet, captions = [], [], []
    task_ids: Sequence[int] = env.get_wrapper_attr("task_ids")
    for task_id in tqdm(task_ids, unit="task", disable=None):
        frames, instruction = rollout(env, task_id, options.steps, suite.n_initial_states(task_id) > 0)
        captions.append(f"{task_id}: {instruction}")
        movie += [captioned(frame, captions[-1]) for frame in frames]
        sheet.append(frames[0])
    env.close()
    write_film(options.out / f"{env_id}.mp4", np.stack(movie), CONTROL_FREQ)
    contact_sheet(sheet, captions, options.out / f"{env_id}.png")
    print(f"Wrote {options.out / env_id}.mp4 and .png")


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Options:
    """The options of a command line."""
    return parse_options(Options, description, arguments)


def command(arguments: Sequence[str]) -> None:
    """``libero-vla render``."""
    main(parse_arguments(arguments))

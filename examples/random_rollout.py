"""Watch LIBERO: a random policy's episode of every task of a suite, as a captioned MP4 and a contact sheet.

    python examples/random_rollout.py --suite LIBERO-Spatial-v0

Needs no GPU and no weights; about two minutes on two cores, most of it drawing exact frames in software. Writes
``runs/random/<suite>.mp4`` and ``runs/random/<suite>.png``.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

mpl.use("Agg")
import matplotlib.pyplot as plt


def rollout(env: gym.Env, task_id: int, n_steps: int) -> tuple[list[np.ndarray], str]:
    """Frames of one task under random actions, and its instruction."""
    obs, _ = env.reset(seed=task_id, options={"task_id": task_id, "init_state_id": 0})
    frames = [obs["image"]]
    for _ in range(n_steps):
        obs, *_ = env.step(env.action_space.sample())
        frames.append(obs["image"])
    return frames, obs["instruction"]


def captioned(frame: np.ndarray, caption: str) -> np.ndarray:
    """The frame over its caption, at least 256 pixels wide; sides are multiples of 16, else imageio stretches them."""
    side = len(frame) * -(-256 // len(frame))
    font_size = max(side // 20, 12)
    font = ImageFont.load_default(font_size)
    lines = textwrap.wrap(caption, int(side / font.getlength("n")))
    page = Image.new("RGB", tuple(-(-length // 16) * 16 for length in (side, side + 5 * font_size)))
    page.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST))
    ImageDraw.Draw(page).text((font_size // 2, side + 2), "\n".join(lines), font=font, fill="white")
    return np.asarray(page)


def contact_sheet(images: list[np.ndarray], captions: list[str], path: Path) -> None:
    """The first frame of every task with its instruction."""
    columns = 5
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.4 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image)
        axis.set_title(textwrap.fill(caption, 44), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="LIBERO-Spatial-v0", help="environment id")
    parser.add_argument("--steps", type=int, default=20, help="control steps per task")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--renderer", default="exact", choices=("exact", "fast"))
    parser.add_argument("--out", type=Path, default=Path("runs/random"))
    args = parser.parse_args()

    env = gym.make(args.suite, image_size=args.image_size, renderer=args.renderer)
    env.action_space.seed(0)
    movie, sheet, captions = [], [], []
    for task_id in tqdm(env.unwrapped.task_ids, unit="task"):
        frames, instruction = rollout(env, task_id, args.steps)
        captions.append(f"{task_id}: {instruction}")
        movie += [captioned(frame, captions[-1]) for frame in frames]
        sheet.append(frames[0])
    env.close()

    args.out.mkdir(parents=True, exist_ok=True)
    iio.imwrite(args.out / f"{args.suite}.mp4", np.stack(movie), fps=20)
    contact_sheet(sheet, captions, args.out / f"{args.suite}.png")
    print(f"Wrote {args.out / args.suite}.mp4 and .png")


if __name__ == "__main__":
    main()

"""Images on their way into the model: the evaluation protocol's path without TensorFlow, and pixel normalisation."""

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch as th
from PIL import Image

JPEG_QUALITY = 95  # default of tf.image.encode_jpeg, with 4:2:0 chroma
LANCZOS_RADIUS = 3.0
CROP_AREA = 0.9  # area that training's random crop keeps


def libero_image(raw: np.ndarray, rotate: bool = True, size: int = 224) -> np.ndarray:
    """The image that OpenVLA's LIBERO evaluation hands to the model, as TensorFlow would compute it.

    Rotates by 180 degrees, encodes and decodes as JPEG, and resizes with antialiased Lanczos-3. TensorFlow decodes with
    the fast integer DCT, so PIL's decoder would differ in 70 % of values; `simplejpeg` offers the same DCT, while the
    bits to decode must come from PIL's encoder.

    Args:
        raw: uint8 (H, W, 3) or (B, H, W, 3), as the simulator renders it.
        rotate: False if the image is upright already, as in the observations of `libero_gym`.
        size: Side of the result in pixels.

    Returns:
        uint8, (size, size, 3) or (B, size, size, 3).

    Raises:
        TypeError: If `raw` is not a uint8 array.
        ValueError: If its shape is neither (H, W, 3) nor (B, H, W, 3).
    """
    batch = _as_batch(raw)
    upright = batch[:, ::-1, ::-1] if rotate else batch
    decoded = np.stack([_jpeg_round_trip(image) for image in upright])
    height, width = decoded.shape[1:3]
    resized = _separable(decoded, _lanczos_weights(height, size), _lanczos_weights(width, size))
    result = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return result if raw.ndim == 4 else result[0]


def center_crop(image: np.ndarray) -> np.ndarray:
    """The middle 90 % of an image's area, stretched back to its size.

    For checkpoints trained with random crops. Bilinear between the corners' pixel centres, and truncated after times
    255.5, as `tf.image.crop_and_resize` and `tf.image.convert_image_dtype` do.

    Args:
        image: uint8 (H, W, 3) or (B, H, W, 3), after `libero_image`.

    Returns:
        uint8, the same shape.

    Raises:
        TypeError: If `image` is not a uint8 array.
        ValueError: If its shape is neither (H, W, 3) nor (B, H, W, 3).
    """
    batch = _as_batch(image)
    height, width = batch.shape[1:3]
    cropped = _separable(batch, _crop_weights(height), _crop_weights(width)) / np.float32(255)
    result = (np.clip(cropped, 0, 1) * np.float32(255.5)).astype(np.uint8)
    return result if image.ndim == 4 else result[0]


def pixel_values_from_images(
    images: np.ndarray | th.Tensor,
    size: int,
    means: Sequence[Sequence[float]],
    stds: Sequence[Sequence[float]],
    device: th.device,
) -> th.Tensor:
    """Normalised pixels, bit-identical to the published processor's.

    Args:
        images: uint8 (B, H, W, 3).
        size: Side that the model takes; others are resized to it by PIL's bicubic filter, aspect not kept.
        means: Three channel means per tower.
        stds: Three channel deviations per tower.
        device: Device that computes the result and holds it.

    Returns:
        float32, (B, 3 per tower, size, size).

    Raises:
        TypeError: If the images are not uint8 arrays.
        ValueError: If their shape is not (B, H, W, 3).
    """
    if not isinstance(images, (np.ndarray, th.Tensor)):
        raise TypeError(f"Expected a uint8 array of images, got {type(images).__name__}.")
    if str(images.dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"Images must be uint8 in 0..255, got {images.dtype}; convert them first.")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"Images must have shape (batch, height, width, 3), got {tuple(images.shape)}.")
    if tuple(images.shape[1:3]) != (size, size):
        images = _resize_bicubic(images.cpu().numpy() if isinstance(images, th.Tensor) else images, size)
    if isinstance(images, np.ndarray):
        images = th.from_numpy(np.ascontiguousarray(images))
    pixels = images.to(device).permute(0, 3, 1, 2).to(th.float32).div(255)
    mean = th.tensor(means, dtype=th.float32, device=device).view(-1, 3, 1, 1)
    std = th.tensor(stds, dtype=th.float32, device=device).view(-1, 3, 1, 1)
    return (pixels[:, None] - mean).div_(std).flatten(1, 2)  # (B, towers, 3, S, S) -> (B, 3 towers, S, S)


def _as_batch(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"Expected a uint8 image array, got {kind}.")
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"Expected an image (height, width, 3) or a batch of them, got shape {image.shape}.")
    return image if image.ndim == 4 else image[None]


def _jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    return simplejpeg.decode_jpeg(buffer.getvalue(), "RGB", fastdct=True, fastupsample=False)


def _resize_bicubic(images: np.ndarray, size: int) -> np.ndarray:
    resized = [Image.fromarray(np.ascontiguousarray(x)).resize((size, size), Image.Resampling.BICUBIC) for x in images]
    return np.stack([np.asarray(image) for image in resized])


def _separable(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Applies (H', H) to the rows and (W', W) to the columns of (B, H, W, 3); float32 (B, H', W', 3)."""
    B, H, W, C = images.shape
    by_rows = rows @ images.reshape(B, H, W * C).astype(np.float32)  # (B, H', W * C)
    return columns @ by_rows.reshape(B, -1, W, C)


@functools.lru_cache(maxsize=16)
def _lanczos_weights(n_in: int, n_out: int) -> np.ndarray:
    """Rows of weights (n_out, n_in) of TensorFlow's antialiased Lanczos-3: half-pixel centres, each row sums to one."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    centers = (np.arange(n_out) + 0.5) * scale
    x = np.abs(np.arange(n_in) + 0.5 - centers[:, None]) / stretch
    weights = np.where(x < LANCZOS_RADIUS, np.sinc(x) * np.sinc(x / LANCZOS_RADIUS), 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _crop_weights(n: int) -> np.ndarray:
    """Rows of weights (n, n) of the bilinear centre crop: samples lie between (n - 1)-based corners."""
    side = math.sqrt(CROP_AREA)
    position = ((1 - side) / 2 + side * np.arange(n) / max(n - 1, 1)) * (n - 1)
    low = np.floor(position).astype(int)
    fraction = position - low
    weights = np.zeros((n, n))
    weights[np.arange(n), low] = 1 - fraction
    weights[np.arange(n), np.minimum(low + 1, n - 1)] += fraction
    return weights.astype(np.float32)

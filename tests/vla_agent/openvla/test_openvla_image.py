"""The evaluation protocol's image path, and pixel normalisation, by properties and numbers worked by hand."""

import io
import math

import numpy as np
import pytest
import torch as th
from PIL import Image

from vla_agent.openvla import center_crop, libero_image
from vla_agent.openvla.image import _lanczos_weights, pixel_values_from_images

IMAGENET = ([[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A smooth picture with an edge, uint8 (256, 256, 3)."""
    y, x = np.mgrid[0:256, 0:256] / 255
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(6 * x * y)], axis=-1) * 255
    image[40:120, 150:200] = [200, 30, 30]
    return image.astype(np.uint8)


def test_flat_images_stay_flat(scene):
    for value in (0, 37, 128, 255):
        flat = np.full((256, 256, 3), value, dtype=np.uint8)
        np.testing.assert_array_equal(libero_image(flat), np.full((224, 224, 3), value))
        np.testing.assert_array_equal(center_crop(flat), flat)


def test_image_is_rotated_by_180_degrees():
    raw = np.zeros((256, 256, 3), dtype=np.uint8)
    raw[:64, :64] = 255  # upper left
    image = libero_image(raw)
    assert image[200:, 200:].min() > 240
    assert image[:150, :150].max() < 15
    np.testing.assert_array_equal(libero_image(raw[::-1, ::-1], rotate=False), image)


def test_batches_equal_single_images(scene):
    batch = np.stack([scene, scene[::-1], 255 - scene])
    np.testing.assert_array_equal(libero_image(batch, size=112), [libero_image(x, size=112) for x in batch])
    np.testing.assert_array_equal(center_crop(batch), [center_crop(x) for x in batch])


def test_jpeg_round_trip_uses_the_fast_dct(scene):
    # Same size in and out: Lanczos is the identity, so only the JPEG round trip shows.
    image = libero_image(scene, rotate=False, size=256).astype(int)
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, "JPEG", quality=95, subsampling=2)
    by_pil = np.asarray(Image.open(buffer)).astype(int)
    assert not np.array_equal(image, by_pil), "PIL decodes with the slow DCT and smooth upsampling"
    assert np.abs(image - by_pil).mean() < 2
    assert np.abs(image - scene).mean() < 3


def test_chroma_is_subsampled_and_smoothly_upsampled():
    # Blue meets red between two chroma samples. libjpeg's "fancy" filter mixes neighbours 3:1 on either side; plain
    # replication, or 4:4:4, would keep the edge sharp. Luma (76.2 and 76.0) hardly differs, so it shows no edge.
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, :32] = [0, 80, 255]
    image[:, 32:] = [255, 0, 0]
    row = libero_image(image, rotate=False, size=64)[20].astype(int)
    blue, red = np.array([0, 80, 255]), np.array([255, 0, 0])
    for column, share in [(30, 0.0), (31, 0.25), (32, 0.75), (33, 1.0)]:
        np.testing.assert_allclose(row[column], (1 - share) * blue + share * red, rtol=0, atol=2)


def test_lanczos_follows_tensorflow_sampling():
    # One row written out as tf.image.resize's kernel does it: 8 -> 5 pixels, third output pixel, centre at 4.0.
    scale = 8 / 5
    weights = []
    for i in range(8):
        x = abs(i + 0.5 - 2.5 * scale) / scale
        pi_x = math.pi * x
        weights.append(3 * math.sin(pi_x) * math.sin(pi_x / 3) / pi_x**2 if x < 3 else 0.0)
    np.testing.assert_allclose(_lanczos_weights(8, 5)[2], np.array(weights) / sum(weights), rtol=0, atol=1e-7)
    np.testing.assert_allclose(_lanczos_weights(7, 7), np.eye(7), atol=1e-7)
    np.testing.assert_allclose(_lanczos_weights(256, 224).sum(1), 1, atol=1e-6)


def test_center_crop_samples_where_tensorflow_does():
    # crop_and_resize with corners (1 - sqrt(0.9)) / 2 and (1 + sqrt(0.9)) / 2 of (n - 1), one loop per pixel.
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    side = math.sqrt(0.9)
    expected = np.zeros_like(image)
    for row in range(12):
        for column in range(9):
            y = (1 - side) / 2 * 11 + row * side * 11 / 11
            x = (1 - side) / 2 * 8 + column * side * 8 / 8
            top, left = math.floor(y), math.floor(x)
            bottom, right = math.ceil(y), math.ceil(x)
            values = image / 255.0
            upper = values[top, left] + (values[top, right] - values[top, left]) * (x - left)
            lower = values[bottom, left] + (values[bottom, right] - values[bottom, left]) * (x - left)
            expected[row, column] = ((upper + (lower - upper) * (y - top)) * 255.5).astype(np.uint8)
    np.testing.assert_array_equal(center_crop(image), expected)


def test_center_crop_keeps_a_symmetric_picture_symmetric():
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    image[112 - 50 : 112 + 50, 112 - 50 : 112 + 50] = 255
    cropped = center_crop(image)
    assert np.abs(cropped.astype(int) - cropped[::-1, ::-1]).max() <= 1
    # Output i samples 223 (1 - 0.94868) / 2 + 0.94868 i; that is within [61.5, 161.5], half-way in, for 59 <= i <= 164.
    np.testing.assert_array_equal(np.flatnonzero(cropped[112, :, 0] > 127), np.arange(59, 165))


@pytest.mark.parametrize("function", [libero_image, center_crop])
def test_image_path_names_bad_input(function, scene):
    with pytest.raises(TypeError, match="Expected a uint8 image array, got float64"):
        function(scene / 255)
    with pytest.raises(TypeError, match="got list"):
        function([scene])
    with pytest.raises(ValueError, match=r"\(height, width, 3\) or a batch of them, got shape \(256, 256\)"):
        function(scene[..., 0])


def test_pixel_values_are_normalised_once_per_tower():
    image = np.full((2, 14, 14, 3), [255, 0, 128], dtype=np.uint8)
    pixels = pixel_values_from_images(image, 14, *IMAGENET, th.device("cpu"))
    assert pixels.shape == (2, 6, 14, 14)
    assert pixels.dtype == th.float32
    expected = [
        (1 - 0.485) / 0.229,
        (0 - 0.456) / 0.224,
        (128 / 255 - 0.406) / 0.225,
        (1 - 0.5) / 0.5,
        (0 - 0.5) / 0.5,
        (128 / 255 - 0.5) / 0.5,
    ]
    np.testing.assert_allclose(pixels[1, :, 3, 5], expected, rtol=0, atol=1e-6)


def test_pixel_values_resize_as_pil_does(scene):
    pixels = pixel_values_from_images(scene[None], 112, *IMAGENET, th.device("cpu"))
    resized = np.asarray(Image.fromarray(scene).resize((112, 112), Image.Resampling.BICUBIC), dtype=np.float32)
    array = th.from_numpy(resized).div(255)
    mean, std = th.tensor(IMAGENET[0][0]), th.tensor(IMAGENET[1][0])
    assert th.equal(pixels[0, :3].permute(1, 2, 0), array.sub(mean).div(std))
    # A tensor takes the same path as an array.
    assert th.equal(pixel_values_from_images(th.from_numpy(scene)[None], 112, *IMAGENET, th.device("cpu")), pixels)


def test_pixel_values_name_bad_input(scene):
    with pytest.raises(TypeError, match=r"must be uint8 in 0\.\.255, got float32"):
        pixel_values_from_images(scene[None].astype(np.float32), 112, *IMAGENET, th.device("cpu"))
    with pytest.raises(ValueError, match=r"\(batch, height, width, 3\), got \(256, 256, 3\)"):
        pixel_values_from_images(scene, 112, *IMAGENET, th.device("cpu"))
    with pytest.raises(ValueError, match=r"got \(1, 3, 256, 256\)"):
        pixel_values_from_images(scene.transpose(2, 0, 1)[None], 112, *IMAGENET, th.device("cpu"))
    with pytest.raises(TypeError, match="got list"):
        pixel_values_from_images([scene], 112, *IMAGENET, th.device("cpu"))

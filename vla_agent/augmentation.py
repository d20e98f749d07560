"""Random crops, shifts and colours of training images, a batch at a time on the images' device."""

from dataclasses import dataclass

import torch as th
from torch.nn import functional as F

from libero_gym.common.checks import real_number, whole_number

# Luma of Rec. 601, which torchvision takes for grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """How images are varied; each image draws its own numbers. The defaults vary nothing.

    Attributes:
        crop_area: Smallest share of the area that a random square crop keeps; each image draws its share between this
            and 1, and is stretched back to full size. OpenVLA's crops always keep a share of 0.9, and its evaluation
            takes the centre crop of that size.
        shift: Largest number of pixels by which an image is moved, up or down and sideways; its edges are repeated
            (Kostrikov, Yarats and Fergus, 2020, arXiv 2004.13649). Evaluation needs no crop for it.
        brightness: Added to values in [0, 1], uniform in +-brightness.
        contrast: Factor on the distance to the image's mean grey, uniform in 1 +- contrast.
        saturation: Factor on the distance to each pixel's own grey, uniform in 1 +- saturation.
        hue: Rotation of the colours, as a share of the full circle, uniform in +-hue.
        noise: Standard deviation of Gaussian noise on values in [0, 1].
    """

    crop_area: float = 1.0
    shift: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        real_number("crop_area", self.crop_area)
        if not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area={self.crop_area}; expected more than 0 and at most 1.")
        whole_number("shift", self.shift, 0)
        for name in ("brightness", "contrast", "saturation", "hue", "noise"):
            real_number(name, getattr(self, name), 0)

    def __call__(self, images: th.Tensor, generator: th.Generator) -> th.Tensor:
        """Varied copies, uint8 (B, H, W, 3), of images uint8 (B, H, W, 3).

        Args:
            images: The images.
            generator: Source of randomness, on the images' device.
        """
        x = images.permute(0, 3, 1, 2).float() / 255
        x = self._move(x, generator)
        x = self._recolour(x, generator)
        return (x.clamp(0, 1) * 255).round().to(th.uint8).permute(0, 2, 3, 1)

    def _move(self, x: th.Tensor, generator: th.Generator) -> th.Tensor:
        """Crop and shift (B, 3, H, W) in one bilinear sampling."""
        if self.crop_area == 1 and self.shift == 0:
            return x
        side = (1 - (1 - self.crop_area) * _uniform(len(x), generator, 0, 1)).sqrt()
        # In coordinates of -1..1: the crop's centre stays inside, and a shift moves it by whole pixels.
        centre = (1 - side)[:, None] * _uniform((len(x), 2), generator, -1, 1)
        pixels = th.randint(-self.shift, self.shift + 1, (len(x), 2), generator=generator, device=x.device)
        centre = centre + 2 * pixels / th.tensor([x.shape[3], x.shape[2]], device=x.device)
        theta = th.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = side
        theta[:, :, 2] = centre
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _recolour(self, x: th.Tensor, generator: th.Generator) -> th.Tensor:
        """Brightness, contrast, saturation, hue and noise of (B, 3, H, W)."""

        def draw(low: float, high: float) -> th.Tensor:
            return _uniform(len(x), generator, low, high)[:, None, None, None]

        luma = th.tensor(_LUMA, device=x.device)[:, None, None]
        if self.brightness:
            x = x + draw(-self.brightness, self.brightness)
        if self.contrast:
            mean = (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            x = mean + (x - mean) * draw(1 - self.contrast, 1 + self.contrast)
        if self.saturation:
            grey = (x * luma).sum(1, keepdim=True)
            x = grey + (x - grey) * draw(1 - self.saturation, 1 + self.saturation)
        if self.hue:
            turn = _hue_rotation(2 * th.pi * _uniform(len(x), generator, -self.hue, self.hue))
            x = th.einsum("bij,bjhw->bihw", turn, x)
        if self.noise:
            x = x + self.noise * th.randn(x.shape, generator=generator, device=x.device)
        return x


def _uniform(shape: int | tuple[int, ...], generator: th.Generator, low: float, high: float) -> th.Tensor:
    return low + (high - low) * th.rand(shape, generator=generator, device=generator.device)


def _hue_rotation(angle: th.Tensor) -> th.Tensor:
    """Rotations (B, 3, 3) of RGB about the grey axis by angles (B,) in rad (Rodrigues' formula)."""
    axis = angle.new_full((3,), 3**-0.5)
    zero = axis.new_zeros(())
    cross = th.stack(
        [th.stack([zero, -axis[2], axis[1]]), th.stack([axis[2], zero, -axis[0]]), th.stack([-axis[1], axis[0], zero])]
    )
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return cosine * th.eye(3, device=angle.device) + sine * cross + (1 - cosine) * th.outer(axis, axis)

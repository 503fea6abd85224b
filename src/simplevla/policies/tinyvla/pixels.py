"""Camera images to the square pictures that a SigLIP or CLIP tower takes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from simplevla.policies.tinyvla.config import VisionConfig


def prepare_pixels(image: Tensor, config: VisionConfig, mean: Tensor) -> Tensor:
    """float32 [B, 3, image_size, image_size] in 0..1, not yet normalised.

    In this order: the first resize (`frame`), the centre crop, the padding to a square, the resize to `image_size`.

    Args:
        image: uint8 [B, height, width, 3].
        config: of a siglip or clip tower.
        mean: [1, 3, 1, 1], the colour of the padding.
    """
    pixels = image.permute(0, 3, 1, 2).float() / 255
    if config.frame is not None:
        pixels = _resize(pixels, config.frame, "bilinear")
    if config.crop < 1:
        pixels = _resize(_centre(pixels, config.crop), (pixels.shape[2], pixels.shape[3]), "bilinear")
    if config.pad:
        pixels = _pad_to_square(pixels, mean)
    return _resize(pixels, (config.image_size, config.image_size), config.resample)


def _resize(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    # Bicubic weights overshoot at edges; no picture has such values.
    return F.interpolate(pixels, size, mode=mode, antialias=True).clamp_(0, 1)


def _centre(pixels: Tensor, share: float) -> Tensor:
    """The middle rows and columns, `share` of each; bounds are rounded down as TinyVLA does."""
    height, width = pixels.shape[2:]
    rows = slice(int(height * (1 - share) / 2), int(height * (1 + share) / 2))
    columns = slice(int(width * (1 - share) / 2), int(width * (1 + share) / 2))
    return pixels[:, :, rows, columns]


def _pad_to_square(pixels: Tensor, mean: Tensor) -> Tensor:
    """The image in the middle of a square of its longer side, with bars of colour `mean`."""
    height, width = pixels.shape[2:]
    side = max(height, width)
    if height == width:
        return pixels
    square = mean.to(pixels.dtype).expand(len(pixels), 3, side, side).clone(memory_format=torch.contiguous_format)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, :, top : top + height, left : left + width] = pixels
    return square

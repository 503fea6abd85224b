"""Camera images to the square pictures that the vision tower takes."""

from torch import Tensor
from torch.nn import functional as F


def prepare_pixels(image: Tensor, side: int) -> Tensor:
    """float32 [B, 3, side, side] in -1..1: bilinear, the aspect kept, black bars on the left or at the top.

    Args:
        image: uint8 [B, height, width, 3].
        side: of the square.
    """
    pixels = image.permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[2:]
    ratio = max(height, width) / side
    size = int(height / ratio), int(width / ratio)
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return F.pad(pixels, (side - size[1], 0, side - size[0], 0)) * 2 - 1

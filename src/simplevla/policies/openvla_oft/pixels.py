"""The published way from a camera image to the square picture that both vision towers see.

JPEG round trip, Lanczos-3 with antialias to the model's side, centre crop by area, bilinear back to that side, in 8
bits after each (OpenVLA-OFT, experiments/robot/openvla_utils.py). The suite has turned LIBERO's images by 180 degrees
already.
"""

import io
from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

JPEG_QUALITY = 95
"""JPEG quality of the demonstrations, TensorFlow's default; chroma is halved in both directions."""
LANCZOS_RADIUS = 3


def prepare_pixels(images: Tensor, side: int, crop: float) -> Tensor:
    """uint8 [B, side, side, 3] from uint8 [B, height, width, 3], on the device of `images`."""
    decoded = torch.from_numpy(np.stack([jpeg_round_trip(image) for image in images.cpu().numpy()]))
    height, width = decoded.shape[1:3]
    smaller = _apply(decoded.float().to(images.device), lanczos_matrix(height, side), lanczos_matrix(width, side))
    square = smaller.round().clamp(0, 255)
    if crop == 1:
        return square.to(torch.uint8)
    middle = crop_matrix(side, crop)
    # Rounded as TensorFlow's conversion to 8 bits does it.
    return (_apply(square, middle, middle) / 255 * 255.5).floor().clamp(0, 255).to(torch.uint8)


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Image uint8 [height, width, 3] as TensorFlow decodes a JPEG: by the fast integer DCT, which Pillow lacks."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return simplejpeg.decode_jpeg(buffer.getvalue(), fastdct=True)


@cache
def lanczos_matrix(size: int, side: int) -> Tensor:
    """float32 [side, size]: row i has the weights of the `size` old pixels in the new pixel i.

    sinc(x) sinc(x / 3) for |x| < 3, in units of the coarser of both grids (that is the antialias), pixel centres at
    (i + 0.5), each row scaled to the sum 1.
    """
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale
    distance = (np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(distance) < LANCZOS_RADIUS, np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS), 0.0)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


@cache
def crop_matrix(side: int, area: float) -> Tensor:
    """float32 [side, side]: the middle sqrt(area) of a line of `side` pixels, bilinearly enlarged to `side` pixels.

    As TensorFlow's crop_and_resize: the first and the last new pixel lie on the crop's edges, in units of side - 1.
    """
    kept = np.sqrt(area)
    positions = np.linspace((1 - kept) / 2, (1 + kept) / 2, side) * (side - 1)
    weights = np.clip(1 - np.abs(np.arange(side) - positions[:, None]), 0, None)
    return torch.from_numpy(weights.astype(np.float32))


def _apply(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` along the height and `columns` along the width of float32 [B, height, width, 3]."""
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    return torch.einsum("ih,bhwc,jw->bijc", rows, pixels, columns)

"""Camera images to and from bytes, as they lie in parquet files."""

import io

import numpy as np
from PIL import Image, ImageOps

from simplevla.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Formats that are read; Pillow knows others, one of which starts a program."""


def encode_png(image: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [height, width, 3]; the fastest compression level, since sizes differ little."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_image(
    data: bytes, where: str, size: tuple[int, int] | None = None, says: str = "meta/info.json says"
) -> np.ndarray:
    """uint8 [height, width, 3] of PNG or JPEG `data`; `where` names the frame in errors, and `says` who knows its size.

    Raises:
        UserError: the picture is damaged, or its header, read first, says another `size` (height, width).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A turned picture has its sides exchanged.
            if size is not None and sorted(image.size) != sorted(size):
                raise UserError(f"{where}: the image is {image.size[::-1]}; {says} {size}")
            if image.mode.startswith(("I", "F")):
                raise UserError(
                    f"{where}: the image has more than 8 bits a pixel (mode {image.mode}), as depth maps have"
                )
            # A camera held upright says so in EXIF; Hugging Face's datasets turn the picture as well.
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # a damaged picture raises almost anything
        raise UserError(f"{where}: the image can't be decoded ({error}); the file is damaged, copy it again") from error


def decode_image(data: bytes, target: np.ndarray, where: str) -> None:
    """Decodes PNG or JPEG `data` into `target` uint8 [height, width, 3]."""
    height, width, _ = target.shape
    pixels = read_image(data, where, (height, width))
    if pixels.shape != target.shape:
        raise UserError(f"{where}: the image is {pixels.shape}; meta/info.json says {target.shape}")
    target[...] = pixels

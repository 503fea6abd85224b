"""Records what TensorFlow makes of pictures on OpenVLA-OFT's way to its towers: `python -m benchmarks.experiments.record_openvla_pixels`.

Needs `pip install tensorflow-cpu pillow` in an environment of its own, and nothing of this package. The calls are those of OpenVLA-OFT's
`resize_image_for_policy` and `center_crop_image` (experiments/robot/openvla_utils.py). Writes tests/recorded/openvla_pixels.png, in which the
pictures lie one below the other: the camera's, after the JPEG round trip, what the towers see.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

OUT = Path(__file__).parents[2] / "tests" / "recorded" / "openvla_pixels.png"
CAMERA, SIDE, AREA = (96, 96), 84, 0.9


def camera_picture() -> np.ndarray:
    """uint8 [96, 96, 3]: a shaded scene with sharp coloured edges, single bright pixels and some noise."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[: CAMERA[0], : CAMERA[1]]
    shade = np.stack([row * 2, column * 2, 255 - row - column], axis=-1)
    shade[20:50, 30:70] = (220, 30, 40)
    shade[60:85, 8:33] = (20, 60, 210)
    shade[(row + column) % 23 == 0] = 255
    return np.clip(shade + rng.integers(-12, 13, shade.shape), 0, 255).astype(np.uint8)


def published(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(after the JPEG round trip, after everything)."""
    decoded = tf.io.decode_image(tf.image.encode_jpeg(picture), expand_animations=False, dtype=tf.uint8)
    resized = tf.image.resize(decoded, (SIDE, SIDE), method="lanczos3", antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    image = tf.expand_dims(tf.image.convert_image_dtype(resized, tf.float32), 0)
    kept = tf.clip_by_value(tf.sqrt(AREA), 0, 1)
    low = (1 - kept) / 2
    boxes = tf.reshape(tf.stack([low, low, low + kept, low + kept]), (1, 4))
    cropped = tf.clip_by_value(tf.image.crop_and_resize(image, boxes, tf.range(1), (SIDE, SIDE)), 0, 1)
    return decoded.numpy(), tf.image.convert_image_dtype(cropped, tf.uint8, saturate=True)[0].numpy()


def main() -> None:
    camera = camera_picture()
    decoded, seen = published(camera)
    page = np.zeros((2 * CAMERA[0] + SIDE, CAMERA[1], 3), np.uint8)
    page[: CAMERA[0]], page[CAMERA[0] : 2 * CAMERA[0]], page[2 * CAMERA[0] :, :SIDE] = camera, decoded, seen
    OUT.parent.mkdir(exist_ok=True)
    Image.fromarray(page).save(OUT)
    print(f"{OUT}: TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main()

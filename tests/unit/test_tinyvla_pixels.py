import numpy as np
import pytest
import torch
from PIL import Image

from simplevla.policies.tinyvla.config import VisionConfig
from simplevla.policies.tinyvla.pixels import prepare_pixels
from simplevla.policies.tinyvla.vision import CLIP_MEAN

MEAN = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)


def config(**changes: object) -> VisionConfig:
    return VisionConfig(kind="clip", image_size=8, patch_size=4, **changes)  # type: ignore[arg-type]


def picture(height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return torch.from_numpy(np.array(smooth))[None]


def test_an_image_of_the_right_size_is_only_scaled() -> None:
    image = picture(8, 8)
    expected = image.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(prepare_pixels(image, config(), MEAN), expected)


def test_a_wide_image_gets_bars_of_the_mean_colour_above_and_below() -> None:
    image = torch.full((1, 4, 8, 3), 255, dtype=torch.uint8)
    pixels = prepare_pixels(image, config(pad=True), MEAN)
    assert pixels.shape == (1, 3, 8, 8)
    assert bool((pixels[:, :, 2:6] == 1).all())
    for rows in (slice(0, 2), slice(6, 8)):
        torch.testing.assert_close(pixels[:, :, rows], MEAN.expand(1, 3, 2, 8))


def test_a_high_image_gets_bars_left_and_right() -> None:
    pixels = prepare_pixels(torch.zeros((1, 8, 4, 3), dtype=torch.uint8), config(pad=True), MEAN)
    assert bool((pixels[:, :, :, 2:6] == 0).all())
    torch.testing.assert_close(pixels[:, :, :, :2], MEAN.expand(1, 3, 8, 2))


def test_the_centre_crop_drops_the_border() -> None:
    # Of 180 x 320 at 0.95, rows 4 to 174 and columns 8 to 311 stay (upper bounds 175 and 312, rounded down).
    image = torch.full((1, 180, 320, 3), 255, dtype=torch.uint8)
    image[:, 4:175, 8:312] = 0
    assert prepare_pixels(image, config(crop=0.95), MEAN).max() == 0
    image[:, 174, 100] = 255
    assert prepare_pixels(image, config(crop=0.95), MEAN).max() > 0


def test_the_first_frame_ignores_the_aspect() -> None:
    square = picture(16, 16)
    wide = prepare_pixels(square, config(frame=(4, 8), pad=True), MEAN)
    torch.testing.assert_close(wide[:, :, :2], MEAN.expand(1, 3, 2, 8))
    assert not torch.allclose(wide[:, :, 2], MEAN.expand(1, 3, 1, 8)[:, :, 0], atol=0.05)


@pytest.mark.parametrize(
    ("mode", "filter"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_resizing_agrees_with_pillow(mode: str, filter: Image.Resampling) -> None:
    # Pillow rounds to whole pixel values after the rows and again after the columns.
    image = picture(20, 20)
    expected = np.asarray(Image.fromarray(image[0].numpy()).resize((8, 8), filter), np.float32) / 255
    got = prepare_pixels(image, config(resample=mode), MEAN)[0].permute(1, 2, 0).numpy()
    difference = np.abs(got - expected) * 255
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.9) < 1
    assert 0 <= got.min() <= got.max() <= 1


@pytest.mark.parametrize("wrong", [{"crop": 0.0}, {"crop": 1.2}, {"resample": "nearest"}])
def test_settings_that_cant_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"VisionConfig\.(crop|resample)"):
        config(**wrong)

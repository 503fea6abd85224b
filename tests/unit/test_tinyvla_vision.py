import numpy as np
import pytest
import torch

from simplevla.policies.tinyvla.config import VisionConfig
from simplevla.policies.tinyvla.vision import CLIP_MEAN, CLIP_STD, KeypointEncoder, make_vision


def _encoder_of_red() -> KeypointEncoder:
    """One keypoint that follows red: every convolution copies the red channel."""
    encoder = KeypointEncoder(VisionConfig(channels=(1, 1), kernels=(1, 1), strides=(1, 1), keypoints=1), 2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.convolutions[0].weight[0, 0] = 1.0  # type: ignore[index]
        encoder.convolutions[1].weight[0, 0] = 1.0  # type: ignore[index]
        encoder.maps.weight[0, 0] = 1.0
        encoder.sharpness.fill_(50.0)
    return encoder


def _red_dot(row: int, column: int, size: int = 8) -> torch.Tensor:
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    image[0, row, column, 0] = 255
    return image


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 6), (7, 3)])
def test_a_keypoint_is_where_its_map_answers_x_right_y_down(row: int, column: int) -> None:
    features = _encoder_of_red()(_red_dot(row, column), torch.zeros(1, 2), torch.tensor([0]))
    # Pixel i of 8 has its centre at (i + 0.5) / 4 - 1; red is 255 / 255 - 0.5 = 0.5 there and below 0 elsewhere.
    expected = [(column + 0.5) / 4 - 1, (row + 0.5) / 4 - 1, 0.5]
    assert features[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_keypoint_lies_between_two_equal_answers() -> None:
    image = torch.maximum(_red_dot(2, 2), _red_dot(2, 5))
    x, y = _encoder_of_red()(image, torch.zeros(1, 2), torch.tensor([0]))[0, :2].tolist()
    assert (x, y) == pytest.approx((0.0, -0.375), abs=1e-4)


def test_the_instruction_scales_and_shifts_the_later_convolutions() -> None:
    encoder = _encoder_of_red()
    with torch.no_grad():
        encoder.film.weight[0] = torch.tensor([1.0, 0.0])  # scale of the second convolution
        encoder.film.weight[1] = torch.tensor([0.0, 1.0])  # shift
    image = _red_dot(1, 1).expand(3, -1, -1, -1)
    instructions = torch.tensor([[1.0, 0.0], [0.0, 0.25]])
    strength = encoder(image, instructions, torch.tensor([0, 1, 0]))[:, 2]
    # 0.5 (1 + 1) = 1 for the first instruction, 0.5 + 0.25 for the second.
    assert strength.tolist() == pytest.approx([1.0, 0.75, 1.0], abs=1e-3)


def test_a_fresh_encoder_follows_a_moving_object() -> None:
    """Without standardised maps a fresh encoder's keypoints move by less than 0.01 and learning takes far longer."""
    torch.manual_seed(0)
    encoder = KeypointEncoder(VisionConfig(), 8)
    images = torch.full((2, 64, 64, 3), 90, dtype=torch.uint8)
    images[0, 8:16, 8:16] = torch.tensor([200, 30, 30], dtype=torch.uint8)
    images[1, 8:16, 44:52] = torch.tensor([200, 30, 30], dtype=torch.uint8)
    with torch.no_grad():
        features = encoder(images, torch.zeros(1, 8), torch.tensor([0, 0]))
    moved = (features[1, :64:2] - features[0, :64:2]).max()
    assert moved > 0.5  # the object moves by 36 of 64 pixels, 1.125


def test_a_blank_image_has_its_keypoint_in_the_middle_and_a_finite_gradient() -> None:
    encoder = _encoder_of_red()
    features = encoder(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 2), torch.tensor([0]))
    assert features[0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80)])
def test_the_convolutional_front_end_takes_images_of_any_size(size: tuple[int, int]) -> None:
    vision = make_vision(VisionConfig(tokens=2), cameras=2, language_width=16)
    images = [torch.zeros(3, *size, 3, dtype=torch.uint8)] * 2
    assert vision(images, torch.zeros(1, 16), torch.zeros(3, dtype=torch.int64)).shape == (3, 4, 16)


@pytest.mark.parametrize(("kind", "class_tokens"), [("siglip", 0), ("clip", 1)])
def test_towers_read_the_second_last_layer_of_the_transformers_classes(kind: str, class_tokens: int) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "siglip":
        whole = SiglipVisionModel(SiglipVisionConfig(**sizes, num_hidden_layers=3)).eval()
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    else:
        whole = CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=3)).eval()
        mean, std = CLIP_MEAN, CLIP_STD
    config = VisionConfig(kind=kind, hidden_size=16, layers=3, heads=2, mlp_size=32, image_size=32)  # type: ignore[arg-type]
    ours = make_vision(config, cameras=1, language_width=8).eval()
    wanted = ours.tower.state_dict()  # type: ignore[operator, union-attr]
    ours.tower.load_state_dict({name: whole.state_dict()[name] for name in wanted})  # type: ignore[operator, union-attr]
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    pixels = (image.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = whole(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, class_tokens:]
        torch.testing.assert_close(ours([image]), ours.project(expected), atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_vision_config_names_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="2 channels, 1 kernels, 2 strides"):
        VisionConfig(channels=(8, 8), kernels=(3,), strides=(1, 1))
    with pytest.raises(ValueError, match=r"'dino'.*'conv', 'siglip' or 'clip'"):
        VisionConfig(kind="dino")  # type: ignore[arg-type]

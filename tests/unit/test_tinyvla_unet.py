import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simplevla.policies.tinyvla.config import UnetConfig
from simplevla.policies.tinyvla.pooled import PooledCondition
from simplevla.policies.tinyvla.unet import Block, ConditionalUnet, FilmBlock, published_name, sine_embedding

SMALL = UnetConfig(channels=(8, 12), kernel=3, groups=4, time_size=8)


def make(config: UnetConfig = SMALL, action_dim: int = 3, condition: int = 5) -> ConditionalUnet:
    torch.manual_seed(0)
    return ConditionalUnet(action_dim, condition, config)


def inputs(rows: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(rows, length, 3, generator=generator)
    return actions, torch.arange(rows) * 7, torch.randn(rows, 5, generator=generator)


def test_the_published_size_has_the_published_parameters() -> None:
    # TinyVLA-H: width 2048, 10 action dimensions. Counted by hand from channels, kernel 5 and time 256.
    def block(width_in: int, width_out: int, kernel: int = 5) -> int:
        return width_in * width_out * kernel + width_out + 2 * width_out

    def film_block(width_in: int, width_out: int) -> int:
        skip = width_in * width_out + width_out if width_in != width_out else 0
        film = (256 + 2048 + 1) * 2 * width_out
        return block(width_in, width_out) + block(width_out, width_out) + film + skip

    expected = 256 * 1024 + 1024 + 1024 * 256 + 256
    for width_in, width_out in ((10, 256), (256, 512), (512, 1024), (1024, 1024), (2048, 512), (1024, 256)):
        expected += film_block(width_in, width_out)
        expected += film_block(width_out, width_out)
    expected += 256 * 256 * 3 + 256 + 512 * 512 * 3 + 512  # down
    expected += 512 * 512 * 4 + 512 + 256 * 256 * 4 + 256  # up
    expected += block(256, 256) + 256 * 10 + 10
    with torch.device("meta"):
        unet = ConditionalUnet(10, 2048, UnetConfig())
    assert sum(p.numel() for p in unet.parameters()) == expected


def test_the_head_has_as_many_parameters_as_the_published_code_prints() -> None:
    # Of a Llava-Pythia-400M (width 512) with 7 state and 10 action dimensions it prints 7.283150e+07.
    with torch.device("meta"):
        parts = (ConditionalUnet(10, 512, UnetConfig()), PooledCondition(512, 7))
    assert f"{sum(p.numel() for part in parts for p in part.parameters()):e}" == "7.283150e+07"


def test_published_names_are_one_to_one_and_complete() -> None:
    with torch.device("meta"):
        unet = ConditionalUnet(10, 64, UnetConfig())
    names = {published_name(name): tuple(p.shape) for name, p in unet.named_parameters()}
    assert len(names) == len(list(unet.parameters()))
    assert names["diffusion_step_encoder.1.weight"] == (1024, 256)
    assert names["diffusion_step_encoder.3.bias"] == (256,)
    assert names["down_modules.0.0.blocks.0.block.0.weight"] == (256, 10, 5)
    assert names["down_modules.0.0.residual_conv.weight"] == (256, 10, 1)
    assert names["down_modules.1.1.blocks.1.block.1.weight"] == (512,)
    assert names["down_modules.1.2.conv.weight"] == (512, 512, 3)
    assert names["mid_modules.1.cond_encoder.1.weight"] == (2048, 320)
    assert names["up_modules.0.0.blocks.0.block.0.weight"] == (512, 2048, 5)
    assert names["up_modules.1.2.conv.weight"] == (256, 256, 4)
    assert names["final_conv.0.block.0.weight"] == (256, 256, 5)
    assert names["final_conv.1.weight"] == (10, 256, 1)
    assert not any("down_modules.2.2" in name for name in names), "the lowest level isn't halved"


@pytest.mark.parametrize("length", [1, 4, 5, 7, 16])
def test_any_chunk_length_keeps_its_shape(length: int) -> None:
    config = UnetConfig(channels=(4, 6, 8), kernel=3, groups=4, time_size=8)
    assert make(config)(*inputs(2, length)).shape == (2, length, 3)


def test_rows_of_a_batch_dont_mix() -> None:
    unet = make().double()
    actions, steps, condition = (x.double() if x.is_floating_point() else x for x in inputs(3, 5))
    together = unet(actions, steps, condition)
    alone = torch.cat([unet(actions[i : i + 1], steps[i : i + 1], condition[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def test_step_condition_and_every_action_reach_every_output() -> None:
    unet = make().double()
    actions, steps, condition = (x.double() if x.is_floating_point() else x for x in inputs(1, 4))
    before = unet(actions, steps, condition)
    assert (unet(actions, steps + 1, condition) - before).abs().min() > 1e-6
    assert (unet(actions, steps, condition + 1) - before).abs().min() > 1e-6
    moved = actions.clone()
    moved[0, 0, 0] += 1
    assert (unet(moved, steps, condition) - before).abs().min() > 1e-8


def test_a_residual_block_is_film_between_two_convolution_blocks() -> None:
    block = FilmBlock(2, 4, 3, SMALL)
    features, given = torch.randn(2, 2, 6), torch.randn(2, 3)
    scale, shift = block.film(given).view(2, 2, 4, 1).unbind(1)
    expected = block.second(scale * block.first(features) + shift) + block.skip(features)
    torch.testing.assert_close(block(features, given), expected)


def test_a_block_is_convolution_group_norm_mish() -> None:
    block = Block(1, 2, UnetConfig(channels=(2,), kernel=1, groups=1))
    nn.init.ones_(block.conv.weight)
    with torch.no_grad():
        block.conv.bias.copy_(torch.tensor([0.0, 2.0]))
    # Channels (1, 3) and (3, 5): mean 3, variance 2, one group.
    normalised = torch.tensor([[[-2.0, 0.0], [0.0, 2.0]]]) / math.sqrt(2 + 1e-5)
    expected = normalised * torch.tanh(F.softplus(normalised))
    torch.testing.assert_close(block(torch.tensor([[[1.0, 3.0]]])), expected)


def test_groups_adapt_to_widths_that_they_dont_divide() -> None:
    assert Block(3, 12, UnetConfig(channels=(12,), groups=8)).norm.num_groups == 4
    assert Block(3, 5, UnetConfig(channels=(5,), groups=8)).norm.num_groups == 1


def test_time_embedding_by_hand() -> None:
    # Frequencies 1, 10000 ** -(1 / 1) = 1e-4.
    embedded = sine_embedding(torch.tensor([0, 3]), 4)
    assert embedded[0].tolist() == [0, 0, 1, 1]
    assert embedded[1].tolist() == pytest.approx([math.sin(3), 3e-4, math.cos(3), 1.0], abs=1e-6)


def test_bfloat16_time_embedding_rounds_the_angles_as_published_training_did() -> None:
    rounded = sine_embedding(torch.tensor([99]), 256, bfloat16=True)
    assert rounded.dtype == torch.bfloat16
    # Second frequency exp(-0.0725) = 0.9300, in bfloat16 0.9297; 99 times that is 92.04, which rounds to 92.
    assert rounded[0, 1].item() == pytest.approx(math.sin(92.0), abs=4e-3)
    assert sine_embedding(torch.tensor([99]), 256)[0, 1].item() == pytest.approx(math.sin(92.073), abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": ()}, "expected at least 1 item"),
        ({"kernel": 4}, "odd number"),
        ({"groups": 0}, "groups is 0; expected at least 1"),
        ({"time_size": 7}, "expected a multiple of 2"),
    ],
)
def test_sizes_that_cant_work_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnetConfig(**wrong)

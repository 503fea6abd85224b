"""The noise predictor of the diffusion head: a U-Net along the actions of a chunk.

B batch, H actions in a chunk, A dimensions of an action, C width of the condition, W channels of a level.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simplevla.policies.tinyvla.config import UnetConfig

LONGEST_PERIOD = 10_000
"""Ratio of the slowest to the fastest sine of the time embedding, as in the transformer's position embedding."""


class ConditionalUnet(nn.Module):
    """The noise in a chunk of actions, given the denoising step and one vector about everything seen.

    The structure is TinyVLA's (arXiv 2409.12514): per level two residual blocks, convolutions of stride 2 between the
    levels, two blocks at the bottom, and on the way up the way down's features beside the current ones. Only the lowest
    levels' features are joined again: the first level's aren't. Chunks of any length work: a level of odd length is
    halved rounding up, and what the way up has too much is cut off, which leaves lengths that divide as published.
    """

    def __init__(self, action_dim: int, condition_size: int, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        size = config.time_size
        self.time = nn.Sequential(nn.Linear(size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))
        given = size + condition_size
        widths = (action_dim, *config.channels)
        bottom = len(config.channels) - 1
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], given, nn.Identity() if i == bottom else _halve(widths[i + 1]), config)
            for i in range(len(config.channels))
        )
        self.middle = nn.ModuleList(FilmBlock(widths[-1], widths[-1], given, config) for _ in range(2))
        self.up = nn.ModuleList(
            Level(2 * widths[i + 1], widths[i], given, _double(widths[i]), config) for i in range(bottom, 0, -1)
        )
        self.last = Block(widths[1], widths[1], config)
        self.out = nn.Conv1d(widths[1], action_dim, 1)

    def forward(self, noisy_actions: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The predicted noise [B, H, A].

        Args:
            noisy_actions: [B, H, A], normalised.
            timestep: [B], 0 (least noise) to about 100, whole numbers or not.
            condition: [B, C].
        """
        embedded = sine_embedding(timestep, self.config.time_size, bfloat16=self.config.time_bfloat16)
        given = F.mish(torch.cat([self.time(embedded.to(condition.dtype)), condition], dim=-1))
        features = noisy_actions.transpose(1, 2)
        kept = []
        for level in self.down:
            before, features = level(features, given)
            kept.append(before)
        for block in self.middle:
            features = block(features, given)
        for level in self.up:
            _, features = level(torch.cat([features, kept.pop()], dim=1), given)
            features = features[:, :, : kept[-1].shape[2]]
        return self.out(self.last(features)).transpose(1, 2)


class Level(nn.Module):
    """Two residual blocks and what changes the length after them."""

    def __init__(self, width_in: int, width_out: int, given: int, resample: nn.Module, config: UnetConfig) -> None:
        super().__init__()
        self.first = FilmBlock(width_in, width_out, given, config)
        self.second = FilmBlock(width_out, width_out, given, config)
        self.resample = resample

    def forward(self, features: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The features before and after the change of length."""
        features = self.second(self.first(features, given), given)
        return features, self.resample(features)


class FilmBlock(nn.Module):
    """Two convolution blocks with a skip; between them the condition scales and shifts every channel (FiLM)."""

    def __init__(self, width_in: int, width_out: int, given: int, config: UnetConfig) -> None:
        super().__init__()
        self.first = Block(width_in, width_out, config)
        self.film = nn.Linear(given, 2 * width_out)
        self.second = Block(width_out, width_out, config)
        self.skip = nn.Conv1d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, features: Tensor, given: Tensor) -> Tensor:
        """[B, width_out, length] from [B, width_in, length] and the activated condition [B, given]."""
        scale, shift = self.film(given)[:, :, None].chunk(2, dim=1)
        return self.second(torch.addcmul(shift, scale, self.first(features))) + self.skip(features)


class Block(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, width_in: int, width_out: int, config: UnetConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, config.kernel, padding=config.kernel // 2)
        self.norm = nn.GroupNorm(math.gcd(config.groups, width_out), width_out)

    def forward(self, features: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(features)))


def sine_embedding(timestep: Tensor, size: int, *, bfloat16: bool = False) -> Tensor:
    """[B, size] of sines, then cosines, of the step at frequencies from 1 down to 1 / LONGEST_PERIOD.

    With `bfloat16`, frequency, angle and result are each rounded to bfloat16 on the way.
    """
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    exponents = torch.arange(size // 2, device=timestep.device, dtype=dtype)
    frequencies = torch.exp(exponents * (-math.log(LONGEST_PERIOD) / (size // 2 - 1)))
    angles = timestep[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


PUBLISHED_PARTS = (
    ("time.0.", "diffusion_step_encoder.1."),
    ("time.2.", "diffusion_step_encoder.3."),
    ("down.", "down_modules."),
    ("middle.", "mid_modules."),
    ("up.", "up_modules."),
    ("last.conv.", "final_conv.0.block.0."),
    ("last.norm.", "final_conv.0.block.1."),
    ("out.", "final_conv.1."),
)
PUBLISHED_BLOCK_PARTS = (
    ("first.conv.", "blocks.0.block.0."),
    ("first.norm.", "blocks.0.block.1."),
    ("film.", "cond_encoder.1."),
    ("second.conv.", "blocks.1.block.0."),
    ("second.norm.", "blocks.1.block.1."),
    ("skip.", "residual_conv."),
)
PUBLISHED_LEVEL_PARTS = (("first.", "0."), ("second.", "1."), ("resample.", "2.conv."))


def published_name(name: str) -> str:
    """Name of the U-Net's parameter `name` in the published checkpoints, below their prefix `embed_out.`.

    >>> published_name("down.1.first.film.weight")
    'down_modules.1.0.cond_encoder.1.weight'
    """
    start, rest = _exchange(name, PUBLISHED_PARTS)
    if start not in ("down_modules.", "mid_modules.", "up_modules."):
        return start + rest
    index, _, rest = rest.partition(".")
    start += f"{index}."
    if "mid_modules." not in start:
        part, rest = _exchange(rest, PUBLISHED_LEVEL_PARTS)
        start += part
    if rest in ("weight", "bias"):
        return start + rest
    return start + "".join(_exchange(rest, PUBLISHED_BLOCK_PARTS))


def _exchange(name: str, parts: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """The published word for the start of `name`, and the rest of it."""
    for ours, theirs in parts:
        if name.startswith(ours):
            return theirs, name.removeprefix(ours)
    raise AssertionError(f"no published name for {name!r}")


def _halve(width: int) -> nn.Module:
    return nn.Conv1d(width, width, 3, stride=2, padding=1)


def _double(width: int) -> nn.Module:
    return nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

"""The sizes of a TinyVLA policy; written into its folder as config.json."""

from dataclasses import field
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le, Len, MultipleOf

from simplevla.checked import Dimensions, Layers, Pixels, Positive, ShareAbove0, Width, dataclass
from simplevla.config import Head
from simplevla.errors import UserError

ARCHITECTURE: Final = "tinyvla"


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Settings of the vision tower, which turns one camera's image into tokens of the language model."""

    kind: Literal["conv", "siglip", "clip"] = "conv"
    """`conv`: a small language-conditioned keypoint encoder per camera, for images of any size; `siglip`, `clip`: the
    transformers classes, shared by the cameras, patch tokens of the second-last layer."""
    channels: Annotated[tuple[Width, ...], Len(1, 64)] = (32, 32)
    """conv: output channels of each convolution."""
    kernels: tuple[Annotated[int, Ge(1), Le(101)], ...] = (5, 3)
    """conv: side of each kernel, odd."""
    strides: tuple[Annotated[int, Ge(1), Le(101)], ...] = (4, 1)
    """conv: stride of each convolution; their product is the pixel distance between two places of the keypoint maps."""
    keypoints: Width = 32
    """conv: keypoints per camera."""
    tokens: Dimensions = 1
    """conv: tokens per camera."""
    summary: bool = False
    """conv: also add a two-layer map of the cameras' tokens, state and instruction to every query before the language
    model, which then refines a guess instead of starting from nothing. After 400 batches of tabletop demonstrations
    the nano policy's held-out error in x and y is 0.20 with it and 0.24 without (of a range of 2)."""
    image_size: Pixels = 224
    """siglip, clip: images are resized to this side."""
    patch_size: Pixels = 16
    hidden_size: Width = 768
    layers: Layers = 12
    """siglip, clip: layers of the original tower; the last one is left out, since the second-last is read."""
    heads: Width = 12
    mlp_size: Width = 3072
    frame: tuple[Pixels, Pixels] | None = None
    """siglip, clip: (height, width) that camera images are first resized to, whatever their aspect; None leaves them.
    TinyVLA's own data loading makes (180, 320) of them."""
    crop: ShareAbove0 = 1.0
    """siglip, clip: share of each side that the centre crop keeps; the rest is then enlarged to the size before."""
    pad: bool = False
    """siglip, clip: an image that isn't square gets bars of the mean colour instead of being squeezed."""
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    """siglip, clip: how images are resized to `image_size`."""

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.kernels) == len(self.strides) >= 1:
            raise UserError(
                f"vision has {len(self.channels)} channels, {len(self.kernels)} kernels, {len(self.strides)} strides; "
                "expected one of each per convolution"
            )
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UserError(f"vision.kernels are {self.kernels}; expected odd numbers")
        if self.kind != "conv" and (self.hidden_size % self.heads or self.patch_size > self.image_size):
            raise UserError(
                f"vision has width {self.hidden_size} for {self.heads} heads, patches of {self.patch_size} pixels in images of "
                f"{self.image_size}; expected a multiple of the heads, and patches that fit"
            )


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """The conditional 1-D U-Net of the diffusion head; the defaults are TinyVLA's."""

    channels: Annotated[tuple[Width, ...], Len(1, 32)] = (256, 512, 1024)
    """Channels per level; the chunk's length halves from each to the next, rounded up."""
    kernel: Annotated[int, Ge(1), Le(101)] = 5
    """Actions that one convolution sees, odd."""
    groups: Width = 8
    """Groups of the group norms; a level whose channels they don't divide uses the greatest common divisor."""
    time_size: Annotated[int, Ge(4), Le(2**20), MultipleOf(2)] = 256
    """Width of the denoising step's embedding, even."""
    time_bfloat16: bool = False
    """Round the sine embedding as bfloat16 arithmetic does, as published checkpoints were trained with. At step 99 its
    angles are then multiples of 0.5, so such a checkpoint needs it and a new policy is better without."""

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise UserError(f"unet.kernel is {self.kernel}; expected an odd number, 5 as published")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion head's schedule and network; the defaults are TinyVLA's."""

    train_steps: Annotated[int, Ge(1), Le(100_000)] = 100
    """Steps of the noise schedule."""
    steps: Positive = 10
    """Denoising steps of the sampler, evenly spaced over the schedule; divides `train_steps`."""
    clip_sample: bool = True
    """Cuts each step's estimate of the chunk to [-1, 1], the range of normalised actions, as published."""
    use_clipped_model_output: bool = False
    """Goes on in the direction of the noise that the cut estimate implies (DPPO, arXiv 2409.00588) instead of
    the noise that the network predicted, which is diffusers' default and what TinyVLA acts with."""
    noise_samples: Annotated[int, Ge(1), Le(10_000)] = 1
    """Noises per chunk in a training batch: they share one pass of the vision-language model."""
    unet: UnetConfig = field(default_factory=UnetConfig)

    def __post_init__(self) -> None:
        if self.train_steps % self.steps:
            raise UserError(
                f"diffusion.steps is {self.steps}; expected a divisor of diffusion.train_steps, {self.train_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The flow head's sampler and network, which is the diffusion head's."""

    steps: Annotated[int, Ge(2), Le(100_000)] = 10
    """Steps of Euler's method from noise to a chunk."""
    noise_samples: Annotated[int, Ge(1), Le(10_000)] = 1
    """Noises per chunk in a training batch: they share one pass of the vision-language model."""
    unet: UnetConfig = field(default_factory=UnetConfig)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The GPT-NeoX language model (Pythia's architecture) that every token passes through."""

    hidden_size: Width = 128
    layers: Layers = 2
    heads: Width = 4
    mlp_size: Width = 256
    vocab_size: Width = 512
    """Largest vocabulary that the tokenizer may learn; in a saved policy the rows of the word embedding."""
    max_instruction_tokens: Annotated[int, Ge(1), Le(100_000)] = 64
    init_std: Annotated[float, Ge(0), Le(100)] = 0.06
    """Std of the initial weights; GPT-NeoX's own 0.02 is meant for wide models."""
    prompt: str = ""
    """The text around an instruction: `<image>` stands where the views' tokens go, `{instruction}` for the instruction.
    Empty: the instruction alone, after the views."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise UserError(f"language.hidden_size is {self.hidden_size}; expected a multiple of heads, {self.heads}")
        if self.prompt and (self.prompt.count("<image>"), self.prompt.count("{instruction}")) != (1, 1):
            raise UserError(
                f"language.prompt is {self.prompt!r}; expected '<image>' and '{{instruction}}' in it once each"
            )
        if self.prompt and self.prompt.index("{instruction}") < self.prompt.index("<image>"):
            raise UserError(f"language.prompt is {self.prompt!r}; expected '<image>' before '{{instruction}}'")


@dataclass(frozen=True, kw_only=True)
class TinyVLAConfig:
    """A TinyVLA with one of its three heads."""

    architecture: Literal["tinyvla"] = ARCHITECTURE
    cameras: tuple[str, ...]
    """Camera names, in the order in which their tokens stand."""
    state_dim: Dimensions
    action_dim: Dimensions
    chunk_length: Dimensions
    head: Head = "tokens"
    """Head. `tokens`: one of `bins` bins per action dimension, by learned queries. `diffusion`: denoising, from pooled
    outputs. `flow`: flow matching, from the same."""
    bins: Annotated[int, Ge(2), Le(2**20)] = 256
    """tokens: bins per action dimension."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"cameras are {self.cameras}; a tinyvla policy needs at least one, each once")
        if self.language.prompt and (self.head, self.vision.kind) not in (
            ("diffusion", "clip"),
            ("diffusion", "siglip"),
        ):
            raise UserError(
                f"language.prompt is set for the head {self.head!r} and {self.vision.kind!r} vision; expected 'diffusion' "
                "and 'clip' or 'siglip', as in the published policy"
            )

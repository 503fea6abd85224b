"""Sizes and conventions of an OpenVLA-OFT policy, its folder's config.json; the defaults are the published 7B's."""

from dataclasses import field
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le

from simplevla.checked import Above0, Count, Dimensions, Layers, Pixels, Share, ShareAbove0, Width, dataclass
from simplevla.errors import UserError

ARCHITECTURE: Final = "openvla_oft"


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One of the two vision transformers."""

    hidden_size: Width
    layers: Annotated[int, Ge(2), Le(512)]
    """Layers of the original tower; the last one is left out, since the second-last is read."""
    heads: Width
    mlp_size: Width
    mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    """Mean of the pixels in 0..1, red, green, blue."""
    std: tuple[Above0, Above0, Above0] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise UserError(
                f"a vision tower has width {self.hidden_size} for {self.heads} heads; expected a multiple of the heads"
            )


@dataclass(frozen=True, kw_only=True)
class LlamaSizes:
    """The language model."""

    hidden_size: Width = 4096
    layers: Layers = 32
    heads: Width = 32
    key_value_heads: Width = 32
    mlp_size: Width = 11008
    vocab_size: Width = 32064
    """Rows of the word embedding, padding included."""
    padded: Count = 64
    """Ids at the end of the vocabulary that no token has; the action tokens are the 256 before them."""
    rms_norm_eps: Above0 = 1e-6
    rope_theta: Above0 = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.heads) or self.heads % self.key_value_heads:
            raise UserError(
                f"language has width {self.hidden_size} for {self.heads} heads, {self.key_value_heads} of them for keys and values; "
                "expected an even width for each head, and a divisor of the heads"
            )


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTConfig:
    """An OpenVLA-OFT with its token head."""

    architecture: Literal["openvla_oft"] = ARCHITECTURE
    cameras: tuple[str, ...]
    """Camera names, in the order in which their patches stand."""
    state_dim: Dimensions
    """Numbers in the suite's state, even if the policy doesn't read it."""
    action_dim: Dimensions = 7
    chunk_length: Dimensions = 8
    proprio: bool = False
    """True if the state is a token, after the patches."""
    image_size: Pixels = 224
    patch_size: Pixels = 14
    crop: ShareAbove0 = 0.9
    """Share of the image's *area* that the centre crop keeps."""
    dino: TowerConfig = field(
        default_factory=lambda: TowerConfig(
            hidden_size=1024,
            layers=24,
            heads=16,
            mlp_size=4096,
            # ImageNet's, rounded to bfloat16 as in the published preprocessor_config.json.
            mean=(0.484375, 0.455078125, 0.40625),
            std=(0.228515625, 0.2236328125, 0.224609375),
        )
    )
    siglip: TowerConfig = field(
        default_factory=lambda: TowerConfig(hidden_size=1152, layers=27, heads=16, mlp_size=4304)
    )
    language: LlamaSizes = field(default_factory=LlamaSizes)
    bounds: Literal["q01_q99", "min_max"] = "q01_q99"
    """Measures of the demonstrations that -1 and 1 stand for: quantiles (LIBERO) or extremes (ALOHA)."""
    action_mask: tuple[bool, ...] = (True, True, True, True, True, True, False)
    """Dimensions that are normalised; the others are the model's as they are."""
    gripper: Literal["libero", "none"] = "libero"
    """`libero`: the last dimension is 1 for open and 0 for closed in the model, -1 and +1 in the simulator; `none`: it
    is an action like the others."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""

    def __post_init__(self) -> None:
        problems = []
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            problems.append(f"cameras are {self.cameras}; expected at least one, each once")
        if len(self.action_mask) != self.action_dim:
            problems.append(f"action_mask has {len(self.action_mask)} entries; expected {self.action_dim}")
        if self.image_size % self.patch_size:
            problems.append(f"image_size is {self.image_size}; expected a multiple of patch_size, {self.patch_size}")
        if self.dino.mlp_size % self.dino.hidden_size:
            problems.append(f"dino.mlp_size is {self.dino.mlp_size}; expected a multiple of {self.dino.hidden_size}")
        if problems:
            raise UserError("openvla_oft config: " + "; ".join(problems))

"""The sizes of a SmolVLA policy, written into its folder as config.json; the defaults are the published 450M's."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt, Le

from simplevla.checked import Above0, Count, Dimensions, Layers, Pixels, Width, dataclass
from simplevla.errors import UserError

ARCHITECTURE: Final = "smolvla"
BACKBONE = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The vision tower and the connector, which makes one token of `scale_factor` squared patches."""

    image_size: Pixels = 512
    """Side of the pictures that the tower's positions are for."""
    patch_size: Pixels = 16
    hidden_size: Width = 768
    layers: Layers = 12
    heads: Width = 12
    mlp_size: Width = 3072
    scale_factor: Width = 4
    layer_norm_eps: Above0 = 1e-6


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """The backbone's Llama, of which the first `layers` are used."""

    hidden_size: Width = 960
    layers: Layers = 16
    heads: Width = 15
    key_value_heads: Width = 5
    head_dim: Width = 64
    mlp_size: Width = 2560
    vocab_size: Width = 49280
    rms_norm_eps: Above0 = 1e-5
    init_std: Annotated[float, Ge(0), Le(100)] = 0.02
    """Std of the initial weights of a new policy."""


@dataclass(frozen=True, kw_only=True)
class SmolVLAConfig:
    """A SmolVLA of any size."""

    architecture: Literal["smolvla"] = ARCHITECTURE
    cameras: tuple[str, ...]
    """Camera names, in the order in which their tokens stand."""
    features: tuple[str, ...]
    """LeRobot's name of each camera."""
    missing: tuple[str, ...] = ()
    """LeRobot's names of cameras that the training had and this policy does without, for the record."""
    empty_cameras: Count = 0
    """Pictures that the published code adds and masks; only special tokens around them, if there are any, are seen."""
    renamed: dict[str, str] = field(default_factory=dict)
    """A robot's or dataset's name of a camera -> LeRobot's, where LeRobot's processor renames it."""
    state_dim: Annotated[int, Ge(1)]
    action_dim: Annotated[int, Ge(1)]
    chunk_length: Dimensions
    """Actions that are executed, `n_action_steps` in LeRobot."""
    predicted_length: Dimensions
    """Actions that are predicted, `chunk_size` in LeRobot."""
    max_state_dim: Dimensions = 32
    """Numbers that the state is padded to, with zeros; likewise `max_action_dim`."""
    max_action_dim: Dimensions = 32
    image_size: Pixels = 512
    """Side of the square that pictures are resized to, the aspect kept."""
    max_instruction_tokens: Annotated[int, Ge(1), Le(100_000)] = 48
    """Tokens of an instruction; the published code cuts the rest off."""
    image_special_tokens: bool = False
    """True if special tokens stand around each picture's."""
    steps: Annotated[int, Ge(2), Le(10_000)] = 10
    """Steps of the sampler."""
    noise_samples: Annotated[int, Ge(1), Le(10_000)] = 1
    """Noises per chunk in a training batch: they share one pass of the backbone."""
    cross_attention: bool = True
    """False: every layer of the expert attends to itself and to the backbone at once."""
    self_attention_every: Count = 2
    """Layers of the backbone from one such layer to the next, from the first on; 0: none. The others attend to the
    backbone alone."""
    expert_width: Annotated[float, Gt(0), Le(4)] = 0.75
    """Width of the expert as a share of the backbone's."""
    expert_layers: Layers = 16
    """Layers of the expert, a divisor of the backbone's."""
    min_period: Above0 = 4e-3
    """Shortest period of the time's sines and cosines; the longest is `max_period`."""
    max_period: Annotated[float, Gt(0)] = 4.0
    frozen_backbone: bool = True
    """Trains the expert and the projections of state and actions alone, as published."""
    backbone: str = BACKBONE
    """Name of the backbone, whose tokenizer and processor LeRobot loads."""
    vision: VisionSizes = field(default_factory=VisionSizes)
    language: LanguageSizes = field(default_factory=LanguageSizes)

    @property
    def expert_hidden_size(self) -> int:
        return int(self.language.hidden_size * self.expert_width)

    @property
    def expert_mlp_size(self) -> int:
        """Width of the expert's MLPs: 8/3 of its own, rounded up to 256."""
        return 256 * math.ceil(4 * int(2 * self.expert_hidden_size / 3) / 256)

    def crosses(self, layer: int) -> bool:
        """True if the expert at the backbone's `layer` attends to the backbone alone."""
        every = self.self_attention_every
        return self.cross_attention and not (every and layer % every == 0)

    @property
    def read_layers(self) -> int:
        """Layers of the backbone up to the last one that the expert looks at."""
        every = self.language.layers // self.expert_layers
        return (self.language.layers - 1) // every * every + 1

    def __post_init__(self) -> None:
        problems = [
            *(f"{name} is {got}; expected at most {most}" for name, got, most in self._bounds() if got > most),
            *(f"{name} is {got}; expected a multiple of {by}" for name, got, by in self._multiples() if got % by),
        ]
        if not self.cameras or len(set(self.cameras)) < len(self.cameras) or len(self.features) != len(self.cameras):
            problems.append(
                f"cameras are {self.cameras} with features {self.features}; expected one each, at least one"
            )
        if self.expert_hidden_size < 2 or self.expert_hidden_size % 2:
            problems.append(f"the expert's width is {self.expert_hidden_size}; expected an even number")
        every = self.language.layers // self.expert_layers
        mixed = any(self.crosses(layer) != self.crosses(layer * every) for layer in range(self.expert_layers))
        if mixed or any(layer % every and not self.crosses(layer) for layer in range(self.language.layers)):
            problems.append(
                f"the expert has {self.expert_layers} layers for {self.language.layers}, some with joint attention, which the published "
                "code doesn't run; expected as many, or cross-attention alone"
            )
        if problems:
            raise UserError("smolvla config: " + "; ".join(problems))

    def _bounds(self) -> tuple[tuple[str, int, int], ...]:
        return (
            ("state_dim", self.state_dim, self.max_state_dim),
            ("action_dim", self.action_dim, self.max_action_dim),
            ("chunk_length (n_action_steps)", self.chunk_length, self.predicted_length),
        )

    def _multiples(self) -> tuple[tuple[str, int, int], ...]:
        vision, language = self.vision, self.language
        return (
            ("image_size", self.image_size, vision.patch_size * vision.scale_factor),
            ("vision.hidden_size", vision.hidden_size, vision.heads),
            ("language.heads", language.heads, language.key_value_heads),
            ("language.head_dim", language.head_dim, 2),
            ("language.layers", language.layers, self.expert_layers),
        )


def nano() -> dict[str, object]:
    """About 1.3 M parameters, made for two CPU cores and images of about 64 pixels; all of them train."""
    return {
        "image_size": 64,
        "steps": 5,
        "noise_samples": 8,
        "expert_layers": 4,
        "frozen_backbone": False,
        "backbone": "",
        "vision": VisionSizes(image_size=64, patch_size=8, hidden_size=64, layers=2, heads=2, mlp_size=128),
        "language": LanguageSizes(
            hidden_size=128,
            layers=4,
            heads=4,
            key_value_heads=2,
            head_dim=32,
            mlp_size=256,
            vocab_size=512,
            init_std=0.06,
        ),
    }


def published() -> dict[str, object]:
    """The published 450M, with random weights."""
    return {}


PRESETS: dict[str, Callable[[], dict[str, object]]] = {"smolvla_nano": nano, "smolvla_450m": published}

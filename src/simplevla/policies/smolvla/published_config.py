"""The settings in LeRobot's folder of a SmolVLA, and in its backbone's, to a policy's and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from transformers import SmolVLMConfig

from simplevla.checked import Above0, Count, Dimensions, Pixels, Positive, from_dict, part
from simplevla.errors import UserError, brief
from simplevla.policies.smolvla.config import BACKBONE, LanguageSizes, SmolVLAConfig, VisionSizes
from simplevla.storage import read_json

STATE, ACTION = "observation.state", "action"
EMPTY = "observation.images.empty_camera_"
MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
"""Normalisation of the published code."""


def is_published(modes: Mapping[str, Any]) -> bool:
    """True if these modes are those of the published code. LeRobot leaves what isn't named as it is."""
    return {name: modes.get(name, "IDENTITY") for name in MODES} == MODES


@part(frozen=True, kw_only=True)
class Feature:
    """One input or output."""

    type: str
    shape: tuple[Annotated[int, Ge(0)], ...]


@part(frozen=True, kw_only=True)
class PublishedConfig:
    """LeRobot's config.json, as far as it says what the policy computes; the defaults are LeRobot's."""

    input_features: dict[str, Feature]
    output_features: dict[str, Feature]
    normalization_mapping: dict[str, str] | None = None
    n_obs_steps: Literal[1] = 1
    chunk_size: Dimensions = 50
    n_action_steps: Dimensions = 50
    max_state_dim: Dimensions = 32
    max_action_dim: Dimensions = 32
    resize_imgs_with_padding: tuple[Pixels, Pixels] = (512, 512)
    empty_cameras: Count = 0
    adapt_to_pi_aloha: Literal[False] = False
    use_delta_joint_actions_aloha: Literal[False] = False
    tokenizer_max_length: Positive = 48
    num_steps: Annotated[int, Ge(2)] = 10
    add_image_special_tokens: bool = False
    attention_mode: Literal["cross_attn", "self_attn"] = "cross_attn"
    num_expert_layers: int = -1
    num_vlm_layers: int = 16
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: Above0 = 0.75
    min_period: Above0 = 4e-3
    max_period: Above0 = 4.0
    vlm_model_name: str = BACKBONE

    def __post_init__(self) -> None:
        if len(set(self.resize_imgs_with_padding)) != 1:
            raise UserError(f"resize_imgs_with_padding is {self.resize_imgs_with_padding}; expected a square")
        if not is_published(MODES if self.normalization_mapping is None else self.normalization_mapping):
            raise UserError(f"normalization_mapping is {self.normalization_mapping}; expected {MODES}, as published")
        sides = ((self.input_features, STATE, "STATE"), (self.output_features, ACTION, "ACTION"))
        for features, name, kind in sides:
            if name not in features or len(features[name].shape) != 1:
                raise UserError(f"the features are {', '.join(features)}; expected {name} among them, of one dimension")
            if features[name].type != kind:
                raise UserError(f"{name} has the type {brief(features[name].type)}; expected {kind}, as LeRobot has it")

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras, in the order of their tokens, but for empty ones, which never have a picture."""
        visual = [name for name, feature in self.input_features.items() if feature.type == "VISUAL"]
        return [name for name in visual if not name.startswith(EMPTY)]


def read_published_config(file: Path) -> PublishedConfig:
    """LeRobot's settings of a SmolVLA.

    Raises:
        UserError: another policy's, or a setting that isn't supported.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; expected a SmolVLA folder that LeRobot saved")
    values = read_json(file)
    if values.get("type") != "smolvla":
        raise UserError(f"{file} is of the policy type {brief(values.get('type'))}; expected 'smolvla'")
    for name in ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha"):
        if values.get(name):
            raise UserError(
                f"{file} has {name}: joints relative to the state, or ALOHA's in pi's units, which aren't supported; expected false. "
                "Use a checkpoint that was trained on plain joints"
            )
    return from_dict(PublishedConfig, values, source=str(file))


def backbone_sizes(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(vision, language, id of the token `<image>`) of the backbone: what its config.json in `folder` says.

    Without that file they are those of the published backbone, if `name` is its.

    Raises:
        UserError: neither, or the settings of another kind of model.
    """
    file = folder / "config.json"
    if not file.is_file():
        if name != BACKBONE:
            raise UserError(
                f"{file} is missing, and the backbone {brief(name)} isn't {BACKBONE}; expected its config.json too"
            )
        return {}, {}, 49190
    values = read_json(file)
    if values.get("model_type") != "smolvlm":
        raise UserError(
            f"{file} is of a {brief(values.get('model_type'))}; expected the config of a SmolVLM2 ('smolvlm')"
        )
    try:
        config = SmolVLMConfig.from_dict(values)
        vision, text = config.vision_config, config.text_config
        kinds = (text.model_type, text.hidden_act, text.attention_bias, text.mlp_bias, vision.hidden_act)
        sizes = _vision(vision, config.scale_factor), _language(text), int(config.image_token_id)
    except Exception as error:  # the library checks types with errors of its own
        raise UserError(f"{file} isn't a SmolVLM2's ({error}); expected its config as published") from error
    if kinds != ("llama", "silu", False, False, "gelu_pytorch_tanh"):
        raise UserError(f"{file} has model type, activation and biases {kinds}; expected those of SmolVLM2")
    return sizes


def _vision(config: Any, scale_factor: int) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_size": config.intermediate_size,
        "scale_factor": scale_factor,
        "layer_norm_eps": config.layer_norm_eps,
    }


def _language(config: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "mlp_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
    }


def policy_config(
    published: PublishedConfig,
    cameras: Mapping[str, str],
    renamed: Mapping[str, str],
    vision: Mapping[str, Any],
    language: Mapping[str, Any],
) -> SmolVLAConfig:
    """The policy's settings.

    Args:
        cameras: our name -> LeRobot's, in any order.
        renamed: the dataset's name of a camera -> LeRobot's.
        vision: sizes of the backbone, and so is `language`.

    Raises:
        UserError: a camera that the policy doesn't have, or sizes out of range.
    """
    known = published.cameras
    unknown = [feature for feature in cameras.values() if feature not in known]
    if unknown:
        raise UserError(
            f"--cameras names {', '.join(unknown)}; the policy has the cameras {', '.join(known) or 'none'}"
        )
    if len(set(cameras.values())) < len(cameras):
        named = ", ".join(f"{name}={feature}" for name, feature in cameras.items())
        raise UserError(f"--cameras names a camera twice: {named}, as the folder renames them; expected each once")
    ordered = sorted(cameras, key=lambda name: known.index(cameras[name]))
    layers = published.num_vlm_layers if published.num_vlm_layers > 0 else language.get("layers", 32)
    return SmolVLAConfig(
        cameras=tuple(ordered),
        features=tuple(cameras[name] for name in ordered),
        missing=tuple(feature for feature in known if feature not in cameras.values()),
        empty_cameras=published.empty_cameras,
        renamed=dict(renamed),
        state_dim=published.input_features[STATE].shape[0],
        action_dim=published.output_features[ACTION].shape[0],
        chunk_length=published.n_action_steps,
        predicted_length=published.chunk_size,
        max_state_dim=published.max_state_dim,
        max_action_dim=published.max_action_dim,
        image_size=published.resize_imgs_with_padding[0],
        max_instruction_tokens=published.tokenizer_max_length,
        image_special_tokens=published.add_image_special_tokens,
        steps=published.num_steps,
        cross_attention=published.attention_mode == "cross_attn",
        self_attention_every=max(published.self_attn_every_n_layers, 0),
        expert_width=published.expert_width_multiplier,
        expert_layers=published.num_expert_layers if published.num_expert_layers > 0 else layers,
        min_period=published.min_period,
        max_period=published.max_period,
        backbone=published.vlm_model_name,
        vision=VisionSizes(**vision),
        language=LanguageSizes(**{**language, "layers": layers}),
    )


def published_config(config: SmolVLAConfig) -> dict[str, Any]:
    """LeRobot's config.json of a policy."""
    picture = {"type": "VISUAL", "shape": [3, config.image_size, config.image_size]}
    return {
        "type": "smolvla",
        "input_features": {
            STATE: {"type": "STATE", "shape": [config.state_dim]},
            **dict.fromkeys(config.features, picture),
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [config.action_dim]}},
        "normalization_mapping": MODES,
        "n_obs_steps": 1,
        "chunk_size": config.predicted_length,
        "n_action_steps": config.chunk_length,
        "max_state_dim": config.max_state_dim,
        "max_action_dim": config.max_action_dim,
        "resize_imgs_with_padding": [config.image_size, config.image_size],
        "empty_cameras": config.empty_cameras,
        "tokenizer_max_length": config.max_instruction_tokens,
        "num_steps": config.steps,
        "add_image_special_tokens": config.image_special_tokens,
        "attention_mode": "cross_attn" if config.cross_attention else "self_attn",
        "num_expert_layers": config.expert_layers,
        "num_vlm_layers": config.language.layers,
        "self_attn_every_n_layers": config.self_attention_every or -1,
        "expert_width_multiplier": config.expert_width,
        "min_period": config.min_period,
        "max_period": config.max_period,
        "vlm_model_name": config.backbone,
        "load_vlm_weights": False,
    }

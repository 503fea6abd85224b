"""`simplevla import smolvla` and `simplevla export lerobot`: a policy from LeRobot's folder, and back.

A folder has `config.json`, `model.safetensors`, and the statistics: in files that `policy_preprocessor.json` and
`policy_postprocessor.json` name, or, in older folders, in the model file. The tokenizer is the backbone's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.checked import from_dict, part
from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.policies.files import is_finite, read_tokenizer
from simplevla.policies.normalization import MEASURES, Statistics
from simplevla.policies.published import read_tensors, weight_files
from simplevla.policies.smolvla.config import SmolVLAConfig
from simplevla.policies.smolvla.policy import EPSILON, SmolVLA
from simplevla.policies.smolvla.published_config import (
    ACTION,
    MODES,
    STATE,
    Feature,
    PublishedConfig,
    backbone_sizes,
    is_published,
    policy_config,
    published_config,
    read_published_config,
)
from simplevla.policies.trained_on import TrainedOn
from simplevla.reading import ReadingConfig, camera_features
from simplevla.storage import atomic_folder, read_as, write_json

S = TypeVar("S")
WEIGHTS = "model.safetensors"
PRE, POST = "policy_preprocessor", "policy_postprocessor"
STEPS = {
    PRE: {
        *("rename_observations_processor", "to_batch_processor", "smolvla_new_line_processor"),
        *("tokenizer_processor", "device_processor", "normalizer_processor"),
    },
    POST: {"unnormalizer_processor", "device_processor"},
}
"""Steps of a published processor; each is there once, and no other."""
WORDS = {"task_key": "task", "padding_side": "right", "truncation": True}
"""Settings of the published tokenizer step. How far it pads doesn't matter, since what it pads is masked."""
IMAGE = "<image>"
"""A token that every backbone's tokenizer has, and none that is trained here."""
BACKBONE = "model.vlm_with_expert.vlm."
PARTS = (
    ("vision.", f"{BACKBONE}model.vision_model."),
    ("connector.", f"{BACKBONE}model.connector."),
    ("language.", f"{BACKBONE}model.text_model."),
    ("expert.", "model.vlm_with_expert.lm_expert."),
    ("", "model."),
)
"""Our names' beginnings, and the published ones."""
LM_HEAD = f"{BACKBONE}lm_head.weight"
"""Head of the backbone's language model, which no action depends on; tied to the words, it may stand for them."""
OLD = {
    f"{group}.buffer_{feature}.{measure}": (name, measure)
    for name, groups, feature in (
        (STATE, ("normalize_inputs",), "observation_state"),
        (ACTION, ("normalize_targets", "unnormalize_outputs"), "action"),
    )
    for group in groups
    for measure in ("mean", "std")
}
"""Names of the statistics in older model files."""
ROBOT_OF_OLD = re.compile(r"\.so\d+(?:-[\w]+)?_buffer_")
"""Part of these names in older fine-tunes of an SO-100 or SO-101 arm, instead of `.buffer_`."""


@part(frozen=True, kw_only=True)
class Step:
    """One step of a processor."""

    registry_name: str
    config: dict[str, Any] | None = None
    state_file: str | None = None


@part(frozen=True, kw_only=True)
class Normaliser:
    """Settings of a step that normalises, or undoes it."""

    features: dict[str, Feature] | None = None
    norm_map: dict[str, str] | None = None
    normalize_observation_keys: tuple[str, ...] | None = None
    eps: float = EPSILON


@part(frozen=True, kw_only=True)
class Renamer:
    """Settings of the step that renames observations."""

    rename_map: dict[str, str] | None = None


@part(frozen=True, kw_only=True)
class Processor:
    """The steps from observations to the model, or from it to actions."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Report on an import."""

    config: SmolVLAConfig
    tensors: int
    """Tensors of the policy."""
    parameters: int


def import_smolvla(
    folder: Path, out: Path, *, cameras: Sequence[str], tokenizer: Path, action_steps: int | None = None
) -> ImportReport:
    """Converts LeRobot's SmolVLA in `folder` into the new policy folder `out`, running no code from it.

    Args:
        folder: as LeRobot saves it.
        out: must not exist; nothing is written unless everything fits.
        cameras: each `NAME=FEATURE`: our name of a camera, and LeRobot's.
        tokenizer: folder of the backbone, with its `tokenizer.json`, and its `config.json` unless it is the published.
        action_steps: actions of a chunk that are executed; None: the folder's own `n_action_steps`.

    Raises:
        UserError: anything that is missing, left over, damaged, or of another kind.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder for the policy")
    file = folder / "config.json"
    published = read_published_config(file)
    if action_steps is not None:
        if not 1 <= action_steps <= published.chunk_size:
            raise UserError(
                f"--action-steps is {action_steps}; expected 1 to {published.chunk_size}, the chunk_size in {file}"
            )
        published = replace(published, n_action_steps=action_steps)
    vision, language, image_token = backbone_sizes(tokenizer, published.vlm_model_name)
    words = _read_tokenizer(tokenizer / "tokenizer.json", language.get("vocab_size", 49280), image_token)
    renamed, given = _renamed(folder), ReadingConfig(cameras=tuple(cameras)).cameras
    named = {name: renamed.get(feature, feature) for name, feature in camera_features(given).items()}
    try:
        config = policy_config(published, named, renamed, vision, language)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    files = weight_files(folder, (WEIGHTS,))
    if not files:
        adapted = (folder / "adapter_model.safetensors").is_file()
        remedy = ". It is an adapter alone: merge it into its policy with LeRobot first" if adapted else ""
        raise UserError(f"{folder} holds no model; expected {WEIGHTS}{remedy}")
    if adapters := [file for file in ("adapter_model.safetensors", "adapter_config.json") if (folder / file).is_file()]:
        raise UserError(
            f"{folder} has {adapters[0]} beside its model, which would be left out; merge the adapter into the policy with LeRobot "
            "first, or take its files away"
        )
    found = read_tensors(files)
    tensors = {ROBOT_OF_OLD.sub(".buffer_", name.replace("._orig_mod.", ".")): found[name] for name in found}
    if len(tensors) < len(found):
        raise UserError(f"{files[0]} has the statistics of several robots; expected those of one")
    statistics = _read_statistics(folder, tensors, published, config)
    policy = SmolVLA.unfilled(config, statistics, words)
    weights = _converted(tensors, policy.state_dict(), files[0])
    policy.load_state_dict(weights, assign=True)
    policy.trained_on = (TrainedOn(stage="published"),)
    with atomic_folder(out) as temporary:
        policy.save(temporary)
    return ImportReport(config=config, tensors=len(weights), parameters=sum(x.numel() for x in weights.values()))


def published_name(name: str) -> str:
    """Name of the policy's tensor `name` in LeRobot's model file.

    >>> published_name("state_proj.weight")
    'model.state_proj.weight'
    """
    ours, theirs = next(pair for pair in PARTS if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def _read_tokenizer(file: Path, vocab_size: int, image_token: int) -> Tokenizer:
    tokenizer = read_tokenizer(file)
    got, size = tokenizer.token_to_id(IMAGE), tokenizer.get_vocab_size()
    if got != image_token or size > vocab_size:
        raise UserError(
            f"{file} knows {size} tokens, with <image> at {got}; expected the backbone's, of at most {vocab_size} with <image> at "
            f"{image_token}. Name the folder of the policy's own backbone with --tokenizer"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _steps(folder: Path, name: str) -> tuple[Step, ...]:
    file = folder / f"{name}.json"
    return read_as(file, Processor).steps if file.is_file() else ()


def _check_steps(folder: Path, published: PublishedConfig) -> None:
    """Refuses what LeRobot would do and this package doesn't."""
    words = WORDS | {"max_length": published.tokenizer_max_length, "tokenizer_name": published.vlm_model_name}
    for name, expected in STEPS.items():
        file, listed = f"{folder / name}.json", _steps(folder, name)
        kinds = [step.registry_name for step in listed]
        twice = {kind for kind in kinds if kinds.count(kind) > 1}
        if set(kinds) != expected or twice:
            raise UserError(
                f"{file} has{_listed(' no ', expected - set(kinds))}{_listed(' the step ', set(kinds) - expected)}"
                f"{_listed(' more than once ', twice)}; expected the steps {', '.join(sorted(expected))}, as published"
            )
        if name == PRE and kinds.index("smolvla_new_line_processor") > kinds.index("tokenizer_processor"):
            raise UserError(f"{file} reads the words before they get their line break; expected the published order")
        for step in listed:
            given = step.config or {}
            if step.registry_name == "tokenizer_processor":
                for key, value in words.items():
                    if given.get(key, value) != value:
                        raise UserError(
                            f"{file} has {key} {brief(given[key])} in its tokenizer_processor; expected {value!r}, as published or "
                            "as config.json says"
                        )
            if given.get("float_dtype") not in (None, "float32"):
                raise UserError(
                    f"{file} casts to {brief(given['float_dtype'])} in its {step.registry_name}; expected float_dtype null or 'float32'"
                )
            if step.registry_name.endswith("normalizer_processor"):
                _check_normaliser(file, step)


def _check_normaliser(file: str, step: Step) -> None:
    """Refuses a step that doesn't normalise the state, or anything otherwise than by mean and std.

    LeRobot finds a state's mode by its type among the features, and an action's always.
    """
    given = _settings(Normaliser, file, step)
    if given.norm_map is not None and not is_published(given.norm_map):
        raise UserError(f"{file} has norm_map {brief(given.norm_map)}; expected {MODES}, as published")
    features, keys = given.features, given.normalize_observation_keys
    typed = features is None or (STATE in features and features[STATE].type == "STATE")
    if step.registry_name == "normalizer_processor" and not (typed and (keys is None or STATE in keys)):
        raise UserError(
            f"{file} leaves {STATE} as it is; expected it among the features that are normalised, with the type STATE"
        )
    if given.eps != EPSILON:
        raise UserError(f"{file} has eps {given.eps}; expected {EPSILON}, as published")


def _settings(kind: type[S], file: str, step: Step) -> S:
    return from_dict(kind, step.config or {}, source=f"{file}, {step.registry_name}")


def _listed(before: str, names: set[str]) -> str:
    return f"{before}{', '.join(sorted(names))}" if names else ""


def _renamed(folder: Path) -> dict[str, str]:
    """The dataset's name of a camera -> the policy's, where LeRobot renames it."""
    for step in _steps(folder, PRE):
        if step.registry_name == "rename_observations_processor":
            return _settings(Renamer, f"{folder / PRE}.json", step).rename_map or {}
    return {}


def _read_statistics(
    folder: Path, tensors: dict[str, Tensor], published: PublishedConfig, config: SmolVLAConfig
) -> Statistics:
    """The statistics of state and action, in either layout; those in the model file are taken out of `tensors`."""
    if (folder / f"{PRE}.json").is_file() or (folder / f"{POST}.json").is_file():
        for name in STEPS:
            if not (folder / f"{name}.json").is_file():
                raise UserError(f"{folder / name}.json is missing; copy the whole folder again")
        _check_steps(folder, published)
        found = _of_processor(folder, PRE, "normalizer_processor")
        after = _of_processor(folder, POST, "unnormalizer_processor")
        for measure in ("mean", "std"):
            key = f"{ACTION}.{measure}"
            if key in found and key in after and not torch.equal(found[key], after[key]):
                raise UserError(
                    f"{folder} has two {key}, in {PRE}.json's file and in {POST}.json's; expected equal ones"
                )
        found |= {name: tensor for name, tensor in after.items() if name.startswith(f"{ACTION}.")}
    else:
        found = {}
        for old, (name, measure) in OLD.items():
            tensor = tensors.pop(old, None)
            key = f"{name}.{measure}"
            if tensor is not None and key in found and not torch.equal(found[key], tensor):
                raise UserError(f"{folder / WEIGHTS} has {old} unlike the other {key}; expected equal ones")
            if tensor is not None:
                found[key] = tensor
    state, action = (
        _measures(folder, found, name, size) for name, size in ((STATE, config.state_dim), (ACTION, config.action_dim))
    )
    try:
        return Statistics(state=state, action=action)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _of_processor(folder: Path, name: str, kind: str) -> dict[str, Tensor]:
    step = next((step for step in _steps(folder, name) if step.registry_name == kind), None)
    if step is None or not step.state_file or not re.fullmatch(r"[^/\\]+\.safetensors", step.state_file):
        raise UserError(
            f"{folder / name}.json names no statistics: it has no {kind} with a state_file beside it. Copy the whole folder again"
        )
    file = folder / step.state_file
    if not file.is_file():
        raise UserError(f"{file} is missing, in which {name}.json has the statistics; copy the whole folder again")
    return read_tensors([file])


def _measures(folder: Path, found: Mapping[str, Tensor], name: str, size: int) -> dict[str, list[float]]:
    """All measures of a feature. Nothing depends on others than mean and std: missing extremes are set to three std
    around the mean, and missing quantiles to the extremes."""
    got = {measure: found.get(f"{name}.{measure}") for measure in MEASURES}
    for measure in ("mean", "std"):
        tensor = got[measure]
        if tensor is None:
            there = ", ".join(sorted(found)) or "none"
            raise UserError(
                f"{folder} has no {name}.{measure}; its statistics are {there}. Fine-tune it with LeRobot first"
            )
        if tensor.shape != (size,) or not is_finite(tensor):
            raise UserError(f"{folder} has {name}.{measure} {brief(tensor.tolist())}; expected {size} finite numbers")
    listed = {
        measure: tensor.double().tolist()
        for measure, tensor in got.items()
        if tensor is not None and tensor.shape == (size,) and is_finite(tensor)
    }
    wide = {
        side: [m + sign * 3 * s for m, s in zip(listed["mean"], listed["std"], strict=True)]
        for side, sign in (("min", -1), ("max", 1))
    }
    low, high = listed.get("min", wide["min"]), listed.get("max", wide["max"])
    return {"min": low, "max": high, "q01": low, "q99": high} | listed


def _converted(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The policy's tensors in float32, each from one of the file's, none of which is left over."""
    own = {name: tensor for name, tensor in expected.items() if name.startswith("head.")}
    names = {name: published_name(name) for name in expected if name not in own}
    words = names["language.embed_tokens.weight"]
    head = tensors.pop(LM_HEAD, None)
    if head is not None:
        tensors.setdefault(words, head)
    wanted = set(names.values())
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, theirs in names.items():
        have = tensors.get(theirs)
        if have is not None and have.shape != expected[name].shape:
            problems.append(f"{theirs} has shape {list(have.shape)}, expected {list(expected[name].shape)}")
        elif have is not None and (not have.is_floating_point() or not is_finite(have)):
            problems.append(f"{theirs} isn't made of finite numbers")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{file} doesn't fit the config.json beside it and the backbone in --tokenizer: {'; '.join(sorted(problems)[:3])}{more}"
        )
    filled = {name: torch.zeros(tensor.shape) for name, tensor in own.items()}
    return filled | {name: tensors[theirs].float().contiguous() for name, theirs in names.items()}


def export_lerobot(policy: Policy, out: Path) -> int:
    """Writes the new folder `out`, which LeRobot loads and acts from as the policy does; returns the number of tensors.

    Raises:
        UserError: the policy is no SmolVLA, has adapters, or a tokenizer of its own instead of the backbone's.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder")
    if not isinstance(policy, SmolVLA):
        raise UserError(
            f"the policy is a {type(policy).__name__}; LeRobot has SmolVLA of the policies that there are here"
        )
    if policy.adapter_bank is not None and policy.adapter_bank.names:
        raise UserError("the policy has adapters, which LeRobot would leave out; expected a policy without")
    if not policy.config.backbone or policy.prompts.tokenizer.token_to_id(IMAGE) is None:
        raise UserError(
            "the policy was made here, with a tokenizer of its own instead of a backbone's that LeRobot could load; expected an "
            "imported one"
        )
    config = published_config(policy.config)
    tensors = {
        published_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in policy.state_dict().items()
        if not name.startswith("head.")
    }
    statistics = {
        f"{name}.{measure}": torch.tensor(values)
        for name, measures in ((STATE, policy.statistics.state), (ACTION, policy.statistics.action))
        for measure, values in measures.items()
        if measure in ("mean", "std")
    }
    features = config["input_features"] | config["output_features"]
    normal = {"eps": EPSILON, "features": features, "norm_map": MODES}
    words = WORDS | {
        "tokenizer_name": policy.config.backbone,
        "max_length": policy.config.max_instruction_tokens,
        "padding": "longest",
    }
    before: tuple[tuple[str, dict[str, Any]], ...] = (
        ("rename_observations_processor", {"rename_map": dict(policy.config.renamed)}),
        ("to_batch_processor", {}),
        ("smolvla_new_line_processor", {}),
        ("tokenizer_processor", words),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
        ("normalizer_processor", normal),
    )
    after = (
        ("unnormalizer_processor", normal | {"features": config["output_features"]}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    )
    with atomic_folder(out) as temporary:
        write_json(temporary / "config.json", config)
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        for name, steps in ((PRE, before), (POST, after)):
            listed = []
            for number, (kind, settings) in enumerate(steps):
                step: dict[str, Any] = {"registry_name": kind, "config": settings}
                if kind.endswith("normalizer_processor"):
                    step["state_file"] = f"{name}_step_{number}_{kind}.safetensors"
                    save_file(statistics, temporary / step["state_file"])
                listed.append(step)
            write_json(temporary / f"{name}.json", {"name": name, "steps": listed})
    return len(tensors)

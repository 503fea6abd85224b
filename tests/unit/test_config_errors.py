import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.checked import from_dict
from simplevla.config import (
    DemosConfig,
    DenoisingConfig,
    EvalConfig,
    LossConfig,
    OptimizerConfig,
    RayConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
    to_dict,
)
from simplevla.errors import UserError
from simplevla.policies.openvla_oft.config import LlamaSizes, OpenVLAOFTConfig, TowerConfig
from simplevla.policies.tinyvla.config import (
    DiffusionConfig,
    LanguageConfig,
    TinyVLAConfig,
    UnetConfig,
    VisionConfig,
)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'clip_hihg' in LossConfig.*Did you mean 'clip_high'\?"):
        from_dict(TrainConfig, {"loss": {"clip_hihg": 0.28}})


def test_unknown_key_at_the_top_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match="unknown key 'zzz' in TrainConfig; expected one of suite, policy, updates"):
        from_dict(TrainConfig, {"zzz": 1})


def test_survives_json() -> None:
    config = TrainConfig(
        suite=SuiteConfig(name="lever", tasks=("left", "right")),
        sampling=SamplingConfig(groups=4, group_size=2),
        loss=LossConfig(clip_high=0.2, aggregation="unit"),
    )
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size is 1; expected at least 2"):
        SamplingConfig(group_size=1)


def test_groups_stay_whole() -> None:
    with pytest.raises(ValueError, match=r"minibatches is 5; expected 1 to sampling.groups \(4\)"):
        TrainConfig(sampling=SamplingConfig(groups=4), minibatches=5)


@pytest.mark.parametrize(
    ("low", "high", "problem"),
    [
        (0.0, 0.28, "clip_low is 0.0; expected above 0"),
        (1.0, 0.28, "clip_low is 1.0; expected below 1"),
        (0.2, 0.0, "clip_high is 0.0; expected above 0"),
    ],
)
def test_clip_bounds(low: float, high: float, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        LossConfig(clip_low=low, clip_high=high)


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.28), (0.2, 0.01)])
def test_either_clip_that_never_binds_on_a_chunk_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match=f"ratio is 'chunk' with loss clips {low} / {high}; expected at most 0.05"):
        TrainConfig(denoising=DenoisingConfig(ratio="chunk"), loss=LossConfig(clip_low=low, clip_high=high))


def test_learners_that_cannot_do_what_is_asked_are_refused() -> None:
    learners = RayConfig(learners=2)
    with pytest.raises(
        UserError, match=r"device is 'cuda', and the 2 ray.learners have no GPU; give --ray.learner-gpus 1"
    ):
        TrainConfig(device="cuda", ray=learners)
    TrainConfig(device="cuda", ray=replace(learners, learner_gpus=1))
    with pytest.raises(UserError, match=r"denoising.frozen_backbone keeps .*, which ray.learners can't have yet"):
        TrainConfig(denoising=DenoisingConfig(frozen_backbone=True), ray=learners)


def test_defaults_are_the_paper_s() -> None:
    config = TrainConfig()
    assert (config.sampling.groups, config.sampling.group_size, config.sampling.temperature) == (64, 8, 1.0)
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.aggregation) == (0.2, 0.28, "episode")
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.minibatches) == (None, 0.01, 4)


OUT_OF_RANGE = [
    (OptimizerConfig, "max_grad_norm", -1.0, "above 0"),
    (OptimizerConfig, "max_grad_norm", 0.0, "above 0"),
    (OptimizerConfig, "lr", math.inf, "a finite number"),
    (OptimizerConfig, "lr", math.nan, "a finite number"),
    (SFTConfig, "validate_every", 0, "at least 1"),
    (SFTConfig, "validation_fraction", 2.0, "below 1"),
    (SFTConfig, "colour_jitter", -1.0, "at least 0"),
    (SFTConfig, "eval_episodes_per_task", -1, "at least 0"),
    (TrainConfig, "eval_every", -1, "at least 0"),
    (TrainConfig, "seed", -1, "at least 0"),
    (TrainConfig, "updates", "5", "a whole number"),
    (SuiteConfig, "image_size", 0, "at least 1"),
    (RolloutConfig, "chunk_timeout_s", -1.0, "above 0"),
    (RolloutConfig, "slots_per_worker", 10**9, "at most 4096"),
    (AdapterConfig, "alpha", math.inf, "a finite number"),
    (LanguageConfig, "layers", 1_000_000, "at most 512"),
    (VisionConfig, "image_size", 0, "at least 1"),
    (SuiteConfig, "tasks", "lift", "a tuple"),
]


@pytest.mark.parametrize(("cls", "name", "value", "expected"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named(cls: Any, name: str, value: Any, expected: str) -> None:
    message = re.escape(f"{cls.__name__}.{name} is {value!r}; expected {expected}")
    with pytest.raises(UserError, match=message):
        cls(**{name: value})


def test_a_copy_and_a_part_of_a_file_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"TrainConfig.updates is -1; expected at least 0"):
        replace(TrainConfig(), updates=-1)
    with pytest.raises(UserError, match=r"run.json: TrainConfig.sampling.groups is 0; expected at least 1"):
        from_dict(TrainConfig, {"sampling": {"groups": 0}}, source="run.json")


@pytest.mark.parametrize("device", ["meta", "cuda:x", "", "cpu\n"])
def test_a_device_that_computes_nothing_is_refused(device: str) -> None:
    with pytest.raises(UserError, match="expected one that computes: cpu, cuda, cuda:N or mps"):
        TrainConfig(device=device)


def test_every_number_of_every_config_has_a_range() -> None:
    def bare(cls: Any) -> Iterator[str]:
        hints = get_type_hints(cls, include_extras=True)
        for name, hint in hints.items():
            numbers = [part for part in (hint, *get_args(hint)) if part in (int, float)]
            if numbers and get_origin(hint) is not Annotated:
                yield f"{cls.__name__}.{name}"

    classes = (
        TrainConfig,
        SFTConfig,
        DemosConfig,
        EvalConfig,
        SuiteConfig,
        SamplingConfig,
        LossConfig,
        DenoisingConfig,
    )
    classes += (OptimizerConfig, RolloutConfig, RayConfig, AdapterConfig, ContinualConfig, LanguageConfig, VisionConfig)
    classes += (DiffusionConfig, UnetConfig, TinyVLAConfig, OpenVLAOFTConfig, LlamaSizes, TowerConfig)
    assert [name for cls in classes for name in bare(cls)] == []


def test_records_of_earlier_versions_are_read_under_the_names_of_now() -> None:
    config = from_dict(
        TrainConfig,
        {"suite": {"horizon": "short"}, "sampling": {"states": "posterior"}, "optimizer": {"states": "8bit"}},
    )
    assert (config.suite.horizon_protocol, config.sampling.state_order, config.optimizer.moments) == (
        "short",
        "posterior",
        "8bit",
    )
    assert from_dict(TrainConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match="unknown key 'horizons' in SuiteConfig"):
        from_dict(TrainConfig, {"suite": {"horizons": "short"}})

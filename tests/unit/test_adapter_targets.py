import re

import pytest
from torch import nn

import small_tinyvla as small
from adapted_tinyvla import with_diffusion
from fake_policy import FakePolicy
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.targets import match_modules

BLOCK = "language.layers"


def matched(*targets: str, preset: str = "nano") -> list[str]:
    return match_modules(small.make(preset), AdapterConfig(targets=targets))


def test_groups_hold_their_linears_and_convolutions() -> None:
    parts = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    assert matched("language") == [f"{BLOCK}.{layer}.{part}" for layer in (0, 1) for part in parts]
    assert matched("head") == ["head.linear"]
    # per camera: two convolutions, FiLM, keypoint maps; and the layer that reads the instruction
    assert len(matched("vision")) == 2 * 4 + 1
    assert len(matched("projector")) == 2 * 2 + 2 + 1
    assert matched("sublayers") == [f"{BLOCK}.{layer}.{part}" for layer in (0, 1) for part in (parts[1], parts[3])]


@pytest.mark.parametrize("preset", ["nano", "siglip_test"])
def test_the_four_groups_together_are_all_layers_once(preset: str) -> None:
    policy = small.make(preset)
    layers = [name for name, module in policy.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert match_modules(policy, AdapterConfig()) == layers
    parts = [match_modules(policy, AdapterConfig(targets=(group,))) for group in AdapterConfig().targets]
    assert sum(map(len, parts)) == len(layers)


def test_a_siglip_tower_is_vision_and_its_projector_is_not() -> None:
    assert all(name.startswith("vision.tower.") for name in matched("vision", preset="siglip_test"))
    assert matched("projector", preset="siglip_test") == ["vision.project.0", "vision.project.2", "state"]


def test_names_and_patterns_within_a_group() -> None:
    assert matched("head.linear", f"{BLOCK}.1.mlp.*") == [
        f"{BLOCK}.1.mlp.dense_h_to_4h",
        f"{BLOCK}.1.mlp.dense_4h_to_h",
        "head.linear",
    ]
    assert matched("*.film") == ["vision.encoders.0.film", "vision.encoders.1.film"]
    assert matched("language", f"{BLOCK}.0.*", "language") == matched("language")


def test_the_diffusion_head_s_film_layers_and_convolutions_are_targets() -> None:
    policy = with_diffusion()
    head = match_modules(policy, AdapterConfig(targets=("head",)))
    block = ("first.conv", "film", "second.conv")
    assert [name for name in head if name.startswith("head.unet.middle.0.")] == [
        f"head.unet.middle.0.{part}" for part in block
    ]
    # 8 blocks of 3, 3 skips where widths differ, 2 of the time, one halving, last and out; peft can't double
    assert len(head) == 8 * 3 + 3 + 2 + 1 + 2
    assert len(match_modules(policy, AdapterConfig(targets=("head.unet.*.film",)))) == 8
    assert "condition.combine" in match_modules(policy, AdapterConfig(targets=("projector",)))
    with pytest.raises(ValueError, match=r"'head.unet.up.0.resample' is a ConvTranspose1d; adapters change Linear"):
        match_modules(policy, AdapterConfig(targets=("head.unet.up.0.resample",)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("langauge", r"'langauge' matches no module.*Did you mean 'language'"),
        ("head.linaer", r"'head.linaer' matches no module.*'head.linear'"),
        ("dense", r"'dense' matches no module.*2 end with it \(language.layers.0.attention.dense, .*write '\*.dense'"),
        ("*.nothing", r"'\*.nothing' matches no module; expected a group \(language, sublayers, vision"),
        (
            "language.layers.0",
            r"is no layer but holds 4: language.layers.0.attention.query_key_value.*'language.layers.0.\*'",
        ),
        ("*", r"'\*' matches 25 modules in the groups language, vision, projector, head: .* and 19 more"),
        ("language.embed_in", r"'language.embed_in' is a Embedding; adapters change Linear, Conv1d, Conv2d"),
        ("head.norm", r"'head.norm' is a LayerNorm"),
    ],
)
def test_targets_that_match_nothing_or_too_much_are_refused(target: str, message: str) -> None:
    policy = small.make()
    names = [name for name, _ in policy.named_modules()]
    bank = AdapterBank(policy)
    with pytest.raises(ValueError, match=message):
        bank.add("new", AdapterConfig(targets=("language", target)))
    assert bank.names == []
    assert [name for name, _ in policy.named_modules()] == names


def test_another_number_of_modules_than_expected_is_refused() -> None:
    config = AdapterConfig(targets=("language",), expect_modules=9)
    with pytest.raises(ValueError, match=r"match 8 modules, expect_modules is 9. Matched: language.layers.0"):
        match_modules(small.make(), config)
    assert len(match_modules(small.make(), AdapterConfig(targets=("language",), expect_modules=8))) == 8


@pytest.mark.parametrize("option", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}])
def test_convolutions_that_peft_would_get_wrong_are_refused(option: dict) -> None:
    policy = with_diffusion()
    policy.set_submodule("head.unet.out", nn.Conv1d(64, 2, 1, **option))
    with pytest.raises(ValueError, match=r"'head.unet.out' has groups"):
        match_modules(policy, AdapterConfig(targets=("head",)))


def test_a_policy_without_groups_can_t_have_adapters() -> None:
    with pytest.raises(ValueError, match="FakePolicy names no groups"):
        AdapterBank(FakePolicy())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "ia3"}, "kind is 'ia3'; expected 'lora' or 'bottleneck'"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ()}, "targets is ()"),
        ({"targets": "language"}, "targets is 'language'"),
        ({"expect_modules": 0}, "expect_modules is 0"),
    ],
)
def test_impossible_configs_are_refused(values: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        AdapterConfig(**values)

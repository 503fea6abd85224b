import copy

import pytest
import torch
from torch import nn

import small_tinyvla as small
from adapted_tinyvla import (
    BOTTLENECK,
    CONFIGS,
    LORA,
    OBSERVATIONS,
    disturb,
    make_bank,
    outputs,
    same,
    snapshot,
    with_diffusion,
)
from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.config import AdapterConfig

ONE = AdapterConfig(rank=2, alpha=6.0, targets=("head.linear",))


def test_lora_adds_alpha_over_rank_times_b_a_to_the_layer() -> None:
    bank = make_bank(one=ONE)
    layer = bank.policy.get_submodule("head.linear")
    parameters = bank.parameters("one")
    assert list(parameters) == ["head.linear.lora_A.weight", "head.linear.lora_B.weight"]
    a, b = parameters.values()
    assert (a.shape, b.shape) == ((2, 128), (256, 2))
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    weight = bank.base_layer("head.linear").get_parameter("weight")
    with bank.selected("one"):
        torch.testing.assert_close(layer(x), x @ (weight + 6 / 2 * b @ a).T, rtol=0, atol=1e-5)


def test_a_bottleneck_adds_up_gelu_down_to_the_output() -> None:
    config = AdapterConfig(kind="bottleneck", rank=2, targets=("head.linear",))
    bank = make_bank(one=config)
    layer = bank.policy.get_submodule("head.linear")
    parameters = bank.parameters("one")
    down, down_bias, up, up_bias = (
        parameters[f"head.linear.bottleneck_{key}"] for key in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    y = bank.base_layer("head.linear")(x)
    expected = y + nn.functional.gelu(y @ down.T + down_bias) @ up.T + up_bias
    with bank.selected("one"):
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_convolution_s_adapter_is_the_linear_one_at_every_place(kind: str) -> None:
    # 1 x 1, from 64 to 128 channels
    skip = "head.unet.down.1.first.skip"
    bank = make_bank(with_diffusion(), one=AdapterConfig(kind=kind, rank=2, alpha=2.0, targets=(skip,)))
    parameters = {key.removeprefix(f"{skip}."): p for key, p in bank.parameters("one").items()}
    weights = {key: p[..., 0] if key.endswith("weight") else p for key, p in parameters.items()}
    x = torch.randn(3, 64, 7, generator=torch.Generator().manual_seed(0))
    y = bank.base_layer(skip)(x)
    if kind == "lora":
        change = torch.einsum("or,ri,bip->bop", weights["lora_B.weight"], weights["lora_A.weight"], x)
    else:
        hidden = (
            torch.einsum("ri,bip->brp", weights["bottleneck_down.weight"], y) + weights["bottleneck_down.bias"][:, None]
        )
        change = torch.einsum("or,brp->bop", weights["bottleneck_up.weight"], nn.functional.gelu(hidden))
        change = change + weights["bottleneck_up.bias"][:, None]
    with bank.selected("one"):
        torch.testing.assert_close(bank.policy.get_submodule(skip)(x), y + change, rtol=0, atol=1e-5)


def test_exactly_the_active_adapter_s_parameters_are_trainable() -> None:
    bank = make_bank(small.make(), first=ONE, second=ONE, third=AdapterConfig(kind="bottleneck", targets=("head",)))
    assert bank.trainable_names() == []
    bank.activate("second", training=True)
    # inside the bottleneck's layer, which lies around it
    lora = "head.linear.base_layer.lora"
    assert bank.trainable_names() == [f"{lora}_A.second.weight", f"{lora}_B.second.weight"]
    bank.activate("third", training=True)
    parts = ("down.third.bias", "down.third.weight", "up.third.bias", "up.third.weight")
    assert bank.trainable_names() == [f"head.linear.bottleneck_{part}" for part in parts]
    for name in ("first", "third", None):
        bank.activate(name, training=False)
        assert bank.trainable_names() == []
    bank.policy.requires_grad_(True)
    bank.activate("first", training=True)
    assert bank.trainable_names() == [f"{lora}_A.first.weight", f"{lora}_B.first.weight"]
    bank.remove("third")
    assert bank.trainable_names() == ["head.linear.lora_A.first.weight", "head.linear.lora_B.first.weight"]


def test_a_frozen_adapter_goes_on_for_inference_only() -> None:
    bank = make_bank(first=ONE)
    bank.activate("first", training=True)
    bank.freeze("first")
    assert (bank.active, bank.training, bank.trainable_names()) == ("first", False, [])
    with pytest.raises(ValueError, match=r"'first' is frozen.*start_from='first'"):
        bank.activate("first", training=True)
    bank.add("second", start_from="first")
    bank.activate("second", training=True)
    assert bank.entry("second").config == ONE


def test_removing_the_active_adapter_leaves_the_base_and_the_others() -> None:
    bank = make_bank()
    base = make_bank().policy
    bank.activate("lora", training=True)
    others = snapshot(bank.parameters("bottleneck"))
    bank.remove("lora")
    assert (bank.active, bank.names, bank.trainable_names()) == (None, ["bottleneck"], [])
    assert torch.equal(outputs(bank.policy), outputs(base))
    assert same(bank.parameters("bottleneck"), others)
    bank.add("lora", LORA)
    assert bank.names == ["bottleneck", "lora"]


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def initial(seed: int) -> dict[str, torch.Tensor]:
        bank = AdapterBank(small.make())
        bank.add("a", LORA, seed=seed)
        return snapshot(bank.parameters("a"))

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = initial(1)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, initial(1))
    assert not same(first, initial(2))
    for name, tensor in first.items():
        assert bool(tensor.any()) == ("lora_A" in name), name


def test_bytes_counts_float32_parameters() -> None:
    bank = make_bank(one=ONE)
    assert bank.bytes("one") == 4 * (2 * 128 + 256 * 2)


def test_parameters_are_float32_on_a_base_of_half_precision() -> None:
    bank = make_bank(
        small.make().to(torch.bfloat16), lora=ONE, bottleneck=AdapterConfig(kind="bottleneck", targets=("head",))
    )
    for name in bank.names:
        assert {parameter.dtype for parameter in bank.parameters(name).values()} == {torch.float32}
        with bank.selected(name):
            output = bank.policy.get_submodule("head.linear")(torch.ones(2, 128, dtype=torch.bfloat16))
        assert output.dtype == torch.bfloat16


def test_a_copied_policy_has_its_own_bank() -> None:
    bank = make_bank(first=ONE)
    bank.activate("first", training=False)
    copied = copy.deepcopy(bank.policy)
    expected = outputs(bank.policy)
    own = bank_of(copied)
    assert own is not bank
    assert own.policy is copied
    disturb(own, "first", seed=8)
    assert torch.equal(outputs(bank.policy), expected)
    assert not torch.equal(outputs(copied), expected)


def test_selected_puts_back_what_was_active_even_after_an_error() -> None:
    bank = make_bank()
    bank.activate("bottleneck", training=False)
    expected = outputs(bank.policy)
    with bank.selected("lora"):
        assert not torch.equal(outputs(bank.policy), expected)
    assert torch.equal(outputs(bank.policy), expected)
    with pytest.raises(ZeroDivisionError), bank.selected("lora"):
        _ = 1 / 0
    assert torch.equal(outputs(bank.policy), expected)


def test_gradients_reach_the_active_adapter_only() -> None:
    bank = make_bank(first=LORA, second=LORA, third=BOTTLENECK)
    bank.activate("second", training=True)
    torch.autograd.backward(bank.policy(OBSERVATIONS).square().mean())
    reached = {name for name, parameter in bank.policy.named_parameters() if parameter.grad is not None}
    assert reached == set(bank.trainable_names())

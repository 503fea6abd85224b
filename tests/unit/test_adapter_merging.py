import pytest
import torch

import small_tinyvla as small
from adapted_tinyvla import BOTTLENECK, LORA, OBSERVATIONS, disturb, make_bank, outputs, same, snapshot, with_diffusion
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.merging import difference, fold, merge

WIDER = AdapterConfig(rank=6, alpha=3.0)


def changes(bank: AdapterBank, name: str) -> dict[str, torch.Tensor]:
    """Module -> the change of its weight, multiplied out."""
    return {module: bank.carrier(name, module).get_delta_weight(name).detach() for module in bank.entry(name).modules}


@pytest.mark.parametrize("policy", [small.make, with_diffusion], ids=["nano", "diffusion"])
def test_a_linear_merge_is_the_weighted_sum_of_the_changes(policy) -> None:  # type: ignore[no-untyped-def]
    bank = make_bank(policy(), first=LORA, second=WIDER)
    first, second = changes(bank, "first"), changes(bank, "second")
    before = {name: snapshot(bank.parameters(name)) for name in bank.names}
    assert merge(bank, ["first", "second"], [0.75, -0.5], "both") == 0
    assert bank.entry("both").config.rank == 10
    assert bank.entry("both").instructions == small.INSTRUCTIONS[:2]
    for module, change in changes(bank, "both").items():
        torch.testing.assert_close(change, 0.75 * first[module] - 0.5 * second[module], rtol=0, atol=1e-6)
    assert all(same(bank.parameters(name), before[name]) for name in before)


def test_merging_one_adapter_with_weight_1_does_the_same() -> None:
    bank = make_bank(first=LORA)
    merge(bank, ["first"], [1.0], "again")
    found = difference(bank, "first", "again", OBSERVATIONS)
    assert found.logprobs < 1e-5
    assert found.actions == 0
    assert difference(bank, "first", None, OBSERVATIONS).logprobs > 0.01


@pytest.mark.parametrize("policy", [small.make, with_diffusion], ids=["nano", "diffusion"])
def test_svd_keeps_the_largest_singular_values(policy) -> None:  # type: ignore[no-untyped-def]
    bank = make_bank(policy(), first=LORA, second=WIDER)
    first, second = changes(bank, "first"), changes(bank, "second")
    error = merge(bank, ["first", "second"], [1.0, 2.0], "both", kind="svd", rank=3)
    worst = 0.0
    for module, change in changes(bank, "both").items():
        whole = (first[module] + 2 * second[module]).flatten(1).double()
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        best = u[:, :3] * s[:3] @ vh[:3]
        torch.testing.assert_close(change.flatten(1).double(), best, rtol=0, atol=1e-6)
        worst = max(worst, float(s[3:].norm() / s.norm()))
    assert error == pytest.approx(worst, abs=1e-6)


def test_an_svd_of_full_rank_loses_nothing_and_a_larger_one_is_filled_with_zeros() -> None:
    bank = make_bank(first=LORA, second=WIDER)
    for name, rank in (("full", 10), ("more", 40)):
        assert merge(bank, ["first", "second"], [1.0, 1.0], name, kind="svd", rank=rank) < 1e-6
        merge(bank, ["first", "second"], [1.0, 1.0], f"{name}_linear")
        assert difference(bank, name, f"{name}_linear", OBSERVATIONS).logprobs < 1e-4


@pytest.mark.parametrize("policy", [small.make, with_diffusion], ids=["nano", "diffusion"])
def test_folding_moves_the_adapter_into_the_base(policy) -> None:  # type: ignore[no-untyped-def]
    bank = make_bank(policy(), first=LORA)
    with bank.selected("first"):
        expected = outputs(bank.policy)
    base, sha256 = outputs(bank.policy), bank.base_sha256()
    found = fold(bank, "first", OBSERVATIONS)
    assert found.largest < 1e-4
    assert found.observations == 6
    assert bank.names == []
    torch.testing.assert_close(outputs(bank.policy), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(outputs(bank.policy), base, rtol=0, atol=1e-2)
    assert bank.base_sha256() != sha256


def test_a_fold_that_changes_the_policy_too_much_is_taken_back() -> None:
    bank = make_bank(first=LORA)
    before = snapshot(dict(bank.policy.named_parameters()))
    with pytest.raises(ValueError, match=r"folding 'first' .* nats and actions by .* tolerance is 1e-12"):
        fold(bank, "first", OBSERVATIONS, tolerance=1e-12)
    assert same(dict(bank.policy.named_parameters()), before)
    assert bank.names == ["first"]


def test_what_can_t_be_merged_or_folded_is_refused() -> None:
    bank = make_bank(first=LORA, second=BOTTLENECK, third=AdapterConfig(rank=4, targets=("language",)))
    before = [name for name, _ in bank.policy.named_parameters()]
    for names, weights, options, message in (
        (["first", "second"], [1, 1], {}, "'second' is a bottleneck, which is nonlinear"),
        (["first", "third"], [1, 1], {}, "'first' and 'third' change different modules"),
        (["first"], [1, 1], {}, "1 adapters and 2 weights"),
        (["first", "first"], [1, 1], {}, "each once"),
        ([], [], {}, "0 adapters"),
        (["first"], [float("nan")], {}, "finite"),
        (["first"], [1], {"kind": "svd"}, "'svd' with rank None"),
        (["first"], [1], {"rank": 3}, "'linear' with rank 3"),
        (["first"], [1], {"kind": "ties"}, "kind is 'ties'"),
        (["fourth"], [1], {}, "no adapter is called 'fourth'; there are first, second, third"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(bank, names, weights, "new", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'first' is there already"):
        merge(bank, ["first"], [1.0], "first")
    with pytest.raises(ValueError, match="'second' is a bottleneck"):
        fold(bank, "second", OBSERVATIONS)
    with pytest.raises(ValueError, match="adapters second, third were trained on the base without 'first'"):
        fold(bank, "first", OBSERVATIONS)
    assert [name for name, _ in bank.policy.named_parameters()] == before


def test_a_difference_that_is_no_number_is_the_largest() -> None:
    bank = make_bank(first=LORA)
    disturb(bank, "first", seed=1, size=float("inf"))
    assert difference(bank, None, "first", OBSERVATIONS).largest == float("inf")

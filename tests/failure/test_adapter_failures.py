"""Adapters that don't belong to this policy, and folders that aren't what was written: one clear error, nothing changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import small_tinyvla as small
from adapted_tinyvla import LORA, make_bank, outputs, refused, same, snapshot
from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import AdapterCard, list_cards, read_adapter, read_card, write_adapter
from simplevla.adapters.load import load_bank, load_policy
from simplevla.policies.base import Sampling
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla.policy import TinyVLA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported adapter `first`, rank 4 on all layers."""
    make_bank(first=LORA).export(
        "first", tmp_path / "first", sampling=Sampling(temperature=1.6, greedy=True), seed=7, success=(18, 20)
    )
    return tmp_path / "first"


def rewrite(folder: Path, change: Callable[[AdapterCard, dict[str, torch.Tensor]], AdapterCard]) -> None:
    """Write the adapter anew, consistently, after `change`."""
    card, tensors = read_adapter(folder)
    write_adapter(folder, change(card, tensors), tensors)


def test_the_card_says_what_was_exported(folder: Path) -> None:
    card = read_card(folder)
    assert card.name == "first"
    assert card.config == LORA
    assert len(card.modules) == 25
    assert card.instructions == (small.INSTRUCTIONS[0],)
    assert card.sampling == {"temperature": 1.6, "eta": 1.0, "sigma_min": 0.1, "alpha": 0.5, "greedy": True}
    assert (card.seed, card.solved, card.n) == (7, 18, 20)
    bank = AdapterBank(small.make())
    bank.load(folder)
    bank.save(folder.parent / "policy")
    assert list_cards(folder.parent / "policy") == [card]
    assert list_cards(folder.parent) == [card]


def test_another_base_is_refused(folder: Path) -> None:
    refused(AdapterBank(small.make(seed=1)), folder, "first was trained on other base weights: sha256 [0-9a-f]{12}")


def test_other_statistics_are_refused(folder: Path) -> None:
    statistics = small.statistics()
    action = {**statistics.action, "max": [1.0, 10.5]}
    policy = small.make()
    other = TinyVLA(
        policy.config, Statistics(state=statistics.state, action=action), policy.instruction_tokens.tokenizer
    )
    other.load_state_dict(policy.state_dict())
    refused(AdapterBank(other), folder, "was trained on other normalisation statistics")


def test_a_taken_name_is_refused_and_another_one_helps(folder: Path) -> None:
    bank = make_bank(first=LORA)
    refused(bank, folder, "an adapter called 'first' is there already; choose another name")
    assert bank.load(folder, "second") == "second"
    assert same(bank.parameters("second"), bank.parameters("first"))
    with pytest.raises(ValueError, match="'second' is there already"):
        bank.add("second", LORA)


@pytest.mark.parametrize("name", ["", "a.b", "../up", "keys", "train", "-a", "a b"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be an adapter's name"):
        AdapterBank(small.make()).add(name, LORA)


def test_unknown_adapters_are_named() -> None:
    bank = make_bank(first=LORA)
    for operation in (
        lambda: bank.activate("secnod", training=False),
        lambda: bank.remove("secnod"),
        lambda: bank.freeze("secnod"),
        lambda: bank.add("new", start_from="secnod"),
        lambda: bank.export("secnod", Path("nowhere")),
        lambda: bank.selected("secnod").__enter__(),
    ):
        with pytest.raises(ValueError, match="no adapter is called 'secnod'; there are first"):
            operation()
    with pytest.raises(ValueError, match="starts from 'first', whose config is"):
        bank.add("new", AdapterConfig(rank=5), start_from="first")
    with pytest.raises(ValueError, match="base of a bank is frozen"):
        bank.activate(None, training=True)
    assert bank.names == ["first"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("adapter.json", b'"seed": 7'),
        ("adapter_config.json", b'"r": 4'),
        ("adapter_config.json", b'"lora_alpha": 8'),
        ("adapter_config.json", b"head.linear"),
        ("adapter_model.safetensors", b""),
    ],
)
def test_missing_truncated_and_changed_files_are_named(folder: Path, name: str, place: bytes) -> None:
    file = folder / name
    whole = file.read_bytes()
    middle = whole.index(place) + len(place) - 1 if place else len(whole) - 100
    for content in (
        whole[: len(whole) // 2],
        b"",
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):
        file.write_bytes(content)
        refused(AdapterBank(small.make()), folder, name.replace(".", r"\."))
    file.unlink()
    refused(AdapterBank(small.make()), folder, name.replace(".", r"\."))


@pytest.mark.parametrize("content", ["[1]", "{}", '{"format": 1, "tensors_sha256": "", "card_sha256": ""}'])
def test_a_card_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter.json").write_text(content)
    refused(
        AdapterBank(small.make()), folder, r"adapter\.json (is not valid JSON|holds|has format|isn't as it was written)"
    )


def test_another_format_is_refused(folder: Path) -> None:
    card = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**card, "format": 3}))
    refused(AdapterBank(small.make()), folder, "has format 3 .*this version reads the formats 1 and 2")


def test_parameters_of_another_adapter_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.head.linear.lora_B.weight"] += 1
    save_file(tensors, folder / "adapter_model.safetensors")
    refused(AdapterBank(small.make()), folder, "promises [0-9a-f]{12}: it is damaged or of another adapter")


def test_tensors_that_don_t_fit_the_config_are_named(folder: Path) -> None:
    whole = snapshot(read_adapter(folder)[1])  # in memory, since the file they are mapped from is written over
    key = "head.linear.lora_A.weight"
    huge = torch.full((4, 128), 1e39, dtype=torch.float64)
    for tensors, message in (
        ({name: tensor for name, tensor in whole.items() if name != key}, f"{key} is missing"),
        (whole | {"head.norm.lora_A.weight": torch.zeros(4, 128)}, "head.norm.lora_A.weight is unknown"),
        (whole | {key: torch.zeros(5, 128)}, r"lora_A.weight has shape \[5, 128\], expected \[4, 128\]"),
        (whole | {key: torch.full((4, 128), torch.nan)}, f"{key} holds values that aren't finite numbers"),
        (whole | {key: torch.full((4, 128), -torch.inf)}, f"{key} holds values that aren't finite numbers"),
        # finite as it is, but not in the precision that adapters have
        (whole | {key: huge}, f"{key} holds values that aren't finite numbers"),
        (whole | {key: torch.ones(4, 128, dtype=torch.int8)}, f"{key} has type torch.int8, expected floating-point"),
        (whole | {key: torch.ones(4, 128, dtype=torch.bool)}, f"{key} has type torch.bool, expected floating-point"),
    ):
        write_adapter(folder, read_card(folder), tensors)
        refused(AdapterBank(small.make()), folder, message)


def test_a_config_that_doesn_t_fit_the_tensors_is_refused(folder: Path) -> None:
    rewrite(folder, lambda card, _: replace(card, config=AdapterConfig(rank=5)))
    refused(AdapterBank(small.make()), folder, r"has shape \[4, .*expected \[5, .* and 47 more")


def test_other_modules_than_the_targets_match_are_refused(folder: Path) -> None:
    rewrite(folder, lambda card, _: replace(card, modules=card.modules[:-1]))
    refused(
        AdapterBank(small.make()), folder, r"is for 24 modules, its targets match 25 of this policy: \['head.linear'\]"
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_that_could_not_be_read_isn_t_written(value: float, tmp_path: Path) -> None:
    bank = make_bank()
    for name in bank.names:
        last = list(bank.parameters(name).values())[-1]
        with torch.no_grad():
            last.view(-1)[0] = value
        with pytest.raises(ValueError, match=f"adapter '{name}' isn't written: 1 of its .* aren't finite numbers"):
            bank.export(name, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_impossible_success_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    bank = make_bank(first=LORA)
    with pytest.raises(ValueError, match="21 solved of n = 20"):
        bank.export("first", tmp_path / "new", success=(21, 20))
    assert bank.entry("first").n is None
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_isn_t_overwritten(folder: Path) -> None:
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="first exists already; export into a new folder"):
        make_bank(first=LORA).export("first", folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_neither_a_folder_nor_half_a_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    bank.save(tmp_path / "policy")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    bank.add("third", LORA)
    monkeypatch.setattr("simplevla.adapters.files.safetensors.torch.save", fail)
    with pytest.raises(OSError, match="No space left"):
        bank.export("lora", tmp_path / "exported")
    with pytest.raises(OSError, match="No space left"):
        bank.save(tmp_path / "policy")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]
    monkeypatch.undo()
    assert load_bank(tmp_path / "policy").names == ["lora", "bottleneck"]


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_lora_folder_is_whole_or_absent(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    files: list[str] = []

    def write_until_full(path: Path, content: str | bytes, *_: object) -> None:
        if len(files) == written:
            raise OSError(28, "No space left on device")
        files.append(path.name)
        with path.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    monkeypatch.setattr(Path, "write_text", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        bank.export("lora", tmp_path / "exported")
    assert files == ["adapter_model.safetensors", "adapter_config.json"][:written]
    assert list(tmp_path.iterdir()) == []


def test_a_saved_bank_with_a_damaged_list_or_another_adapter_is_refused(tmp_path: Path) -> None:
    make_bank().save(tmp_path)
    file = tmp_path / "adapters" / "bank.json"
    whole = file.read_text()
    for content in (whole[:10], "[]"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"bank\.json(: | is not valid JSON| holds)"):
            load_policy(tmp_path)
    file.write_text(whole.replace('"bottleneck"', '"bottle"'))
    with pytest.raises(
        ValueError, match=r"lists the adapters \['bottle', 'lora'\]; beside it are \['bottleneck', 'lora'\]"
    ):
        load_policy(tmp_path)


def test_adapters_beside_a_policy_that_was_written_over_are_refused(tmp_path: Path) -> None:
    make_bank().save(tmp_path)
    small.make(seed=5).save(tmp_path)
    with pytest.raises(ValueError, match="was trained on other base weights"):
        load_policy(tmp_path)


def test_one_policy_has_one_bank(tmp_path: Path) -> None:
    bank = make_bank(first=LORA)
    with pytest.raises(ValueError, match=r"has adapters already; use bank_of\(policy\)"):
        AdapterBank(bank.policy)
    assert bank_of(bank.policy) is bank
    policy = small.make()
    with pytest.raises(ValueError, match="has no adapter bank"):
        bank_of(policy)
    policy.save(tmp_path)
    empty = load_bank(tmp_path)
    assert empty.names == []
    assert isinstance(empty.policy, TinyVLA)
    assert torch.equal(outputs(empty.policy), outputs(policy))


def test_a_folder_without_adapters_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter: it has no adapter\.json"):
        read_card(tmp_path)
    with pytest.raises(ValueError, match="no adapter in "):
        list_cards(tmp_path)


def test_adapters_whose_folders_were_exchanged(tmp_path: Path) -> None:
    bank = make_bank(first=LORA, second=LORA)
    bank.activate("first", training=False)
    bank.save(tmp_path)
    place = tmp_path / "adapters"
    for old, new in (("first", "third"), ("second", "first"), ("third", "second")):
        (place / old).rename(place / new)
    with pytest.raises(ValueError, match=r"adapters/first holds the adapter 'second'; were folders renamed"):
        load_policy(tmp_path)


def test_an_adapter_larger_than_any_is_refused_before_it_is_made() -> None:
    bank = AdapterBank(small.make())
    with pytest.raises(
        ValueError, match=r"adapter 'wide' of rank 500000 would have \d+ parameters, the policy has \d+; expected"
    ):
        bank.add("wide", AdapterConfig(rank=500_000))
    assert bank.names == []

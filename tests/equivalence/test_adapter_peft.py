"""LoRA folders against peft itself: it reads what we export, and we read what it saved, with equal outputs."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

import made_openvla_checkpoint as made
import small_tinyvla as small
from adapted_tinyvla import LORA, disturb, generators, make_bank, same, with_diffusion
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import read_card
from simplevla.adapters.fingerprint import statistics_sha256
from simplevla.adapters.load import load_bank, load_policy
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.policies.openvla_oft.published import import_openvla_oft

POLICIES: dict[str, Callable[[], Policy]] = {
    "nano": small.make,
    "siglip_test": lambda: small.make("siglip_test"),
    "diffusion": with_diffusion,
}
OBSERVATIONS = small.observations(list(small.INSTRUCTIONS[:2]))
NO_CARD = r"has no adapter\.json, so the base weights and statistics it was trained on, .* aren't known"


def computed(policy: Policy, batch: ObservationBatch = OBSERVATIONS) -> dict[str, torch.Tensor]:
    """Greedy and sampled actions, log-probabilities, entropy and imitation loss, with the same random numbers."""
    policy.eval()
    count = len(batch)
    with torch.no_grad():
        greedy = policy.act(batch, Sampling(greedy=True), generators(count))
        sampled = policy.act(batch, Sampling(), generators(count))
        logprobs, entropy = policy.score(batch, sampled.trace, Sampling())
        torch.manual_seed(0)
        mask = torch.ones(count, policy.chunk_length, dtype=torch.bool)
        loss = policy.imitation_loss(batch, torch.full((*mask.shape, policy.action_dim), 0.3), mask)
    actions = {"greedy": torch.from_numpy(greedy.actions), "sampled": torch.from_numpy(sampled.actions)}
    return actions | {"logprobs": logprobs, "entropy": entropy, "loss": loss}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


def from_bank(bank: AdapterBank, name: str, batch: ObservationBatch = OBSERVATIONS) -> dict[str, torch.Tensor]:
    with bank.selected(name):
        return computed(bank.policy, batch)


def made_by_peft(policy: Policy, seed: int = 3, **settings: Any) -> peft.PeftModel:
    """`policy` with a LoRA of peft's, random in both matrices."""
    model = peft.get_peft_model(policy, peft.LoraConfig(**settings))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("architecture", POLICIES)
def test_peft_computes_what_we_do_from_an_exported_lora(architecture: str, tmp_path: Path) -> None:
    make = POLICIES[architecture]
    # beside a bottleneck on the same layers, whose wrapper must not show in the names
    bank = make_bank(make())  # type: ignore[arg-type]
    bank.export("lora", tmp_path / "lora")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    modules = list(bank.entry("lora").modules)
    assert settings["target_modules"] == modules == list(read_card(tmp_path / "lora").modules)
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 8.0, "LORA")
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors").keys()
    assert keys == {f"base_model.model.{name}.lora_{part}.weight" for name in modules for part in "AB"}
    base = make()
    unadapted = computed(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "lora")  # type: ignore[arg-type]
    assert sorted(model.base_model.targeted_module_names) == sorted(modules)
    expected = from_bank(bank, "lora")
    assert differing(computed(base), expected) == []
    # a sampled chain's entropy doesn't depend on what a network says
    assert len(differing(unadapted, expected)) >= (4 if architecture == "diffusion" else 3)


def test_peft_reads_the_adapter_of_a_saved_policy_with_dropout_and_half_precision(tmp_path: Path) -> None:
    made.write(tmp_path / "published", {name: x.bfloat16() for name, x in made.tensors().items()})
    import_openvla_oft(tmp_path / "published", tmp_path / "policy", cameras=("fixed",))
    bank = AdapterBank(load_policy(tmp_path / "policy"))
    bank.add("milk", dataclasses.replace(LORA, dropout=0.5))
    disturb(bank, "milk", seed=1)
    bank.save(tmp_path / "adapted")
    rng = np.random.default_rng(0)
    batch = ObservationBatch(
        images={"fixed": torch.from_numpy(rng.integers(0, 256, (2, 40, 40, 3), np.uint8))},
        state=torch.from_numpy(rng.normal(size=(2, made.STATE)).astype(np.float32)),
        instructions=["pick up the milk", "put it all into the basket"],
    )
    base = load_policy(tmp_path / "policy")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapted" / "adapters" / "milk")  # type: ignore[arg-type]
    assert sorted(model.base_model.targeted_module_names) == sorted(bank.entry("milk").modules)
    assert model.peft_config["default"].lora_dropout == 0.5  # type: ignore[attr-defined]
    assert differing(computed(base, batch), from_bank(bank, "milk", batch)) == []


@pytest.mark.parametrize(
    ("architecture", "targets", "count"),
    [
        # endings of names, convolutions among them
        ("diffusion", {"target_modules": ["film", "conv", "head.unet.out"]}, 28),
        ("nano", {"target_modules": r"language\..*dense|state"}, 3),
        ("nano", {"target_modules": ["dense", "film", "nowhere"], "exclude_modules": ["vision.encoders.0.film"]}, 3),
        ("nano", {"target_modules": ["dense"], "layers_to_transform": [1], "layers_pattern": "layers"}, 1),
    ],
)
def test_we_compute_what_peft_does_from_what_it_saved(
    architecture: str, targets: dict[str, Any], count: int, tmp_path: Path
) -> None:
    make = POLICIES[architecture]
    policy = make()
    made_by_peft(policy, r=3, lora_alpha=7, lora_dropout=0.25, **targets).save_pretrained(tmp_path / "milk")
    bank = AdapterBank(make())
    with pytest.warns(UserWarning, match=NO_CARD):
        assert bank.load(tmp_path / "milk") == "milk"
    entry = bank.entry("milk")
    assert (entry.config.rank, entry.config.alpha, entry.config.dropout) == (3, 7, 0.25)
    assert (len(entry.modules), entry.instructions, entry.base_assumed) == (count, (), True)
    expected = computed(policy)
    assert differing(from_bank(bank, "milk"), expected) == []
    assert differing(computed(make()), expected) != []


def test_a_lora_goes_from_us_to_peft_and_back(tmp_path: Path) -> None:
    bank = make_bank(first=LORA)
    bank.export("first", tmp_path / "ours")
    # 25 full names, which peft shortens to endings where it can
    peft.PeftModel.from_pretrained(small.make(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")  # type: ignore[arg-type]
    other = AdapterBank(small.make())
    with pytest.warns(UserWarning, match=NO_CARD):
        other.load(tmp_path / "theirs", "first")
    assert same(dict(other.parameters("first")), dict(bank.parameters("first")))
    assert other.entry("first").modules == bank.entry("first").modules


def test_a_lora_of_peft_s_stays_one_whose_base_was_assumed(tmp_path: Path) -> None:
    made_by_peft(small.make(), r=2, target_modules=["head.linear"]).save_pretrained(tmp_path / "milk")
    card = read_card(tmp_path / "milk")
    assert (card.name, card.modules, card.config.targets) == ("milk", ("head.linear",), ("head.linear",))
    assert (card.base_sha256, card.statistics_sha256, card.base_assumed) == (None, None, False)
    bank = AdapterBank(small.make())
    with pytest.warns(UserWarning, match=NO_CARD):
        bank.load(tmp_path / "milk")
    bank.save(tmp_path / "policy")
    loaded = load_bank(tmp_path / "policy")
    assert loaded.entry("milk").base_assumed
    card = read_card(tmp_path / "policy" / "adapters" / "milk")
    assert (card.base_sha256, card.base_assumed) == (bank.base_sha256(), True)
    assert same(dict(loaded.parameters("milk")), dict(bank.parameters("milk")))


def write_format_1(bank: AdapterBank, name: str, folder: Path) -> None:
    """What version 1 wrote, worked out apart from the writer; compared once with commit e9405ab's, byte for byte."""
    entry = bank.entry(name)
    tensors = {key: value.detach().contiguous() for key, value in bank.parameters(name).items()}
    tensors["prototype"] = torch.from_numpy(entry.prototype)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(
            f"{key} {tensors[key].dtype} {list(tensors[key].shape)}\n".encode() + tensors[key].numpy().tobytes()
        )
    content = {
        "format": 1,
        "name": name,
        "config": dataclasses.asdict(entry.config),
        "modules": entry.modules,
        "instructions": entry.instructions,
        "base_sha256": bank.base_sha256(),
        "statistics_sha256": statistics_sha256(bank.policy.statistics),
        "frozen": False,
        "sampling": None,
        "seed": None,
        "solved": None,
        "n": None,
        "tensors_sha256": digest.hexdigest(),
    }
    whole = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["card_sha256"] = hashlib.sha256(whole.encode()).hexdigest()
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(safetensors.torch.save(tensors))
    (folder / "adapter.json").write_text(json.dumps(content, indent=1) + "\n")


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_a_policy_saved_in_format_1_loads_and_is_saved_in_the_new_one(kind: str, tmp_path: Path) -> None:
    bank = make_bank(milk=AdapterConfig(kind=kind, rank=2, targets=("head", "vision")))  # type: ignore[arg-type]
    bank.activate("milk", training=True)
    bank.save_base(tmp_path / "old")
    (tmp_path / "old" / "adapters").mkdir()
    write_format_1(bank, "milk", tmp_path / "old" / "adapters" / "milk")
    state = {"names": ["milk"], "active": "milk", "training": True}
    (tmp_path / "old" / "adapters" / "bank.json").write_text(json.dumps(state))
    loaded = load_bank(tmp_path / "old")
    assert (loaded.names, loaded.active, loaded.training) == (["milk"], "milk", True)
    assert loaded.entry("milk") == bank.entry("milk")
    assert same(dict(loaded.parameters("milk")), dict(bank.parameters("milk")))
    loaded.save(tmp_path / "new")
    files = sorted(path.name for path in (tmp_path / "new" / "adapters" / "milk").iterdir())
    parameters = ["adapter_config.json", "adapter_model.safetensors"] if kind == "lora" else ["adapter.safetensors"]
    assert files == ["adapter.json", *parameters]
    assert same(dict(load_bank(tmp_path / "new").parameters("milk")), dict(bank.parameters("milk")))

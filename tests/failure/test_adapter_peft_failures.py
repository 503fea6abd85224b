"""LoRA folders that peft wrote and that we can't compute, or that are damaged: one clear error, nothing changed."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import small_tinyvla as small
from adapted_tinyvla import outputs, refused, snapshot, with_diffusion
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.files import read_card

Tensors = dict[str, torch.Tensor]
FIRST, SECOND = "head.linear", "language.layers.0.mlp.dense_4h_to_h"
KEY = f"base_model.model.{FIRST}.lora_A.weight"


def saved(folder: Path, config: peft.PeftConfig | None = None, **options: Any) -> Path:
    """A folder that peft writes; plain LoRA of rank 4 on two layers, changed by `options`."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": [FIRST, SECOND]} | options
    model = peft.get_peft_model(small.make(), config or peft.LoraConfig(**settings))  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "'use_dora': True"),
        ({"use_rslora": True}, "'use_rslora': True"),
        ({"bias": "all"}, "'bias': 'all'"),
        ({"bias": "lora_only"}, "'bias': 'lora_only'"),
        ({"lora_bias": True}, "'lora_bias': True"),
        ({"modules_to_save": ["state"]}, r"'modules_to_save': \['state'\]"),
        ({"rank_pattern": {FIRST: 2}}, "'rank_pattern': {"),
        ({"alpha_pattern": {FIRST: 2}}, "'alpha_pattern': {"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights': 'pissa'"),
        ({"target_parameters": ["state.weight"]}, r"'target_parameters': \['state.weight'\]"),
    ],
)
def test_what_isn_t_plain_lora_is_refused_by_name(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk", **options)
    refused(
        AdapterBank(small.make()),
        folder,
        rf"adapter_config\.json has {{{named}.*}}; expected plain LoRA with r and lora_alpha",
    )
    with pytest.raises(ValueError, match=named):
        read_card(folder)


def test_an_option_of_a_later_peft_is_refused_unless_it_is_off(tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk")
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"use_new": {"a": 1}}))
    refused(AdapterBank(small.make()), folder, "has {'use_new': {'a': 1}}; expected plain LoRA")
    file.write_text(json.dumps(values | {"use_new": None}))
    with pytest.warns(UserWarning, match="aren't known"):
        assert AdapterBank(small.make()).load(folder) == "milk"


def test_other_adapters_of_peft_s_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk", peft.LoHaConfig(r=2, target_modules=[FIRST]))
    # whose names are no LoRA's either
    refused(AdapterBank(small.make()), folder, "has {'peft_type': 'LOHA'}; expected plain LoRA")
    embedding = next(name for name, m in small.make().named_modules() if isinstance(m, torch.nn.Embedding))
    folder = saved(tmp_path / "words", target_modules=[FIRST, embedding])
    refused(AdapterBank(small.make()), folder, f"holds base_model.model.{embedding}.lora_embedding_A; expected only")


def test_modules_that_this_policy_lacks_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk")
    refused(AdapterBank(with_diffusion()), folder, "target 'head.linear' matches no module; expected a group")


def change(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    file = folder / "adapter_model.safetensors"
    # in memory, since the file they are mapped from is written over
    save_file(edit(snapshot(load_file(file))), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t | {KEY: torch.zeros(5, 128)}, r"head\.linear\.lora_A\.weight has shape \[5, 128\], expected \[4,"),
        (lambda t: t | {KEY: torch.full((4, 128), torch.nan)}, "lora_A.weight holds values that aren't finite"),
        (lambda t: t | {KEY: torch.full((4, 128), torch.inf).half()}, "lora_A.weight holds values that aren't finite"),
        (lambda t: t | {KEY: torch.ones(4, 128, dtype=torch.int64)}, "lora_A.weight has type torch.int64"),
        (lambda t: t | {KEY: torch.ones(4, 128, dtype=torch.bool)}, "lora_A.weight has type torch.bool"),
        (lambda t: {name: x for name, x in t.items() if name != KEY}, "head.linear.lora_A.weight is missing"),
        (lambda t: {name: x for name, x in t.items() if FIRST not in name}, r"for 1 modules, its .*\['head.linear'\]"),
        (lambda t: {name.removeprefix("base_model."): x for name, x in t.items()}, "holds model.head.linear.lora_A"),
        (
            lambda t: t | {f"base_model.model.{FIRST}.bias": torch.zeros(3)},
            r"holds base_model\.model\.head\.linear\.bias",
        ),
    ],
)
def test_tensors_that_don_t_fit_are_named(edit: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk")
    change(folder, edit)
    refused(AdapterBank(small.make()), folder, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", "4", "has {'r': '4'}; expected plain LoRA"),
        ("r", True, "has {'r': True}; expected plain LoRA"),
        ("r", 4.5, "r is 4.5; expected a whole number"),
        ("r", 8, r"has shape \[4, .*expected \[8"),
        ("lora_alpha", None, "has {'lora_alpha': None}; expected plain LoRA"),
        ("lora_alpha", float("inf"), "adapter_config.json is not valid JSON"),
        ("lora_alpha", -1, "has {'lora_alpha': -1}; expected plain LoRA"),
        ("lora_dropout", "0.1", "lora_dropout is '0.1'; expected a number"),
        ("lora_dropout", 1, "dropout is 1; expected below 1"),
        ("target_modules", None, "lacks target_modules or lora_dropout"),
        ("target_modules", [FIRST, 3], "target_modules.1 is 3; expected a text"),
        ("target_modules", "(", "is no regular expression"),
        ("target_modules", [FIRST, SECOND, "state"], r"for 2 modules, its targets match 3 of this policy: \['state'\]"),
        ("exclude_modules", [FIRST], r"for 2 modules, its targets match 1 of this policy: \['head.linear'\]"),
        ("exclude_modules", 5, "exclude_modules is 5; expected a list"),
    ],
)
def test_a_config_that_doesn_t_fit_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refused(AdapterBank(small.make()), folder, message)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_and_truncated_files_are_named(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "milk") / name
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        file.write_bytes(content)
        refused(AdapterBank(small.make()), file.parent, name.replace(".", r"\."))
    file.unlink()
    refused(AdapterBank(small.make()), file.parent, name.replace(".", r"\."))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "run"))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.warns(UserWarning, match="aren't known"):
        AdapterBank(small.make()).load(folder)
    (folder / "adapter_model.safetensors").unlink()
    refused(
        AdapterBank(small.make()), folder, r"adapter_model\.bin is a pickle, which can run code.*safe_serialization"
    )
    assert not (tmp_path / "sprung").exists()


def test_a_folder_whose_name_can_t_be_an_adapter_s_needs_another(tmp_path: Path) -> None:
    folder = saved(tmp_path / "milk.lora")
    bank = AdapterBank(small.make())
    refused(bank, folder, "'milk.lora' can't be an adapter's name")
    with pytest.warns(UserWarning, match="aren't known"):
        assert bank.load(folder, "milk") == "milk"
    # B is zero at first
    with bank.selected("milk"):
        assert torch.equal(outputs(small.make()), outputs(bank.policy))  # type: ignore[arg-type]

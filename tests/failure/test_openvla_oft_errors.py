"""OpenVLA-OFT checkpoints that don't fit: one clear error each, and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import made_openvla_checkpoint as made
from simplevla.adapters.load import load_policy
from simplevla.cli import main
from simplevla.policies.openvla_oft.published import import_openvla_oft


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvla") / "published"
    made.write(folder, pieces=2)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "published"))


def refused(folder: Path, message: str, **options: Any) -> None:
    out = folder.parent / "policy"
    with pytest.raises(ValueError, match=message):
        import_openvla_oft(folder, out, cameras=("fixed",), **options)
    assert not out.exists()
    assert not list(folder.parent.glob(".*tmp*"))


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """All tensors in one file, changed."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_piece(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, r"model-00002-of-00002\.safetensors is missing, though the index")


@pytest.mark.parametrize(
    "name", ["config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("projector.fc2.bias"), r"projector\.fc2\.bias is missing"),
        (lambda w: w.update({"language_model.extra": torch.ones(2)}), r"language_model\.extra is unknown"),
        (
            lambda w: w.update({"projector.fc1.weight": torch.ones(5, 80)}),
            r"projector\.fc1\.weight has shape \[5, 80\].*expected \[320, 80\]",
        ),
        (
            lambda w: w.update({"vision_backbone.featurizer.blocks.0.attn.qkv.bias": torch.ones(10)}),
            r"attn\.qkv\.bias has shape \[10\]",
        ),
        (lambda w: w["projector.fc3.bias"].fill_(torch.inf), "isn't made of finite numbers"),
        (lambda w: [w.pop(k) for k in list(w) if "fused_featurizer" in k], "holds no siglip tower"),
        (lambda w: w.update({"language_model.lm_head.weight": torch.ones(32000, made.WIDTH)}), "has 32000 rows"),
    ],
)
def test_tensors_that_lack_or_are_too_many(folder: Path, change: Any, message: str) -> None:
    edit_weights(folder, change)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["text_config"].update(vocab_size=32000), "has 32064 rows; expected 32000, the vocab_size"),
        (lambda c: c["text_config"].update(num_hidden_layers=3), r"layers\.2\..* is missing"),
        (lambda c: c["text_config"].update(num_hidden_layers=1), r"layers\.1\..* is unknown"),
        (lambda c: c["text_config"].update(model_type="phi"), "model_type is 'phi'; expected 'llama'"),
        (lambda c: c.pop("text_config"), "lacks 'text_config'"),
        (lambda c: c.update(use_fused_vision_backbone=False), "use_fused_vision_backbone is False; expected True"),
        (lambda c: c.update(arch_specifier="gelu-mlp"), "arch_specifier is 'gelu-mlp'"),
        (lambda c: c.update(image_sizes=[28, 56]), r"image_sizes are \(28, 56\)"),
        (lambda c: c.update(image_sizes=[42, 42]), r"pos_embed has shape \[1, 4, 48\]"),
        (lambda c: c.update(timm_model_ids=["resnet", "resnet"]), "dino tower 'resnet'"),
    ],
)
def test_another_model_in_config(folder: Path, change: Any, message: str) -> None:
    edit_json(folder / "config.json", change)
    refused(folder, message)


def test_a_wrong_statistics_key(folder: Path) -> None:
    refused(folder, "statistics for libero_object_no_noops; expected 'libero_goal'", statistics_key="libero_goal")
    report = import_openvla_oft(folder, folder.parent / "good", cameras=("fixed",), statistics_key="libero_object")
    assert report.statistics_key == "libero_object_no_noops"
    edit_json(folder / "dataset_statistics.json", lambda s: s.update(other=s[made.KEY]))
    refused(folder, "libero_object_no_noops, other; expected one of them. Name one with --statistics-key")
    edit_json(folder / "dataset_statistics.json", lambda s: s["other"]["action"].pop("q99"))
    refused(folder, "other: Measured lacks 'q99'", statistics_key="other")


def test_another_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda t: t["model"]["vocab"].update({"▁": 31000, "unused31000": 29871}))
    refused(folder, "expected Llama's 32000")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, r"tokenizer\.json is damaged")


def test_an_untrained_token_head_is_recognised(folder: Path) -> None:
    (folder / "action_head--150000_checkpoint.pt").write_bytes(b"never read")
    refused(
        folder, r"regression or diffusion head \(action_head--150000_checkpoint\.pt\).*untrained.*RL finds no signal"
    )


def test_pixels_normalised_for_one_tower_only(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", lambda p: p.update(means=[[0.5, 0.5, 0.5]]))
    refused(folder, "means.1 is missing")


def test_an_existing_folder_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "policy"
    assert main(["import", "openvla-oft", str(folder), str(out), "--cameras", "fixed"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "statistics of libero_object_no_noops" in printed
    assert "in float32" in printed
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        import_openvla_oft(folder, out, cameras=("fixed",))
    assert (out / "model.safetensors").read_bytes() == before


def test_a_saved_policy_whose_files_disagree(folder: Path) -> None:
    out = folder.parent / "policy"
    import_openvla_oft(folder, out, cameras=("fixed",))
    edit_json(out / "config.json", lambda c: c.update(chunk_length=0))
    with pytest.raises(ValueError, match="chunk_length is 0"):
        load_policy(out)
    edit_json(out / "config.json", lambda c: c.update(chunk_length=8, action_mask=[True]))
    with pytest.raises(ValueError, match="action_mask has 1 entries; expected 7"):
        load_policy(out)
    edit_json(out / "config.json", lambda c: c.update(action_mask=[True] * 7, proprio=True))
    with pytest.raises(ValueError, match=r"proprio\.fc1\.weight is missing"):
        load_policy(out)


def test_observations_that_dont_fit(folder: Path) -> None:
    from simplevla.policies.base import ObservationBatch

    import_openvla_oft(folder, folder.parent / "policy", cameras=("fixed",))
    policy = load_policy(folder.parent / "policy")
    images = {"wrist": torch.zeros(1, 28, 28, 3, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="this policy also needs fixed"):
        policy(ObservationBatch(images=images, state=torch.zeros(1, 8), instructions=["go"]))
    images["fixed"] = images["wrist"]
    with pytest.raises(ValueError, match="3 state dimensions; this policy takes 8"):
        policy(ObservationBatch(images=images, state=torch.zeros(1, 3), instructions=["go"]))


def add_lora(place: Path, rank: int = 2, alpha: int = 3) -> dict[str, torch.Tensor]:
    """An adapter as peft writes it, of one attention matrix of each kind of model; module -> B A."""
    generator = torch.Generator().manual_seed(5)
    weights = made.tensors()
    modules = ("language_model.model.layers.0.self_attn.q_proj", "vision_backbone.featurizer.blocks.0.attn.qkv")
    tensors, products = {}, {}
    for module in modules:
        rows, columns = weights[f"{module}.weight"].shape
        a, b = (torch.randn(shape, generator=generator) for shape in ((rank, columns), (rows, rank)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        products[module] = alpha / rank * b.double() @ a.double()
    place.mkdir(exist_ok=True)
    save_file(tensors, place / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "bias": "none",
    }
    (place / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "gaussian"}))
    return products


@pytest.mark.parametrize("inside", [True, False])
def test_an_adapter_beside_the_weights_is_not_left_out_silently(folder: Path, inside: bool) -> None:
    add_lora(folder / "lora_adapter" if inside else folder)
    refused(
        folder, r"holds a LoRA adapter beside the weights.*--lora-adapter merged if they do.*--lora-adapter merge if"
    )


def test_an_adapter_without_weights_or_without_settings(folder: Path) -> None:
    add_lora(folder / "lora_adapter")
    (folder / "lora_adapter" / "adapter_config.json").unlink()
    refused(folder, r"lora_adapter/adapter_config\.json is missing", lora_adapter="merge")
    add_lora(folder / "lora_adapter")
    (folder / "lora_adapter" / "adapter_model.safetensors").unlink()
    refused(folder, r"has adapter_config\.json and no weights", lora_adapter="merge")


def test_no_adapter_where_one_is_named(folder: Path) -> None:
    refused(folder, r"--lora-adapter is 'merge', but there is none", lora_adapter="merge")


def test_an_adapter_is_merged_when_asked(folder: Path, tmp_path: Path) -> None:
    products = add_lora(folder / "lora_adapter")
    weights = {}
    for choice in ("merge", "merged"):
        out = tmp_path / choice
        arguments = ["import", "openvla-oft", str(folder), str(out), "--cameras", "fixed", "--lora-adapter", choice]
        assert main(arguments) == 0
        weights[choice] = load_policy(out).state_dict()
    original = made.tensors()
    name = "language_model.model.layers.0.self_attn.q_proj"
    expected = original[f"{name}.weight"].double() + products[name]
    got = weights["merge"]["language.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(got, expected.float(), atol=1e-6, rtol=0)
    assert torch.equal(weights["merged"]["language.layers.0.self_attn.q_proj.weight"], original[f"{name}.weight"])
    changed = [key for key, value in weights["merge"].items() if not torch.equal(value, weights["merged"][key])]
    # Query, key and value of the vision tower are one matrix there, three here.
    assert len(changed) == 4


def test_an_adapter_of_another_kind(folder: Path) -> None:
    add_lora(folder / "lora_adapter")
    edit_json(folder / "lora_adapter" / "adapter_config.json", lambda values: values.update(use_dora=True))
    refused(folder, r"has \{'use_dora': True\}; expected plain LoRA", lora_adapter="merge")


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"projector.fc1.bias": tensors["projector.fc1.bias"].long()}))
    refused(folder, r"projector\.fc1\.bias isn't made of finite numbers")


def test_an_adapter_that_lacks_some_of_its_target_modules(folder: Path) -> None:
    add_lora(folder / "lora_adapter")
    edit_json(
        folder / "lora_adapter" / "adapter_config.json", lambda values: values.update(target_modules=["q_proj", "qkv"])
    )
    refused(folder, r"adapter lacks tensors for \S*\.q_proj|blocks\.1\.attn\.qkv", lora_adapter="merge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda action: action["min"].__setitem__(-1, -1.0), r"runs from -1\.0 to 1\.0 and its mask is \[False\]"),
        (
            lambda action: action["mask"].__setitem__(-1, True),
            r"runs from 0\.0 to 1\.0 and its mask is \[True\].*--gripper none",
        ),
    ],
)
def test_a_gripper_that_is_not_liberos(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_json(folder / "dataset_statistics.json", lambda statistics: change(statistics[made.KEY]["action"]))
    refused(folder, message)
    import_openvla_oft(folder, folder.parent / "policy", cameras=("fixed",), gripper="none")

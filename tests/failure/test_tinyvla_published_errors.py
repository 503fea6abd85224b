"""What a TinyVLA checkpoint may not be; each is one clear error and leaves nothing on the disk."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import made_tinyvla_checkpoint as made
from simplevla.policies.tinyvla.published import import_tinyvla


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "whole"
    made.write_whole(folder, made.published_model())
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "lora"
    made.write_lora(folder, made.published_model())
    return folder


def refused(folder: Path, message: str, **options: Any) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(ValueError, match=message) as caught:
        import_tinyvla(folder, folder.parent / "new" / "policy", **{"cameras": made.CAMERAS, **options})
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    change(weights)
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action_head_type", "act", "head 'act'; expected 'llava_pythia' with 'droid_diffusion'"),
        ("action_head_type", "fc", "head 'fc'"),
        ("action_head_type", None, "no action head"),
        ("model_type", "gpt_neox", "'gpt_neox'"),
        ("hidden_size", 32, r"gpt_neox\.embed_in\.weight has shape \[320, 16\], expected \[320, 32\]"),
        ("num_hidden_layers", 3, r"gpt_neox\.layers\.2\..* is missing"),
        ("num_hidden_layers", 1, r"gpt_neox\.layers\.1\..* is unknown"),
        ("vocab_size", 400, r"\[320, 16\], expected \[400, 16\]"),
        ("vocab_size", 100, "of at most 100"),
        ("action_dim", 10, r"action_mean of shape \(4,\); expected \(10,\)"),
        ("state_dim", 7, r"qpos_mean of shape \(5,\); expected \(7,\)"),
        ("chunk_size", None, "chunk_size is None"),
        ("rotary_pct", 1.0, "rotary_pct 1.0; expected 0.25"),
        ("image_aspect_ratio", "square", "image_aspect_ratio 'square'; expected 'pad'"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end True"),
        ("concat", "channel_cat", "concat 'channel_cat'"),
        ("concat", "None", "left, right; expected 1 different ones"),
        ("vision_config", {}, "no vision_config"),
    ],
)
def test_another_head_size_or_setting_in_config(
    tmp_path: Path, whole: Path, key: str, value: Any, message: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    edit_json(folder / "config.json", lambda config: config.update({key: value}))
    refused(folder, message)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_tower", "vision_model_name_or_path", "dino", "expected one with clip or siglip"),
        ("vision_tower", "vision_model_name_or_path", "google/siglip-base", "'quick_gelu' for the vision tower"),
        ("vision_tower", "mm_vision_select_layer", -1, "mm_vision_select_layer -1"),
        ("vision_tower", "num_hidden_layers", 2, "layers.2.* is unknown"),
        ("vision_tower", "image_size", 42, "has size .*28"),
        ("mm_projector", "mm_projector_type", "linear", "mm_projector_type 'linear'"),
    ],
)
def test_another_vision_tower(tmp_path: Path, whole: Path, part: str, key: str, value: Any, message: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    edit_json(folder / "config.json", lambda config: config["vision_config"][part].update({key: value}))
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("embed_out.combine.bias"), r"embed_out\.combine\.bias is missing"),
        (lambda w: w.update({"embed_out.extra": torch.ones(2)}), r"embed_out\.extra is unknown"),
        (lambda w: w.update({"gpt_neox.embed_in.weight": torch.ones(5, 16)}), r"has shape \[5, 16\]"),
        (lambda w: w["embed_out.combine.bias"].fill_(torch.nan), "isn't made of finite numbers"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("embed_out")], "holds no diffusion head: .* nothing"),
    ],
)
def test_tensors_that_lack_or_are_too_many(tmp_path: Path, whole: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    edit_weights(folder / "model.safetensors", change)
    refused(folder, message)


def test_the_language_model_alone_is_no_policy(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")

    def language_head(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("embed_out")]:
            del weights[name]
        weights["embed_out.weight"] = torch.zeros(made.VOCABULARY, made.WIDTH)

    edit_weights(folder / "model.safetensors", language_head)
    refused(folder, r"holds no diffusion head: of embed_out it has embed_out\.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"config\.json is missing"),
        ("dataset_stats.pkl", r"dataset_stats\.pkl is missing"),
        ("tokenizer.json", "name that with --base"),
        ("model.safetensors", "holds no model"),
    ],
)
def test_a_missing_file(tmp_path: Path, whole: Path, name: str, message: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / name).unlink()
    refused(folder, message)


@pytest.mark.parametrize("name", ["config.json", "dataset_stats.pkl", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file(tmp_path: Path, whole: Path, name: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    refused(folder, f"{name} is (damaged|not valid JSON)")


class Writes:
    """A pickle of it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_code_in_the_statistics_isnt_run(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    trace = tmp_path / "ran"
    content = pickle.dumps(made.statistics() | {"extra": Writes(trace)})
    pickle.loads(content)
    assert trace.exists()
    trace.unlink()
    (folder / "dataset_stats.pkl").write_bytes(content)
    refused(folder, "could run code")
    assert not trace.exists()


def test_code_in_the_weights_isnt_run(tmp_path: Path, lora: Path) -> None:
    folder = shutil.copytree(lora, tmp_path / "run")
    trace = tmp_path / "ran"
    torch.save({"a": Writes(trace)}, folder / "non_lora_trainables.bin")
    trace.unlink(missing_ok=True)
    refused(folder, "holds more than tensors")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("measure", "value", "message"),
    [
        ("action_min", None, "expected action_mean, action_std, action_min"),
        ("action_min", np.full(4, 9, np.float32), "expected .* min <= max"),
        ("qpos_std", np.full(5, np.nan, np.float32), "expected a finite number"),
        ("action_max", "text", "action_max of shape"),
    ],
)
def test_statistics_that_cant_be_used(tmp_path: Path, whole: Path, measure: str, value: Any, message: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    values: dict[str, Any] = dict(made.statistics())
    values[measure] = value
    if value is None:
        del values[measure]
    (folder / "dataset_stats.pkl").write_bytes(pickle.dumps(values))
    refused(folder, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", 3, r"expected \[\[3, "),
        ("r", None, "expected plain LoRA"),
        ("lora_alpha", float("inf"), "adapter_config.json is not valid JSON"),
        ("use_dora", True, "'use_dora': True"),
        ("an_option_of_a_later_peft", {"a": 1}, "'an_option_of_a_later_peft'"),
        ("peft_type", "IA3", "'peft_type': 'IA3'"),
        ("modules_to_save", ["embed_out"], "'modules_to_save'"),
        ("rank_pattern", {"dense": 4}, "'rank_pattern'"),
        ("target_modules", ["dense", "mm_projector.0"], r"lacks tensors for mm_projector\.0"),
    ],
)
def test_another_adapter(tmp_path: Path, lora: Path, key: str, value: Any, message: str) -> None:
    folder = shutil.copytree(lora, tmp_path / "run")
    edit_json(folder / "adapter_config.json", lambda config: config.update({key: value}))
    refused(folder, message)


def retype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = weights[name].to(dtype)


def rename(weights: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in weights if old in name]:
        weights[name.replace(old, new)] = weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(next(k for k in w if "lora_A" in k)), "holds only lora_B"),
        (lambda w: rename(w, "layers.1.attention.dense", "layers.9.attention.dense"), "which the model lacks"),
        (lambda w: rename(w, "lora_A", "lora_magnitude"), "expected only lora_A and lora_B"),
        (lambda w: retype(w, torch.int64), r"lora_A\.weight, which isn't made of finite numbers \(torch\.int64\)"),
        (lambda w: retype(w, torch.bool), r"lora_A\.weight, which isn't made of finite numbers \(torch\.bool\)"),
    ],
)
def test_adapter_tensors_that_dont_fit(tmp_path: Path, lora: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(lora, tmp_path / "run")
    edit_weights(folder / "adapter_model.safetensors", change)
    refused(folder, message)


def test_an_adapter_without_the_rest(tmp_path: Path, lora: Path) -> None:
    folder = shutil.copytree(lora, tmp_path / "run")
    (folder / "non_lora_trainables.bin").unlink()
    refused(folder, "process_ckpts")


def test_what_was_trained_needs_the_model_that_it_started_from(tmp_path: Path, lora: Path) -> None:
    folder = shutil.copytree(lora, tmp_path / "run")
    edit_weights(
        folder / "non_lora_trainables.bin",
        lambda w: [w.pop(k) for k in list(w) if "embed_in" in k or "final_layer_norm" in k],
    )
    refused(folder, r"embed_in\.weight is missing.*--base")


def test_two_models_in_one_folder(tmp_path: Path, whole: Path, lora: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.copy(lora / "adapter_model.safetensors", folder)
    refused(folder, "holds both")


@pytest.mark.parametrize("cameras", [(), ("left",), ("left", "left"), ("a", "b", "c", "d")])
def test_other_cameras_than_the_training_had(tmp_path: Path, whole: Path, cameras: tuple[str, ...]) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    refused(folder, "expected 2 or 3 different ones", cameras=cameras)


def test_a_folder_that_exists_isnt_overwritten(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        import_tinyvla(whole, tmp_path / "policy", cameras=made.CAMERAS)
    assert list((tmp_path / "policy").iterdir()) == []


def test_a_folder_that_doesnt_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        import_tinyvla(tmp_path / "nowhere", tmp_path / "policy", cameras=made.CAMERAS)


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simplevla.policies.tinyvla.policy import TinyVLA

    def half(self: TinyVLA, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TinyVLA, "save", half)
    with pytest.raises(OSError, match="No space"):
        import_tinyvla(whole, tmp_path / "policy", cameras=made.CAMERAS)
    assert list(tmp_path.iterdir()) == []

"""Bad folders for `simplevla import smolvla`: one clear error each, and nothing on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import made_smolvla_checkpoint as made
import small_smolvla
import small_tinyvla
from simplevla import cli
from simplevla.adapters.bank import AdapterBank
from simplevla.errors import UserError
from simplevla.policies.smolvla.policy import SmolVLA


def edit(file: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    values = load_file(file)
    change(values)
    save_file(values, file)


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], cameras: tuple[str, ...] = made.NAMED) -> str:
    """The error of an import, which left nothing."""
    there = {path.name for path in tmp_path.iterdir()}
    arguments = ["import", "smolvla", str(tmp_path / "lerobot"), str(tmp_path / "ours"), "--cameras", *cameras]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "backbone")]) == 2
    assert {path.name for path in tmp_path.iterdir()} == there
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made.write_backbone(tmp_path / "backbone")
    return made.write(tmp_path / "lerobot")


CONFIGS = [
    ({"type": "pi0"}, "of the policy type 'pi0'; expected 'smolvla'"),
    ({"type": "act"}, "of the policy type 'act'; expected 'smolvla'"),
    ({"chunk_size": 1, "n_action_steps": 2}, "(n_action_steps) is 2; expected at most 1"),
    ({"num_steps": 1}, "num_steps is 1; expected at least 2"),
    ({"use_delta_joint_actions_aloha": True}, "has use_delta_joint_actions_aloha"),
    ({"adapt_to_pi_aloha": True}, "has adapt_to_pi_aloha"),
    ({"max_state_dim": 2}, "state_dim is 3; expected at most 2"),
    ({"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MIN_MAX"}}, "normalization_mapping is"),
    ({"normalization_mapping": {"ACTION": "MEAN_STD"}}, "normalization_mapping is"),
    ({"normalization_mapping": {}}, "normalization_mapping is"),
    ({"tokenizer_max_length": 8}, "has max_length 48 in its tokenizer_processor; expected 8"),
    ({"resize_imgs_with_padding": None}, "resize_imgs_with_padding"),
    ({"resize_imgs_with_padding": [16, 32]}, "expected a square"),
    ({"num_vlm_layers": 1}, "is unknown"),
    ({"num_vlm_layers": 3}, "is missing"),
    ({"expert_width_multiplier": 0.5}, "has shape"),
    ({"expert_width_multiplier": 1e9}, "expected at most 4"),
    ({"output_features": {}}, "expected action among them"),
    ({"output_features": {"action": {"type": "ENV", "shape": [2]}}}, "action has the type 'ENV'; expected ACTION"),
]


@pytest.mark.parametrize(("changes", "problem"), CONFIGS)
def test_settings_that_do_not_fit(
    changes: dict[str, object], problem: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "config.json", lambda values: values.update(changes))
    assert problem in run(tmp_path, capsys)


def test_a_state_above_32_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def widen(values: dict[str, object]) -> None:
        values |= {"max_state_dim": 32}
        values["input_features"]["observation.state"]["shape"] = [33]  # type: ignore[index]

    edit(folder / "config.json", widen)
    assert "state_dim is 33; expected at most 32" in run(tmp_path, capsys)


@pytest.mark.parametrize(
    ("cameras", "problem"),
    [
        ((*made.NAMED, "third=observation.images.other"), "the policy has the cameras observation.images.camera1"),
        (("front",), "expected NAME=FEATURE"),
        ((made.NAMED[0], f"wrist={made.FEATURES[0]}"), "expected each under one name"),
    ],
)
def test_cameras_that_the_policy_does_not_have(
    cameras: tuple[str, ...], problem: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem in run(tmp_path, capsys, cameras)


def test_an_empty_camera_has_no_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LeRobot would count one empty camera less."""
    empty = "observation.images.empty_camera_0"
    edit(
        folder / "config.json",
        lambda values: values["input_features"].update({empty: values["input_features"][made.FEATURES[0]]}),
    )
    assert f"--cameras names {empty}; the policy has the cameras" in run(
        tmp_path, capsys, (*made.NAMED, f"third={empty}")
    )


def test_a_camera_by_both_of_its_names(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = {"observation.images.top": made.FEATURES[0]}
    change_steps("preprocessor", lambda steps: steps[0]["config"].update(rename_map=renamed), folder)
    both = (made.NAMED[0], "top=observation.images.top")
    assert f"names a camera twice: front={made.FEATURES[0]}, top={made.FEATURES[0]}" in run(tmp_path, capsys, both)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "policy_preprocessor_step_5_normalizer_processor.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "policy_postprocessor.json",
        "policy_preprocessor.json",
    ],
)
def test_a_missing_file(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).unlink()
    assert name in run(tmp_path, capsys)


def test_an_older_folder_without_statistics(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()
    assert "has no observation.state.mean; its statistics are none" in run(tmp_path, capsys)


def change_steps(name: str, change: Callable[[list[dict[str, object]]], object], folder: Path) -> None:
    edit(folder / f"policy_{name}.json", lambda values: change(values["steps"]))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("preprocessor", lambda steps: steps[5]["config"]["norm_map"].update(STATE="MIN_MAX"), "has norm_map"),
        ("postprocessor", lambda steps: steps[0]["config"]["norm_map"].update(ACTION="QUANTILES"), "has norm_map"),
        ("preprocessor", lambda steps: steps[5]["config"]["norm_map"].pop("STATE"), "has norm_map"),
        ("preprocessor", lambda steps: steps[5]["config"].update(norm_map={}), "has norm_map"),
        (
            "preprocessor",
            lambda steps: steps[5]["config"]["features"].pop("observation.state"),
            "leaves observation.state",
        ),
        (
            "preprocessor",
            lambda steps: steps[5]["config"].update(normalize_observation_keys=[]),
            "leaves observation.st",
        ),
        (
            "preprocessor",
            lambda steps: steps[5]["config"]["features"]["observation.state"].update(type="ENV"),
            "leaves observation.state as it is; expected it among the features that are normalised, with the type STATE",
        ),
        ("preprocessor", lambda steps: steps[5]["config"].update(features=[1]), "features is [1]; expected a"),
        ("preprocessor", lambda steps: steps[5]["config"].update(norm_map=[]), "norm_map is []; expected a"),
        ("preprocessor", lambda steps: steps[5]["config"].update(normalize_observation_keys=3), "is 3; expected a"),
        ("preprocessor", lambda steps: steps[5]["config"].update(eps=1e-3), "has eps 0.001; expected 1e-08"),
        ("preprocessor", lambda steps: steps[0]["config"].update(rename_map=[1]), "rename_map is [1]; expected a"),
        ("preprocessor", lambda steps: steps[5].update(state_file=""), "names no statistics"),
        ("preprocessor", lambda steps: steps[5].update(state_file=".."), "names no statistics"),
        ("preprocessor", lambda steps: steps.append(steps[5]), "has more than once normalizer_processor"),
        ("preprocessor", lambda steps: steps.insert(2, steps.pop(3)), "before they get their line break"),
        ("preprocessor", lambda steps: steps[3]["config"].update(max_length=2), "has max_length 2"),
        ("preprocessor", lambda steps: steps[3]["config"].update(tokenizer_name="other"), "has tokenizer_name 'other'"),
        ("preprocessor", lambda steps: steps[3]["config"].update(truncation=False), "has truncation False"),
        ("preprocessor", lambda steps: steps[3]["config"].update(padding_side="left"), "has padding_side 'left'"),
        ("preprocessor", lambda steps: steps[4]["config"].update(float_dtype="bfloat16"), "casts to 'bfloat16'"),
        ("preprocessor", lambda steps: steps.pop(2), "has no smolvla_new_line_processor"),
        (
            "postprocessor",
            lambda steps: steps.append({"registry_name": "absolute_actions_processor"}),
            "has the step absolute_actions_processor",
        ),
    ],
)
def test_processors_that_do_something_else(
    name: str,
    change: Callable[[list[dict[str, object]]], object],
    problem: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_steps(name, change, folder)
    assert problem in run(tmp_path, capsys)


def test_an_adapter_without_its_policy(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "It is an adapter alone: merge it" in run(tmp_path, capsys)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_beside_its_policy(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text("{}")
    assert f"has {name} beside its model, which would be left out" in run(tmp_path, capsys)


def test_a_negative_deviation(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in folder.glob("policy_*.safetensors"):
        edit_tensors(file, lambda values: values.update({"action.std": -values["action.std"]}))
    assert f"{folder}: action dimension 0 has" in run(tmp_path, capsys)


def test_another_backbones_sizes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tmp_path / "backbone" / "config.json", lambda values: values["text_config"].update(hidden_size=32))
    assert "doesn't fit the config.json beside it and the backbone in --tokenizer" in run(tmp_path, capsys)


def test_older_statistics_of_two_robots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write_backbone(tmp_path / "backbone")
    file = made.write(tmp_path / "lerobot", old=True) / "model.safetensors"
    name = "normalize_inputs.so100_buffer_observation_state.mean"
    edit_tensors(file, lambda values: values.update({name: torch.zeros(3)}))
    assert "has the statistics of several robots" in run(tmp_path, capsys)


def test_statistics_that_contradict_each_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    edit_tensors(file, lambda values: values.update({"action.mean": values["action.mean"] + 1}))
    assert "has two action.mean" in run(tmp_path, capsys)


def test_tensors_of_another_policy(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_tensors(folder / "model.safetensors", lambda values: values.update({"model.more": torch.ones(1)}))
    assert "model.more is unknown" in run(tmp_path, capsys)
    edit_tensors(
        folder / "model.safetensors", lambda values: values.update({"model.more": values.pop("model.state_proj.bias")})
    )
    assert "model.more is unknown; model.state_proj.bias is missing" in run(tmp_path, capsys)


def test_weights_that_are_no_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_tensors(folder / "model.safetensors", lambda values: values["model.state_proj.bias"].fill_(torch.nan))
    assert "model.state_proj.bias isn't made of finite numbers" in run(tmp_path, capsys)


def test_a_tokenizer_of_another_vocabulary(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = small_tinyvla.make().instruction_tokens.tokenizer
    (tmp_path / "backbone/tokenizer.json").write_text(other.to_str())
    assert "with <image> at None; expected the backbone's" in run(tmp_path, capsys)


def test_a_backbone_of_another_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "backbone/config.json"
    edit(file, lambda values: values.update({"model_type": "idefics3"}))
    assert "is of a 'idefics3'; expected the config of a SmolVLM2" in run(tmp_path, capsys)
    file.unlink()
    assert "is missing, and the backbone 'backbone' isn't HuggingFaceTB" in run(tmp_path, capsys)


def test_policies_that_lerobot_could_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_tinyvla.make().save(tmp_path / "tinyvla")
    small_smolvla.make().save(tmp_path / "own")
    small_smolvla.make(backbone="somewhere").save(tmp_path / "named")
    adapted = small_smolvla.make(backbone="somewhere")
    bank = AdapterBank(adapted)
    bank.add("task")
    bank.add("other")
    adapted.save(tmp_path / "adapted")
    for name, problem in (
        ("tinyvla", "is a TinyVLA"),
        ("own", "a tokenizer of its own"),
        ("named", "a tokenizer of its own"),
        ("adapted", "the adapters task, other; name the one to export"),
    ):
        assert cli.main(["export", "lerobot", str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert problem in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_head_that_it_does_not_have() -> None:
    with pytest.raises(UserError, match="head is 'tokens'; smolvla_nano always has a flow head"):
        SmolVLA.create(
            "smolvla_nano",
            cameras=["fixed"],
            state_dim=1,
            action_dim=1,
            chunk_length=2,
            instructions=["go"],
            statistics=small_tinyvla.plain_statistics(1, 1),
            head="tokens",
        )

"""Damaged policy folders, and policies that don't fit."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import small_tinyvla as small
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.cli import main
from simplevla.errors import UserError
from simplevla.policies.load import check_fits_suite
from simplevla.policies.trained_on import TrainedOn
from simplevla.policies.words import train_tokenizer
from simplevla.suites.base import SuiteSpec
from simplevla.types import Observation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small.make().save(tmp_path)
    return tmp_path


def test_a_folder_without_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere holds no policy.*runs/NAME/policy"):
        load_policy(tmp_path / "nowhere")


def test_another_architecture_is_named(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "openvla"}))
    with pytest.raises(ValueError, match=r"'openvla'; this version loads 'tinyvla'"):
        load_policy(folder)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_policy(folder)


def test_an_unknown_key_in_the_config_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "chunk_lenght": 3}))
    with pytest.raises(ValueError, match=r"unknown key 'chunk_lenght'.*Did you mean 'chunk_length'"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.json", "tokenizer.json"])
def test_a_missing_or_truncated_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        load_policy(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        load_policy(folder)


def test_every_tensor_is_compared_by_name_and_shape(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["state.bias"]
    tensors["queries"] = tensors["queries"][:-1].clone()
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="doesn't fit") as error:
        load_policy(folder)
    message = str(error.value)
    assert "state.bias is missing" in message
    assert "extra is unknown" in message
    assert "queries has shape [5, 128], expected [6, 128]" in message


def test_statistics_of_other_dimensions_are_refused(folder: Path) -> None:
    statistics = json.loads((folder / "statistics.json").read_text())
    statistics["action"] = {key: [*values, 1.0] for key, values in statistics["action"].items()}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="statistics have 3 action dimensions; the policy has 2"):
        load_policy(folder)


def test_a_failed_save_leaves_the_old_file_and_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small.make(seed=9).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_observations_that_lack_a_camera_or_have_another_state_are_refused() -> None:
    policy = small.make()
    batch = small.observations(["press it"])
    with pytest.raises(ValueError, match="have cameras front; this policy also needs wrist"):
        policy(type(batch)(images={"front": batch.images["front"]}, state=batch.state, instructions=["press it"]))
    with pytest.raises(ValueError, match="have 4 state dimensions; this policy takes 3"):
        policy(type(batch)(images=batch.images, state=torch.zeros(1, 4), instructions=["press it"]))


def test_one_observation_may_have_numbers_of_any_kind_but_not_pictures() -> None:
    policy = small.make()
    pixels = np.zeros((32, 32, 3), np.uint8)

    def act(wrist: np.ndarray, state: np.ndarray) -> np.ndarray:
        return policy.act_on(Observation(images={"front": pixels, "wrist": wrist}, state=state), "press it")

    doubles = np.array([0.5, 0.0, 1.0])
    np.testing.assert_array_equal(act(pixels, doubles), act(pixels, doubles.astype(np.float32)))
    for wrong in (pixels / 255, pixels.transpose(2, 0, 1), pixels[..., 0]):
        with pytest.raises(UserError, match=r"camera 'wrist': got .*; expected uint8 \[height, width, 3\], RGB"):
            act(wrong, doubles)
    with pytest.raises(UserError, match="have 4 state dimensions; this policy takes 3"):
        act(pixels, np.zeros(4))


def test_a_suite_that_does_not_fit_is_told_everything_that_differs() -> None:
    def spec(cameras: dict[str, tuple[int, int]], states: int, actions: int) -> SuiteSpec:
        return SuiteSpec(
            cameras=cameras,
            state_names=("x",) * states,
            action_names=("a",) * actions,
            action_low=(-1.0,) * actions,
            action_high=(1.0,) * actions,
            control_hz=10.0,
        )

    policy = small.make()
    check_fits_suite(policy, spec({"wrist": (128, 96), "front": (7, 7), "top": (1, 1)}, 3, 2))
    with pytest.raises(ValueError, match="doesn't fit the suite") as error:
        check_fits_suite(policy, spec({"front": (64, 64)}, 5, 7))
    message = str(error.value)
    assert "looks through wrist" in message
    assert "takes 3 state dimensions, the suite has 5" in message
    assert "gives 2 action dimensions, the suite has 7" in message


def test_a_diffusion_policy_that_does_not_name_its_sampler_is_refused(tmp_path: Path) -> None:
    small.make(head="diffusion").save(tmp_path / "policy")
    file = tmp_path / "policy" / "config.json"
    config = json.loads(file.read_text())
    assert config["diffusion"].pop("use_clipped_model_output") is False
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"has no diffusion\.use_clipped_model_output.*true for a policy that was trained"
    ):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_an_error_and_no_bad_policy(folder: Path, value: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["state.bias"][-1] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"no policy that can act: state\.bias holds NaN or infinity\. The training"):
        load_policy(folder)
    assert main(["eval", "--policy", str(folder)]) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16])
def test_weights_of_another_kind_of_number_are_refused(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["state.bias"] = tensors["state.bias"].to(dtype)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"state\.bias is {dtype}, expected torch\.float32"):
        load_policy(folder)


def test_adapters_whose_list_is_lost_are_not_left_out_silently(tmp_path: Path) -> None:
    policy = small.make()
    bank = AdapterBank(policy)
    bank.add("one", AdapterConfig(rank=2), seed=0)
    bank.activate("one", training=True)
    policy.save(tmp_path / "policy")
    (tmp_path / "policy" / "adapters" / "bank.json").unlink()
    with pytest.raises(ValueError, match=r"bank\.json is missing, though there are adapters"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("name", ["statistics.json", "tokenizer.json", "trained_on.json"])
def test_a_file_of_another_policy_of_the_same_sizes_is_named(tmp_path: Path, name: str) -> None:
    policy, other = small.make(), small.make()
    other.statistics = small.plain_statistics(3, 2)
    other.instruction_tokens.tokenizer = train_tokenizer(["pull it", "press it"], 512)
    other.trained_on = (TrainedOn(stage="sft", suite="another"),)
    policy.save(tmp_path / "own")
    other.save(tmp_path / "other")
    file = tmp_path / "own" / name
    own = file.read_text()
    file.write_text(json.dumps(json.loads(own)))
    load_policy(tmp_path / "own")
    file.write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name} isn't the one that model\.safetensors beside it was saved with"):
        load_policy(tmp_path / "own")
    # Folders of earlier versions don't say.
    tensors = load_file(tmp_path / "own/model.safetensors")
    save_file(tensors, tmp_path / "own/model.safetensors", metadata={"architecture": "tinyvla"})
    load_policy(tmp_path / "own")


def test_cameras_in_another_order_are_warned_of(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    load_policy(folder)
    assert not recwarn.list
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cameras": config["cameras"][::-1]}))
    with pytest.warns(UserWarning, match=r"config\.json isn't the one that model\.safetensors"):
        load_policy(folder)
    (folder / "config.json").write_text(json.dumps(config | {"cameras": ["front", "front"]}))
    with pytest.raises(ValueError, match="at least one, each once"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("chunk_length", 2.0, "a whole number"),
        ("state_dim", "3", "a whole number"),
        ("action_dim", True, "a whole number"),
        ("head", 1, "'tokens', 'diffusion' or 'flow'"),
        ("vision", None, "an object"),
        ("architecture", [], None),
        ("chunk_length", 10**9, "at most 10000"),
    ],
)
def test_a_setting_of_another_type_or_size_is_named(folder: Path, key: str, value: Any, expected: str | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    message = f"TinyVLAConfig.{key} is {value!r}; expected {expected}" if expected else "is of architecture []"
    with pytest.raises(UserError, match=re.escape(message)):
        load_policy(folder)


@pytest.mark.parametrize("value", ["false", None])
def test_the_sampler_s_form_is_yes_or_no(tmp_path: Path, value: Any) -> None:
    small.make(head="diffusion").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["diffusion"]["use_clipped_model_output"] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"use_clipped_model_output is .*; expected true or false"):
        load_policy(tmp_path)

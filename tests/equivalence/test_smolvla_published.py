"""An imported SmolVLA computes what LeRobot's own computes, and what is exported is what was imported."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import made_smolvla_checkpoint as made
from adapted_tinyvla import disturb
from simplevla import cli
from simplevla.adapters.bank import AdapterBank
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.policies.smolvla.policy import SmolVLA
from simplevla.policies.smolvla.published import export_lerobot, import_smolvla
from simplevla.training.imitation import require_fits


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> SmolVLA:
    folder = tmp_path_factory.mktemp("smolvla")
    backbone = made.write_backbone(folder / "backbone")
    import_smolvla(made.write(folder / "new"), folder / "ours", cameras=made.NAMED[::-1], tokenizer=backbone)
    return SmolVLA.load(folder / "ours")


def batch() -> ObservationBatch:
    inputs = made.inputs()
    pictures = {camera: inputs[feature] for camera, feature in made.CAMERAS.items()}
    return ObservationBatch(images=pictures, state=inputs["state"], instructions=made.PROMPTS)


class Given:
    """A generator that draws the noise which LeRobot had."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise.numpy()

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.noise.reshape(shape).astype(dtype)


def actions(policy: SmolVLA) -> torch.Tensor:
    given: list[Any] = [Given(row) for row in made.inputs()["noise"]]
    return torch.from_numpy(policy.act(batch(), Sampling(greedy=True), given).actions)


def test_the_training_loss_is_lerobots(policy: SmolVLA) -> None:
    inputs = made.inputs()
    noise = {"noise": inputs["noise"][:, None], "times": inputs["times"][:, None]}
    loss = policy.imitation_loss(batch(), inputs["actions"], inputs["mask"], **noise)
    torch.testing.assert_close(loss[None], made.OUTPUTS["loss"], atol=1e-5, rtol=0)


def test_the_velocity_is_lerobots(policy: SmolVLA) -> None:
    with torch.no_grad():
        velocity = policy.velocity(policy(batch()), made.OUTPUTS["noisy"], made.inputs()["times"])
    torch.testing.assert_close(velocity, made.OUTPUTS["velocity"], atol=1e-5, rtol=0)
    assert velocity.abs().mean() > 0.1


def test_the_executed_actions_are_lerobots(policy: SmolVLA) -> None:
    got, expected = actions(policy), made.OUTPUTS["actions"]
    assert got.shape[1] == policy.chunk_length == 2
    assert expected.shape[1] == policy.imitated_length == 3
    torch.testing.assert_close(got, expected[:, :2], atol=1e-5, rtol=0)


def test_the_older_layout_is_the_same_policy(policy: SmolVLA, tmp_path: Path) -> None:
    backbone = made.write_backbone(tmp_path / "backbone")
    old = made.write(tmp_path / "old", old=True)
    import_smolvla(old, tmp_path / "ours", cameras=made.NAMED, tokenizer=backbone)
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "ours")), actions(policy), atol=0, rtol=0)


def test_older_statistics_may_have_the_arms_name(policy: SmolVLA, tmp_path: Path) -> None:
    backbone = made.write_backbone(tmp_path / "backbone")
    file = made.write(tmp_path / "old", old=True) / "model.safetensors"
    save_file({name.replace(".buffer_", ".so100-red_buffer_"): x for name, x in load_file(file).items()}, file)
    import_smolvla(file.parent, tmp_path / "ours", cameras=made.NAMED, tokenizer=backbone)
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "ours")), actions(policy), atol=0, rtol=0)


def test_the_state_is_normalised_as_before_the_model(policy: SmolVLA, tmp_path: Path) -> None:
    backbone, folder = made.write_backbone(tmp_path / "backbone"), made.write(tmp_path / "lerobot")
    file = folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    save_file({name: x + 1 if "state" in name else x for name, x in load_file(file).items()}, file)
    import_smolvla(folder, tmp_path / "ours", cameras=made.NAMED, tokenizer=backbone)
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "ours")), actions(policy), atol=0, rtol=0)


def test_as_many_actions_are_executed_as_one_asks_for(policy: SmolVLA, tmp_path: Path) -> None:
    backbone, folder = made.write_backbone(tmp_path / "backbone"), made.write(tmp_path / "lerobot")
    import_smolvla(folder, tmp_path / "ours", cameras=made.NAMED, tokenizer=backbone, action_steps=1)
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "ours")), actions(policy)[:, :1], atol=0, rtol=0)
    with pytest.raises(UserError, match=r"--action-steps is 9; expected 1 to 3, the chunk_size in .*config\.json"):
        import_smolvla(folder, tmp_path / "more", cameras=made.NAMED, tokenizer=backbone, action_steps=9)


def test_the_commands_import_and_export_and_what_comes_back_is_equal(
    policy: SmolVLA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, folder = made.write_backbone(tmp_path / "backbone"), made.write(tmp_path / "lerobot")
    flags = ["--cameras", *made.NAMED, "--tokenizer", str(backbone)]
    assert cli.main(["import", "smolvla", str(folder), str(tmp_path / "ours"), *flags]) == 0
    assert "without the cameras observation.images.camera3" in capsys.readouterr().out
    assert cli.main(["export", "lerobot", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "back", folder))
    theirs.pop("model.vlm_with_expert.vlm.lm_head.weight")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    import_smolvla(tmp_path / "back", tmp_path / "again", cameras=made.NAMED, tokenizer=backbone)
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "again")), actions(policy), atol=0, rtol=0)
    modes = {path.stat().st_mode for path in (tmp_path / "back").iterdir()}
    assert modes == {(tmp_path / "backbone" / "config.json").stat().st_mode}, "as whoever copies it may read"


def test_an_adapter_of_large_actions_is_exported_too(policy: SmolVLA, tmp_path: Path) -> None:
    """Rounding is relative: a motor's raw units may be large."""
    adapted = deepcopy(policy)
    adapted.statistics = replace(
        policy.statistics, action={key: [1e5 * v for v in values] for key, values in policy.statistics.action.items()}
    )
    adapted.action_std.mul_(1e5)
    bank = AdapterBank(adapted)
    bank.add("one")
    disturb(bank, "one", 0)
    bank.activate("one", training=False)
    adapted.save(tmp_path / "adapted")
    assert cli.main(["export", "lerobot", str(tmp_path / "adapted"), str(tmp_path / "back")]) == 0


def test_an_adapter_is_exported_in_the_weights(
    policy: SmolVLA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = deepcopy(policy)
    bank = AdapterBank(adapted)
    for seed, name in enumerate(("one", "two")):
        bank.add(name)
        disturb(bank, name, seed)
    bank.activate("two", training=False)
    adapted.save(tmp_path / "adapted")
    arguments = ["export", "lerobot", str(tmp_path / "adapted"), str(tmp_path / "back"), "--adapter", "two"]
    assert cli.main(arguments) == 0
    assert "the adapter two is added" in capsys.readouterr().out
    backbone = made.write_backbone(tmp_path / "backbone")
    import_smolvla(tmp_path / "back", tmp_path / "again", cameras=made.NAMED, tokenizer=backbone)
    got = actions(SmolVLA.load(tmp_path / "again"))
    torch.testing.assert_close(got, actions(adapted), atol=1e-5, rtol=0)
    assert (got - actions(policy)).abs().max() > 1e-3


def test_the_exported_settings_are_those_that_lerobot_saved(policy: SmolVLA, tmp_path: Path) -> None:
    export_lerobot(policy, tmp_path / "out")
    written, saved = json.loads((tmp_path / "out/config.json").read_text()), made.RECORDED["config"]
    assert set(written.pop("input_features")) == {"observation.state", *made.FEATURES}
    # As many layers as the backbone has: LeRobot says so by -1.
    assert (written.pop("num_expert_layers"), saved["num_expert_layers"]) == (2, -1)
    assert {name: saved[name] for name in written} == written
    for name in ("preprocessor", "postprocessor"):
        steps = json.loads((tmp_path / f"out/policy_{name}.json").read_text())["steps"]
        kinds = [step["registry_name"] for step in made.RECORDED[name]["steps"]]
        assert [step["registry_name"] for step in steps] == kinds


def test_a_camera_that_the_policy_does_without_is_not_exported(policy: SmolVLA, tmp_path: Path) -> None:
    """LeRobot's policy would look through it wherever a robot has it."""
    backbone, folder = made.write_backbone(tmp_path / "backbone"), made.write(tmp_path / "lerobot")
    import_smolvla(folder, tmp_path / "ours", cameras=made.NAMED[1:], tokenizer=backbone)
    export_lerobot(SmolVLA.load(tmp_path / "ours"), tmp_path / "back")
    features = json.loads((tmp_path / "back/config.json").read_text())["input_features"]
    assert [name for name in features if "image" in name] == [made.FEATURES[1]]


def test_a_renamed_camera_may_be_called_by_either_name(policy: SmolVLA, tmp_path: Path) -> None:
    backbone, folder = made.write_backbone(tmp_path / "backbone"), made.write(tmp_path / "lerobot")
    file = folder / "policy_preprocessor.json"
    steps = json.loads(file.read_text())
    steps["steps"][0]["config"]["rename_map"] = {"observation.images.top": made.FEATURES[0]}
    file.write_text(json.dumps(steps))
    named = ["front=observation.images.top", made.NAMED[1]]
    import_smolvla(folder, tmp_path / "ours", cameras=named, tokenizer=backbone)
    export_lerobot(SmolVLA.load(tmp_path / "ours"), tmp_path / "back")
    assert json.loads((tmp_path / "back" / file.name).read_text())["steps"][0] == steps["steps"][0]
    torch.testing.assert_close(actions(SmolVLA.load(tmp_path / "ours")), actions(policy), atol=0, rtol=0)


def test_any_dataset_of_its_dimensions_may_be_imitated(policy: SmolVLA) -> None:
    """It neither clips nor bins actions, and older folders don't say how far theirs went."""
    rows = SimpleNamespace(actions=np.full((9, policy.action_dim), 1e3, np.float32))
    sizes = {"state_dim": policy.state_dim, "action_dim": policy.action_dim}
    require_fits(policy, SimpleNamespace(folder="d", cameras=dict.fromkeys(policy.cameras), rows=rows, **sizes))  # type: ignore[arg-type]


def test_an_exported_folder_has_the_statistics_that_were_measured(policy: SmolVLA, tmp_path: Path) -> None:
    export_lerobot(policy, tmp_path / "out")
    for file in (tmp_path / "out").glob("policy_*.safetensors"):
        assert load_file(file).keys() == made.statistics().keys()

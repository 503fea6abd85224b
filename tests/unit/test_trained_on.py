"""What a policy was trained on, and where an evaluation differs from it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import small_tinyvla as small
from simplevla.policies.load import load_policy
from simplevla.policies.trained_on import TrainedOn, differences, held_out, rl_stage, warn_of_differences, with_stage
from simplevla.suites.base import Environment, Suite, SuiteSpec
from simplevla.types import Split, Task

SPEC = SuiteSpec(
    cameras={"front": (64, 64), "wrist": (32, 48)},
    state_names=("x",),
    action_names=("a",),
    action_low=(-1.0,),
    action_high=(1.0,),
    control_hz=10.0,
)


class Kitchen(Suite):
    def __init__(
        self, name: str = "kitchen", visuals: str = "lite", size: int = 64, red: str = "lift the red cup"
    ) -> None:
        self.name, self.visuals = name, visuals
        self.spec = replace(SPEC, cameras={"front": (size, size), "wrist": (32, 48)})
        self.tasks = tuple(
            Task(name=task, instruction=text, horizon=5, horizon_reason="short")
            for task, text in (("red", red), ("blue", "lift the blue cup"))
        )

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {"visuals": self.visuals, "settling_steps": 10}

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return [0, 1, 2] if split == "train" else [3, 4]

    def make_environment(self) -> Environment:
        raise AssertionError("not needed")


TRAINED = (rl_stage(Kitchen()),)
ELSEWHERE = TrainedOn(stage="sft", cameras={"front": (64, 64)}, instructions=("lift the red cup", "lift the blue cup"))


def test_the_same_suite_has_no_differences_and_gives_no_warning() -> None:
    assert differences(TRAINED, ("front", "wrist"), Kitchen()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_differences(TRAINED, ("front", "wrist"), Kitchen())
        warn_of_differences((), ("front",), Kitchen(size=128))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (Kitchen(name="office"), "trained on the suite 'kitchen', this is 'office'"),
        (Kitchen(visuals="stock"), "trained with visuals 'lite', now 'stock'"),
        (Kitchen(size=128), "camera 'front' had 64 x 64 pixels, now 128 x 128"),
        (Kitchen(red="take the red mug"), r"never told 'take the red mug' \(1 of 2 instructions"),
    ],
)
def test_each_difference_is_named(suite: Kitchen, message: str) -> None:
    (found,) = differences(TRAINED, ("front", "wrist"), suite)
    assert message.replace("\\", "") in found
    with pytest.warns(UserWarning, match=message):
        warn_of_differences(TRAINED, ("front", "wrist"), suite)


def test_a_camera_that_the_policy_does_not_use_may_have_any_size() -> None:
    assert differences(TRAINED, ("wrist",), Kitchen(size=128)) == []


def test_the_last_stage_on_the_suite_counts() -> None:
    stages = (*TRAINED, rl_stage(Kitchen(visuals="stock", size=128)))
    assert differences(stages, ("front",), Kitchen(visuals="stock", size=128)) == []
    assert len(differences(stages, ("front",), Kitchen())) == 2


def test_demonstrations_from_elsewhere_tell_sizes_and_instructions() -> None:
    assert differences((ELSEWHERE,), ("front",), Kitchen()) == []
    assert len(differences((ELSEWHERE,), ("front",), Kitchen(size=128, red="take it"))) == 2


def test_held_out_is_claimed_only_where_it_is_known() -> None:
    test = [("red", 3), ("blue", 4)]
    assert held_out(TRAINED, "kitchen", test) == "yes"
    assert held_out(TRAINED, "kitchen", [*test, ("red", 2)]) == "no: training may have met 1 of these 3 initial states"
    # Another suite's numbers say nothing about this one's.
    assert held_out(TRAINED, "office", [("red", 2)]) == "yes"
    assert held_out((), "kitchen", test).startswith("unknown: the policy's folder")
    assert held_out((ELSEWHERE, *TRAINED), "kitchen", test).startswith(
        "unknown: nobody knows which initial states demonstrations"
    )
    assert "the published checkpoint" in held_out((TrainedOn(stage="published"),), "kitchen", test)


def test_going_on_is_no_new_stage() -> None:
    assert with_stage(TRAINED, rl_stage(Kitchen())) == TRAINED
    assert len(with_stage(TRAINED, ELSEWHERE)) == 2


def test_a_policy_folder_keeps_it(tmp_path: Path) -> None:
    policy = small.make()
    policy.trained_on = (ELSEWHERE, *TRAINED)
    policy.save(tmp_path)
    assert load_policy(tmp_path).trained_on == policy.trained_on
    (tmp_path / "trained_on.json").unlink()
    assert load_policy(tmp_path).trained_on == ()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"stages": [{"stage": "sft", "colour": "red"}]})])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    small.make().save(tmp_path)
    (tmp_path / "trained_on.json").write_text(content)
    with pytest.raises(ValueError, match=r"trained_on\.json is damaged"):
        load_policy(tmp_path)

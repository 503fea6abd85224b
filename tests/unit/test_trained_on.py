"""What a policy was trained on, and where an evaluation differs from it."""

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import made_dataset
import small_tinyvla as small
from simplevla.adapters.load import load_policy
from simplevla.config import EvalConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.result import EvaluationResult, result_table
from simplevla.policies.trained_on import TrainedOn, differences, held_out, rl_stage, warn_of_differences, with_stage
from simplevla.reading import ReadingConfig
from simplevla.suites.base import Environment, Suite, SuiteSpec
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft_stage
from simplevla.training.loop import train
from simplevla.types import Split, Task

SPEC = SuiteSpec(
    cameras={"front": (64, 64), "wrist": (32, 48)},
    state_names=("x",),
    action_names=("dx", "dy"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_hz=10.0,
)


class Kitchen(Suite):
    def __init__(
        self,
        name: str = "kitchen",
        visuals: str = "lite",
        size: int = 64,
        red: str = "lift the red cup",
        hz: float = 10.0,
        actions: tuple[str, ...] = ("dx", "dy"),
    ) -> None:
        self.name, self.visuals = name, visuals
        cameras = {"front": (size, size), "wrist": (32, 48)}
        self.spec = replace(SPEC, cameras=cameras, control_hz=hz, action_names=actions)
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
UNKNOWN = TrainedOn(stage="unknown")
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
        (Kitchen(hz=20.0), "trained at 10 actions per second, this is 20"),
        (Kitchen(actions=("dy", "dx")), "the action's dimensions were dx, dy, now dy, dx"),
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


def test_words_that_replaced_the_suites_are_named() -> None:
    reading = ReadingConfig(instructions=("lift the red cup=take the red cup", "lift the can=take the can"))
    told = ("take the red cup", "take the can", "lift the blue cup")
    found = differences((replace(ELSEWHERE, instructions=told, reading=reading),), ("front",), Kitchen())
    assert found[0].startswith("it was never told 'lift the red cup' (1 of 2")
    assert found[1:] == [
        "it was told 'take the red cup' where its demonstrations, as this suite, said 'lift the red cup'"
    ]


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
    assert load_policy(tmp_path).trained_on == (UNKNOWN,)


def test_what_is_trained_after_an_unknown_stage_does_not_make_it_known() -> None:
    stages = with_stage((UNKNOWN,), TRAINED[0])
    assert held_out(stages, "kitchen", [("red", 3)]).startswith(
        "unknown: nobody knows which initial states the policy was trained on"
    )
    assert held_out(stages, "kitchen", [("red", 2)]).startswith("no:")
    # It may have been told anything.
    assert differences(stages, ("front",), Kitchen(red="take the red mug")) == []
    assert len(differences(stages, ("front",), Kitchen(size=128))) == 1


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"stages": [{"stage": "sft", "colour": "red"}]})])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    small.make().save(tmp_path)
    (tmp_path / "trained_on.json").write_text(content)
    with pytest.raises(ValueError, match=r"trained_on\.json.*take it from another checkpoint"):
        load_policy(tmp_path)


def test_imitation_records_what_the_dataset_says(tmp_path: Path) -> None:
    made_dataset.write(tmp_path / "demos")
    stage = sft_stage(LeRobotDataset(tmp_path / "demos"))
    assert (stage.stage, stage.suite, stage.control_hz) == ("sft", "made up", 20.0)
    assert stage.cameras == {"front": (6, 8), "wrist": (4, 4)}
    assert (stage.state_names, stage.action_names) == (("x_m", "y_m", "z_m"), ("a0", "a1"))
    assert stage.instructions == ("lift the block", "press the button")
    assert stage.initial_states == {"lift": (7, 9), "press": (8,)}
    assert held_out((stage,), "made up", [("lift", 8), ("press", 7)]) == "yes"
    assert held_out((stage,), "made up", [("lift", 9)]).startswith("no: training may have met 1 of")


def test_of_demonstrations_from_elsewhere_nobody_knows_the_states(tmp_path: Path) -> None:
    made_dataset.write(tmp_path / "demos")
    file = tmp_path / "demos" / "meta" / "info.json"
    info = json.loads(file.read_text())
    del info["simplevla"]
    info["features"]["action"]["names"] = {"motors": ["a0", "a1"]}
    info["features"]["observation.state"]["names"] = None
    file.write_text(json.dumps(info))
    stage = sft_stage(LeRobotDataset(tmp_path / "demos"))
    assert (stage.suite, stage.initial_states, stage.state_names) == (None, None, ())
    assert stage.action_names == ("a0", "a1")


def test_training_and_evaluation_keep_and_say_it(tmp_path: Path) -> None:
    """Through the public functions: train appends its stage, and an evaluation's result carries what differs."""
    suite_config = SuiteConfig(name="fake_suite:make", tasks=("reach",))
    suite = make_suite(suite_config)
    policy = small.for_fake_suite(["reach"])
    policy.trained_on = (TrainedOn(stage="sft", cameras={"front": (7, 7)}, instructions=("do something else",)),)
    policy.save(tmp_path / "start")
    config = TrainConfig(
        suite=suite_config,
        policy=str(tmp_path / "start"),
        updates=1,
        sampling=SamplingConfig(groups=1, group_size=2, dynamic=False),
        minibatches=1,
        rollout=RolloutConfig(workers=1, slots_per_worker=2),
        eval_every=0,
    )
    with pytest.warns(UserWarning, match="had 7 x 7 pixels.*never told 'do reach'"):
        train(config, tmp_path / "run")
    trained = load_policy(tmp_path / "run" / "policy")
    assert trained.trained_on == (*policy.trained_on, rl_stage(suite))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]["lr"] == 1.5e-4
    with pytest.warns(UserWarning, match="had 7 x 7 pixels"):
        before = evaluate(tmp_path / "start", suite_config, config.rollout, EvalConfig())
    assert len(before.differences) == 2
    assert before.held_out.startswith("unknown: nobody knows which initial states demonstrations")
    after = evaluate(tmp_path / "run" / "policy", suite_config, config.rollout, EvalConfig(split="all"))
    assert (after.differences, after.held_out[:3]) == ((), "no:")
    assert EvaluationResult.from_dict(after.to_dict()) == after
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(before))
    assert "held out: unknown" in shown.getvalue()
    assert "not as trained: camera 'front' had 7 x 7 pixels" in shown.getvalue()


def test_a_run_without_checkpoint_goes_on_with_the_policy_that_it_began_with_or_not_at_all(tmp_path: Path) -> None:
    config = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=("reach",)),
        policy=str(tmp_path / "start"),
        updates=0,
        rollout=RolloutConfig(workers=1, slots_per_worker=2),
        eval_every=0,
    )
    small.for_fake_suite(["reach"]).save(tmp_path / "start")
    train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    other = small.for_fake_suite(["reach"])
    next(other.parameters()).data.add_(0.1)
    other.save(tmp_path / "start")
    with pytest.raises(ValueError, match=r"isn't the one that .* was started with .*Start a new run"):
        train(config, tmp_path / "run", resume=True)

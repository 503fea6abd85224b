"""One planted mistake per test; the checker must find it, and find nothing in the sound suite."""

import dataclasses
import re

import numpy as np
import pytest

from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.suites.checker import check_suite
from simplevla.types import ChunkResult, Observation, Task


class LineEnvironment(Environment):
    """A point at x is to be moved to 0.5 or beyond by actions dx; each initial state starts elsewhere below 0.3."""

    def reset(self, task, initial_state):
        self.x = 0.01 * initial_state
        return self.observe()

    def observe(self):
        image = np.full((4, 4, 3), 200, np.uint8)
        image[0, 0] = round(100 * self.x) % 255
        return Observation(images={"front": image}, state=np.array([self.x], np.float32))

    def step_chunk(self, actions):
        executed, success = 0, False
        for action in actions:
            self.x += 0.1 * float(action[0])
            executed += 1
            success = self.x >= 0.5
            if success:
                break
        return ChunkResult(observation=self.observe(), executed=executed, success=success)

    def render(self):
        return np.full((4, 4, 3), 200, np.uint8)


class GoRight(Expert):
    def reset(self):
        return None

    def action(self):
        return np.ones(1, np.float32)


class LineSuite(Suite):
    name = "line"
    environment_class = LineEnvironment
    expert_class = GoRight
    states = {"train": [0, 1, 2], "test": [10, 11]}  # noqa: RUF012
    protocol = {"version": 1}  # noqa: RUF012
    spec = SuiteSpec(
        cameras={"front": (4, 4)},
        state_names=("x_m",),
        action_names=("dx_10cm",),
        action_low=(-1.0,),
        action_high=(1.0,),
        control_hz=10.0,
    )
    tasks = (Task(name="go", instruction="go right", horizon=20, horizon_reason="twice the expert's"),)

    def initial_states(self, task, split):
        return self.states[split]

    def make_environment(self):
        return self.environment_class()

    def make_expert(self, environment):
        return self.expert_class() if self.expert_class else None


def with_environment(**methods):
    suite = LineSuite()
    suite.environment_class = type("Mistaken", (LineEnvironment,), methods)
    return suite


def with_observation(change):
    """A suite whose observations pass through `change(observation) -> changed fields`."""
    return with_environment(observe=lambda self: _changed(LineEnvironment.observe(self), change))


def _changed(observation, change):
    return dataclasses.replace(observation, **change(observation))


def with_image(change):
    return with_observation(lambda o: {"images": {"front": change(o.images["front"])}})


def with_chunk(change):
    def step_chunk(self, actions):
        return change(LineEnvironment.step_chunk(self, actions))

    return with_environment(step_chunk=step_chunk)


def with_spec(**fields):
    suite = LineSuite()
    suite.spec = dataclasses.replace(suite.spec, **fields)
    return suite


def with_task(**fields):
    suite = LineSuite()
    suite.tasks = (dataclasses.replace(suite.tasks[0], **fields),)
    return suite


def with_states(**states):
    suite = LineSuite()
    suite.states = {**suite.states, **states}
    return suite


def with_expert(action):
    suite = LineSuite()
    suite.expert_class = type("MistakenExpert", (GoRight,), {"action": lambda self: action})
    return suite


def forgets_to_reset(self, task, initial_state):
    self.x = getattr(self, "x", 0.01 * initial_state)
    return self.observe()


def changed(result: ChunkResult, **values: object) -> ChunkResult:
    kept = {"observation": result.observation, "executed": result.executed, "success": result.success}
    return ChunkResult(**(kept | values))  # type: ignore[arg-type]


def runs_on_after_success(self, actions):
    results = [LineEnvironment.step_chunk(self, action[None]) for action in actions]
    return changed(results[-1], executed=len(actions))


def twice(suite):
    suite.tasks = suite.tasks * 2
    return suite


def test_a_sound_suite_has_no_problems():
    assert check_suite(LineSuite()) == []
    assert check_suite(LineSuite(), states_per_task=0) == []


def test_an_episode_that_ends_unsolved_before_the_horizon_is_sound():
    def fails(self, actions):
        result = LineEnvironment.step_chunk(self, actions[:1])
        return changed(result, failed=not result.success)

    suite = with_environment(step_chunk=fails)
    suite.make_expert = lambda environment: None
    assert check_suite(suite) == []


def test_siblings_that_share_their_first_picture_are_sound():
    def reset_unseen(self, task, initial_state):
        LineEnvironment.reset(self, task, initial_state)

    assert check_suite(with_environment(reset_unseen=reset_unseen)) == []


def test_a_suite_for_evaluation_alone_is_sound():
    assert check_suite(with_states(train=[])) == []


def test_a_suite_without_expert_is_sound():
    suite = LineSuite()
    suite.expert_class = None
    assert check_suite(suite) == []


MISTAKES = {
    "image dtype": (
        lambda: with_image(lambda i: i.astype(np.float32)),
        "image 'front': expected dtype uint8 with values 0 to 255, got float32, values 0 to 200",
    ),
    "image shape": (
        lambda: with_image(lambda i: i[:2]),
        "image 'front': expected shape (4, 4, 3) as in spec, got (2, 4, 3)",
    ),
    "image range": (
        lambda: with_image(lambda i: (i > 100).astype(np.uint8)),
        "image 'front': expected values 0 to 255, got at most 1",
    ),
    "constant image": (lambda: with_image(np.zeros_like), "image 'front': expected a picture, got 0 in every pixel"),
    "camera names": (
        lambda: with_observation(lambda o: {"images": {"Front": o.images["front"]}}),
        "expected cameras ['front'] as in spec, got ['Front']",
    ),
    "state dtype": (
        lambda: with_observation(lambda o: {"state": o.state.astype(np.float64)}),
        "state: expected dtype float32, got float64",
    ),
    "state shape": (
        lambda: with_observation(lambda o: {"state": np.repeat(o.state, 2)}),
        "state: expected shape (1,) as in spec.state_names, got (2,)",
    ),
    "state NaN": (
        lambda: with_observation(lambda o: {"state": o.state * np.float32("nan")}),
        "state: expected finite numbers, got [nan]",
    ),
    "action bounds": (
        lambda: with_spec(action_low=(1.0,)),
        "bounds of action 'dx_10cm': expected finite low < high, got 1.0 and 1.0",
    ),
    "action lengths": (
        lambda: with_spec(action_high=(1.0, 1.0)),
        "expected one entry each per action dimension, got 1, 1 and 2",
    ),
    "no camera": (lambda: with_spec(cameras={}), "spec.cameras: expected at least one camera, got none"),
    "control rate": (
        lambda: with_spec(control_hz=0.0),
        "spec.control_hz: expected env steps per second above 0, got 0.0",
    ),
    "reset keeps the last state": (
        lambda: with_environment(reset=forgets_to_reset),
        "initial state 0: expected the same observation at each reset, also after env steps, got another image 'front'",
    ),
    "reset_unseen keeps the last state": (
        lambda: with_environment(reset_unseen=lambda self, task, state: None),
        "reset_unseen: initial state 0: expected the scene of reset, got another image 'front' after one action of zeros",
    ),
    "initial states all alike": (
        lambda: with_environment(reset=lambda self, task, state: LineEnvironment.reset(self, task, 0)),
        "initial states 0 and 1: expected different scenes, got the same observation",
    ),
    "train and test overlap": (
        lambda: with_states(test=[2, 3]),
        "expected disjoint train and test initial states, got 1 in both: 2",
    ),
    "empty split": (lambda: with_states(test=[]), "expected test initial states, got none"),
    "repeated state": (lambda: with_states(train=[0, 0, 1]), "expected each train initial state once"),
    "success is not a bool": (
        lambda: with_chunk(lambda r: changed(r, success=np.float32(r.success))),
        "success: expected a bool, got np.float32(0.0) (float32)",
    ),
    "solved at reset": (
        lambda: with_states(test=[50, 51]),
        "got success from 2 of 5 initial states: 50, 51",
    ),
    "executed is off by one": (
        lambda: with_chunk(lambda r: changed(r, executed=r.executed - 1)),
        "executed: expected without success 3 for 3 actions, got 2",
    ),
    "not a ChunkResult": (
        lambda: with_chunk(lambda r: _Look(r)),
        "step_chunk: expected a ChunkResult, got _Look",
    ),
    "runs on after success": (
        lambda: with_environment(step_chunk=runs_on_after_success),
        "expected the expert's 5 actions, replayed in one chunk with two more, to end with success after 5, "
        "got success True after 7",
    ),
    "expert out of bounds": (
        lambda: with_expert(np.full(1, 2.0, np.float32)),
        "expert: expected actions within the spec's bounds, got [2.0]",
    ),
    "expert's dtype": (lambda: with_expert(np.ones(1)), "expert: expected actions float32 [1], got float64 [1]"),
    "expert never solves": (
        lambda: with_expert(-np.ones(1, np.float32)),
        "expert: expected success within 20 env steps, got none from initial states [0, 1, 2]",
    ),
    "upper-case instruction": (
        lambda: with_task(instruction="Go right"),
        "expected a lower-case instruction, got 'Go right'",
    ),
    "final stop": (lambda: with_task(instruction="go right."), "expected an instruction without final stop"),
    "empty instruction": (lambda: with_task(instruction=" "), "expected an instruction, got ' '"),
    "horizon": (lambda: with_task(horizon=0), "expected a horizon of 1 or more env steps, got 0"),
    "horizon without reason": (lambda: with_task(horizon_reason=""), "expected a reason for its horizon, got ''"),
    "two tasks of one name": (lambda: twice(LineSuite()), "tasks: expected unique names, got 'go' 2 times"),
    "picture for people": (
        lambda: with_environment(render=lambda self: np.zeros((4, 4), np.uint8)),
        "render(): expected uint8 [height, width, 3], got uint8 [4, 4]",
    ),
}


class _Look:
    """Has a ChunkResult's attributes without being one."""

    def __init__(self, result):
        self.observation, self.executed, self.success = result.observation, result.executed, result.success


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_mistake_is_found_and_named(mistake):
    make, message = MISTAKES[mistake]
    problems = check_suite(make())
    assert any(re.search(re.escape(message), problem) for problem in problems), problems

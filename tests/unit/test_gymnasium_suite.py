import numpy as np
import pytest

from simplevla.rollout.workers import Reset, SimulatorSlots, SlotArrays, Step
from simplevla.suites.base import SuiteSpec
from simplevla.suites.gymnasium import GymnasiumSuite
from simplevla.types import Observation, Task


class Counter:
    """Duck-typed Gymnasium environment: solved when the sum of actions reaches 3; falls over below -1."""

    flag_name, truncates = "is_success", False
    built = 0

    def __init__(self):
        Counter.built += 1
        self.closed = False

    def reset(self, seed):
        self.total = seed / 100
        return {"total": self.total}, {}

    def step(self, action):
        self.total += float(action[0])
        flag = np.float32(self.total >= 3)
        return {"total": self.total}, 0.0, self.total < -1, self.truncates, {self.flag_name: flag}

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)

    def close(self):
        self.closed = True


def suite(env_class=Counter, **changes):
    task = Task(name="count", instruction="count to three", horizon=9, horizon_reason="test")
    return GymnasiumSuite(
        **{
            "name": "counter",
            "spec": SuiteSpec(
                cameras={"front": (2, 2)},
                state_names=("total",),
                action_names=("add",),
                action_low=(-2.0,),
                action_high=(2.0,),
                control_hz=1.0,
            ),
            "tasks": (task,),
            "make_env": lambda task: env_class(),
            "observe": lambda env, obs: Observation(
                images={"front": env.render()}, state=np.array([obs["total"]], np.float32)
            ),
            "success_key": "is_success",
            "train_states": 3,
            "test_states": 2,
            **changes,
        }
    )


def actions(*values):
    return np.array(values, np.float32)[:, None]


def test_a_chunk_stops_where_the_flag_becomes_true():
    s = suite()
    environment = s.make_environment()
    environment.reset(s.tasks[0], 0)
    result = environment.step_chunk(actions(1, 1, 1, 1, 1))
    assert (result.executed, result.success) == (3, True)
    assert type(result.success) is bool
    assert result.observation.state.tolist() == [3.0]


def test_a_termination_without_success_freezes_the_scene():
    s = suite()
    environment = s.make_environment()
    environment.reset(s.tasks[0], 0)
    result = environment.step_chunk(actions(-2, 2, 2, 2))
    assert (result.executed, result.success, result.observation.state.tolist()) == (4, False, [-2.0])
    assert environment.step_chunk(actions(2, 2, 2)).success is False
    environment.reset(s.tasks[0], 0)
    assert environment.step_chunk(actions(2, 2)).success is True


def test_the_initial_state_is_the_seed_and_splits_are_disjoint():
    s = suite(skip_seeds={"count": {1, 3}})
    assert s.initial_states(s.tasks[0], "train") == [0, 2, 4]
    assert s.initial_states(s.tasks[0], "test") == [5, 6]
    observation = s.make_environment().reset(s.tasks[0], 4)
    assert observation.state.tolist() == [pytest.approx(0.04)]


def test_one_gymnasium_environment_is_built_and_kept():
    s = suite()
    environment = s.make_environment()
    before = Counter.built
    for state in range(3):
        environment.reset(s.tasks[0], state)
    assert Counter.built == before + 1
    kept = environment.current
    environment.close()
    assert kept.closed


def test_a_missing_flag_is_named_with_what_is_there():
    s = suite(success_key="solved")
    environment = s.make_environment()
    environment.reset(s.tasks[0], 0)
    with pytest.raises(ValueError, match="info has no 'solved'; it has: is_success"):
        environment.step_chunk(actions(1))


def test_a_flag_that_is_no_truth_value_is_refused():
    class Percent(Counter):
        def step(self, action):
            return {"total": 0.0}, 0.0, False, False, {"is_success": 0.4}

    s = suite(Percent)
    environment = s.make_environment()
    environment.reset(s.tasks[0], 0)
    with pytest.raises(ValueError, match=r"info\['is_success'\] is 0\.4; expected true or false"):
        environment.step_chunk(actions(1))


@pytest.mark.parametrize("fault", [{"truncates": True}, {"flag_name": "solved"}])
def test_a_worker_refuses_it_too(fault):
    """As a crash it would take just the episodes that fail out of the rate."""
    s = suite(type("Faulty", (Counter,), fault))
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(s.spec, slots=1, chunk_length=1)), s.spec, 1, 1)
    server = SimulatorSlots(s, 1, arrays)
    assert server.execute(Reset(0, s.tasks[0].name, 0)).kind == "done"
    arrays.actions[:] = 0.0
    assert server.execute(Step(0, 1, last=False)).kind == "suite_error"


def test_an_environment_with_its_own_time_limit_is_refused():
    s = suite(type("Truncating", (Counter,), {"truncates": True}))
    environment = s.make_environment()
    environment.reset(s.tasks[0], 0)
    with pytest.raises(ValueError, match="max_episode_steps=-1"):
        environment.step_chunk(actions(1))

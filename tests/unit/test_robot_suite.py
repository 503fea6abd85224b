"""A robot behind LeRobot's interface: what is sent to it and when, and what a person's keys do."""

import math
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from arm_suite import HORIZON, Arm, suite
from at_terminal import Person, terminal
from simplevla.errors import UserError
from simplevla.rollout.crew import worker_count
from simplevla.suites import keyboard, robot
from simplevla.suites.base import EnvironmentGone, EpisodeBroken
from simplevla.suites.checker import check_suite
from simplevla.suites.keyboard import Keyboard
from simplevla.suites.robot import RobotEnvironment
from simplevla.types import ChunkResult

BEGIN = ("Enter begins", "\r")
ZERO = np.zeros((3, 2), np.float32)


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    with terminal() as (person, name):
        monkeypatch.setattr(keyboard, "TTY", name)
        yield person


def begun(person: Person, arm: Arm, **changes: Any) -> RobotEnvironment:
    made = suite(lambda: arm, **changes)
    environment = RobotEnvironment(made)
    person.beside(lambda: environment.reset(made.tasks[0], 4), ("Set scene 4. ", ""), BEGIN)
    return environment


def test_actions_are_clipped_and_change_by_so_much_from_where_the_arm_is(person: Person) -> None:
    arm = Arm(at=(0.0, 3.0))
    environment = begun(person, arm)
    assert arm.sent == []
    result = environment.step_chunk(np.array([[100, 3.5], [100, -9], [-100, 3]], np.float32))
    assert (result.executed, result.success, result.failed) == (3, False, False)
    # From the last one sent, not from where the arm has come to.
    assert arm.sent == [[2.0, 3.5], [4.0, 2.5], [2.0, 3.0]]
    assert result.observation.state.tolist() == np.float32(arm.at).tolist()
    assert arm.looks == 4  # at connecting, before and after the question, and once for the chunk
    person.beside(lambda: environment.step_chunk(np.full((3, 2), 3, np.float32)), ("Solved?", "n"))
    person.sees("3 beyond the limits, 3 slowed down")
    environment.close()
    assert not arm.is_connected


def test_limits_of_the_robot_itself_count(person: Person) -> None:
    class Slow(Arm):
        def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
            super().send_action(action)
            return {**action, "shoulder.pos": min(1.0, action["shoulder.pos"])}

    arm = Slow()
    begun(person, arm).step_chunk(np.full((3, 2), 10, np.float32))
    assert arm.sent == [[2, 4], [3, 5], [3, 5]]


def test_an_arm_beyond_its_limits_comes_back_slowly(person: Person) -> None:
    arm = Arm(at=(15.0, 3.0))
    begun(person, arm).step_chunk(np.float32([[-5, 3], [10, 3], [10, 3]]))
    assert [shoulder for shoulder, _ in arm.sent] == [13, 11, 10]


class Clock:
    """A clock that only waiting for keys and a slow robot move on, since a busy machine wakes nobody in time."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_the_frequency_is_kept_and_what_is_late_is_not_made_up_for(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, times = Clock(), []

    def sent(number: int) -> None:
        times.append(clock.now)
        clock.now += {2: 0.01, 3: 0.025, 4: 0.1}.get(number, 0.0)

    environment = begun(person, Arm(on_send=sent), tasks={"reach": 8})
    keys = environment._keyboard

    def key(seconds: float) -> str:
        clock.now += max(0.0, seconds)
        return Keyboard.key(keys, 0)

    monkeypatch.setattr(keys, "key", key)
    monkeypatch.setattr(robot, "time", clock)
    environment._due = clock.now - 0.3  # what the policy took
    person.beside(lambda: environment.step_chunk(np.zeros((8, 2), np.float32)), ("Solved?", "n"))
    # The fourth is a quarter of a step late, and the next one in time again; the fifth is four steps late.
    expected = [0, 0.02, 0.04, 0.065, 0.165, 0.185, 0.205, 0.225]
    assert np.array(times) - 100 == pytest.approx(expected, abs=1e-9)
    person.sees(f"{7 / 0.225:.1f} of 50 a second, 1 late; 0 beyond the limits, 2 slowed down; 0.3 s waiting")


def test_actions_are_never_sent_before_their_time(person: Person) -> None:
    times: list[float] = []
    environment = begun(person, Arm(on_send=lambda _: times.append(time.monotonic())), tasks={"reach": 20})
    environment.step_chunk(np.zeros((10, 2), np.float32))
    assert times[9] - times[0] > 0.95 * 9 * 0.02


@pytest.mark.parametrize(("key", "solved"), [("s", True), ("f", False)])
def test_a_verdict_ends_the_chunk(person: Person, key: str, solved: bool) -> None:
    arm = Arm(on_send=lambda number: person.presses(key) if number == 2 else None)
    result = begun(person, arm).step_chunk(ZERO)
    assert (result.executed, result.success, result.failed) == (2, solved, not solved)
    assert len(arm.sent) == 2
    person.sees(f"episode 1: {'solved' if solved else 'failed'} after 2 env steps")


def test_a_verdict_between_two_chunks_moves_nothing(person: Person) -> None:
    arm = Arm()
    environment = begun(person, arm)
    person.presses("s")
    result = environment.step_chunk(ZERO)
    assert (result.executed, result.success, arm.sent) == (1, True, [])


@pytest.mark.parametrize("key", [" ", "x", "\x1a", "\x1b[A"])
def test_any_other_key_stops_the_robot_where_it_is(person: Person, key: str) -> None:
    arm = Arm(on_send=lambda number: person.presses(key) if number == 1 else None)
    environment = begun(person, arm)
    with pytest.raises(EpisodeBroken, match="stopped"):
        environment.step_chunk(np.full((3, 2), 5, np.float32))
    # The first target, and where the arm had come to.
    assert arm.sent == [[2, 4], [1, 3.5]]
    assert arm.is_connected
    assert person.local_flags & termios.ECHO
    person.beside(lambda: environment.reset(suite().tasks[0], 4), ("Set scene 4 again", ""), BEGIN)


@pytest.mark.parametrize(("key", "solved"), [("y", True), ("n", False), (" ", None)])
def test_at_the_horizon_the_person_is_asked(person: Person, key: str, solved: bool | None) -> None:
    environment = begun(person, Arm())
    assert environment.step_chunk(ZERO).executed == HORIZON - 3

    def last() -> ChunkResult:
        return person.beside(lambda: environment.step_chunk(ZERO), ("Solved?", key))

    if solved is None:
        with pytest.raises(EpisodeBroken):
            last()
    else:
        result = last()
        assert (result.executed, result.success, result.failed) == (3, solved, not solved)


def test_the_arm_goes_to_its_start_after_a_key_and_stops_at_another(person: Person) -> None:
    arm = Arm(at=(0.0, 3.0))
    made = suite(lambda: arm, start={"shoulder.pos": 5, "elbow.pos": 3})
    environment = RobotEnvironment(made)
    script = (("Enter moves the arm", "\r"), BEGIN)
    person.beside(lambda: environment.reset(made.tasks[0], 1), *script)
    assert arm.sent == [[2, 3], [4, 3], [5, 3]]
    # It is near enough now: half a degree is less than a step.
    person.beside(lambda: environment.reset(made.tasks[0], 1), BEGIN)
    assert len(arm.sent) == 3
    arm.at = np.array([-9.0, 3.0])
    arm.on_send = lambda number: person.presses("x") if number == 4 else None
    with pytest.raises(EpisodeBroken, match="stopped"):
        person.beside(lambda: environment.reset(made.tasks[0], 1), script[0])
    assert len(arm.sent) == 5


def test_keys_from_before_the_question_begin_nothing(person: Person) -> None:
    made = suite()
    environment = RobotEnvironment(made)
    person.presses("\r\r")
    time.sleep(0.05)
    with pytest.raises(EnvironmentGone, match="ended at the terminal"):
        person.beside(lambda: environment.reset(made.tasks[0], 1), ("Enter begins", "q"))


def test_a_lost_robot_is_connected_again_when_the_person_says_so(person: Person) -> None:
    def lose(number: int) -> None:
        if number == 2:
            raise ConnectionError("no answer from motor 1")

    arms = [Arm(on_send=lose), Arm()]
    waiting = iter(arms)
    made = suite(lambda: next(waiting))
    environment = RobotEnvironment(made)
    person.beside(lambda: environment.reset(made.tasks[0], 1), BEGIN)
    with pytest.raises(EpisodeBroken, match="the robot failed: ConnectionError: no answer from motor 1"):
        environment.step_chunk(ZERO)
    script = (("(ConnectionError: no answer from motor 1). Mend it", "\r"), ("Set scene 1 again", ""), BEGIN)
    person.beside(lambda: environment.reset(made.tasks[0], 1), *script)
    assert [arm.is_connected for arm in arms] == [False, True]
    assert environment.step_chunk(ZERO).executed == 3


def test_an_observation_that_lacks_something_breaks_the_episode_and_fails_nobody(person: Person) -> None:
    class Blind(Arm):
        def get_observation(self) -> dict[str, Any]:
            seen = super().get_observation()
            return {"elbow.pos": 3.0} if self.sent else seen

    with pytest.raises(EpisodeBroken, match=r"the observation lacks front, shoulder.pos"):
        begun(person, Blind()).step_chunk(ZERO)


def test_an_arm_without_a_picture_is_held_where_it_is(person: Person) -> None:
    class Dark(Arm):
        def get_observation(self) -> dict[str, Any]:
            seen = super().get_observation()
            return {name: value for name, value in seen.items() if name != "front"} if self.sent else seen

    arm = Dark()
    with pytest.raises(EpisodeBroken, match="the observation lacks front"):
        begun(person, arm).step_chunk(np.ones((1, 2), np.float32))
    (target, held), start = arm.sent, np.array([0.0, 3.0])
    assert held == ((start + target) / 2).tolist() != target


def test_an_action_that_is_no_number_is_not_sent(person: Person) -> None:
    arm = Arm()
    with pytest.raises(EpisodeBroken, match="the action is"):
        begun(person, arm).step_chunk(np.float32([[math.nan, 0]]))
    assert arm.sent == [[0, 3]]  # where it is


def uncalibrated() -> Arm:
    arm = Arm()
    arm.is_calibrated = False
    return arm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"wrist": (32, 32)}}, "no 'wrist', which the suite names; it has shoulder.pos, elbow.pos, front"),
        ({"cameras": {"front": (64, 64)}}, r"'front' has the shape \(32, 32, 3\); the suite says \(64, 64, 3\)"),
        ({"state": ("wrist.pos",)}, "no 'wrist.pos'"),
        ({"action_limits": {"elbow.pos": (0, 1, 1)}}, "takes shoulder.pos, elbow.pos; action_limits has elbow.pos"),
        ({"make_robot": uncalibrated}, "isn't calibrated"),
    ],
)
def test_a_robot_that_lacks_what_the_suite_names_is_refused(
    person: Person, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        suite(**changes).make_environment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_limits": {"a.pos": (1, 1, 1)}}, r"action_limits\['a.pos'\] is \(1, 1, 1\)"),
        ({"action_limits": {"a.pos": (0, 1, 0)}}, "largest change"),
        ({"action_limits": {"x.vel": (0, 1, 1)}}, "a velocity"),
        ({"hz": 0}, "hz is 0"),
        ({"start": {"elbow.pos": 1}}, "expected the names in action_limits"),
        ({"start": {"elbow.pos": 9, "shoulder.pos": 0}}, r"start\['elbow.pos'\] is 9"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite(**changes)


def test_without_a_terminal_there_is_no_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyboard, "TTY", "/nowhere")
    with pytest.raises(UserError, match=r"/nowhere can't be opened .* needs a person at a terminal"):
        suite().make_environment()


def test_a_robot_has_one_worker() -> None:
    assert worker_count(suite(), 0) == worker_count(suite(), 1) == 1
    with pytest.raises(UserError, match="2 workers are asked for, and suite 'arm' has one robot"):
        worker_count(suite(), 2)


def test_the_checker_looks_and_moves_nothing(person: Person) -> None:
    arms: list[Arm] = []

    def make_robot() -> Arm:
        arms.append(Arm())
        return arms[-1]

    check: Callable[[], list[str]] = lambda: check_suite(suite(make_robot))  # noqa: E731
    assert person.beside(check, BEGIN) == []
    assert [(arm.sent, arm.is_connected) for arm in arms] == [([], False)]

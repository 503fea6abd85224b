"""The embedded suite on its real physics and pixels."""

import numpy as np
import pytest

from simplevla.config import SuiteConfig
from simplevla.suites.checker import check_suite
from simplevla.suites.registry import make_suite
from simplevla.suites.tabletop.environment import MAX_DELTA_M, TabletopEnvironment
from simplevla.suites.tabletop.layout import BLOCK_HALF, BLOCKS, sample_layout

SUITE = make_suite(SuiteConfig(name="tabletop"))
STATES_PER_TASK = 20


@pytest.fixture(scope="module")
def environment() -> TabletopEnvironment:
    made = SUITE.make_environment()
    assert isinstance(made, TabletopEnvironment)
    return made


def still(count: int = 1, gripper: float = -1.0) -> np.ndarray:
    return np.tile(np.array([0, 0, 0, gripper], np.float32), (count, 1))


@pytest.mark.parametrize("task", SUITE.tasks, ids=lambda task: task.name)
def test_expert_solves_every_task_from_train_and_test_states(environment: TabletopEnvironment, task) -> None:
    expert = SUITE.make_expert(environment)
    assert expert is not None
    solved = 0
    states = SUITE.initial_states(task, "train")[: STATES_PER_TASK // 2]
    states += SUITE.initial_states(task, "test")[: STATES_PER_TASK // 2]
    for state in states:
        environment.reset(task, state)
        expert.reset()
        assert not environment.success()
        solved += any(environment.step_chunk(expert.action()[None]).success for _ in range(task.horizon))
    assert solved >= 0.95 * STATES_PER_TASK


def test_suite_has_no_mistake_that_the_checker_knows() -> None:
    assert check_suite(SUITE) == []


def test_splits_are_disjoint_and_large() -> None:
    assert len(SUITE.tasks) >= 6
    for task in SUITE.tasks:
        train, test = (set(SUITE.initial_states(task, split)) for split in ("train", "test"))
        assert not train & test
        assert len(train) >= 50
        assert len(test) >= 50


def test_an_action_moves_the_hand_by_its_delta_relative_to_where_it_is(environment: TabletopEnvironment) -> None:
    environment.reset(SUITE.task("press_button"), 0)
    before = environment.hand()
    action = np.array([[0.5, -1.0, 0.25, -1.0]], np.float32)
    environment.step_chunk(action)
    np.testing.assert_allclose(environment.hand() - before, MAX_DELTA_M * action[0, :3], atol=0.002)


def test_a_hand_that_was_held_up_leaves_at_once(environment: TabletopEnvironment) -> None:
    """An action is relative to where the hand is, not to where the last one wanted it."""
    environment.reset(SUITE.task("press_button"), 0)
    environment.step_chunk(np.tile(np.array([0, 0, -1, -1], np.float32), (12, 1)))
    before = environment.hand()
    environment.step_chunk(np.array([[0, 0, 1, -1]], np.float32))
    assert environment.hand()[2] - before[2] > 0.8 * MAX_DELTA_M


def test_the_red_block_on_the_blue_one_is_stacked_and_the_other_way_round_is_not(
    environment: TabletopEnvironment,
) -> None:
    environment.reset(SUITE.task("stack_blocks"), 0)
    for low, high, stacked in (("blue", "red", True), ("red", "blue", False)):
        for name, height in ((low, BLOCK_HALF), (high, 3 * BLOCK_HALF)):
            place = environment.model.joint(name).qposadr[0]
            environment.data.qpos[place : place + 7] = (-0.05, -0.05, height, 1, 0, 0, 0)
        environment.step_chunk(still())
        assert environment.success() is stacked


def test_without_a_command_nothing_is_solved_and_nothing_drifts(environment: TabletopEnvironment) -> None:
    for task in SUITE.tasks:
        environment.reset(task, 3)
        hand, block = environment.hand(), environment.block("red")
        result = environment.step_chunk(still(8))
        assert result.success is False
        assert result.executed == 8
        np.testing.assert_allclose(environment.hand(), hand, atol=0.002)
        np.testing.assert_allclose(environment.block("red"), block, atol=0.002)


def test_a_chunk_stops_at_the_step_that_solves_the_task(environment: TabletopEnvironment) -> None:
    task = SUITE.task("press_button")
    expert = SUITE.make_expert(environment)
    assert expert is not None
    environment.reset(task, 0)
    actions = []
    while not actions or not environment.success():
        actions.append(expert.action())
        environment.step_chunk(actions[-1][None])
    environment.reset(task, 0)
    result = environment.step_chunk(np.concatenate([np.stack(actions), still(5)]))
    assert result.success is True
    assert result.executed == len(actions)


def test_a_held_block_on_the_plate_is_not_placed_until_it_is_let_go(environment: TabletopEnvironment) -> None:
    task = SUITE.task("place_on_plate")
    expert = SUITE.make_expert(environment)
    assert expert is not None
    environment.reset(task, 1)
    near_but_held = False
    for _ in range(task.horizon):
        solved = environment.step_chunk(expert.action()[None]).success
        offset = np.linalg.norm(environment.block("blue")[:2] - environment.fixture("plate")[:2])
        if environment.finger_contacts("blue") and offset < 0.045:
            near_but_held = True
            assert not solved
        if solved:
            break
    assert near_but_held
    assert environment.finger_contacts("blue") == 0


def test_the_same_state_gives_the_same_pixels_and_another_state_others(environment: TabletopEnvironment) -> None:
    task = SUITE.task("stack_blocks")
    first = environment.reset(task, 7)
    environment.step_chunk(still(4, gripper=1.0))
    again, other = environment.reset(task, 7), environment.reset(task, 8)
    for camera in ("fixed", "wrist"):
        np.testing.assert_array_equal(first.images[camera], again.images[camera])
        assert np.abs(first.images[camera].astype(int) - other.images[camera]).max() > 50


def test_each_task_has_layouts_of_its_own(environment: TabletopEnvironment) -> None:
    blocks = set()
    for task in SUITE.tasks:
        environment.reset(task, 7)
        blocks.add(tuple(environment.block("red")))
    assert len(blocks) == len(SUITE.tasks)


def test_a_sibling_that_nobody_sees_begins_like_one_that_is_seen(environment: TabletopEnvironment) -> None:
    task, chunk = SUITE.task("stack_blocks"), still(4, gripper=1.0)
    environment.reset(task, 7)
    seen = environment.step_chunk(chunk).observation
    environment.reset(task, 8)
    environment.step_chunk(chunk)
    assert environment.reset_unseen(task, 7) is None
    unseen = environment.step_chunk(chunk).observation
    np.testing.assert_array_equal(seen.state, unseen.state)
    for camera in ("fixed", "wrist"):
        np.testing.assert_array_equal(seen.images[camera], unseen.images[camera])


def test_layouts_leave_room_for_the_gripper() -> None:
    for number in range(50):
        layout = sample_layout((0, number))
        red, blue = (layout.positions[name] for name in BLOCKS)
        assert np.linalg.norm(red - blue) > 0.105
        assert all(np.linalg.norm(layout.positions[name] - layout.positions["plate"]) > 0.115 for name in BLOCKS)
    np.testing.assert_array_equal(sample_layout((1, 2)).hand, sample_layout((1, 2)).hand)


def test_a_protocol_that_tabletop_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon_protocol is 'openvla'; tabletop has no choice"):
        make_suite(SuiteConfig(name="tabletop", horizon_protocol="openvla"))

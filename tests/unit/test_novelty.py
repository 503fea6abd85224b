"""Distances of episodes from demonstrations, by hand-made trajectories."""

from dataclasses import replace

import numpy as np
import pytest

from simplevla.errors import UserError
from simplevla.novelty.behaviour import Behaviour, Novelty, Solved, shares
from simplevla.novelty.measure import POINTS, Columns, Demonstrations
from simplevla.report.novelty import caution, paired_sentence, rows_of
from simplevla.suites.base import order_of

NAMES = ("hand_x_m", "hand_y_m", "hand_z_m", "gripper_opening_10cm", "hand_rotation_rad")
COLUMNS = Columns.of(NAMES)


def carried(y: float = 0.0, steps: int = 20, height: float = 0.08, mirror: int = 1) -> np.ndarray:
    """States [steps, 5] of a hand that goes 20 cm along x in an arc of this height."""
    share = np.linspace(0, 1, steps)
    lift = height * np.sin(np.pi * share)
    return np.stack([mirror * 0.2 * share, np.full(steps, y), lift, np.full(steps, 0.5), np.full(steps, 3.1)], axis=1)


def paths(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([COLUMNS.path(carried(y, int(rng.integers(15, 25)))) for y in rng.uniform(-0.1, 0.1, count)])


def demonstrations(count: int = 40) -> Demonstrations:
    return Demonstrations("carry", paths(count))


def novel(reference: Demonstrations, states: np.ndarray) -> bool:
    return reference.nearest(COLUMNS.path(states))[0] > reference.threshold


def test_lengths_are_metres_whatever_their_unit_and_angles_are_left_out() -> None:
    assert COLUMNS.indices == (0, 1, 2, 3)
    np.testing.assert_allclose(COLUMNS.metres(np.array([[0.1, 0.2, 0.3, 0.5, 3.1]])), [[0.1, 0.2, 0.3, 0.05]])
    assert Columns.of(("opening_mm", "lift_z_cm")).scales == (0.001, 0.01)
    with pytest.raises(UserError, match=r"no dimension of the state is a length: angle_rad, speed"):
        Columns.of(("angle_rad", "speed"))
    with pytest.raises(UserError, match=r"no length of the state is a position: opening_mm"):
        Columns.of(("angle_rad", "opening_mm"))


def test_a_path_is_at_equal_shares_of_the_time() -> None:
    slow, fast = COLUMNS.path(carried(steps=33)), COLUMNS.path(carried(steps=17))
    assert slow.shape == (POINTS, 4)
    np.testing.assert_allclose(slow, fast, atol=1e-3)
    ramp = np.zeros((3, 5))
    ramp[:, 0] = 0.1, 0.2, 0.6
    np.testing.assert_allclose(COLUMNS.path(ramp)[[0, 31], 0], [0.1, 0.6])
    assert COLUMNS.path(ramp)[15, 0] == pytest.approx(0.1 + 0.1 * 2 * 15 / 31)


def test_distance_by_hand() -> None:
    """Two dimensions of a path of one point: deviations of 10 and of 1 cm, by the formula of docs/novelty.md."""
    paths = np.array([[[0.1, 0.0]], [[-0.1, 0.0]], [[0.0, 0.01]], [[0.0, -0.01]]])
    variances = np.array([2 * 0.1**2, 2 * 0.01**2]) / 3
    shrunk = 0.8 * variances + 0.2 * variances.mean()
    reference = Demonstrations("carry", paths)
    distance, number = reference.nearest(np.array([[0.1, 0.02]]))
    assert number == 0
    assert distance == pytest.approx(np.sqrt(0.02**2 / shrunk[1] / 2))


def test_how_far_apart_demonstrations_are_by_hand() -> None:
    """The third of four is measured by what the other three span: their covariance, without its own."""
    paths = np.array([[[0.1, 0.0]], [[-0.1, 0.0]], [[0.0, 0.01]], [[0.0, -0.01]]])
    others = np.cov(paths[[0, 1, 3], 0].T)
    shrunk = 0.8 * others + 0.2 * np.trace(others) / 2 * np.eye(2)
    difference = np.array([0.0, 0.02])
    reference = Demonstrations("carry", paths)
    assert reference.neighbours[2] == 3
    assert reference.apart[2] == pytest.approx(np.sqrt(difference @ np.linalg.inv(shrunk) @ difference / 2))


def test_where_demonstrations_agree_a_difference_counts_more() -> None:
    rng = np.random.default_rng(0)
    reference = Demonstrations("carry", rng.normal(0, [0.1, 0.01], (100, 1, 2)))
    aside, above = (reference.nearest(np.array([offset]))[0] for offset in ([0.4, 0.0], [0.0, 0.4]))
    assert above > 2 * aside


def test_the_way_of_the_hand_has_no_gripper_in_it() -> None:
    states = np.array([[0, 0, 0, 0, 0], [0.03, 0.04, 0, 1, 0], [0.03, 0.04, 0.1, 0, 0]], float)
    assert COLUMNS.length(states) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("name", "position"),
    [("gripper_x_m", True), ("x_m", True), ("opening_10cm", False), ("finger_left_m", False), ("max_opening_m", False)],
)
def test_positions_are_told_by_their_axis(name: str, position: bool) -> None:
    """A hand may be called gripper, and its opening just opening."""
    assert Columns.of(("hand_y_m", name)).hand == (True, position)


def test_a_copy_is_not_novel_and_a_mirrored_or_a_pushed_one_is() -> None:
    reference = demonstrations()
    assert not novel(reference, carried(0.02))
    assert not novel(reference, carried(0.02, steps=40)), "slower alone is the same path"
    assert novel(reference, carried(0.02, mirror=-1))
    assert novel(reference, carried(0.02, height=0.0))


def test_one_in_a_hundred_demonstrations_is_novel_among_the_others() -> None:
    reference = demonstrations(200)
    assert (reference.apart > reference.threshold).sum() in (1, 2)


def test_more_demonstrations_never_make_an_old_one_novel() -> None:
    many = Demonstrations("carry", np.concatenate([paths(10), paths(300, seed=1)]))
    for path in paths(10):
        distance, _ = many.nearest(path)
        assert distance < 1e-9
        assert not distance > many.threshold


def noisy(rng: np.random.Generator) -> np.ndarray:
    """A path as a person makes it: start, end, height and speed differ, and every moment a little."""
    states = carried(rng.uniform(-0.1, 0.1), int(rng.integers(15, 25)), 0.08 + 0.01 * rng.normal())
    states[:, :4] += 0.002 * rng.normal(size=(len(states), 4))
    return COLUMNS.path(states)


@pytest.mark.parametrize("count", [3, 5, 10, 40])
def test_another_demonstration_is_seldom_novel_however_few_there_are(count: int) -> None:
    """Were each measured by a covariance that knows it, most were novel among few."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        reference = Demonstrations("carry", np.array([noisy(rng) for _ in range(count)]))
        found += [reference.nearest(noisy(rng))[0] > reference.threshold for _ in range(20)]
    assert np.mean(found) <= 0.15


def test_demonstrations_made_twice_do_not_make_their_copies_novel() -> None:
    rng = np.random.default_rng(0)
    once = np.array([noisy(rng) for _ in range(40)])
    twice = np.concatenate([once, once + 1e-4 * rng.normal(size=once.shape)])
    reference = Demonstrations("carry", twice)
    assert reference.threshold > 0.5 * Demonstrations("carry", once).threshold
    assert not any(reference.nearest(path)[0] > reference.threshold for path in once)


def test_the_nearest_other_demonstration_is_of_another_initial_state() -> None:
    rng = np.random.default_rng(0)
    once = np.array([noisy(rng) for _ in range(20)])
    paths = np.concatenate([once, once + 0.01 * rng.normal(size=once.shape)])
    states = [*range(20)] * 2
    reference = Demonstrations("carry", paths, states)
    assert all(states[other] != states[number] for number, other in enumerate(reference.neighbours))
    assert reference.threshold > Demonstrations("carry", paths).threshold


@pytest.mark.parametrize("states", [None, [0, 0, 0]])
def test_demonstrations_of_one_path_or_one_initial_state_are_refused(states: list[int] | None) -> None:
    paths = np.zeros((3, POINTS, 4)) + (0 if states is None else np.arange(3)[:, None, None])
    with pytest.raises(UserError, match="task 'carry' has 3 demonstrations, all of one initial state or one path"):
        Demonstrations("carry", paths, states)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_demonstrations_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"task 'carry' has {count} demonstrations; novelty needs at least 2"):
        Demonstrations("carry", np.zeros((count, POINTS, 4)))


def solved(state: int, is_novel: bool, events: str | None = None) -> Solved:
    return Solved(
        task="carry", initial_state=state, env_steps=10 + state, hand_path_m=0.5, distance=0.01 * state, nearest=0,
        novel=is_novel, events=events,
    )  # fmt: skip


def test_pairs_are_states_that_both_solve() -> None:
    before = [solved(0, False), solved(1, False), solved(2, True), solved(3, False)]
    after = [solved(1, True), solved(2, False), solved(3, True), solved(4, True)]
    sides = [Behaviour(solved=tuple(side), episodes=6) for side in ([solved(0, False)], before, after)]
    found = Novelty(
        suite="s", split="test", protocol={}, thresholds={"carry": 0.1}, demonstrations=sides[0], before=sides[1], after=sides[2]
    )  # fmt: skip
    assert found.paired == (3, 1, 2, 1.0)
    assert paired_sentence(found).startswith(
        "Of the 3 states that both policies solve, 2 are solved in a novel way only after"
    )
    assert found.change("env_steps") == (0.0, 0.0, 0.0, 1.0)
    assert found.after.novel.rate == 0.75
    assert found.before.mean("env_steps") == 11.5
    assert [episode.initial_state for episode in found.most_novel()] == [4]


def test_changes_of_steps_and_paths_are_of_the_same_states() -> None:
    before = [replace(solved(state, False), env_steps=30 + state) for state in range(8)]
    after = [replace(solved(state, False), env_steps=20 + state) for state in range(1, 9)]
    sides = [Behaviour(solved=tuple(side), episodes=9) for side in (before, before, after)]
    found = Novelty(
        suite="s", split="test", protocol={}, thresholds={"carry": 0.1}, demonstrations=sides[0], before=sides[1], after=sides[2]
    )  # fmt: skip
    assert found.change("env_steps") == (-10.0, -10.0, -10.0, 2 / 2**7)
    assert "env steps to success by -10.0 [-10.0, -10.0], p = 0.016" in paired_sentence(found)
    assert rows_of(found)[-2][1][2] == "24.5 [22.9, 26.1]"
    assert caution(found) == "Task 'carry' has 8 demonstrations; below 10 little is called novel."


def test_events_are_told_in_the_order_of_their_beginnings() -> None:
    touches, grasps = ("touches blue",), ("touches blue", "grasps blue")
    assert order_of([(), touches, grasps, touches, grasps]) == "touches blue > grasps blue"
    assert order_of([()]) == "nothing"
    assert order_of([touches, None]) is None


def test_shares_of_orders_and_of_what_never_was() -> None:
    lifted, pushed = "touches blue > grasps blue > lifts blue", "touches blue"
    demos = Behaviour(solved=(solved(0, False, lifted), solved(1, False, lifted)), episodes=2)
    after = Behaviour(solved=tuple(solved(i, True, pushed if i else lifted) for i in range(4)), episodes=4)
    assert shares([demos.orders, after.orders]) == [(lifted, [(2, 2), (1, 4)]), (pushed, [(0, 2), (3, 4)])]
    assert (after.without("lifts blue").rate, demos.without("lifts blue").rate) == (0.75, 0.0)
    assert shares([Behaviour(solved=(solved(0, False),), episodes=1).orders]) == []

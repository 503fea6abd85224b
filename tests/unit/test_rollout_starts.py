import pytest

from fake_suite import FakeSuite
from simplevla.rollout.starts import KEPT, Starts
from simplevla.rollout.workers import SlotArrays


def memory() -> SlotArrays:
    return SlotArrays.over(bytearray(SlotArrays.nbytes(FakeSuite.spec, 1, 4)), FakeSuite.spec, 1, 4)


@pytest.mark.parametrize(
    ("level", "state", "expected"),
    [
        (100, 0.5, ""),
        # What a renderer and a solver may do, and no more.
        (116, 0.5, ""),
        (84, 0.5, ""),
        (117, 0.5, "image 'wrist' by up to 17 of 255"),
        (83, 0.5, "image 'wrist' by up to 17 of 255"),
        (100, 0.5005, ""),  # 0.0001 + 0.001 * 0.5 = 0.0006
        (100, 0.5007, "state, [0.0, 0.5, 0.0] and [0.0, 0.5006999969482422, 0.0]"),
        (100, 0.4993, "state, [0.0, 0.5, 0.0] and [0.0, 0.4993000030517578, 0.0]"),
    ],
)
def test_what_differs_from_the_first_observation(level: int, state: float, expected: str) -> None:
    starts, arrays = Starts(), memory()
    arrays.images["wrist"][0, 2, 3, 1], arrays.state[0, 1] = 100, 0.5
    assert starts.difference("reach", 3, arrays, 0) == ""
    arrays.images["wrist"][0, 2, 3, 1], arrays.state[0, 1] = level, state
    assert starts.difference("reach", 3, arrays, 0) == expected
    # Other states and tasks have observations of their own.
    assert starts.difference("reach", 4, arrays, 0) == starts.difference("far", 3, arrays, 0) == ""


def test_as_many_are_remembered_as_are_said() -> None:
    starts, arrays = Starts(), memory()
    for state in range(KEPT):
        starts.difference("reach", state, arrays, 0)
    arrays.state[0, 0] = 1
    assert starts.difference("reach", 0, arrays, 0) != ""
    starts.difference("reach", KEPT, arrays, 0)
    assert starts.difference("reach", 0, arrays, 0) == ""


def test_what_another_slot_sees_does_not_matter() -> None:
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(FakeSuite.spec, 2, 4)), FakeSuite.spec, 2, 4)
    starts = Starts()
    assert starts.difference("reach", 3, arrays, 1) == ""
    arrays.state[0], arrays.images["wrist"][0] = 9, 255
    assert starts.difference("reach", 3, arrays, 1) == ""
    arrays.state[1] = 9
    assert starts.difference("reach", 3, arrays, 1) == "state, [0.0, 0.0, 0.0] and [9.0, 9.0, 9.0]"

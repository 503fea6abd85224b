import numpy as np

from fake_suite import REGULAR, FakeSuite
from simplevla.rollout.observing import observe
from simplevla.rollout.workers import SlotArrays
from simplevla.types import EpisodeRequest

SPEC = FakeSuite.spec
TASKS = {task.name: task for task in FakeSuite(REGULAR).tasks}


def memory(slots: int) -> SlotArrays:
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(SPEC, slots, 4)), SPEC, slots, 4)
    for slot in range(slots):
        fill(arrays, slot, slot + 1)
    return arrays


def fill(arrays: SlotArrays, slot: int, number: int) -> None:
    arrays.state[slot] = number
    for image in arrays.images.values():
        image[slot] = number


def request(task: str = "reach", initial_state: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=TASKS[task], initial_state=initial_state, seed=(0,))


def test_siblings_that_begin_alike_are_copied_once() -> None:
    one, other = memory(3), memory(3)
    fill(other, 1, 1)
    fill(one, 2, 1)
    views = [(one, 0), (other, 0), (other, 1), (one, 2)]
    batch = observe(views, [request(), request("far"), request(), request()], [False, False, False, True])
    assert batch.observed() == [0, 1, 0, 2], "the last has begun: what it sees is its own"
    assert batch.state[:, 0].tolist() == [1, 1, 1]
    assert batch.instructions == ["do reach", "do far", "do reach"]
    assert batch.images["wrist"].shape == (3, 4, 6, 3)
    fill(one, 0, 9)
    assert batch.state[0, 0] == 1, "a copy, not a view"


def test_two_groups_share_each_their_own() -> None:
    one, other = memory(2), memory(2)
    requests = [request(initial_state=state) for state in (0, 1, 0, 1)]
    batch = observe([(one, 0), (one, 1), (other, 0), (other, 1)], requests, [False] * 4)
    assert batch.observed() == [0, 1, 0, 1]


def test_what_differs_is_not_shared_whatever_the_request_says() -> None:
    arrays = memory(3)
    fill(arrays, 1, 1)
    arrays.images["wrist"][1, 0, 0, 0] = 7
    batch = observe([(arrays, slot) for slot in range(3)], [request(), request(), request("reach", 1)], [False] * 3)
    assert batch.index is None
    assert np.array_equal(batch.images["wrist"].numpy(), arrays.images["wrist"])

import torch

import small_tinyvla as small
from simplevla.policies.base import ObservationBatch

WORDS = ["press it", "press it", "press it", "lift the red block"]


def siblings() -> ObservationBatch:
    """Rows 0, 2 and 3 are equal."""
    return small.rows(small.observations(WORDS), [0, 1, 0, 0])


def test_equal_observations_stand_once() -> None:
    batch = siblings()
    shared = batch.distinct()
    assert (len(batch), len(shared)) == (4, 2)
    assert shared.observed() == [0, 1, 0, 0]
    for camera, image in batch.images.items():
        assert torch.equal(shared.images[camera][shared.observed()], image)
    assert torch.equal(shared.state[shared.observed()], batch.state)
    assert shared.distinct() is shared


def test_another_instruction_another_picture_or_another_state_is_another_observation() -> None:
    batch = siblings()
    batch.instructions[3] = WORDS[3]
    assert batch.distinct().observed() == [0, 1, 0, 2]
    batch.images["wrist"][2, 0, 0, 0] += 1
    assert batch.distinct() is batch
    batch = siblings()
    batch.state[2, 0] += 1
    assert batch.distinct().observed() == [0, 1, 2, 0]


def test_decisions_taken_out_keep_what_they_share() -> None:
    batch = siblings().distinct()
    taken = batch.take([3, 1, 2])
    assert taken.observed() == [0, 1, 0]
    assert torch.equal(taken.state, batch.state[[0, 1]])
    assert batch.take([1, 0]).index is None
    assert torch.equal(batch.take([1, 0]).state, batch.state[[1, 0]])


def test_a_batch_is_filled_up_with_its_last_row() -> None:
    shared = siblings().distinct()
    filled = shared.filled(4)
    assert (len(filled), filled.index) == (4, None)
    assert torch.equal(filled.state, shared.state[[0, 1, 1, 1]])
    assert filled.instructions == [WORDS[0]] * 4
    assert len(filled.filled(4)) == 4
    assert shared.filled(2).index is None


def test_outputs_are_handed_to_the_decisions() -> None:
    outputs = torch.arange(4.0)
    assert siblings().per_decision(outputs) is outputs
    assert siblings().distinct().per_decision(outputs[:2]).tolist() == [0, 1, 0, 0]

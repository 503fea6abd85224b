import numpy as np
import pytest
import torch

from simplevla.demonstrations.dataset import Frames
from simplevla.training.chunks import Augmentation, ChunkBatches, augment, augment_images, split_episodes


def _frames() -> Frames:
    """Episodes of 3, 1 and 2 frames; frame f has the action [f], the state [10 f] and images full of f."""
    number = np.arange(6)
    image = np.broadcast_to(number[:, None, None, None], (6, 4, 4, 3)).astype(np.uint8)
    return Frames(
        images={"front": image, "wrist": image + 100},
        state=(10.0 * number[:, None]).astype(np.float32),
        actions=number[:, None].astype(np.float32),
        task_index=np.array([1, 1, 1, 0, 1, 1]),
        episode_index=np.array([4, 4, 4, 5, 7, 7]),
    )


def test_chunks_stop_at_the_end_of_their_demonstration() -> None:
    batch = ChunkBatches(_frames(), ["a", "b"], ("wrist",), 3).make(np.array([0, 1, 3, 5]))
    assert batch.actions[..., 0].tolist() == [[0, 1, 2], [1, 2, 2], [3, 3, 3], [5, 5, 5]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False], [True, False, False], [True, False, False]]
    assert batch.observations.instructions == ["b", "b", "a", "b"]
    assert batch.observations.state[:, 0].tolist() == [0, 10, 30, 50]
    assert list(batch.observations.images) == ["wrist"]
    assert batch.observations.images["wrist"][:, 0, 0, 0].tolist() == [100, 101, 103, 105]
    assert batch.observations.images["wrist"].dtype == torch.uint8


def test_whole_episodes_are_held_out() -> None:
    index = np.repeat(np.arange(40), 5)
    train, validation = split_episodes(index, 0.1, seed=0)
    assert len(validation) == 20
    assert sorted([*train, *validation]) == list(range(200))
    assert not set(index[train]) & set(index[validation])
    assert not np.array_equal(validation, split_episodes(index, 0.1, seed=1)[1])
    np.testing.assert_array_equal(validation, split_episodes(index, 0.1, seed=0)[1])


@pytest.mark.parametrize(
    ("episodes", "fraction", "held_out"), [(10, 0.0, 0), (10, 0.001, 1), (1, 0.5, 0), (2, 0.99, 1), (20, 0.25, 5)]
)
def test_number_of_held_out_episodes(episodes: int, fraction: float, held_out: int) -> None:
    train, validation = split_episodes(np.arange(episodes), fraction, seed=3)
    assert (len(train), len(validation)) == (episodes - held_out, held_out)


def test_a_shift_moves_the_picture_and_repeats_the_border() -> None:
    image = np.zeros((2, 3, 3, 3), np.uint8)
    image[..., 0] = np.arange(1, 10).reshape(3, 3)
    keep = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    how = Augmentation(shift=np.array([[1, 0], [-1, -1]]), largest_shift=1, colours=keep)
    moved = augment_images(image, how)[..., 0]
    # One pixel up: the last row stands twice. One pixel down and right: the first row and column stand twice.
    assert moved[0].tolist() == [[4, 5, 6], [7, 8, 9], [7, 8, 9]]
    assert moved[1].tolist() == [[1, 1, 2], [1, 1, 2], [4, 4, 5]]


def test_colours_are_mapped_per_sample() -> None:
    image = np.full((2, 2, 2, 3), 7, np.uint8)
    colours = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    colours[1, 7] = 200
    result = augment_images(image, Augmentation(shift=np.zeros((2, 2), int), largest_shift=0, colours=colours))
    assert (result[0] == 7).all()
    assert (result[1] == 200).all()


def test_augmentation_covers_its_ranges_and_nothing_else() -> None:
    how = augment(np.random.default_rng(0), 4000, 2, 0.1)
    colours = how.colours.astype(int)
    assert set(how.shift.flatten()) == {-2, -1, 0, 1, 2}
    # Mid-grey moves by the brightness alone, +-25.5; black and white also by the contrast, +-12.75.
    assert colours[:, 128].min() == pytest.approx(103, abs=1)
    assert colours[:, 128].max() == pytest.approx(153, abs=1)
    assert colours[:, 0].max() == pytest.approx(38, abs=2)
    assert colours[:, 255].min() == pytest.approx(217, abs=2)
    assert (np.diff(colours, axis=1) >= 0).all()


def test_no_jitter_and_no_shift_change_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    np.testing.assert_array_equal(augment_images(images, augment(np.random.default_rng(1), 5, 0, 0.0)), images)

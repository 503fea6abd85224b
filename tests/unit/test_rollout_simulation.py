"""The discrete-event simulation of benchmarks/scale.py, on rollouts short enough to be followed by hand."""

import pytest
from rollout_simulation import Costs, Groups, chunks_of, listed, simulate

from simplevla.planning.cost import Actor, Handling, PolicyCost, SimulatorCost

COSTS = Costs(
    simulator=SimulatorCost(step=1.0, observe=2.0, reset=3.0),
    policy=PolicyCost(batch=0.5, row=0.25),
    handling=Handling(policy=0.25, worker=1.0),
)


def seconds(slots: int, workers: int, episodes: list[list[int]], cores: int = 10, on_gpu: bool = False) -> float:
    actor = Actor(cores=cores, workers=workers, slots=slots, on_gpu=on_gpu)
    return simulate(actor, COSTS, listed(episodes), slice_s=0.01)


def test_chunks() -> None:
    assert chunks_of(9, 3, 4) == [4, 4, 1]
    assert chunks_of(4, 1, 4) == [4]


def test_one_episode_alternates() -> None:
    # Reset and first picture 5; then twice policy 1, worker 1, steps, and a picture after the first chunk only.
    assert seconds(1, 1, [[4, 3]]) == pytest.approx(5 + (1 + 1 + 4 + 2) + (1 + 1 + 3))


def test_two_halves_overlap() -> None:
    # Two workers with a slot each, in different halves. Both are ready after 5. The policy acts for the first until 6, for the second until
    # 7; they end at 11 and 12.
    assert seconds(2, 2, [[4], [4]]) == pytest.approx(12)


def test_a_worker_serves_its_slots_one_after_another() -> None:
    # Resets end at 5 and at 10; the policy acts for the first half at 5; its chunk waits for the other's reset: 10 to 15. The second
    # half's decision is made at 10 to 11, its chunk runs from 15 to 20.
    assert seconds(2, 1, [[4], [4]]) == pytest.approx(20)


def test_a_turn_waits_for_all_of_its_half() -> None:
    # Four workers, halves (0, 2) and (1, 3), all ready at 5. The first half's batch of two takes 1.5. Its second chunk ends at 6.5 + 11;
    # its first one ends at 11.5 and waits for it. Then a batch of one row, 1, and the last chunk, 3.
    assert seconds(4, 4, [[2, 2], [1], [10], [1]]) == pytest.approx(17.5 + 1 + 3)


def test_cores_are_shared_fairly() -> None:
    # Five workers' resets on two cores: 25 seconds of work in 12.5, then each half's policy and one chunk.
    crowded = seconds(5, 5, [[4]] * 5, cores=2)
    assert crowded > seconds(5, 5, [[4]] * 5, cores=10)
    # All work: 5 resets, 5 chunks, batches of 3 and 2 rows.
    work = 5 * 5 + 5 * 5 + (0.5 + 3 * 0.5) + (0.5 + 2 * 0.5)
    assert work / 2 <= crowded < work / 2 + 3.5


def test_slots_are_refilled() -> None:
    one = seconds(1, 1, [[4]])
    assert seconds(1, 1, [[4]] * 3) == pytest.approx(3 * one)


def test_a_gpu_leaves_the_cores_to_the_workers() -> None:
    on_gpu, on_cpu = (seconds(4, 4, [[4]] * 8, cores=2, on_gpu=gpu) for gpu in (True, False))
    assert on_gpu < on_cpu


def test_dynamic_sampling_starts_no_surplus() -> None:
    outcomes = iter([False, True, True])
    drawn = []

    def draw() -> list[int]:
        drawn.append(1)
        return [4]

    groups = Groups(wanted=2, size=2, draw=draw, mixed=lambda: next(outcomes))
    simulate(Actor(cores=10, workers=4, slots=4), COSTS, groups)
    # Two at first; the one that was kept in vain is replaced by one more.
    assert (groups.kept, groups.sampled, len(drawn)) == (2, 3, 6)


def test_actors_share_the_groups() -> None:
    actor = Actor(cores=10, workers=2, slots=2)
    two = Groups(wanted=4, size=2, draw=lambda: [4, 4], mixed=lambda: True)
    one = Groups(wanted=4, size=2, draw=lambda: [4, 4], mixed=lambda: True)
    assert simulate(actor, COSTS, two, actors=2) == pytest.approx(simulate(actor, COSTS, one) / 2, rel=0.1)

"""The cost model of docs/performance.md, by hand."""

from dataclasses import replace

import pytest

from simplevla.planning.cost import (
    Actor,
    Counts,
    Handling,
    PolicyCost,
    SimulatorCost,
    rollout_parts,
    rollout_seconds,
    shared_seconds,
)

SIMULATOR = SimulatorCost(step=0.01, observe=0.02, reset=0.1)
COUNTS = Counts(env_steps=1000, decisions=250, episodes=10)
HANDLING, IN_POLICY = Handling(policy=0.002, worker=0.004), Handling(policy=0.004, worker=0.0)
# 1000 x 0.01 + 250 x 0.02 + 10 x 0.1 = 16 s of simulation.


@pytest.mark.parametrize(
    ("row", "workers", "cores", "seconds"),
    [
        (0.006, 2, 2, (16.0 + 1.0 + 250 * (0.006 + 0.008 / 4 + 0.002)) / 2),  # both share the cores
        (0.006, 1, 8, 16.0 + 250 * 0.004),  # one simulator process holds everything up
        (0.196, 8, 16, 250 * 0.2),  # the policy does
    ],
)
def test_the_slowest_part_decides(row: float, workers: int, cores: int, seconds: float) -> None:
    policy, actor = PolicyCost(batch=0.008, row=row), Actor(cores=cores, workers=workers, slots=8)
    assert rollout_seconds(COUNTS, SIMULATOR, policy, HANDLING, actor) == pytest.approx(seconds)


def test_workers_take_their_shares_from_the_policy() -> None:
    # 15 workers and the policy on 2 cores: an eighth of a core for the policy, 15/8 for the workers. After 8 s the workers' 15 s
    # are done, and of the policy's 10 s one is; it does the other 9 alone, where sharing without loss would take 12.5 s.
    assert shared_seconds(15.0, 10.0, cores=2, workers=15) == pytest.approx(8.0 + 9.0)
    # A quick policy is done while they still run, and nothing is lost.
    assert shared_seconds(15.0, 0.5, cores=2, workers=15) == pytest.approx(15.5 / 2)
    # One worker leaves the policy a core.
    assert shared_seconds(15.0, 10.0, cores=2, workers=1) == pytest.approx(15.0)


def test_a_gpu_takes_the_policy_off_the_cores() -> None:
    policy = PolicyCost(batch=0.1, row=0.01)
    actor = Actor(cores=4, workers=20, slots=20, on_gpu=True)
    counts = replace(COUNTS, longest=50)
    parts = rollout_parts(counts, SIMULATOR, policy, IN_POLICY, actor)
    assert parts == pytest.approx(
        {
            "simulators": 16.0 / 4,
            "policy": 250 * (0.01 + 0.1 / 10 + 0.004),
            # The longest episode: 50 decisions of 16 / 250 s of simulation and a batch of one.
            "turns": 50 * (16.0 / 250 + 0.1 + 0.01),
            "cores": (16.0 + 250 * 0.004) / 4,
        }
    )
    slots_decide = rollout_parts(COUNTS, SIMULATOR, policy, IN_POLICY, actor)["turns"]
    # 12.5 decisions in each slot, one after another, each with a batch of 10.
    assert slots_decide == pytest.approx(12.5 * (16.0 / 250 + 0.1 + 10 * 0.01))


def test_actors_share_what_there_is() -> None:
    policy, actor = PolicyCost(batch=0.1, row=0.01), Actor(cores=4, workers=20, slots=20, on_gpu=True)
    one, four = (rollout_parts(COUNTS, SIMULATOR, policy, IN_POLICY, actor, actors) for actors in (1, 4))
    assert {name: 4 * value for name, value in four.items()} == pytest.approx(one)

"""The cost model of docs/performance.md: by hand, and against what was measured."""

from dataclasses import replace
from pathlib import Path

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
from simplevla.storage import read_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"

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


def test_episodes_follow_one_after_another_in_a_slot() -> None:
    policy, actor = PolicyCost(batch=0.1, row=0.01), Actor(cores=4, workers=20, slots=20)
    # 12.5 decisions in each slot, each with 16 / 250 s of simulation and a batch of 10.
    slots = rollout_parts(COUNTS, SIMULATOR, policy, IN_POLICY, actor)
    assert slots["turns"] == pytest.approx(12.5 * (16.0 / 250 + 0.1 + 10 * 0.01))
    assert slots["simulators"] == pytest.approx(16.0 / 4)
    assert slots["policy"] == pytest.approx(250 * (0.01 + 0.1 / 10 + 0.004))
    # The longest episode: 50 decisions, each with a batch of one.
    longest = rollout_parts(replace(COUNTS, longest=50), SIMULATOR, policy, IN_POLICY, actor)
    assert longest["turns"] == pytest.approx(50 * (16.0 / 250 + 0.1 + 0.01))


def test_measured_rollouts_are_known_to_within_a_fifth() -> None:
    recorded = read_json(RESULTS / "scaling.json")
    handling = Handling(**recorded["handling_s"])
    for point in recorded["points"]:
        episodes = point["rollout"]["episodes"]
        counts = Counts(
            env_steps=sum(steps for steps, _ in episodes),
            decisions=sum(decisions for _, decisions in episodes),
            episodes=len(episodes),
            longest=max(decisions for _, decisions in episodes),
        )
        costs = SimulatorCost(**point["simulator"]), PolicyCost(**point["policy"]), handling
        seconds = rollout_seconds(counts, *costs, Actor(**point["actor"]))
        assert seconds == pytest.approx(point["rollout"]["seconds"], rel=0.2), (point["curve"], point["x"])

"""The cost model of docs/performance.md, by hand."""

import pytest
from cost_model import Counts, PolicyCost, SimulatorCost, rollout_seconds

SIMULATOR = SimulatorCost(step=0.01, observe=0.02, reset=0.1)
COUNTS = Counts(env_steps=1000, decisions=250, episodes=10)
# 1000 x 0.01 + 250 x 0.02 + 10 x 0.1 = 16 s of simulation.


@pytest.mark.parametrize(
    ("row", "workers", "cores", "seconds"),
    [
        (0.006, 2, 2, (16.0 + 250 * (0.006 + 0.008 / 4 + 0.002)) / 2),  # both share the cores
        (0.006, 1, 8, 16.0),  # one simulator process holds everything up
        (0.196, 8, 8, 250 * 0.2),  # the policy does
    ],
)
def test_the_slowest_part_decides(row: float, workers: int, cores: int, seconds: float) -> None:
    policy = PolicyCost(batch=0.008, row=row)
    assert rollout_seconds(COUNTS, SIMULATOR, policy, 0.002, workers, rows=4, cores=cores) == pytest.approx(seconds)

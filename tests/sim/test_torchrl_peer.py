"""The peer of the benchmarks runs our policy in our environments."""

import pytest

pytest.importorskip("torchrl", reason="needs the extra 'bench'")

from benchmarks.support.torchrl_rollout import TorchRLRollout
from fake_policy import FakePolicy
from simplevla.config import SuiteConfig


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("environments", "chunked"), [(2, True), (1, False)])
def test_torchrl_collects_complete_episodes(environments: int, chunked: bool) -> None:
    suite = SuiteConfig(name="fake_suite:make")
    with TorchRLRollout(suite, FakePolicy(), environments, episodes=4, chunked=chunked) as rollout:
        batch = next(rollout.batches)
    assert int(batch["next", "done"].sum()) == 4
    assert bool(batch["next", "done"][-1])
    assert batch["action"].shape[1:] == (4, 2)
    # The horizon of 11 is three chunks of 4; nobody solves a task in less than one.
    assert 4 <= len(batch) <= 12

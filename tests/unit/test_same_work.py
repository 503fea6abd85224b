"""What benchmarks/support/same_work.py replays is what the engine's workers did."""

from benchmarks.support.same_work import LoggingWorker, execute, start_replay
from fake_policy import FakePolicy
from fake_suite import REGULAR, FakeSuite
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import Sampling
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.workers import SimulatorSlots, SlotArrays
from simplevla.types import Episode, EpisodeRequest

SUITE = SuiteConfig(name="fake_suite:make")
SLOTS = 3


def logged() -> tuple[LoggingWorker, list[Episode]]:
    tasks = FakeSuite(REGULAR).tasks
    queue = [EpisodeRequest(task=tasks[i % 3], initial_state=i % 4, seed=(i,), group=i) for i in range(12)]
    workers: list[LoggingWorker] = []
    finished: list[Episode] = []

    def make_worker(*arguments: object) -> LoggingWorker:
        workers.append(LoggingWorker(*arguments))  # type: ignore[arg-type]
        return workers[-1]

    with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=SLOTS), 4, make_worker) as engine:
        engine.run(FakePolicy(), Sampling(), lambda: queue.pop() if queue else None, finished.append)
    return workers[0], finished


def test_a_log_repeats_the_rollout() -> None:
    worker, finished = logged()
    assert 0 < sum(episode.reward for episode in finished) < 12
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(FakeSuite.spec, SLOTS, 4)), FakeSuite.spec, SLOTS, 4)
    server = SimulatorSlots(FakeSuite(REGULAR), SLOTS, arrays)
    env_steps = sum(episode.env_steps for episode in finished)
    assert execute(server, worker.log) == env_steps


def test_a_process_repeats_it_too_and_takes_another_log() -> None:
    worker, finished = logged()
    line = start_replay(SUITE, SLOTS, 4)
    for _ in range(2):
        line.send(worker.log)
        assert line.recv() == "loaded"
        line.send("go")
        assert line.recv() == sum(episode.env_steps for episode in finished)
    line.send(None)

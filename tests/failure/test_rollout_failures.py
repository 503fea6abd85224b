import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_policy import FakePolicy
from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig
from simplevla.policies.base import Sampling
from simplevla.rollout.collect import NoSignal, collect_groups
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.states import StateSampler
from simplevla.rollout.workers import SuiteError
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus
from started import worker_processes

SUITE = SuiteConfig(name="fake_suite:make", tasks=("reach",))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_SUITE_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _no_process_is_left() -> object:
    yield
    assert worker_processes() == []


def suite_of(*tasks: str) -> SuiteConfig:
    return SuiteConfig(name="fake_suite:make", tasks=tasks)


def requests_for(suite: SuiteConfig, count: int) -> list[EpisodeRequest]:
    tasks = make_suite(suite).tasks
    return [EpisodeRequest(task=tasks[i % len(tasks)], initial_state=i % 4, seed=(2, i), group=i) for i in range(count)]


def roll_out(
    suite: SuiteConfig, config: RolloutConfig, count: int, sink: Callable[[Episode], None] | None = None
) -> tuple[dict[int, Episode], RolloutEngine]:
    queue = iter(requests_for(suite, count))
    finished: list[Episode] = []
    with RolloutEngine(suite, config, 4) as engine:
        engine.run(FakePolicy(), Sampling(), lambda: next(queue, None), sink or finished.append)
    assert len(finished) == count or sink
    return {episode.request.group: episode for episode in finished}, engine


def assert_same_outcomes(episodes: dict[int, Episode], expected: dict[int, Episode]) -> None:
    for number, episode in expected.items():
        np.testing.assert_array_equal(episodes[number].trace, episode.trace)
        np.testing.assert_array_equal(episodes[number].executed, episode.executed)
        assert episodes[number].status is episode.status


def test_an_environment_that_always_crashes_ends_env_error_and_leaves_others_alone() -> None:
    suite = suite_of("crash", "reach")
    config = RolloutConfig(workers=2, slots_per_worker=2, max_attempts=3)
    episodes, engine = roll_out(suite, config, 8)
    crashed = [number for number, episode in episodes.items() if episode.status is EpisodeStatus.ENV_ERROR]
    assert sorted(crashed) == [0, 2, 4, 6]
    # Each is started three times: two retries. The worker survives an exception.
    assert (engine.stats.env_errors, engine.stats.retries, engine.stats.worker_restarts) == (4, 8, 0)
    assert engine.stats.errors.counts == {"environment raised RuntimeError": 12}
    assert "RuntimeError: the gripper fell off" in engine.stats.errors.last_error
    assert "fake_suite.py" in engine.stats.errors.last_error
    assert episodes[0].error.endswith("RuntimeError: the gripper fell off\n")
    assert episodes[1].error == ""
    assert engine.stats.episodes == 8
    with pytest.raises(AssertionError, match="has no reward"):
        _ = episodes[0].reward


def test_a_crash_in_reset_is_an_environment_error_too() -> None:
    episodes, engine = roll_out(suite_of("crash_at_reset"), RolloutConfig(workers=1, max_attempts=2), 1)
    assert episodes[0].status is EpisodeStatus.ENV_ERROR
    assert (engine.stats.env_errors, engine.stats.retries, engine.stats.decisions) == (1, 1, 0)


@pytest.mark.parametrize(
    ("task", "kind", "restarts", "config"),
    [
        ("crash_once", "environment raised RuntimeError", 0, RolloutConfig(workers=2, slots_per_worker=2)),
        ("kill_once", "worker died (exit code 9)", 1, RolloutConfig(workers=2, slots_per_worker=2)),
        ("hang_once", "worker silent for 3 s", 1, RolloutConfig(workers=2, slots_per_worker=2, chunk_timeout_s=3.0)),
    ],
)
def test_a_single_accident_changes_no_episode(
    task: str, kind: str, restarts: int, config: RolloutConfig, folder: Path
) -> None:
    suite = suite_of(task, "reach")
    episodes, engine = roll_out(suite, config, 12)
    assert (folder / task).exists()
    assert engine.stats.worker_restarts == restarts
    assert engine.stats.env_errors == 0
    # It is in the log although every episode went well in the end.
    assert engine.stats.errors.metrics()["errors"] == {kind: 1}
    assert engine.stats.errors.metrics()["last_error"].endswith("the gripper fell off" if restarts == 0 else kind)
    # The episode itself, and with a lost worker at most the one in its other slot.
    assert 1 <= engine.stats.retries <= 1 + restarts
    # With the file there nothing goes wrong any more: the reference.
    calm, calm_engine = roll_out(suite, config, 12)
    assert calm_engine.stats.retries == 0
    assert_same_outcomes(episodes, calm)


def test_only_the_episode_that_broke_the_worker_loses_an_attempt() -> None:
    suite = suite_of("kill", "reach", "far")
    config = RolloutConfig(workers=1, slots_per_worker=3, max_attempts=3)
    episodes, engine = roll_out(suite, config, 9)
    broken = [number for number, episode in episodes.items() if episode.status is EpisodeStatus.ENV_ERROR]
    assert sorted(broken) == [0, 3, 6]
    assert engine.stats.worker_restarts == 9
    calm, _ = roll_out(suite_of("trivial", "reach", "far"), config, 9)
    for number in set(episodes) - set(broken):
        np.testing.assert_array_equal(episodes[number].trace, calm[number].trace)


def test_a_worker_that_is_killed_from_outside_is_replaced() -> None:
    suite = SUITE
    config = RolloutConfig(workers=2, slots_per_worker=2)
    calm, _ = roll_out(suite, config, 12)
    queue = iter(requests_for(suite, 12))
    finished: list[Episode] = []

    def sink(episode: Episode) -> None:
        finished.append(episode)
        if len(finished) == 3:
            pid = engine._workers[0].process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    with RolloutEngine(suite, config, 4) as engine:
        engine.run(FakePolicy(), Sampling(), lambda: next(queue, None), sink)
        assert engine.stats.worker_restarts == 1
        assert (engine.stats.env_errors, engine.stats.episodes) == (0, 12)
        # The replaced worker serves the next run as well.
        again = iter(requests_for(suite, 4))
        engine.run(FakePolicy(), Sampling(), lambda: next(again, None), finished.append)
    assert_same_outcomes({episode.request.group: episode for episode in finished[:12]}, calm)


def test_a_hanging_environment_ends_env_error_in_bounded_time() -> None:
    started = time.monotonic()
    config = RolloutConfig(workers=1, slots_per_worker=1, chunk_timeout_s=0.5, max_attempts=2)
    episodes, engine = roll_out(suite_of("hang"), config, 1)
    assert episodes[0].status is EpisodeStatus.ENV_ERROR
    assert engine.stats.worker_restarts == 2
    assert engine.stats.errors.counts == {"worker silent for 0.5 s": 2}
    assert 1.0 < time.monotonic() - started < 60


def test_of_commands_that_travelled_together_only_the_one_that_killed_the_worker_has_failed() -> None:
    """Slots 0 and 2 form a half; slot 0's chunk is done, but its answer dies with the worker in slot 2's."""
    suite = SuiteConfig(name="fake_suite:make", tasks=("impossible", "kill"))
    tasks = {task.name: task for task in make_suite(suite).tasks}
    names = ("impossible", "impossible", "kill")
    queue = iter(
        EpisodeRequest(task=tasks[name], initial_state=0, seed=(1, i), group=i) for i, name in enumerate(names)
    )
    finished: list[Episode] = []
    with RolloutEngine(suite, RolloutConfig(workers=1, slots_per_worker=3, max_attempts=1), 4) as engine:
        engine.run(FakePolicy(), Sampling(), lambda: next(queue, None), finished.append)
    ends = {episode.request.group: episode.status for episode in finished}
    assert ends == {0: EpisodeStatus.TIMEOUT, 1: EpisodeStatus.TIMEOUT, 2: EpisodeStatus.ENV_ERROR}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("nan", "task 'nan', initial state 0, step: .* NaN or infinite values: {'position_x_m': nan}"),
        ("int_success", "success is 1 of type int; expected True or False"),
        ("executed_0", "executed is 0 of 4 actions"),
        ("executed_5", "executed is 5 of 4 actions"),
        ("ends_early", "executed is 2 of 4 actions without success"),
        ("float_image", "task 'float_image', initial state 0, reset: .* image 'front' is float32"),
        ("long_state", r"state is float32 \(4,\); expected float32 \(3,\)"),
        ("no_camera", r"cameras \['front'\]; expected \['front', 'wrist'\]"),
    ],
)
def test_a_suite_that_breaks_its_contract_ends_the_run_with_a_value_error(task: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message) as caught:
        roll_out(suite_of(task), RolloutConfig(workers=1, slots_per_worker=1), 1)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("how", "message"), [("raise", "no display in this fake world"), ("exit", "exit code 7")])
def test_environments_that_cannot_be_built_are_named_at_once(
    how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SUITE_BUILD", how)
    started = time.monotonic()
    with pytest.raises(SuiteError, match=r"can't build environments[\s\S]*" + message):
        RolloutEngine(SUITE, RolloutConfig(workers=2), 4)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("builds", ["exit 1 2", "exit 2 3"])
def test_a_worker_that_dies_while_it_starts_is_started_again(builds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two times in a row: the first worker, or the replacement of one that was killed in an episode."""
    # An episode may fail once, and does; the deaths at the start are nobody's fault.
    config = RolloutConfig(workers=1, slots_per_worker=1, max_attempts=2)
    monkeypatch.setenv("FAKE_SUITE_BUILD", builds)
    episodes, engine = roll_out(suite_of("kill_once", "reach"), config, 4)
    killed = {"worker died (exit code 9)": 1}
    while_starting = {"worker died (exit code 7) while starting": 2} if builds == "exit 2 3" else {}
    assert engine.stats.errors.counts == killed | while_starting
    monkeypatch.delenv("FAKE_SUITE_BUILD")
    assert_same_outcomes(episodes, roll_out(suite_of("kill_once", "reach"), config, 4)[0])


def test_starting_again_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUITE_BUILD", "exit 2 3 4")
    with pytest.raises(SuiteError, match=r"worker died \(exit code 7\) while starting, 3 times in a row"):
        roll_out(suite_of("kill_once"), RolloutConfig(workers=1, slots_per_worker=1), 1)


def test_starts_that_fail_count_from_the_last_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUITE_BUILD", "exit 2 3 5 6")
    config = RolloutConfig(workers=1, slots_per_worker=1, max_attempts=3)
    episodes, engine = roll_out(suite_of("kill"), config, 1)
    assert episodes[0].status is EpisodeStatus.ENV_ERROR
    assert engine.stats.errors.counts == {
        "worker died (exit code 9)": 3,
        "worker died (exit code 7) while starting": 4,
    }


def test_workers_outlive_the_thread_that_started_them() -> None:
    made: list[RolloutEngine] = []
    thread = threading.Thread(target=lambda: made.append(RolloutEngine(SUITE, RolloutConfig(workers=1), 4)))
    thread.start()
    thread.join()
    queue = iter(requests_for(SUITE, 2))
    with made[0] as engine:
        engine.run(FakePolicy(), Sampling(), lambda: next(queue, None), lambda episode: None)
        assert (engine.stats.episodes, engine.stats.worker_restarts) == (2, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_in_the_parent_ends_the_workers_and_closes_the_engine(error: type[BaseException]) -> None:
    def sink(episode: Episode) -> None:
        raise error("stop")

    queue = iter(requests_for(SUITE, 8))
    engine = RolloutEngine(SUITE, RolloutConfig(workers=2, slots_per_worker=2), 4)
    policy = FakePolicy().train()
    with pytest.raises(error, match="stop"):
        engine.run(policy, Sampling(), lambda: next(queue, None), sink)
    assert worker_processes() == []
    assert policy.training
    with pytest.raises(ValueError, match="RolloutEngine is closed"):
        engine.run(policy, Sampling(), lambda: None, sink)


def test_an_engine_that_is_never_closed_ends_its_workers_when_it_is_forgotten() -> None:
    engine = RolloutEngine(SUITE, RolloutConfig(workers=2), 4)
    assert len(worker_processes()) == 2
    del engine
    assert worker_processes() == []


def test_groups_without_any_complete_sibling_set_end_with_the_reason() -> None:
    suite = suite_of("crash")
    config = SamplingConfig(groups=2, group_size=2, max_oversampling=1)
    with RolloutEngine(suite, RolloutConfig(workers=1, max_attempts=1), 4) as engine:
        sampler = StateSampler(make_suite(suite), seed=0)
        with pytest.raises(NoSignal, match=r"2 lost an episode to a broken environment[\s\S]*the gripper fell off"):
            collect_groups(engine, FakePolicy(), sampler, config, seed=0, update=0)


@pytest.mark.parametrize(("task", "ended"), [("impossible", "failed"), ("trivial", "succeeded")])
def test_equal_outcomes_everywhere_terminate(task: str, ended: str) -> None:
    suite = suite_of(task)
    config = SamplingConfig(groups=2, group_size=3, max_oversampling=2)
    with RolloutEngine(suite, RolloutConfig(workers=1), 4) as engine:
        sampler = StateSampler(make_suite(suite), seed=0)
        with pytest.raises(NoSignal, match=f"Of 4 groups with 3 episodes each, 4 {ended} in every episode"):
            collect_groups(engine, FakePolicy(), sampler, config, seed=0, update=0)
        assert engine.stats.episodes == 12


SCRIPT = """
import os, signal, sys
from fake_policy import FakePolicy
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import Sampling
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.types import EpisodeRequest

# A shell that runs this in the background has Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
suite = SuiteConfig(name="fake_suite:make", tasks=("inspect", sys.argv[2]))
inspect, hang = make_suite(suite).tasks
queue = iter([EpisodeRequest(task=hang, initial_state=0, seed=(i,)) for i in range(2)])
engine = RolloutEngine(suite, RolloutConfig(workers=2, slots_per_worker=1), 4)
for worker in engine._workers:
    print(worker.process.pid)

class Policy(FakePolicy):
    def act(self, *arguments):
        if self.batch_sizes:
            # The first worker hangs in its chunk by now; the second is idle.
            print("go", flush=True)
            if sys.argv[1] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().act(*arguments)

engine.run(Policy(), Sampling(), lambda: next(queue, None), print)
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")
@pytest.mark.parametrize(("how", "task"), [("die", "hang"), ("die", "hold"), ("ctrl-c", "hang"), ("ctrl-c", "hold")])
def test_nothing_is_left_when_the_program_ends_in_the_middle(how: str, task: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    # In a session of its own, whose whole process group gets the Ctrl-C as in a terminal.
    program = subprocess.Popen(
        [sys.executable, str(script), how, task],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    pids = [int(program.stdout.readline()) for _ in range(2)]
    assert program.stdout.readline() == "go\n"
    if how == "ctrl-c":
        time.sleep(0.2)
        os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=120)
    deadline = time.monotonic() + 2
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)
    assert "resource_tracker" not in errors
    assert "leaked" not in errors
    if how == "ctrl-c":
        assert program.returncode != 0
        # One traceback, the program's own: workers don't see the Ctrl-C.
        assert errors.count("KeyboardInterrupt") == 1
        assert errors.count("Traceback") == 1

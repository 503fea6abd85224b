import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import simplevla.rollout.scheduler as scheduler
from fake_policy import FakePolicy
from fake_suite import HORIZON, FakeSuite
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

TASKS = ("reach", "trivial", "impossible", "inspect", "wait")
SUITE = SuiteConfig(name="fake_suite:make", tasks=TASKS)
TASK = {task.name: task for task in make_suite(SUITE).tasks}


def request(task: str, number: int = 0, initial_state: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=TASK[task], initial_state=initial_state, seed=(1, number), group=number)


def engine(workers: int = 1, slots: int = 2, chunk_length: int = 4) -> RolloutEngine:
    return RolloutEngine(SUITE, RolloutConfig(workers=workers, slots_per_worker=slots), chunk_length)


def roll_out(engine: RolloutEngine, requests: Iterable[EpisodeRequest], **options: object) -> list[Episode]:
    queue, finished = iter(requests), []
    policy = options.pop("policy", None) or FakePolicy()
    engine.run(policy, Sampling(), lambda: next(queue, None), finished.append, **options)  # type: ignore[arg-type]
    return finished


class Constant(FakePolicy):
    """Moves forward by `action` at each env step."""

    def __init__(self, action: float) -> None:
        super().__init__()
        self.action = action

    def act(self, batch: ObservationBatch, sampling: Sampling, generators: object) -> ActionSample:
        sample = super().act(batch, sampling, generators)  # type: ignore[arg-type]
        sample.actions[:] = self.action
        return sample


def test_horizon_shortens_the_last_chunk() -> None:
    with engine() as rollouts:
        (episode,) = roll_out(rollouts, [request("impossible")])
        assert rollouts.stats.env_steps == HORIZON
        assert rollouts.stats.decisions == 3
    assert episode.status is EpisodeStatus.TIMEOUT
    assert episode.reward == 0
    assert episode.env_steps == HORIZON == 11
    assert episode.executed.tolist() == [4, 4, 3]


def test_images_are_kept_unless_the_policy_scores_from_its_trace_alone() -> None:
    frozen = Constant(0.5)
    frozen.scores_from_trace = True
    with engine() as rollouts:
        (kept,) = roll_out(rollouts, [request("impossible")], policy=Constant(0.5))
        (without,) = roll_out(rollouts, [request("impossible")], policy=frozen)
    assert list(kept.images) == ["front", "wrist"]
    assert len(kept.images["front"]) == len(kept.executed) == 3
    assert without.images == {}
    np.testing.assert_array_equal(without.trace, kept.trace)


def test_success_inside_a_chunk_ends_the_episode_at_that_env_step() -> None:
    # 0.25 m per env step at action 1: the goal of 0.4 + 0.05 x 18 = 1.3 m is passed at the sixth, in the second chunk.
    with engine() as rollouts:
        (episode,) = roll_out(rollouts, [request("reach", initial_state=18)], policy=Constant(1.0))
    assert episode.status is EpisodeStatus.SUCCESS
    assert episode.reward == 1
    assert episode.executed.tolist() == [4, 2]
    assert episode.env_steps == 6
    np.testing.assert_array_equal(episode.state[:, 0], np.array([0, 1.0], np.float32))


def test_success_at_the_last_env_step_of_the_horizon_counts() -> None:
    # 11 env steps of 0.25 m = 2.75 m; goal 0.4 + 0.05 x 46 = 2.7 m is reached by the 11th only.
    with engine() as rollouts:
        late, never = roll_out(
            rollouts,
            [request("reach", 0, initial_state=46), request("reach", 1, initial_state=48)],
            policy=Constant(1.0),
        )
    assert (late.status, late.executed.tolist()) == (EpisodeStatus.SUCCESS, [4, 4, 3])
    assert (never.status, never.executed.tolist()) == (EpisodeStatus.TIMEOUT, [4, 4, 3])


def test_recorded_arrays_have_one_row_per_decision_and_belong_together() -> None:
    with engine() as rollouts:
        (episode,) = roll_out(rollouts, [request("impossible")])
    assert {name: image.shape for name, image in episode.images.items()} == {
        "front": (3, 8, 8, 3),
        "wrist": (3, 4, 6, 3),
    }
    assert all(image.dtype == np.uint8 for image in episode.images.values())
    assert (episode.state.shape, episode.state.dtype) == ((3, 3), np.float32)
    assert (episode.trace.shape, episode.trace.dtype) == ((3, 8), np.int64)
    assert (episode.logprobs.shape, episode.logprobs.dtype) == ((3, 8), np.float32)
    assert (episode.actions.shape, episode.actions.dtype) == ((3, 4, 2), np.float32)
    assert (episode.executed.shape, episode.executed.dtype) == ((3,), np.int64)
    # The fake token policy's tokens 0 .. 4 stand for -1 .. 1, and the position is the sum of the executed actions.
    np.testing.assert_array_equal(episode.actions.reshape(3, 8), episode.trace.astype(np.float32) / 2 - 1)
    moved = 0.25 * episode.actions[:2, :, 0].sum(axis=1)
    np.testing.assert_allclose(episode.state[:, 0], [0, moved[0], moved[0] + moved[1]], atol=1e-6)
    np.testing.assert_array_equal(episode.images["front"][:, 0, 0, 0], (128 + 100 * episode.state[:, 0]).astype(int))


def test_the_environment_renders_once_per_chunk() -> None:
    with engine() as rollouts:
        (episode,) = roll_out(rollouts, [request("impossible")])
    assert episode.state[:, 2].tolist() == [1, 2, 3]
    assert episode.images["wrist"][:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_worker_is_told_which_chunk_reaches_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    send = scheduler._Slot.send

    def log(slot: scheduler._Slot, command: object) -> None:
        sent.append(command)
        send(slot, command)  # type: ignore[arg-type]

    monkeypatch.setattr(scheduler._Slot, "send", log)
    with engine() as rollouts:
        roll_out(rollouts, [request("impossible")])
    assert sent[1:] == [scheduler.Step(0, 4, False), scheduler.Step(0, 4, False), scheduler.Step(0, 3, True)]


def test_free_slots_are_refilled_and_finished_episodes_cost_no_decision() -> None:
    policy = FakePolicy()
    requests = [request("impossible" if number == 0 else "trivial", number) for number in range(7)]
    with engine(slots=2) as rollouts:
        episodes = roll_out(rollouts, requests, policy=policy)
        stats = rollouts.stats
    # Turns alternate. Slot 0 acts in its turns 1, 2, 3 and ends the long episode 0 in its 4th. Slot 1 needs two of its
    # turns per short episode: it ends 1 in its 2nd, 2 in its 4th, after slot 0 has got 3. From there both alternate.
    assert [episode.request.group for episode in episodes] == [1, 0, 2, 3, 4, 5, 6]
    assert sum(policy.batch_sizes) == stats.decisions == 3 + 6
    assert stats.env_steps == 11 + 6
    assert stats.episodes == 7
    assert (stats.retries, stats.worker_restarts, stats.env_errors) == (0, 0, 0)


def test_source_is_asked_again_after_each_finished_episode_only() -> None:
    asked: list[int] = []
    finished: list[Episode] = []

    def source() -> EpisodeRequest | None:
        """One episode at a time: the next only when the last has ended."""
        asked.append(len(finished))
        started = len({*range(len(finished))} | in_flight)
        if started > len(finished) or len(finished) == 3:
            return None
        in_flight.add(len(finished))
        return request("impossible", len(finished))

    in_flight: set[int] = set()
    with engine(slots=4) as rollouts:
        rollouts.run(FakePolicy(), Sampling(), source, finished.append)
    assert [episode.request.group for episode in finished] == [0, 1, 2]
    # With 0, 1, 2 finished: one request and one refusal; with 3: one refusal. Not once per turn.
    assert asked == [0, 0, 1, 1, 2, 2, 3]


def test_the_policy_acts_for_one_half_while_the_other_simulates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SUITE_FOLDER", str(tmp_path))

    class Opening(FakePolicy):
        """Lets the first half's chunk end only when it acts for the second half."""

        def act(self, batch: ObservationBatch, sampling: Sampling, generators: object) -> ActionSample:
            if self.batch_sizes:
                (tmp_path / "go").touch()
            return super().act(batch, sampling, generators)  # type: ignore[arg-type]

    with engine(workers=2, slots=1) as rollouts:
        roll_out(rollouts, [request("wait", number) for number in range(2)], policy=Opening())
        assert (rollouts.stats.episodes, rollouts.stats.retries) == (2, 0)


def test_each_half_uses_every_worker() -> None:
    with engine(workers=2, slots=3) as rollouts:
        for half in (0, 1):
            slots = [slot for slot in rollouts._slots if slot.half == half]
            assert len(slots) == 3
            assert {slot.worker for slot in slots} == set(rollouts._workers)


def test_few_episodes_spread_over_workers_and_halves() -> None:
    with engine(workers=2, slots=6) as rollouts:
        requests = iter([request("impossible", number) for number in range(4)])
        rollouts._fill(lambda: next(requests, None))
        used = [(rollouts._workers.index(slot.worker), slot.half) for slot in rollouts._slots if slot.running]
        assert sorted(used) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("slow", "changes"), [(True, 0), (False, 6)])
def test_a_slot_stays_with_its_task_where_changing_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, slow: bool, changes: int
) -> None:
    """Eight episodes of two tasks, two siblings by two; both slots run four of equal length."""
    monkeypatch.setattr(FakeSuite, "task_change_is_slow", slow)
    tasks: dict[object, list[str]] = {}
    reset = scheduler._Slot.reset

    def log(slot: scheduler._Slot) -> None:
        reset(slot)
        tasks.setdefault(slot.worker, []).append(slot.task)

    monkeypatch.setattr(scheduler._Slot, "reset", log)
    order = ["impossible", "impossible", "inspect", "inspect"] * 2
    with engine(workers=2, slots=1) as rollouts:
        episodes = roll_out(rollouts, [request(task, number) for number, task in enumerate(order)])
    assert sorted(episode.request.group for episode in episodes) == list(range(8))
    assert [len(one) for one in tasks.values()] == [4, 4]
    assert sum(a != b for one in tasks.values() for a, b in itertools.pairwise(one)) == changes


def test_what_was_rolled_out_before_decides_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has a new engine: if its slots took other episodes, its batches would have other last bits."""
    monkeypatch.setattr(FakeSuite, "task_change_is_slow", True)
    begun: list[tuple[int, int]] = []
    reset = scheduler._Slot.reset

    def log(slot: scheduler._Slot) -> None:
        reset(slot)
        assert slot.running is not None
        begun.append((rollouts._slots.index(slot), slot.running.request.group))

    monkeypatch.setattr(scheduler._Slot, "reset", log)
    later = [request(task, number) for number, task in enumerate(["inspect", "inspect", "impossible", "impossible"])]
    with engine(workers=1, slots=2) as rollouts:
        roll_out(rollouts, later)
        fresh = begun.copy()
    with engine(workers=1, slots=2) as rollouts:
        roll_out(rollouts, [request("impossible"), request("inspect")])
        begun.clear()
        roll_out(rollouts, later)
    assert begun == fresh


def test_a_free_slot_takes_another_slots_task_rather_than_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSuite, "task_change_is_slow", True)
    with engine(workers=2, slots=1) as rollouts:
        requests = iter([request("impossible", number) for number in range(4)])
        rollouts._fill(lambda: next(requests, None))
        assert all(slot.running for slot in rollouts._slots)


@pytest.mark.parametrize("slow", [True, False])
def test_nobody_waits_for_a_slot_that_changes_its_task_slowly(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Its half goes on without it for a fixed number of turns, whatever the clock says."""
    monkeypatch.setattr(FakeSuite, "task_change_is_slow", slow)
    with engine(workers=1, slots=1) as rollouts:
        requests = iter([request("impossible")])
        rollouts._fill(lambda: next(requests, None))
        (slot,) = [slot for slot in rollouts._slots if slot.running]
        turns = 0
        while not rollouts._turn(slot.half)[0]:
            turns += 1
        assert turns == (scheduler.SLOW_RESET_TURNS if slow else 0)


def test_a_worker_has_no_torch_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with engine(workers=2) as rollouts:
        episodes = roll_out(rollouts, [request("inspect", number) for number in range(4)])
        processes = {worker.process.pid for worker in rollouts._workers}
    torch_loaded, threads, pids = (set(np.concatenate([episode.state[:, i] for episode in episodes])) for i in range(3))
    assert torch_loaded == {0.0}
    assert threads == {1.0}
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert {int(pid) for pid in pids} == processes


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bfloat16_is_on_where_the_config_says_so(bfloat16: bool) -> None:
    seen = []

    class Watching(FakePolicy):
        def act(self, batch: ObservationBatch, sampling: Sampling, generators: object) -> ActionSample:
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
            return super().act(batch, sampling, generators)  # type: ignore[arg-type]

    with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=1, bfloat16=bfloat16), 4) as rollouts:
        roll_out(rollouts, [request("reach")], policy=Watching())
    assert set(seen) == {torch.bfloat16 if bfloat16 else torch.float32}


def test_without_recording_only_the_outcome_is_kept() -> None:
    with engine() as rollouts:
        (episode,) = roll_out(rollouts, [request("impossible")], record=False)
    assert (episode.status, episode.env_steps) == (EpisodeStatus.TIMEOUT, HORIZON)
    assert episode.images == {}
    assert episode.trace.size == episode.state.size == episode.actions.size == episode.executed.size == 0


def test_policy_acts_in_evaluation_mode_and_gets_its_modes_back() -> None:
    policy = FakePolicy()
    policy.train()
    policy.linear.eval()
    with engine() as rollouts:
        roll_out(rollouts, [request("impossible")], policy=policy)
    assert policy.modes == [False, False, False]
    assert (policy.training, policy.linear.training) == (True, False)


def test_one_slot_per_worker_where_a_suite_allows_one_environment_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSuite, "one_environment_per_process", True)
    with engine(workers=2, slots=6) as rollouts:
        assert [(slot.index, slot.half) for slot in rollouts._slots] == [(0, 0), (0, 1)]
        assert len(roll_out(rollouts, [request("trivial", number) for number in range(5)])) == 5


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (FakePolicy(action_dim=7), "7 action dimensions; suite 'fake' expects 2"),
        (FakePolicy(chunk_length=8), "chunks have 8 actions, this engine's 4"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy: Policy, message: str) -> None:
    with engine() as rollouts, pytest.raises(ValueError, match=message):
        roll_out(rollouts, [], policy=policy)


class Answering(FakePolicy):
    """Answers what `spoil` makes of its sample, once an episode has begun."""

    def __init__(self, spoil: Callable[[ActionSample], ActionSample]) -> None:
        super().__init__()
        self.spoil = spoil

    def act(self, batch: ObservationBatch, sampling: Sampling, generators: object) -> ActionSample:
        sample = super().act(batch, sampling, generators)  # type: ignore[arg-type]
        return self.spoil(sample) if len(self.batch_sizes) == 2 else sample


def with_nan(sample: ActionSample, name: str, value: float) -> ActionSample:
    array = getattr(sample, name).copy() if name == "actions" else getattr(sample, name).clone().float()
    array.reshape(-1)[5] = value
    return replace(sample, **{name: array})


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "words"), [("actions", "actions"), ("logprobs", "log-probabilities"), ("trace", "trace")]
)
def test_an_answer_that_is_not_finite_is_an_error_of_the_policy(
    name: str, words: str, value: float, record: bool
) -> None:
    policy = Answering(lambda sample: with_nan(sample, name, value))
    finished: list[Episode] = []
    queue = iter([request("impossible", initial_state=3)])
    message = (
        rf"policy's {words} are NaN or infinite in task 'impossible', initial state 3 \(1 of 8 numbers; in 1 of 1 dec"
    )
    with engine() as rollouts, pytest.raises(ValueError, match=message) as caught:
        rollouts.run(policy, Sampling(), lambda: next(queue, None), finished.append, record)
    # Neither a failure of the policy nor one of the environment.
    assert finished == []
    assert (rollouts.stats.retries, rollouts.stats.env_errors, rollouts.stats.errors.counts) == (0, 0, {})
    assert "weights are to blame" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda sample: replace(sample, actions=sample.actions[:, :3]),
            r"actions have shape \(1, 3, 2\); expected \(1, 4, 2\)",
        ),
        (
            lambda sample: replace(sample, logprobs=sample.logprobs[0]),
            r"log-probabilities have shape \(8,\); expected a row for each of 1 decisions",
        ),
        (lambda sample: replace(sample, trace=sample.trace[:0]), r"trace have shape \(0, 8\); expected a row for each"),
    ],
)
def test_an_answer_of_another_shape_is_named(spoil: Callable[[ActionSample], ActionSample], message: str) -> None:
    with engine() as rollouts, pytest.raises(ValueError, match=message):
        roll_out(rollouts, [request("impossible")], policy=Answering(spoil))


def test_the_episode_of_a_bad_answer_is_the_right_one_of_its_batch() -> None:
    """Slots 0 and 2 form a half, so that their episodes share a batch."""

    def spoil(sample: ActionSample) -> ActionSample:
        sample.logprobs[1, 2] = float("nan")
        return sample

    policy = FakePolicy()
    real = policy.act
    policy.act = lambda *arguments: spoil(real(*arguments))  # type: ignore[method-assign]
    requests = [request("impossible", number, initial_state=number) for number in range(3)]
    with engine(slots=3) as rollouts:
        places = {slot.index: slot for slot in rollouts._slots}
        with pytest.raises(ValueError, match=r"log-probabilities are NaN .*in 1 of 2 decisions") as caught:
            roll_out(rollouts, requests, policy=policy)
        bad = places[2].running
    assert bad is not None
    assert f"initial state {bad.request.initial_state} " in str(caught.value)


def test_a_task_of_another_suite_is_refused() -> None:
    other = scheduler.make_suite(SuiteConfig(name="fake_suite:make", tasks=("near",))).tasks[0]
    alien = EpisodeRequest(task=other, initial_state=0, seed=(0,))
    with engine() as rollouts, pytest.raises(ValueError, match="task 'near' isn't one of this engine's suite 'fake'"):
        roll_out(rollouts, [alien])


def test_stats_start_again_when_asked() -> None:
    with engine() as rollouts:
        roll_out(rollouts, [request("trivial")])
        rollouts.reset_stats()
        roll_out(rollouts, [request("impossible")])
        assert (rollouts.stats.episodes, rollouts.stats.env_steps, rollouts.stats.decisions) == (1, 11, 3)
        assert 0 < rollouts.stats.policy_s + rollouts.stats.wait_s < rollouts.stats.wall_s

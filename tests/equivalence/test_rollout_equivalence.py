import numpy as np
import pytest
import torch

from fake_policy import FakePolicy, SharingPolicy
from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig
from simplevla.policies.base import ObservationBatch, Sampling
from simplevla.rollout.collect import Collection, collect_groups
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.states import StateSampler
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest

SUITE = SuiteConfig(name="fake_suite:make")
ARRAYS = ("state", "trace", "logprobs", "executed", "actions")


def episodes_of(workers: int, slots: int, count: int = 60) -> tuple[list[Episode], list[int]]:
    tasks = make_suite(SUITE).tasks
    queue = iter(
        EpisodeRequest(task=tasks[i % len(tasks)], initial_state=i % 4, seed=(5, i), group=i) for i in range(count)
    )
    policy, finished = FakePolicy(), []
    with RolloutEngine(SUITE, RolloutConfig(workers=workers, slots_per_worker=slots), 4) as engine:
        engine.run(policy, Sampling(temperature=1.6), lambda: next(queue, None), finished.append)
    return finished, policy.batch_sizes


def collected(workers: int, slots: int) -> Collection:
    sampler = StateSampler(make_suite(SUITE), seed=3)
    config = SamplingConfig(groups=6, group_size=4)
    with RolloutEngine(SUITE, RolloutConfig(workers=workers, slots_per_worker=slots), 4) as engine:
        return collect_groups(engine, FakePolicy(), sampler, config, seed=3, update=2)


def assert_bit_identical(first: Episode, second: Episode) -> None:
    assert (first.request, first.status, first.env_steps) == (second.request, second.status, second.env_steps)
    for name in ARRAYS:
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    for camera, images in first.images.items():
        assert images.tobytes() == second.images[camera].tobytes(), camera


def test_the_same_requests_give_the_same_bits_whatever_the_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, calm_batches = episodes_of(workers=2, slots=5)
    monkeypatch.setenv("FAKE_SUITE_JITTER", "0.02")
    shaken, shaken_batches = episodes_of(workers=2, slots=5)
    assert len(calm) == 60
    assert calm_batches == shaken_batches
    # Lists, so the order of the sink's calls is compared too.
    for first, second in zip(calm, shaken, strict=True):
        assert_bit_identical(first, second)


def test_many_workers_equal_one_slot_of_one_worker() -> None:
    many, many_batches = episodes_of(workers=3, slots=4, count=30)
    one, one_batches = episodes_of(workers=1, slots=1, count=30)
    assert max(many_batches) > 1
    assert set(one_batches) == {1}
    assert 0 < sum(episode.reward for episode in one) < 30
    many.sort(key=lambda episode: episode.request.group)
    for first, second in zip(one, many, strict=True):
        assert (first.request, first.status, first.env_steps) == (second.request, second.status, second.env_steps)
        np.testing.assert_array_equal(first.trace, second.trace)
        np.testing.assert_array_equal(first.executed, second.executed)
        np.testing.assert_array_equal(first.state, second.state)
        np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-5)


def test_what_siblings_begin_with_is_computed_once_and_recorded_for_each() -> None:
    suite, found = make_suite(SUITE), []
    for policy in (FakePolicy(), SharingPolicy()):
        requests = [
            EpisodeRequest(task=task, initial_state=state, seed=(state, sibling), group=4 * number + state)
            for sibling in range(4)
            for number, task in enumerate(suite.tasks)
            for state in range(4)
        ]
        queue, finished = iter(requests), []
        with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=24), 4) as engine:
            engine.run(policy, Sampling(temperature=1.6), lambda queue=queue: next(queue, None), finished.append)
            found.append((finished, policy.batch_sizes, engine.stats.decisions))
    (alone, rows_alone, decisions), (shared, rows, decisions_shared) = found
    assert decisions_shared == decisions == sum(rows_alone)
    # 24 episodes begin at once, 12 in each half, from 6 observations.
    assert (rows_alone[:2], rows[:2]) == ([12, 12], [6, 6])
    for first, second in zip(alone, shared, strict=True):
        assert first.request == second.request
        np.testing.assert_array_equal(first.trace, second.trace)
        np.testing.assert_array_equal(first.state, second.state)
        for camera, images in first.images.items():
            np.testing.assert_array_equal(images, second.images[camera])
        goal = {"reach": 0.4, "far": 0.8, "near": 0.1}[second.request.task.name] + 0.05 * second.request.initial_state
        np.testing.assert_allclose(second.state[:, 1], goal, atol=1e-6)


def test_the_collected_groups_do_not_depend_on_workers_or_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = collected(workers=1, slots=1)
    monkeypatch.setenv("FAKE_SUITE_JITTER", "0.02")
    many = collected(workers=2, slots=6)
    assert (one.sampled, one.mixed, one.all_failed, one.all_solved) == (
        many.sampled,
        many.mixed,
        many.all_failed,
        many.all_solved,
    )
    assert one.sampled > one.mixed == 6
    assert one.success_by_task == many.success_by_task
    for first, second in zip(one.groups, many.groups, strict=True):
        assert [episode.request for episode in first] == [episode.request for episode in second]
        assert [episode.reward for episode in first] == [episode.reward for episode in second]
        for left, right in zip(first, second, strict=True):
            np.testing.assert_array_equal(left.trace, right.trace)


def test_scoring_the_record_gives_the_sampled_log_probabilities() -> None:
    episodes, _ = episodes_of(workers=2, slots=3, count=12)
    policy = FakePolicy()
    for episode in episodes:
        batch = ObservationBatch(
            images={name: torch.from_numpy(images) for name, images in episode.images.items()},
            state=torch.from_numpy(episode.state),
            instructions=[episode.request.task.instruction] * len(episode.executed),
        )
        logprobs, _ = policy.score(batch, torch.from_numpy(episode.trace), Sampling(temperature=1.6))
        np.testing.assert_allclose(logprobs.detach().numpy(), episode.logprobs, atol=1e-5)


def test_siblings_differ_and_a_seed_repeats() -> None:
    task = make_suite(SUITE).tasks[0]
    seeds = [(7, 0), (7, 1), (7, 0)]
    queue = iter(EpisodeRequest(task=task, initial_state=0, seed=seed, group=i) for i, seed in enumerate(seeds))
    finished: list[Episode] = []
    with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=3), 4) as engine:
        engine.run(FakePolicy(), Sampling(), lambda: next(queue, None), finished.append)
    first, other, again = sorted(finished, key=lambda episode: episode.request.group)
    np.testing.assert_array_equal(first.trace, again.trace)
    assert first.trace[0].tolist() != other.trace[0].tolist()

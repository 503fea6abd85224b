import json
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from fake_policy import FakePolicy
from simplevla.config import SamplingConfig, SuiteConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.collect import Collection, NoSignal, collect_groups
from simplevla.rollout.scheduler import RolloutStats, Sink, Source
from simplevla.rollout.states import StateSampler
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Task

SUITE = SuiteConfig(name="fake_suite:make")
OUTCOMES = {"1": EpisodeStatus.SUCCESS, "0": EpisodeStatus.TIMEOUT, "x": EpisodeStatus.ENV_ERROR}


class ScriptedEngine:
    """Ends the episodes of group g as `outcomes[g]` says (`1` solved, `0` not, `x` broken).

    Which of those in flight ends next is up to `choose`.
    """

    def __init__(
        self, outcomes: Sequence[str], slots: int = 8, choose: Callable[[list[EpisodeRequest]], int] = lambda _: 0
    ) -> None:
        self.outcomes, self.slots, self.choose = outcomes, slots, choose
        self.stats = RolloutStats()
        self.stats.errors.add("environment raised RuntimeError", "Traceback ...\nRuntimeError: the gripper fell off", 4)
        self.requests: list[EpisodeRequest] = []
        self.sampling: Sampling | None = None

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        self.sampling = sampling
        flying: list[EpisodeRequest] = []
        while True:
            while len(flying) < self.slots and (request := source()) is not None:
                flying.append(request)
                self.requests.append(request)
            if not flying:
                return
            request = flying.pop(self.choose(flying))
            status = OUTCOMES[self.outcomes[request.group][request.seed[-1]]]
            sink(Episode(request=request, status=status, env_steps=4))


def collect(engine: ScriptedEngine, config: SamplingConfig) -> Collection:
    sampler = StateSampler(make_suite(SUITE), seed=0)
    return collect_groups(engine, FakePolicy(), sampler, config, seed=11, update=5)


def kept(result: Collection) -> list[int]:
    return [siblings[0].request.group for siblings in result.groups]


def test_groups_are_kept_in_the_order_asked_for_until_there_are_enough() -> None:
    engine = ScriptedEngine(["10", "00", "01", "11", "10", "10", "10"])
    result = collect(engine, SamplingConfig(groups=3, group_size=2))
    # Groups 0, 2 and 4 are the first three mixed ones; 5 and 6 are never started.
    assert kept(result) == [0, 2, 4]
    assert (result.sampled, result.mixed, result.all_failed, result.all_solved, result.broken) == (5, 3, 1, 1, 0)
    assert len(engine.requests) == 10
    assert [sibling.reward for sibling in result.groups[1]] == [0, 1]


def test_groups_kept_and_done_are_shown_as_they_end() -> None:
    shown: list[tuple[int, int]] = []
    sampler = StateSampler(make_suite(SUITE), seed=0)
    engine, config = ScriptedEngine(["10", "00", "1x", "01"], slots=1), SamplingConfig(groups=2, group_size=2)
    collect_groups(engine, FakePolicy(), sampler, config, 11, 5, show=lambda *now: shown.append(now))
    # A broken group is none.
    assert shown == [(1, 1), (1, 2), (2, 3)]


def test_the_sampler_is_told_before_and_after_of_all_complete_groups_in_order() -> None:
    told: list[object] = []

    class Listening(StateSampler):
        def begin(self, update: int, group_size: int) -> None:
            told.append((update, group_size))

        def observe(self, outcomes: Sequence[tuple[Task, int, Sequence[float]]]) -> None:
            told.extend((task.name, state, list(rewards)) for task, state, rewards in outcomes)

    order = StateSampler(make_suite(SUITE), seed=0)
    pairs = [next(order) for _ in range(5)]
    engine = ScriptedEngine(["10", "00", "0x", "11", "01"], slots=64, choose=lambda flying: len(flying) - 1)
    sampler = Listening(make_suite(SUITE), seed=0)
    collect_groups(engine, FakePolicy(), sampler, SamplingConfig(groups=2, group_size=2), seed=11, update=5)
    rewards = {0: [1, 0], 1: [0, 0], 3: [1, 1], 4: [0, 1]}
    # Group 2 broke: it has no outcome.
    assert told == [(5, 2), *((pairs[i][0].name, pairs[i][1], r) for i, r in rewards.items())]


@pytest.mark.parametrize("slots", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "choose", [lambda f: 0, lambda f: len(f) - 1, lambda f: len(f) // 2], ids=["fifo", "lifo", "mid"]
)
def test_what_is_sampled_and_kept_does_not_depend_on_speed(slots: int, choose: Callable[[list], int]) -> None:
    outcomes = ["0000", "1000", "1111", "0000", "0110", "1110", "0000", "0001"] + ["1010"] * 20
    engine = ScriptedEngine(outcomes, slots, choose)
    result = collect(engine, SamplingConfig(groups=4, group_size=4))
    assert kept(result) == [1, 4, 5, 7]
    assert result.sampled == 8
    assert len(engine.requests) == 8 * 4
    assert [[int(s.reward) for s in siblings] for siblings in result.groups] == [
        [1, 0, 0, 0],
        [0, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 1],
    ]


def test_siblings_share_task_and_state_and_differ_by_seed_alone() -> None:
    engine = ScriptedEngine(["10"] * 3)
    collect(engine, SamplingConfig(groups=3, group_size=2, temperature=1.6))
    assert [request.seed for request in engine.requests] == [
        (11, 5, group, sibling) for group in range(3) for sibling in range(2)
    ]
    expected = StateSampler(make_suite(SUITE), seed=0)
    for group in range(3):
        task, state = next(expected)
        pair = [request for request in engine.requests if request.group == group]
        assert [(request.task, request.initial_state) for request in pair] == [(task, state)] * 2
    assert engine.sampling == Sampling(temperature=1.6, greedy=False)


def test_each_episode_has_noise_of_its_own() -> None:
    engine = ScriptedEngine(["10"] * 3)
    collect(engine, SamplingConfig(groups=3, group_size=2))
    assert len({request.generator().random() for request in engine.requests}) == 6


def test_the_bound_ends_sampling_and_what_is_mixed_is_returned() -> None:
    # At most floor(1.5 x 3) = 4 groups.
    engine = ScriptedEngine(["00", "10", "00", "00", "10", "10"])
    result = collect(engine, SamplingConfig(groups=3, group_size=2, max_oversampling=1.5))
    assert kept(result) == [1]
    assert (result.sampled, result.mixed, result.all_failed) == (4, 1, 3)


def test_success_per_task_counts_every_sampled_episode_with_a_reward() -> None:
    engine = ScriptedEngine(["10", "00", "x1", "11"])
    result = collect(engine, SamplingConfig(groups=1, group_size=2, max_oversampling=4))
    assert result.sampled == 1
    engine = ScriptedEngine(["00", "11", "x1", "10"])
    result = collect(engine, SamplingConfig(groups=1, group_size=2, max_oversampling=4))
    assert result.sampled == 4
    # Broken episodes have no reward: 8 episodes, one of them broken.
    solved, n = map(sum, zip(*result.success_by_task.values(), strict=True))
    assert (solved, n) == (4, 7)
    by_task: Counter[str] = Counter()
    for request in engine.requests:
        by_task[request.task.name] += OUTCOMES[engine.outcomes[request.group][request.seed[-1]]] is not OUTCOMES["x"]
    assert {task: n for task, (_, n) in result.success_by_task.items()} == dict(by_task)


def test_a_group_with_a_broken_sibling_is_dropped_and_replaced() -> None:
    engine = ScriptedEngine(["1x0", "100"])
    result = collect(engine, SamplingConfig(groups=1, group_size=3))
    assert kept(result) == [1]
    assert (result.sampled, result.mixed, result.broken) == (2, 1, 1)


def test_the_filter_drops_groups_that_are_barely_mixed() -> None:
    # 1 of 12 is 0.083 < 0.1; 11 of 12 is 0.917 > 0.9; 2 of 12 is inside.
    engine = ScriptedEngine(["1" + "0" * 11, "0" + "1" * 11, "11" + "0" * 10])
    result = collect(engine, SamplingConfig(groups=1, group_size=12))
    assert kept(result) == [2]
    assert (result.outside, result.mixed, result.all_failed, result.all_solved) == (2, 1, 0, 0)


def test_without_dynamic_sampling_every_complete_group_trains_and_none_is_replaced() -> None:
    engine = ScriptedEngine(["00", "10", "x0", "11", "10"])
    result = collect(engine, SamplingConfig(groups=4, group_size=2, dynamic=False))
    assert kept(result) == [0, 1, 3]
    assert (result.sampled, result.mixed, result.all_failed, result.all_solved, result.broken) == (4, 1, 1, 1, 1)


def test_no_signal_at_zero_says_success_per_task_and_what_to_do() -> None:
    engine = ScriptedEngine(["00"] * 8)
    with pytest.raises(NoSignal) as caught:
        collect(engine, SamplingConfig(groups=2, group_size=2, max_oversampling=3, temperature=1.6))
    text = str(caught.value)
    assert len(engine.requests) == 6 * 2
    assert "Of 6 groups with 2 episodes each, 6 failed in every episode. (sampling.groups is 2, and at most " in text
    assert "sampling.max_oversampling = 3 times as many are tried.)" in text
    # Three tasks, two states each so far.
    assert all(f"  {task}: 0/4 = 0.0 %" in text for task in ("reach", "far", "near"))
    assert "better SFT" in text
    assert "sampling.temperature (now 1.6)" in text
    assert "easier tasks" in text
    assert "training is done" not in text
    assert "group_size" not in text


def test_no_signal_from_rare_successes_asks_for_larger_groups() -> None:
    groups = ["1111", "0000", "0000", "000x"]
    with pytest.raises(NoSignal) as caught:
        collect(ScriptedEngine(groups), SamplingConfig(groups=4, group_size=4, dynamic=True, max_oversampling=1))
    text = str(caught.value)
    assert (
        "Of 4 groups with 4 episodes each, 2 failed in every episode, 1 succeeded in every episode, "
        "1 lost an episode to a broken environment."
    ) in text
    assert "raise sampling.group_size (now 4)" in text


def test_no_signal_at_full_success_says_that_training_is_done() -> None:
    with pytest.raises(NoSignal) as caught:
        collect(ScriptedEngine(["11"] * 3), SamplingConfig(groups=3, group_size=2, max_oversampling=1))
    text = str(caught.value)
    assert "reach: 2/2 = 100.0 %" in text
    assert "training is done" in text
    assert "better SFT" not in text


def test_no_signal_from_broken_environments_names_the_error() -> None:
    with pytest.raises(NoSignal) as caught:
        collect(ScriptedEngine(["1x"] * 3), SamplingConfig(groups=3, group_size=2, max_oversampling=1))
    assert "3 lost an episode to a broken environment" in str(caught.value)
    kinds = "environment raised RuntimeError (4 times, last: RuntimeError: the gripper fell off)"
    assert kinds in str(caught.value)


def test_an_epoch_has_each_pair_once_with_tasks_interleaved() -> None:
    suite = make_suite(SUITE)
    sampler = StateSampler(suite, seed=4)
    pairs = [(task.name, state) for task, state in (next(sampler) for _ in range(24))]
    everything = {(task.name, state) for task in suite.tasks for state in range(4)}
    first, second = pairs[:12], pairs[12:]
    assert set(first) == set(second) == everything
    assert first != second
    for start in range(0, 24, 3):
        assert {task for task, _ in pairs[start : start + 3]} == {"reach", "far", "near"}


def test_the_order_follows_from_the_seed() -> None:
    suite = make_suite(SUITE)

    def order(seed: int) -> list[tuple[str, int]]:
        sampler = StateSampler(suite, seed)
        return [(task.name, state) for task, state in (next(sampler) for _ in range(12))]

    assert order(1) == order(1)
    assert order(1) != order(2)
    # Both what is permuted: the tasks in a round, and the states in a task.
    assert len({tuple(task for task, _ in order(seed)) for seed in range(5)}) > 1
    assert len({tuple(state for task, state in order(seed) if task == "reach") for seed in range(5)}) > 1


@pytest.mark.parametrize("consumed", [0, 5, 12, 17])
def test_a_sampler_resumes_from_plain_json(consumed: int) -> None:
    suite = make_suite(SUITE)
    sampler = StateSampler(suite, seed=4)
    for _ in range(consumed):
        next(sampler)
    resumed = StateSampler(suite, seed=4)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [next(resumed) for _ in range(20)] == [next(sampler) for _ in range(20)]


def test_a_sampler_of_another_run_is_refused() -> None:
    suite = make_suite(SUITE)
    state = StateSampler(suite, seed=4).state_dict()
    with pytest.raises(ValueError, match="has seed 4, this one 5"):
        StateSampler(suite, seed=5).load_state_dict(state)
    smaller = make_suite(SuiteConfig(name="fake_suite:make", tasks=("reach",)))
    with pytest.raises(ValueError, match="has size 12, this one 4"):
        StateSampler(smaller, seed=4).load_state_dict(state)

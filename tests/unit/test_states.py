"""Choosing initial states by the chance that their group has both outcomes."""

import json

import numpy as np
import pytest

from simplevla.config import SamplingConfig, SuiteConfig
from simplevla.rollout.states import PosteriorSampler, StateSampler, make_sampler
from simplevla.suites.registry import make_suite

SUITE = make_suite(SuiteConfig(name="fake_suite:make"))
REACH, FAR, NEAR = SUITE.tasks


def test_the_config_names_the_sampler() -> None:
    assert type(make_sampler(SUITE, SamplingConfig(), 0)) is StateSampler
    assert type(make_sampler(SUITE, SamplingConfig(state_order="posterior"), 0)) is PosteriorSampler


def test_counts_decay_with_every_update() -> None:
    sampler = PosteriorSampler(SUITE, seed=0)
    sampler.observe([(FAR, 2, [1.0, 0.0, 0.0, 1.0]), (REACH, 0, [1.0, 1.0, 1.0, 1.0])])
    sampler.observe([(FAR, 2, [0.0, 0.0, 0.0, 1.0])])
    counts = {pair: tuple(count) for pair, count in zip(sampler._pairs, sampler._counts.tolist(), strict=True)}
    assert counts[FAR, 2] == pytest.approx((0.8 * 2 + 1, 0.8 * 2 + 3))
    assert counts[REACH, 0] == pytest.approx((0.8 * 4, 0))
    assert counts[NEAR, 1] == (0, 0)


def test_states_with_both_outcomes_come_before_certain_ones() -> None:
    sampler = PosteriorSampler(SUITE, seed=0)
    outcomes = {REACH: [1.0] * 8, FAR: [0.0] * 8, NEAR: [1.0, 0.0] * 4}
    for _ in range(10):
        sampler.observe([(task, state, rewards) for task, rewards in outcomes.items() for state in range(4)])
    firsts = []
    for update in range(50):
        sampler.begin(update, group_size=8)
        firsts += [next(sampler)[0] for _ in range(4)]
    # Decayed, each state counts about 36 episodes: p of NEAR is 0.5 +- 0.08, of the others within 0.05 of certainty.
    assert firsts.count(NEAR) == len(firsts)


def test_an_unseen_state_is_judged_by_its_task_and_explored() -> None:
    sampler = PosteriorSampler(SUITE, seed=0)
    for _ in range(10):
        sampler.observe([(task, 0, [1.0] * 8) for task in (REACH, FAR)] + [(NEAR, 0, [1.0, 0.0] * 4)])
    ranks: dict[str, list[int]] = {"NEAR, seen": [], "NEAR, unseen": [], "REACH, seen": [], "REACH, unseen": []}
    for update in range(200):
        sampler.begin(update, group_size=8)
        for rank, (task, state) in enumerate(next(sampler) for _ in range(12)):
            if task is not FAR:
                ranks[f"{task.name.upper()}, {'unseen' if state else 'seen'}"].append(rank)
    mean = {name: np.mean(values) for name, values in ranks.items()}
    assert mean["NEAR, seen"] < mean["REACH, unseen"] < mean["REACH, seen"]
    assert mean["NEAR, unseen"] < mean["REACH, unseen"]
    assert min(ranks["REACH, unseen"]) < 4, "even where the task is nearly solved, an unseen state is tried"


def test_each_state_comes_once_per_update_and_the_order_follows_from_seed_and_update() -> None:
    def order(seed: int, update: int) -> list:
        sampler = PosteriorSampler(SUITE, seed)
        sampler.begin(update, group_size=8)
        return [(task.name, state) for task, state in (next(sampler) for _ in range(12))]

    assert len(set(order(1, 1))) == 12
    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_it_resumes_from_plain_json() -> None:
    sampler, resumed = PosteriorSampler(SUITE, seed=3), PosteriorSampler(SUITE, seed=3)
    sampler.begin(1, 8)
    next(sampler)
    for _ in range(5):
        sampler.observe([(task, state, [1.0] * 8) for task in (NEAR, FAR) for state in range(4)])
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    for one in (sampler, resumed):
        one.begin(2, 8)
    assert [next(resumed) for _ in range(12)] == [next(sampler) for _ in range(12)]


def test_the_uniform_sampler_learns_nothing() -> None:
    told, untold = StateSampler(SUITE, seed=3), StateSampler(SUITE, seed=3)
    told.begin(1, 8)
    told.observe([(FAR, 2, [1.0, 0.0, 0.0, 1.0])])
    assert [next(told) for _ in range(24)] == [next(untold) for _ in range(24)]

"""Rollouts for the next update while this one trains: which weights sampled what, and that nothing is lost or waits for ever."""

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy, update_by
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.collect import collect_groups
from simplevla.rollout.scheduler import RolloutEngine, Sink, Source
from simplevla.rollout.states import make_sampler
from simplevla.suites.registry import make_suite
from simplevla.training import loop
from simplevla.training.learner import Learner, UpdateRefused
from simplevla.training.rollouts import Rollouts, RolloutsAhead
from simplevla.training.runlog import read_rows
from simplevla.types import Episode


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    FakePolicy().save(tmp_path / "start")
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make"),
        policy=str(tmp_path / "start"),
        updates=3,
        sampling=SamplingConfig(groups=4, group_size=4),
        optimizer=OptimizerConfig(lr=0.02),
        minibatches=2,
        rollout=RolloutConfig(workers=1, slots_per_worker=3),
        rollouts_ahead=True,
        eval_every=0,
    )


def test_each_update_is_sampled_by_the_policy_of_the_update_before(config: TrainConfig, tmp_path: Path) -> None:
    loop.train(config, tmp_path / "run")

    trained, acting = load_fake_policy(config.policy), load_fake_policy(config.policy)
    learner = Learner(trained, config)
    sampler = make_sampler(make_suite(config.suite), config.sampling, config.seed)
    gaps = []
    before = [start := {name: p.clone() for name, p in trained.state_dict().items()}, start]
    with RolloutEngine(config.suite, config.rollout, trained.chunk_length) as engine:
        for update in (1, 2, 3):
            acting.load_state_dict(before[-2])
            groups = collect_groups(engine, acting, sampler, config.sampling, config.seed, update).groups
            gaps.append(update_by(learner, groups, update)["logprob_gap"])
            before.append({name: p.clone() for name, p in trained.state_dict().items()})

    final = load_fake_policy(tmp_path / "run" / "policy").state_dict()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(final[name], value, atol=1e-6, rtol=0)
        assert not torch.equal(value, start[name])
    rows = read_rows(tmp_path / "run")
    assert [row["staleness"] for row in rows] == [0, 1, 1]
    assert [row["logprob_gap"] for row in rows] == pytest.approx(gaps, abs=1e-6)
    # The old policy's log-probabilities stay: the ratio is to what sampled.
    assert gaps[0] < 1e-6
    assert min(gaps[1:]) > 0.01
    assert [row["logprobs_recomputed"] for row in rows] == [0, 0, 0]


class Watched(RolloutEngine):
    """Says when a rollout begins."""

    begun: threading.Semaphore

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        self.begun.release()
        super().run(policy, sampling, source, sink, record)


def watched(begun: threading.Semaphore) -> loop.MakeEngine:
    def make(config: TrainConfig, policy: Policy) -> RolloutEngine:
        engine = Watched(config.suite, config.rollout, policy.chunk_length)
        engine.begun = begun
        return engine

    return make


def test_the_next_rollouts_begin_before_an_update_ends(config: TrainConfig, tmp_path: Path) -> None:
    begun = threading.Semaphore(0)

    class Waiting(Learner):
        def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
            assert begun.acquire(timeout=60), "the rollouts of this update"
            if update < self.config.updates:
                assert begun.acquire(timeout=60), "the rollouts of the next update"
                begun.release()
            return super().update(groups, advantages, update)

    outcome = loop.train(config, tmp_path / "run", make_engine=watched(begun), make_learner=Waiting)
    assert outcome.update == 3
    # And none for an update that never comes.
    assert not begun.acquire(blocking=False)


class Hopeless(RolloutEngine):
    """From the second rollout on siblings are all alike, so that no group has both outcomes and rollouts go on and on."""

    runs = 0

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        self.runs += 1
        super().run(policy, Sampling(greedy=True) if self.runs > 1 else sampling, source, sink, record)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("error", [UpdateRefused("the loss is nan"), KeyboardInterrupt()])
def test_an_error_ends_the_rollouts_that_run_ahead(config: TrainConfig, tmp_path: Path, error: BaseException) -> None:
    class Failing(Learner):
        def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
            raise error

    def hopeless(config: TrainConfig, policy: Policy) -> RolloutEngine:
        return Hopeless(config.suite, config.rollout, policy.chunk_length)

    threads = torch.get_num_threads()
    endless = replace(config, sampling=SamplingConfig(groups=4, group_size=4, max_oversampling=1e9))
    with pytest.raises(type(error)):
        loop.train(endless, tmp_path / "run", make_engine=hopeless, make_learner=Failing)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]
    assert torch.get_num_threads() == threads


@pytest.mark.timeout(120)
def test_an_error_of_the_rollouts_is_said_by_the_evaluation_that_waits_for_them(
    config: TrainConfig, tmp_path: Path
) -> None:
    class Broken(RolloutEngine):
        def run(self, *arguments: Any, **named: Any) -> None:
            self.close()
            raise UserError("the state has NaN")

    def broken(config: TrainConfig, policy: Policy) -> RolloutEngine:
        return Broken(config.suite, config.rollout, policy.chunk_length)

    with pytest.raises(UserError, match="the state has NaN"):
        loop.train(replace(config, eval_every=1), tmp_path / "run", make_engine=broken)


@pytest.mark.parametrize("ahead", [False, True])
def test_trained_episodes_are_let_go_before_the_next_ones_come(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    trained: list[weakref.ref[Episode]] = []
    alive: list[int] = []
    collect, update = Rollouts.collect, Learner.update

    def watched(self: Rollouts, number: int) -> Any:
        gc.collect()
        alive.append(sum(one() is not None for one in trained))
        return collect(self, number)

    def noted(self: Learner, groups: Sequence[Sequence[Episode]], *rest: Any) -> Any:
        trained.extend(weakref.ref(episode) for group in groups for episode in group)
        return update(self, groups, *rest)

    monkeypatch.setattr(Learner, "update", noted)
    monkeypatch.setattr(Rollouts, "collect", watched)
    if ahead:
        collect = RolloutsAhead.collect
        monkeypatch.setattr(RolloutsAhead, "collect", watched)
    loop.train(replace(config, rollouts_ahead=ahead), tmp_path / "run")
    assert alive == [0, 0, 0]
    assert len(trained) == 3 * 16


def test_no_signal_ahead_ends_the_run_when_its_turn_comes(config: TrainConfig, tmp_path: Path) -> None:
    sampled: list[Any] = []

    class Recording(Learner):
        def update(self, groups: Sequence[Sequence[Episode]], advantages: Tensor, update: int) -> dict[str, float]:
            sampled.append(groups)
            # Hopeless from here on: it never goes forward.
            with torch.no_grad():
                self.policy.linear.bias.view(4, 2, 5)[:, 0, 0] = 50.0  # type: ignore[union-attr]
            return {"optimizer_steps": 0.0}

    outcome = loop.train(replace(config, updates=5), tmp_path / "run", make_learner=Recording)
    # The rollouts of the second update had begun before.
    assert (outcome.reason, outcome.update, len(sampled)) == ("no_signal", 2, 2)


def test_rollouts_ahead_in_another_precision_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"rollouts_ahead with rollout\.bfloat16"):
        replace(config, rollout=RolloutConfig(bfloat16=True))

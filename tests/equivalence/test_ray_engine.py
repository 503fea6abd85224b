"""Rollouts on a Ray cluster against the local engine: the same episodes, the same update, nothing lost."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

import forty_episodes
from fake_suite import HORIZON
from sampled_episodes import update_by
from simplevla.adapters.load import load_policy
from simplevla.config import (
    DemosConfig,
    LearnersConfig,
    OptimizerConfig,
    RayConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.generate import generate
from simplevla.distributed import engine as rays_room
from simplevla.distributed.cluster import check_resources, connect
from simplevla.distributed.engine import RayEngine, _Replica
from simplevla.distributed.learner import RayImitator, RayLearner
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.collect import Collection, collect_groups
from simplevla.rollout.scheduler import Engine, RolloutEngine, RolloutStats
from simplevla.rollout.states import make_sampler
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft
from simplevla.training.learner import Learner
from simplevla.training.loop import train
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus
from small_tinyvla import for_fake_suite

TASKS = ("reach", "far")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=4, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "policy"
    for_fake_suite(TASKS).save(folder)
    return folder


@pytest.fixture(scope="module")
def shared(base: Path) -> Iterator[RayEngine]:
    """Two actors, which one test uses after another: an actor's start is longer than most tests."""
    with RayEngine(config(base, actors=2), load_policy(base)) as engine:
        yield engine


@pytest.fixture
def rays(shared: RayEngine) -> RayEngine:
    """Both actors, ready."""
    for replica in shared._replicas:
        if replica.starting is not None:
            shared._greet(replica)
    shared.reset_stats()
    return shared


@pytest.fixture
def lone(rays: RayEngine, monkeypatch: pytest.MonkeyPatch) -> RayEngine:
    """One of the two alone."""
    monkeypatch.setattr(rays, "_replicas", rays._replicas[:1])
    return rays


def config(base: Path, actors: int = 1, **changes: Any) -> TrainConfig:
    values = {
        "suite": SuiteConfig(name="fake_suite:make", tasks=TASKS),
        "policy": str(base),
        "updates": 2,
        "minibatches": 2,
        "sampling": SamplingConfig(groups=4, group_size=4, temperature=1.0),
        "optimizer": OptimizerConfig(lr=1e-4),
        "rollout": RolloutConfig(workers=1, slots_per_worker=4),
        "ray": RayConfig(actors=actors, answer_timeout_s=60),
        "eval_every": 1,
        "eval_episodes_per_task": 2,
    }
    return TrainConfig(**(values | changes))


def collected(engine: Engine, policy: Policy, settings: TrainConfig, update: int = 1) -> Collection:
    sampler = make_sampler(make_suite(settings.suite), settings.sampling, settings.seed)
    return collect_groups(engine, policy, sampler, settings.sampling, settings.seed, update)


def same_groups(got: Collection, expected: Collection) -> None:
    assert (got.sampled, got.mixed, got.success_by_task) == (expected.sampled, expected.mixed, expected.success_by_task)
    assert len(got.groups) == len(expected.groups) > 0
    for mine, theirs in zip(got.groups, expected.groups, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.request, a.status, a.env_steps) == (b.request, b.status, b.env_steps)
            for name in ("trace", "executed", "actions", "state"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert all((a.images[name] == b.images[name]).all() for name in b.images)
            # Other batches round the last bits otherwise.
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_two_actors_give_the_local_episodes_before_and_after_an_update(base: Path, rays: RayEngine) -> None:
    settings, policy = config(base, actors=2), load_policy(base)
    got = collected(rays, policy, settings)
    counted = rays.stats
    with RolloutEngine(settings.suite, settings.rollout, policy.chunk_length) as engine:
        expected = collected(engine, policy, settings)
        assert counted.env_steps == engine.stats.env_steps
        assert counted.episodes == 4 * got.sampled
        same_groups(got, expected)
        # What was trained reaches the actors.
        update_by(Learner(policy, settings), expected.groups, 1)
        again, then = (collected(either, policy, settings, update=2) for either in (rays, engine))
        same_groups(again, then)
    start, now = load_policy(base).state_dict(), policy.state_dict()
    for replica in rays._replicas:
        theirs = ray.get(replica.handle.__ray_call__.remote(lambda self: self._policy.state_dict()))
        assert all(torch.equal(theirs[name], value) for name, value in now.items())
    assert any(not torch.equal(start[name], value) for name, value in now.items())


@pytest.mark.parametrize("ahead", [False, True])
def test_a_whole_run_is_the_local_one(base: Path, lone: RayEngine, tmp_path: Path, ahead: bool) -> None:
    settings = config(base, rollouts_ahead=ahead, updates=3 if ahead else 2)
    train(replace(settings, ray=RayConfig()), tmp_path / "local")
    train(settings, tmp_path / "ray", make_engine=lambda config, policy: contextlib.nullcontext(lone))
    local, remote = (load_policy(tmp_path / name / "policy").state_dict() for name in ("local", "ray"))
    for name, value in local.items():
        # A bias of attention's keys changes nothing: its gradient is rounding noise, which AdamW scales up to the learning rate.
        # Elsewhere a gradient near 0 has some of that, so 1.05e-6 was seen.
        tolerance = settings.optimizer.lr * (1 if name.endswith("query_key_value.bias") else 0.1)
        torch.testing.assert_close(remote[name], value, atol=tolerance, rtol=0)


def test_learners_on_the_cluster_and_their_loss(base: Path, tmp_path: Path) -> None:
    settings = config(base, ray=RayConfig(learners=2), eval_every=0)
    train(replace(settings, ray=RayConfig()), tmp_path / "local")
    kept: list[RayLearner] = []

    def make_learner(policy: Policy, settings: TrainConfig) -> RayLearner:
        kept.append(RayLearner(policy, settings))
        return kept[-1]

    def lost_after_one_update(policy: Policy, settings: TrainConfig) -> RayLearner:
        learner = make_learner(policy, settings)
        update = learner.update

        def once(groups: Any, advantages: Any, number: int) -> dict[str, float]:
            if number == 2:
                ray.kill(learner._ranks[1])
            return update(groups, advantages, number)

        learner.update = once  # type: ignore[method-assign]
        return learner

    with pytest.raises(ValueError, match=r"a learner process was lost .* simplevla train --resume"):
        train(settings, tmp_path / "ray", make_learner=lost_after_one_update)
    kept.pop().close()
    train(settings, tmp_path / "ray", resume=True, make_learner=make_learner)
    local, remote = (load_policy(tmp_path / name / "policy").state_dict() for name in ("local", "ray"))
    for name, value in local.items():
        torch.testing.assert_close(remote[name], value, atol=1e-5, rtol=0)
    kept.pop().close()


def test_imitators_on_the_cluster(base: Path, tmp_path: Path) -> None:
    suite = SuiteConfig(name="fake_suite:make", tasks=TASKS)
    generate(DemosConfig(suite=suite, episodes=4, workers=1), tmp_path / "demos")
    settings = SFTConfig(dataset=str(tmp_path / "demos"), policy=str(base), suite=suite, batches=2, batch_size=5)
    settings = replace(settings, validation_fraction=0.25, optimizer=OptimizerConfig(lr=1e-4))
    sft(settings, tmp_path / "local")
    settings = replace(settings, ray=LearnersConfig(learners=2))
    kept: list[RayImitator] = []

    def make_trainer(policy: Policy, settings: SFTConfig) -> RayImitator:
        kept.append(RayImitator(policy, settings))
        return kept[-1]

    sft(settings, tmp_path / "ray", make_trainer=make_trainer)
    start = load_policy(base).state_dict()
    ends = [tmp_path / name / "checkpoints/update_000002" for name in ("local", "ray")]
    local, remote = (load_file(end / "policy/model.safetensors") for end in ends)
    step, apart = (
        torch.cat([(a[name] - b[name]).flatten() for name in local]) for a, b in ((local, start), (remote, local))
    )
    assert float(apart.norm() / step.norm()) < 1e-3
    assert float(step.abs().max()) > 1e-4
    moments, gathered = (load_file(end / "optimizer.safetensors") for end in ends)
    assert moments.keys() == gathered.keys()
    for name, value in moments.items():
        torch.testing.assert_close(gathered[name], value, atol=1e-5, rtol=1e-4)
    rows = [[json.loads(line) for line in (end.parents[1] / "metrics.jsonl").read_text().splitlines()] for end in ends]
    for mine, theirs in zip(*rows, strict=True):
        for name in mine.keys() - {"batches_per_s"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4)
    ray.kill(kept[0]._ranks[1])
    with pytest.raises(ValueError, match=r"a learner process was lost .* sft --resume"):
        kept[0].sync()
    kept[0].close()
    for learners, message in (
        (LearnersConfig(learners=9), r"and 9 learners need 9 CPUs, 0 GPUs; the cluster has 4 CPUs, 0 GPUs: 5 CPUs are"),
        (LearnersConfig(learners=2, learner_gpus=1), r"2 GPUs are missing"),
    ):
        with pytest.raises(ValueError, match=message):
            sft(replace(settings, ray=learners), tmp_path / "refused", make_trainer=RayImitator)
        assert not (tmp_path / "refused").exists()


def actor_process(engine: RayEngine, number: int) -> int:
    pid = engine._replicas[number].handle.__ray_call__.remote(lambda self: os.getpid())
    return int(ray.get(pid))


def test_a_killed_actors_episodes_are_run_again(base: Path, rays: RayEngine) -> None:
    settings, policy = config(base, actors=2), load_policy(base)

    def rolled_out(engine: Engine, at: Callable[[int], None] = lambda n: None) -> dict[int, Episode]:
        return forty_episodes.rolled_out(engine, policy, settings.suite, at)

    with RolloutEngine(settings.suite, settings.rollout, policy.chunk_length) as engine:
        expected = rolled_out(engine)
    pid = actor_process(rays, 1)
    got = rolled_out(rays, lambda n: os.kill(pid, signal.SIGKILL) if n == 5 else None)
    assert rays.stats.worker_restarts == 1
    assert rays.stats.retries > 0
    assert rays.stats.errors.counts["rollout actor lost"] >= 1
    assert "replaced" in rays.stats.errors.last_error
    assert actor_process(rays, 1) != pid
    # Lost while nobody rolls out.
    os.kill(actor_process(rays, 0), signal.SIGKILL)
    again = rolled_out(rays)
    assert rays.stats.worker_restarts == 2
    assert {n: e.env_steps for n, e in again.items()} == {n: e.env_steps for n, e in got.items()}
    assert {n: (e.status, e.env_steps) for n, e in got.items()} == {
        n: (e.status, e.env_steps) for n, e in expected.items()
    }
    assert all(e.status is not EpisodeStatus.ENV_ERROR and e.env_steps <= HORIZON for e in got.values())
    for number, episode in expected.items():
        np.testing.assert_array_equal(got[number].trace, episode.trace)


def test_actors_that_die_while_they_start_are_replaced_with_an_end(
    base: Path, lone: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, policy = config(base), load_policy(base)
    make, doomed = RayEngine._new_actor, [True, False]

    def actor(self: RayEngine) -> Any:
        handle = make(self)
        if doomed.pop(0):
            ray.kill(handle)
        return handle

    monkeypatch.setattr(RayEngine, "_new_actor", actor)
    pid = actor_process(lone, 0)
    found = forty_episodes.rolled_out(
        lone, policy, settings.suite, lambda n: os.kill(pid, signal.SIGKILL) if n == 5 else None
    )
    assert lone.stats.worker_restarts == 2
    assert "lost while starting" in lone.stats.errors.last_error
    assert len(found) == 40
    assert all(episode.status is not EpisodeStatus.ENV_ERROR for episode in found.values())
    monkeypatch.setattr(rays_room, "MAX_DEATHS", 2)
    doomed[:] = [True] * 4
    with pytest.raises(ValueError, match=r"3 rollout actors were lost .* the last one by: lost while starting"):
        RayEngine(settings, policy)


def test_what_broke_in_the_actors_is_added_up() -> None:
    engine = object.__new__(RayEngine)
    engine.stats = RolloutStats(retries=1)
    for kind, count in (("worker died (exit code 9)", 2), ("environment raised RuntimeError", 3)):
        replica = _Replica(handle=None, starting=None)
        replica.stats.retries = count
        replica.stats.errors.add("environment raised RuntimeError", "the gripper fell off")
        replica.stats.errors.add(kind, kind, count)
        engine._add_stats(replica)
        engine._add_stats(replica)
    assert engine.stats.retries == 1 + 2 + 3
    assert engine.stats.errors.counts == {"environment raised RuntimeError": 1 + 1 + 3, "worker died (exit code 9)": 2}


def test_an_actor_that_never_answers_is_replaced(base: Path, lone: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone, "_settings", RayConfig(actors=1, answer_timeout_s=5))
    policy = load_policy(base)
    task = make_suite(config(base).suite).tasks[0]
    # The actor takes all at once, so that nothing but its loss keeps the rollout going.
    queue = iter([EpisodeRequest(task=task, initial_state=n, seed=(3, n), group=n) for n in range(6)])
    found: list[Episode] = []
    pid = actor_process(lone, 0)

    def sink(episode: Episode) -> None:
        found.append(episode)
        if len(found) == 1:
            os.kill(pid, signal.SIGSTOP)

    try:
        lone.run(policy, Sampling(), lambda: next(queue, None), sink)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert lone.stats.worker_restarts == 1
    assert "no answer for 5 s" in lone.stats.errors.last_error
    assert sorted(episode.request.group for episode in found) == list(range(6))


def test_a_cluster_without_enough_is_refused_at_once(base: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"9 rollout actors, 0 simulators and 0 learners need 9 CPUs, 0 GPUs; the cluster has 4 CPUs, 0 GPUs: 5 CPUs are missing",
    ):
        RayEngine(config(base, actors=9), load_policy(base))
    # Each actor has its own simulators.
    with pytest.raises(
        ValueError, match=r"2 rollout actors, 6 simulators and 1 learners need 10 CPUs.*2 CPUs are missing"
    ):
        check_resources(RayConfig(actors=2, simulators=3, learners=1, learner_cpus=2), {"CPU": 8.0})
    with pytest.raises(ValueError, match="2 GPUs are missing"):
        check_resources(RayConfig(actors=2, gpus=1), {"CPU": 8.0})


@pytest.mark.parametrize(("address", "joined"), [("", "local"), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_without_an_address_a_cluster_of_another_program_is_not_joined(
    address: str, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    connect(RayConfig(address=address))
    assert asked == [joined]

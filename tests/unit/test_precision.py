"""Precision of a policy's products: whoever rolls out, learns or evaluates computes alike, and nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import adapted_tinyvla as adapted
import small_tinyvla as small
from fake_policy import FakePolicy
from sampled_episodes import update_by
from simplevla.adapters.routing import RoutedPolicy, TaskRouter
from simplevla.config import (
    DenoisingConfig,
    Head,
    OptimizerConfig,
    Precision,
    RayConfig,
    RolloutConfig,
    SamplingConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.distributed.actor import RolloutActor
from simplevla.distributed.files import packed
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, Policy, Sampling
from simplevla.policies.precision import require_bfloat16
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.suites.registry import make_suite
from simplevla.training.learner import Learner, pack
from simplevla.training.rollouts import RolloutsAhead
from simplevla.types import Episode, EpisodeRequest

OBSERVATIONS = small.observations([small.INSTRUCTIONS[i % 3] for i in range(4)])
CONFIG = TrainConfig(
    minibatches=1,
    # As many as `sampled_group` samples at a time.
    microbatch_decisions=2,
    sampling=SamplingConfig(temperature=1.6),
    optimizer=OptimizerConfig(lr=1e-4),
    precision="bfloat16",
)


SAME = 1e-4
"""Nats, the mean over units. Products of other batches are rounded elsewhere now and then, in 8 bits most visibly; a
diffusion head acts step by step and scores all steps in one batch."""


def gap(one: Tensor, other: Tensor) -> float:
    """Mean distance."""
    return float((one - other).abs().mean())


def acted(policy: Policy) -> ActionSample:
    return policy.act(OBSERVATIONS, Sampling(), adapted.generators(4))


def scored(policy: Policy, sample: ActionSample) -> Tensor:
    return policy.score(OBSERVATIONS, sample.trace, Sampling())[0].detach()


def imitated(policy: Policy) -> Tensor:
    torch.manual_seed(0)
    return policy.imitation_loss(OBSERVATIONS, torch.zeros(4, 3, 2), torch.ones(4, 3, dtype=torch.bool)).detach()


@pytest.mark.parametrize(
    ("head", "frozen"), [("tokens", False), ("diffusion", False), ("diffusion", True), ("flow", False), ("flow", True)]
)
def test_acting_scoring_and_imitation_compute_in_the_policy_s_precision(head: Head, frozen: bool) -> None:
    """With a frozen backbone the update reads the condition that the rollout stored."""
    policy = small.make(head=head)
    config = small.for_rl(DenoisingConfig(frozen_backbone=frozen)) if frozen else CONFIG
    policy.prepare_for_rl(replace(config, precision="float32"))
    exact, exact_loss = acted(policy), imitated(policy)
    assert gap(exact.logprobs, scored(policy, exact)) < 1e-5
    policy.prepare_for_rl(replace(config, precision="bfloat16"))
    seen: list[torch.dtype] = []
    layer = policy.head.linear if head == "tokens" else policy.head.unet.out
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    rounded = acted(policy)
    for compute in (lambda: scored(policy, rounded), lambda: imitated(policy)):
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        compute()
    assert set(seen) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    # Equal numbers, and none of 8 bits.
    assert rounded.logprobs.dtype == torch.float32
    assert gap(rounded.logprobs, scored(policy, rounded)) < SAME
    assert not torch.equal(rounded.logprobs, rounded.logprobs.bfloat16().float())
    # The other precision's are near, and others.
    policy.compute_in("float32")
    assert 3 * SAME < gap(scored(policy, rounded), rounded.logprobs) < 0.1
    assert gap(acted(policy).logprobs, exact.logprobs) < 1e-5
    assert gap(imitated(policy), exact_loss) < 1e-5


@pytest.mark.parametrize(("head", "checkpointing"), [("tokens", True), ("diffusion", False), ("flow", False)])
def test_the_ratio_is_one_before_the_first_step(head: Head, checkpointing: bool) -> None:
    """A planted fault, one of both in float32, shows in it."""

    def first(rollout: Precision, update: Precision) -> dict[str, float]:
        policy = small.make(head=head)
        policy.compute_in(rollout)
        group = adapted.sampled_group(policy)
        config = replace(CONFIG, precision=update, gradient_checkpointing=checkpointing)
        return update_by(Learner(policy, config), [group], 1)

    for precision in ("float32", "bfloat16"):
        stats = first(precision, precision)
        assert stats["logprobs_recomputed"] == 0
        assert stats["logprob_gap"] < SAME
        assert abs(stats["approx_kl"]) < SAME
        assert 0.98 < stats["ratio_min"] <= stats["ratio_max"] < 1.02
        assert stats["grad_norm"] > 0
    for mixed in (first("bfloat16", "float32"), first("float32", "bfloat16")):
        assert mixed["logprob_gap"] > 3 * SAME


def test_what_is_learned_stays_float32_and_differs_by_the_precision_alone() -> None:
    def learned(precision: Precision) -> dict[str, Tensor]:
        policy = small.make()
        policy.compute_in(precision)
        learner = Learner(policy, replace(CONFIG, precision=precision))
        update_by(learner, [adapted.sampled_group(policy)], 1)
        assert {value.dtype for value in learner.optimizer_state().values()} == {torch.float32}
        return {name: p.detach() for name, p in policy.named_parameters()}

    start = dict(small.make().named_parameters())
    rounded, exact = learned("bfloat16"), learned("float32")
    steps = [torch.cat([(end[name] - start[name].detach()).flatten() for name in start]) for end in (rounded, exact)]
    # AdamW's first step is of lr per number, whatever the gradient's size: rounding turns the smallest ones.
    assert 0 < float((steps[0] - steps[1]).abs().mean() / steps[1].abs().mean()) < 0.3
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    # Steps of 1e-4 on weights of 0.02 to 1 are there in full: in bfloat16 they would be rounded to 2**-8 of the weight.
    assert float(steps[0].abs().median()) == pytest.approx(1e-4, rel=0.02)


def test_each_row_s_adapter_computes_in_the_precision_of_its_policy_or_of_the_router() -> None:
    def logprobs(routed: Policy, inner: Policy, precisions: Sequence[Precision]) -> Tensor:
        for policy, precision in zip((routed, inner), precisions, strict=True):
            policy.compute_in(precision)
        return acted(routed).logprobs

    bank = adapted.make_bank()
    router = TaskRouter(dict(zip(small.INSTRUCTIONS, ["lora", "bottleneck", None], strict=True)))
    routed = RoutedPolicy(bank, router)
    exact = logprobs(routed, bank.policy, ("float32", "float32"))
    routed.prepare_for_rl(CONFIG)
    rounded = acted(routed).logprobs
    assert gap(exact, rounded) > 3 * SAME
    for precisions in (("bfloat16", "float32"), ("float32", "bfloat16")):
        assert gap(logprobs(routed, bank.policy, precisions), rounded) < SAME


def test_a_replica_on_a_cluster_computes_as_the_learner_does() -> None:
    policy = small.for_fake_suite(("reach", "near"))
    suite = SuiteConfig(name="fake_suite:make", tasks=("reach", "near"))
    config = replace(CONFIG, suite=suite, rollout=RolloutConfig(workers=1, slots_per_worker=1))
    actor: Any = RolloutActor(config, RayConfig(), packed(policy), "cpu")
    episodes: list[Episode] = []
    try:
        task = make_suite(suite).task("reach")
        queue = iter(EpisodeRequest(task=task, initial_state=0, seed=(number,)) for number in range(2))
        actor._engine.run(actor._policy, Sampling(), lambda: next(queue, None), episodes.append)
    finally:
        actor._engine.close()
    policy.prepare_for_rl(config)
    packed_episodes = pack(episodes, [0.0] * len(episodes), policy.unit_action_index, "unit")
    assert len(packed_episodes) > 2
    for one in packed_episodes.split(1):
        own = policy.score(one.observations(), one.trace(), Sampling())[0]
        assert gap(own, one.old_logprobs) < SAME


def test_a_replica_on_a_cluster_is_compiled_where_rollouts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(TinyVLA, "compile_towers", lambda policy: compiled.append(policy))
    # By the class's own module: other tests import it anew.
    monkeypatch.setitem(RolloutActor.__init__.__globals__, "RolloutEngine", lambda *_: None)
    for compile_it in (False, True):
        config = replace(CONFIG, rollout=RolloutConfig(compile=compile_it))
        actor = RolloutActor(config, RayConfig(), packed(small.for_fake_suite(("reach",))), "cpu")
        assert compiled == [actor._policy] * compile_it


def test_a_policy_of_bfloat16_weights_computes_as_before() -> None:
    """Autocast would compute some of its float32 parts, such as an adapter's, in bfloat16."""

    class Watched(FakePolicy):
        def imitation_loss(self, *_: Any) -> Tensor:
            return torch.tensor(float(torch.is_autocast_enabled("cpu")))

    policy = Watched()
    policy.compute_in("bfloat16")
    assert policy.imitation_loss() == 1
    policy.bfloat16()
    assert policy.imitation_loss() == 0


def test_a_run_s_precision_is_refused_where_the_device_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type\nsee above")

    policy = small.make()
    monkeypatch.setattr(torch, "autocast", none)
    with pytest.raises(UserError, match=r"which cpu doesn't compute in \(User specified .* device_type\); leave it"):
        Learner(policy, CONFIG)
    assert policy.precision == "float32"
    Learner(policy, replace(CONFIG, precision="float32"))
    with pytest.raises(UserError, match="precision is bfloat16, which cpu doesn't"):
        require_bfloat16(torch.device("cpu"))


def test_precision_is_no_part_of_a_saved_policy(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = [tmp_path_factory.mktemp(precision) / "policy" for precision in ("float32", "bfloat16")]
    for folder, precision in zip(folders, ("float32", "bfloat16"), strict=True):
        policy = small.make()
        policy.compute_in(precision)  # type: ignore[arg-type]
        folder.mkdir()
        policy.save(folder)
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    assert TinyVLA.load(folders[1]).precision == "float32"


@pytest.mark.parametrize("ahead", [True, False])
def test_a_thread_that_empties_autocast_s_cache_changes_no_gradient(ahead: bool) -> None:
    """With rollouts ahead another thread does so at the end of each of its batches."""
    policy = small.make(head="flow")
    policy.prepare_for_rl(replace(CONFIG, denoising=DenoisingConfig(flow="noise")))
    if ahead:
        engine, sampler = cast(Any, SimpleNamespace()), cast(Any, SimpleNamespace(state_dict=dict))
        with RolloutsAhead(engine, policy, sampler, CONFIG, 1, {}):
            pass
    policy.compute_in("bfloat16")
    sample = acted(policy)

    def gradient(empties: bool) -> Tensor:
        policy.zero_grad()
        handle = policy.head.unet.register_forward_hook(lambda *_: torch.clear_autocast_cache() if empties else None)
        policy.score(OBSERVATIONS, sample.trace, Sampling())[0].sum().backward()
        handle.remove()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    assert torch.equal(gradient(True), gradient(False)) == ahead
